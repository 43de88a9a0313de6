"""Head sets located on training questions alone: by effect, by attention, by function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ...attribution.ablation import ablate
from ...attribution.attention.localization import localization_heads
from ...attribution.attention.objects import object_attention
from ...attribution.elbow_rule import elbow
from ...attribution.functional import functional_heads
from ...attribution.gradient import attribute
from ...attribution.head_probe import probe
from ...attribution.patching import patch
from ...data.contrast import contrasts
from ...data.decomposed import TAXONOMY, cog_questions
from ...data.items import require_disjoint
from ...data.question import Question
from ...data.readers.cogvsr import subquestions
from ...errors import DataError, EditError, ModelError
from ...interventions.edit import Head
from ...vlm.vlm import VLM
from .head_sets import HeadSets

ASKED = 120
"""Heads are located on this many training questions, the first ones."""
CHAINS = 100
"""Functional heads are located on this many decomposed training questions, where the data are scenes."""
WITHOUT_CONTEXT = {kind: function for kind, function in TAXONOMY.items() if kind != "inverse"}
"""Without its context an "inverse" step has the form of a "relation" step, and no probe can tell the two apart."""
CANNOT = (DataError, EditError, ModelError)
"""What a method raises where it does not apply to this model or data."""
FUNCTIONAL, LATENT = "functional", "latent"
Found = Mapping[str, tuple[Sequence[Head], str]]


def locate(
    vlm: VLM, train: Sequence[Question], unseen: Sequence[Question], top: int = 8, seed: int = 0, functional: bool = True
) -> dict[str, Callable[[], HeadSets]]:
    """How to locate each head set.

    Args:
        vlm: the model, from `si.load`.
        train: the only questions that are looked at.
        unseen: questions on which nothing may be chosen.
        top: the size of a set whose method only ranks heads.
        functional: also functional heads, those above the elbow, and latent heads, as many just below it.
        seed: for decomposed scenes and probes.

    Returns:
        Name -> a function that returns the set (or two); a set that cannot be found is in its `left_out` with the reason.
    """
    asked = train[:ASKED]
    on = f"of {len(asked)} training questions"
    makers: dict[str, Callable[[], Found]] = {
        "patching": lambda: {"patching": (patch(vlm, contrasts(asked, vlm=vlm)).top(top), f"the top {top} by recovered fraction, {on}")},
        "zero ablation": lambda: {"zero ablation": (ablate(vlm, asked).top(top), f"the top {top} by lost logit difference, {on}")},
        "gradient": lambda: {"gradient": (attribute(vlm, asked).top(top), f"the top {top} by the gradient in the head's scale, {on}")},
        FUNCTIONAL: lambda: _functional(vlm, train, unseen, seed),
        "localization": lambda: {"localization": (localization_heads(vlm, asked, top).heads, f"the {top} least scattered {on}")},
        "box attention": lambda: {
            "box attention": (object_attention(vlm, asked).box.top(top), f"the top {top} by attention on the asked box, {on}")
        },
    }
    if not functional:
        del makers[FUNCTIONAL]
    return {name: partial(_made, vlm, name, make) for name, make in makers.items()}


def _made(vlm: VLM, name: str, make: Callable[[], Found]) -> HeadSets:
    try:
        found = make()
    except CANNOT as error:
        return HeadSets(vlm.n_layers, vlm.n_heads, {}, left_out={name: str(error)})
    sets = {key: tuple(heads) for key, (heads, _) in found.items()}
    return HeadSets(vlm.n_layers, vlm.n_heads, sets, {key: about for key, (_, about) in found.items()})


def function_of(questions: Sequence[Question]) -> str | None:
    """The cognitive function that all of these scene questions ask for (`TAXONOMY`); None for other data, or several functions."""
    functions = {TAXONOMY.get(q.task) if "scene" in q.meta else None for q in questions}
    return functions.pop() if len(functions) == 1 else None


def _functional(vlm: VLM, train: Sequence[Question], unseen: Sequence[Question], seed: int) -> Found:
    """For scenes, the joint probe's heads for the questions' own function, on decomposed scenes of the train split.

    Other data have no tagged steps: their heads are ranked by how well a probe on each head alone predicts the right answer.
    """
    function = function_of(train)
    if function is not None:
        steps = subquestions(cog_questions("train", CHAINS, seed, WITHOUT_CONTEXT))
        require_disjoint(steps, unseen)
        found = functional_heads(vlm, steps, permutations=1, seed=seed)
        above, latent = found.heads(function), found.latent(function)
        how = f"the joint probe's importance for {function}, {len(steps)} steps of {CHAINS} decomposed training scenes"
    else:
        alone = probe(vlm, train, "answer_text", permutations=1, seed=seed)
        ranking, count = alone.top(alone.scores.numel()), elbow(alone.scores)
        above, latent = ranking[:count], ranking[count : 2 * count]
        how = f"one probe a head of the right answer, {len(train)} training questions"
    return {FUNCTIONAL: (above, f"above the elbow of {how}"), LATENT: (latent, f"as many just below the elbow of {how}")}
