"""The known circuits: which heads can carry the picture to the answer, and what every other head of the last token may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core.suggest import near
from ...data.scenes.task import POSITIONS
from ...errors import ModelError

TASK = "position"
Head = tuple[int, int]
Kind = Literal["listed", "decoy", "word", "parked"]


@dataclass(frozen=True)
class Circuit:
    """A model's size and its circuit; it is asked where a thing is in the picture (scenes/position).

    owners: each listed head with the answer words whose logits it alone can move. decoys: heads that see what listed heads see and
    are trained to hold the answer, in a space that no answer is read from. word_heads: heads that see the question's words. All other
    heads are parked: at the last token they see the first token and nothing else. relay: the last token sees no picture; listed
    heads read the token before it, which sees all. silenced: the chance at which training silences each other head at
    the last token, so that listed heads do not rely on it. steps: of training; questions: in a step.

    >>> CIRCUITS["three-heads"].heads, CIRCUITS["three-heads"].relay
    (((2, 1), (3, 4), (3, 6)), False)
    """

    name: str
    n_layers: int
    n_heads: int
    owners: Mapping[Head, tuple[str, ...]]
    decoys: tuple[Head, ...]
    word_heads: tuple[Head, ...]
    relay: bool
    silenced: float
    steps: int
    questions: int

    @property
    def heads(self) -> tuple[Head, ...]:
        """The listed heads, by layer."""
        return tuple(sorted(self.owners))

    def kind(self, head: Head) -> Kind:
        """What a head may do at the last token.

        >>> CIRCUITS["one-head"].kind((1, 2))
        'listed'
        """
        if head in self.owners:
            return "listed"
        if head in self.decoys:
            return "decoy"
        return "word" if head in self.word_heads else "parked"


CIRCUITS = {
    c.name: c
    for c in (
        Circuit(
            name="one-head",
            n_layers=2,
            n_heads=4,
            owners={(1, 2): POSITIONS},
            decoys=((1, 0),),
            word_heads=((1, 1),),
            relay=False,
            silenced=0.0,
            steps=1500,
            questions=128,
        ),
        Circuit(
            name="three-heads",
            n_layers=4,
            n_heads=8,
            owners={(2, 1): POSITIONS[:2], (3, 6): POSITIONS[2:3], (3, 4): POSITIONS[3:]},
            decoys=((3, 0), (3, 3)),
            word_heads=((3, 2), (3, 7)),
            relay=False,
            silenced=0.3,
            steps=900,
            questions=96,
        ),
        Circuit(
            name="relay",
            n_layers=6,
            n_heads=8,
            owners={(4, 5): POSITIONS[:2], (5, 2): POSITIONS[2:]},
            decoys=((5, 6),),
            word_heads=((5, 0), (5, 7)),
            relay=True,
            silenced=0.3,
            steps=900,
            questions=96,
        ),
    )
}
"""Three sizes and depths. Decoys and word heads lie no lower than the last listed head, so that no listed head reads what they wrote."""


PREFIX = "testbed/"
NAMES = tuple(CIRCUITS)


def circuit(name: str) -> Circuit:
    """The circuit of a known-circuit model, by its name with or without "testbed/".

    >>> circuit("testbed/three-heads").heads
    ((2, 1), (3, 4), (3, 6))
    """
    short = name.removeprefix(PREFIX)
    if short not in CIRCUITS:
        raise ModelError(f"no known-circuit model {name!r}: choose from {', '.join(PREFIX + n for n in NAMES)}{near(short, NAMES)}")
    return CIRCUITS[short]


def folder(name: str) -> Path:
    """Where the weights, tokenizer, processor and card of a known-circuit model lie.

    >>> (folder("testbed/one-head") / "config.json").is_file()
    True
    """
    return Path(__file__).parent / "weights" / circuit(name).name
