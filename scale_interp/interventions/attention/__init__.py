"""The attention of the last token's rows: packed behind a shared prompt, or with its logits rewritten."""
