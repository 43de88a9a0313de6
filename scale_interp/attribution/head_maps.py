"""Head maps by several methods, for which each prompt is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, get_args

from ..core.arguments import Seed, checked
from ..core.suggest import near
from ..data.contrast import Contrast
from ..data.items import require
from ..data.question import Question
from ..errors import EditError
from ..interventions.engine import Path, require_packed
from ..interventions.prefix import PrefixStore
from ..vlm.vlm import VLM
from .ablation import ablate, amplify
from .gradient import attribute, attribution_patching
from .headmap import HeadMap
from .patching import patching

Method = Literal["patch", "attribution_patching", "zero", "mean", "resample", "amplify", "gradient"]
OF_PAIRS: tuple[Method, ...] = ("patch", "attribution_patching")
OF_QUESTIONS: tuple[Method, ...] = tuple(name for name in get_args(Method) if name not in OF_PAIRS)


@checked
def head_maps(
    vlm: VLM,
    questions: Sequence[Question],
    pairs: Sequence[Contrast] | None = None,
    methods: Sequence[Method] | None = None,
    *,
    seed: Seed = 0,
    path: Path = "auto",
) -> dict[str, HeadMap]:
    """Locate heads by several methods, reading each prompt once; the maps equal those of the methods one by one.

    Args:
        vlm: the model, from `si.load`.
        questions: Q questions.
        pairs: pairs from `si.contrasts` of these questions, for "patch" and "attribution_patching".
        methods: "patch", "attribution_patching", "zero", "mean", "resample" (ablation), "amplify" (twofold) and "gradient"; by default all
            that apply.
        seed: for "resample".
        path: "packed" reads each prompt once and runs the edits on its last token, "reference" runs whole forward passes, "auto" chooses.

    Returns:
        Method -> HeadMap.

    Raises:
        EditError: for an unknown method, one of pairs without pairs, and one that needs gradients on the reference path.

    >>> import scale_interp as si
    >>> vlm, qs = si.load("demo"), si.load_questions("scenes/relation", n=4)
    >>> sorted(si.head_maps(vlm, qs, si.contrasts(qs), ["patch", "zero"]))
    ['patch', 'zero']
    """
    locator = Locator(vlm, questions, pairs, seed=seed, path=path)
    if methods is None:
        methods = OF_QUESTIONS if pairs is None else get_args(Method)
    for name in methods:
        locator.require(name)
    return {name: locator.map(name) for name in methods}


class Locator:
    """Head maps of the same questions, one at a time when asked for; what one has read of the prompts serves the others.

    Args:
        vlm: the model.
        questions: Q questions.
        pairs: contrasts, or None.
        seed: for resample ablation.
        path: as in `run_edits`.
    """

    def __init__(
        self, vlm: VLM, questions: Sequence[Question], pairs: Sequence[Contrast] | None = None, *, seed: int = 0, path: Path = "auto"
    ):
        self.vlm, self.questions, self.seed, self.path = vlm, require(questions), seed, path
        self.pairs = None if pairs is None else require(pairs, Contrast)

    def require(self, method: str) -> None:
        """Raise EditError for a method that is unknown, or needs pairs where there are none."""
        if method not in get_args(Method):
            raise EditError(f"method {method!r}: choose from {', '.join(get_args(Method))}{near(str(method), get_args(Method))}")
        if method in OF_PAIRS and self.pairs is None:
            raise EditError(f"method {method!r} compares pairs: give pairs=si.contrasts(questions)")

    def map(self, method: str) -> HeadMap:
        """The head map by one method."""
        self.require(method)
        vlm, questions, path, shared = self.vlm, self.questions, self.path, self.prompts
        makers: dict[str, Callable[[], HeadMap]] = {
            "patch": self._patch,
            "attribution_patching": self._attribution_patching,
            "zero": lambda: ablate(vlm, questions, "zero", path=path, prompts=shared),
            "mean": lambda: ablate(vlm, questions, "mean", path=path, prompts=shared),
            "resample": lambda: ablate(vlm, questions, "resample", seed=self.seed, path=path, prompts=shared),
            "amplify": lambda: amplify(vlm, questions, path=path, prompts=shared),
            "gradient": lambda: attribute(vlm, questions, path=path, prompts=shared),
        }
        return makers[method]()

    @cached_property
    def prompts(self) -> PrefixStore:
        """The prompts of the questions."""
        return PrefixStore(self.vlm, self.questions)

    @cached_property
    def _sides(self) -> tuple[PrefixStore, PrefixStore]:
        """The prompts of clean and corrupt questions; the clean ones are usually among the questions."""
        assert self.pairs is not None
        asked, clean = {id(q) for q in self.questions}, [pair.clean for pair in self.pairs]
        at_clean = self.prompts if all(id(q) in asked for q in clean) else PrefixStore(self.vlm, clean)
        return at_clean, PrefixStore(self.vlm, [pair.corrupt for pair in self.pairs])

    def _patch(self) -> HeadMap:
        assert self.pairs is not None
        return patching(self.vlm, self.pairs, *self._sides, self.path)

    def _attribution_patching(self) -> HeadMap:
        assert self.pairs is not None
        require_packed(self.vlm, [pair.corrupt for pair in self.pairs], self.path, "attribute")
        return attribution_patching(self.vlm, self.pairs, *self._sides)
