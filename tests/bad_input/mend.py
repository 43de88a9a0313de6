"""What a mend is: an instruction, at the beginning of a clause, that says what to do instead."""

from __future__ import annotations

import re

VERBS = (
    *("add", "ask", "attach", "build", "call", "change", "check", "choose", "close", "convert", "copy", "correct", "cut", "delete"),
    *(
        "download",
        "end",
        "fetch",
        "fit",
        "free",
        "give",
        "install",
        "keep",
        "lay",
        "leave",
        "load",
        "make",
        "measure",
        "move",
        "name",
        "open",
    ),
    *("pass", "pick", "put", "raise", "read", "rebuild", "remove", "rename", "replace", "return", "run", "save", "say", "scale"),
    *("set", "show", "split", "start", "tag", "take", "train", "unpack", "use", "wait", "word", "write"),
)
_INSTRUCTION = re.compile(
    rf"[;:?] (?:(?:where|if) [^;:,]+, )?(?:{'|'.join(VERBS)})\b(?! (?:is|has|have|holds|of|are)\b)(?![,:=(\[])|did you mean '",
    re.IGNORECASE,
)
"""A verb that a noun of a list could be ("keep", "scale" and "remove" are names of tensors) counts in the place of a verb only."""


def instruction(message: str) -> str | None:
    """The instruction of a message, or None where it only says what is wrong."""
    found = _INSTRUCTION.search(message)
    return found and found[0]
