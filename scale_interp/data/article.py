"""The indefinite article."""

from __future__ import annotations

import re

VOWEL_SOUND = re.compile(r"(?!uni(?!m|n)|us[ei]|u[rt][aei]|eu|ewe|one\b|once)[aeiou]|hour|honest|heir|honou?r", re.IGNORECASE)


def with_article(name: str) -> str:
    """The name after "a" or "an", as it is spoken.

    >>> [with_article(name) for name in ("dog", "umbrella", "uniform", "hourglass", "one-way sign")]
    ['a dog', 'an umbrella', 'a uniform', 'an hourglass', 'a one-way sign']
    """
    return f"{'an' if VOWEL_SOUND.match(name) else 'a'} {name}"
