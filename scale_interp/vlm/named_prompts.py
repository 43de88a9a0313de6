"""Prompts that have a name: those of papers' code, and the model's own chat template."""

from __future__ import annotations

import re

from ..errors import ModelError

PROMPTS: dict[str, str | None] = {
    "chat": None,
    "bare": "{images}\n{text}",
    "scale-llava": "{images}\nQuestion: {text} Answer: ",
    "scale-qwen": None,
}
"""Name -> template, or None for the model's chat template around the question's bare text.

"bare" has no chat template: the images as the model marks them, and the question's words.

ScAle's release (arXiv 2606.29579) asks LLaVA without a chat template, with a space at the end, and Qwen2.5-VL within its template.
"""

PLACES = ("images", "text")
"""What a template has places for."""


def prompt_template(prompt: str | None) -> str | None:
    """The template of a named prompt, or the given template; None for the chat template.

    Args:
        prompt: one of PROMPTS, a template with {text}, or None.

    Raises:
        ModelError: The prompt is neither a known name nor a template with {text}, or it would show what no template means to.

    >>> prompt_template("scale-llava")
    '{images}\\nQuestion: {text} Answer: '
    """
    if prompt is None or prompt in PROMPTS:
        return None if prompt is None else PROMPTS[prompt]
    if "{text}" not in prompt:
        raise ModelError(f"prompt {prompt!r} would never show the question: give one of {', '.join(PROMPTS)}, or a template with {{text}}")
    if unknown := [name for name in re.findall(r"{(\w+)}", prompt) if name not in PLACES]:
        raise ModelError(f"prompt {prompt!r} would show {{{unknown[0]}}} as it stands: its places are {{images}} and {{text}}")
    if "\\n" in prompt:
        raise ModelError(f"prompt {prompt!r} holds a backslash and an n in place of a new line: in a shell, write it as $'...\\n...'")
    return prompt
