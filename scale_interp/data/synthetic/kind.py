"""What a kind of generated scene is made of: layouts to draw and to put into words, and what is asked about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from ..prompts import digest
from ..question import Box
from ..scenes.scene import SPLITS
from ..scenes.task import Asked

SIDE = 336
"""Width and height of every image in pixels: square, so that a processor which crops to the middle loses nothing."""


class Layout(ABC):
    """One generated scene: the same content can be drawn and put into words."""

    renders_its_content: ClassVar[bool] = True
    """Equal layouts are equal images, so that they are told apart without being drawn."""
    caption: ClassVar[str]
    """What an image of this kind shows, and how to read it."""

    @property
    @abstractmethod
    def content(self) -> str:
        """All that makes this layout what it is, in a fixed order."""

    @property
    def kin(self) -> str:
        """What layouts of different splits never share; the content itself unless a kind says more."""
        return self.content

    @abstractmethod
    def words(self) -> str:
        """The layout as text, from which the answer of every question follows."""

    @abstractmethod
    def render(self) -> Image.Image:
        """The layout as an RGB image of SIDE x SIDE pixels."""

    @property
    @abstractmethod
    def boxes(self) -> dict[str, Box]:
        """Where the named parts are in the image."""

    @cached_property
    def key(self) -> str:
        return f"{digest(self.content):016x}"

    @cached_property
    def split(self) -> str:
        """The split that this layout can ever be in."""
        bucket = digest(self.kin) % 10
        return next(name for name, buckets in SPLITS.items() if bucket in buckets)


@dataclass(frozen=True)
class QuestionType:
    """One type of question, and the words that its right answers (or the relations that it asks for) take in equal shares."""

    ask: Callable[[Any, np.random.Generator], Asked | None]
    words: tuple[str, ...]
    by: Literal["answer", "relation"] = "answer"

    def balanced(self, asked: Asked) -> str | None:
        return asked.answer if self.by == "answer" else asked.relation


@dataclass(frozen=True)
class Kind:
    """A kind of scene: how to draw one at random, and its types of questions by name."""

    draw: Callable[[np.random.Generator], Layout]
    types: Mapping[str, QuestionType]


def numbers(low: int, high: int) -> tuple[str, ...]:
    return tuple(str(n) for n in range(low, high + 1))


def number_choices(answer: int, words: tuple[str, ...]) -> tuple[str, ...] | None:
    """The block of four numbers that the answer is in, or None where it is none of the words.

    Blocks are fixed, and answers are balanced over all of them: neither size nor middle place tells the right one.
    """
    place = answer - int(words[0])
    if not 0 <= place < len(words):
        return None
    return words[place // 4 * 4 : place // 4 * 4 + 4]


def pick(items: list[Any] | tuple[Any, ...], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]
