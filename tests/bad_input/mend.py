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


WITHOUT = (
    r"head \(.*\) is out of range: the model has .* counted from 0$",
    r"has shape .*, but the model needs \[N, 6, 8(, 16)?\]$",
    r"has shape .*: expected \[N, .*\]$",
    r"(missing a required argument|got an unexpected keyword argument).*\. It takes ",
    r"attribute needs gradients, which only the packed path has",
    r"a live model needs its processor: load\(model, processor\)$",
)
"""Messages that do not say what to do yet. It may only become shorter: write the instruction, then delete the line."""


def excused(message: str) -> str | None:
    """The line of WITHOUT that a message matches."""
    return next((line for line in WITHOUT if re.search(line, message, re.DOTALL)), None)
