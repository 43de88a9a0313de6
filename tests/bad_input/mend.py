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
    r"head \(.*\) is no \(layer, head\) pair$",
    r"not a JSON object; each record has named fields$",
    r"; it must hold (text|text or a number|a list of texts|an object|\{name: \[left, top, right, bottom\]\})$",
    r"; it must hold a list of at least one subquestion$",
    r"; it must be (a number or a text|'yes' or 'no'|0 or 1|0 \(false\) or 1 \(true\)|a path, a list of paths, or null)$",
    r"; it must be (\[left, top, right, bottom\] in pixels, none negative|a whole number of pixels|task.form.scene.question)$",
    r"; it must stay inside$",
    r"; (both must be texts|ids must differ|each must be there once|width and height must be above 0)$",
    r"; its numbers must be finite, left below right and top below bottom$",
    r"=\S+: must be above 0$",
    r"scalars must be a tensor \[.*\] of finite numbers: 1 changes nothing$",
    r"a baseline takes epochs, batch_size, validation, patience and scope$",
    r" is missing beside .*; the set is four files, line by line$",
    r"^unknown split .*: (scenes have the splits|.* has test \(its authors publish no other\))",
    r"; this set fills \{question\}, \{options\}$",
    r"; every choice needs a word$",
    r"its steps are no pairs of question and function",
    r"a paired difference needs the same ones$",
    r"no question has a value for ",
    r": a probe needs at least two$",
    r"^unknown data set '.*: known are ",
)
"""Messages that do not say what to do yet. It may only become shorter: write the instruction, then delete the line."""


def excused(message: str) -> str | None:
    """The line of WITHOUT that a message matches."""
    return next((line for line in WITHOUT if re.search(line, message, re.DOTALL)), None)
