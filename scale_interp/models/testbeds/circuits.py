"""The known circuits: which heads can carry image information to the answer, and what all other heads of the last token see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The size of a model and its circuit. The model's task is where an object is in the image (scenes/position).

    Attributes:
        name: Without "testbed/".
        n_layers: Layers of the decoder.
        n_heads: Heads per layer.
        owners: Each listed head, with the answer words whose logits only this head can change.
        decoys: Heads that see what listed heads see and are trained to encode the answer, in channels that no answer is read from.
        word_heads: Heads that see the question's words. All other heads are parked: at the last token they see only the first token.
        relay: Whether the last token does not see the image; listed heads then read the token before it, which sees everything.
        silenced: The probability with which training silences each other head at the last token, so that listed heads do not rely on
            it.
        steps: Of training.
        questions: Per step.

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
        """What kind of head this is at the last token: "listed", "decoy", "word" or "parked".

        >>> CIRCUITS["one-head"].kind((1, 2))
        'listed'
        """
        if head in self.owners:
            return "listed"
        if head in self.decoys:
            return "decoy"
        return "word" if head in self.word_heads else "parked"

    def fed(self, words: Sequence[str]) -> dict[tuple[int, str], bool]:
        """Where the residual stream holds, before each layer, what the listed heads of these answer words will read or have read.

        Args:
            words: Answer words whose listed heads are all in one layer, such as left and right.

        Returns:
            (layer, token group) -> whether what stands there decides between the words, by construction. How an image passes to the relay
            is learned, so the layers in between are missing.

        >>> CIRCUITS["three-heads"].fed(("left", "right"))[3, "image"]
        False
        """
        (reads,) = {layer for (layer, _), own in self.owners.items() if not set(own).isdisjoint(words)}
        found = {}
        for layer in range(self.n_layers):
            found[layer, "question"] = False  # the words stand before the image
            found[layer, "last"] = layer > reads
            if not self.relay:
                found[layer, "image"] = layer <= reads
            elif not 0 < layer < reads:
                found[layer, "image"], found[layer, "relay"] = layer == 0, layer == reads
        return found


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
"""Three sizes and depths. No decoy or word head is below the last listed head, so no listed head reads what they write."""


PREFIX = "testbed/"
NAMES = tuple(CIRCUITS)


def circuit(name: str) -> Circuit:
    """The circuit of a known-circuit model.

    Args:
        name: The model's name, with or without "testbed/".

    Returns:
        The circuit.

    Raises:
        ModelError: There is no such model.

    >>> circuit("testbed/three-heads").heads
    ((2, 1), (3, 4), (3, 6))
    """
    short = name.removeprefix(PREFIX)
    if short not in CIRCUITS:
        raise ModelError(f"no known-circuit model {name!r}: choose from {', '.join(PREFIX + n for n in NAMES)}{near(short, NAMES)}")
    return CIRCUITS[short]


def folder(name: str) -> Path:
    """The folder of a known-circuit model's weights, tokenizer, processor and card.

    Args:
        name: The model's name, with or without "testbed/".

    Returns:
        The folder.

    Raises:
        ModelError: There is no such model.

    >>> (folder("testbed/one-head") / "config.json").is_file()
    True
    """
    return Path(__file__).parent / "weights" / circuit(name).name
