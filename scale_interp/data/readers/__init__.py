"""The public sets in their official formats, and any JSON lines."""
