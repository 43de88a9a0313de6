"""Arguments of every public function: of a wrong type, out of range, unknown, missing, misspelt, of another model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

import scale_interp as si
from scale_interp.errors import ArgumentError, DataError, EditError, ScaleInterpError
from scale_interp.vlm.token_groups import At
from tests.bad_input.kind import Kind

FUNCTIONS: dict[str, Callable[..., Any]] = {n: getattr(si, n) for n in si.__all__ if isinstance(getattr(si, n), FunctionType)}
LATER = ("cluster", "resumable")
"""Context managers, which look at values when they are entered; tested with the work that they do."""
VALID: dict[str, Callable[[Any], Any]] = {
    "vlm": lambda room: room.vlm,
    "intact": lambda room: room.vlm,
    "damaged": lambda room: room.planted,
    "questions": lambda room: room.qs,
    "question": lambda room: room.qs[0],
    "train": lambda room: room.train,
    "validation": lambda room: room.validation,
    "test": lambda room: room.qs,
    "retain": lambda room: room.train,
    "others": lambda room: room.other,
    "items": lambda room: room.pairs,
    "pairs": lambda room: room.pairs,
    "evaluation": lambda room: room.evaluation,
    "cogs": lambda room: room.cogs,
    "receivers": lambda room: [(5, 0)],
    "heads": lambda room: [(2, 1), (3, 0)],
    "known": lambda room: [(2, 1)],
    "ranking": lambda room: room.every,
    "draws": lambda room: [room.qs],
    "edits": lambda room: {"none": si.Edit.identity(6, 8)},
    "found": lambda room: room.functional,
    "fits": lambda room: [si.Fit()],
    "methods": lambda room: [si.AttentionScale(2.0)],
    "tuned": lambda room: {"a": room.tuned},
    "tests": lambda room: {"a": room.qs},
    "texts": lambda room: ["left"] * len(room.qs),
    "text": lambda room: "left",
    "values": lambda room: torch.ones(3),
    "name": lambda room: "scenes/relation",
    "path": lambda room: room.folder / "none.jsonl",
    "model": lambda room: "demo",
}
ANY_SEED = (("read_cog", "seed"), ("subquestions", "seed"))
"""Seeds that are hashed, so that every number is one."""
STEPS = ("answer_directions", "emphasise", "function_matrix", "functional_heads", "intervene")
"""Functions whose questions must name a cognitive function."""
MAPPED = {("transfer", "train"), ("transfer", "test")}
"""Arguments that are questions by name, where the name alone does not say so."""


def given(room: Any, name: str, /, **changed: Any) -> dict[str, Any]:
    """The required arguments of a function, some of them changed."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    made = {p: VALID[p](room) for p in needed if p not in changed}
    made |= {p: room.steps for p in ("questions", "train", "test") if p in made and name in STEPS}
    return {p: {"a": v} if (name, p) in MAPPED else v for p, v in made.items()} | changed


def bad(name: str, argument: str, what: str, value: Any, error: type[Exception], says: str) -> Kind:
    """value: the wrong value, or a function of the room that gives it."""

    def call(room: Any) -> Any:
        return FUNCTIONS[name](**given(room, name, **{argument: value(room) if isinstance(value, FunctionType) else value}))

    return Kind(f"si.{name}", f"{argument} is {what}", error, says, call)


def by_hint(name: str, argument: str, hint: Any) -> Iterable[Kind]:
    """The mistakes that an argument's type allows."""
    text = str(hint)
    optional = "None" in text
    if hint is Any or "TypeVar" in text or argument in ("say", "what", "edit"):
        return
    if argument == "draws" and "Sequence" in text:
        yield bad(name, argument, "a name in place of questions", "scenes/relation", ArgumentError, "give a list")
        yield bad(name, argument, "empty", [], DataError, "no draws")
    elif "Question" in text and hint is not si.Question and "Mapping" not in text and argument != "chosen_on" and "Callable" not in text:
        yield bad(name, argument, "a name in place of questions", "scenes/relation", DataError, "found a str")
        yield bad(name, argument, "a list of texts", ["a", "b"], DataError, "expected .*, found a str")
        if not optional and argument != "others":
            yield bad(name, argument, "empty", [], DataError, "empty set")
        if not optional and "Contrast" not in text and "Cog" not in text:
            yield bad(name, argument, "contrasts, not questions", lambda room: room.pairs, DataError, "found a Contrast")
    elif "Contrast" in text and "Callable" not in text:
        yield bad(name, argument, "questions, not contrasts", lambda room: room.qs, DataError, "found a Question")
        yield bad(name, argument, "empty", [], DataError, "empty set")
    elif get_origin(hint) is Literal or argument in ("positions", "scope"):
        yield bad(name, argument, "an unknown word", "nonsense", ScaleInterpError, "nonsense.*(choose|give)")
        yield bad(name, argument, "a number in place of a word", 3, ArgumentError, rf"{argument}=3")
    elif hint == At and name != "probe":  # it counts its questions first
        yield bad(name, argument, "an object of no known type", object(), ScaleInterpError, f"{argument}.*object.*give")
        yield bad(name, argument, "a group that no prompt has", "nonsense", DataError, "no token group 'nonsense'.*choose another")
        yield bad(name, argument, "a token beyond the prompt", [9999], DataError, "token 9999.*give -")
    elif "VLM" in text:
        yield bad(name, argument, "a name in place of a model", "demo", ArgumentError, r"give a model.* as ")
        yield bad(name, argument, "the class of models", si.VLM, ArgumentError, "a class, not an object")
    elif hint in (int, int | None):
        yield bad(name, argument, "a text", "3", ArgumentError, "give a whole number")
        yield bad(name, argument, "a fraction", 2.5, ArgumentError, "give a whole number")
        yield bad(name, argument, "a truth value", True, ArgumentError, "give a whole number")
        if (name, argument) not in ANY_SEED:
            yield bad(name, argument, "negative", -1, ScaleInterpError, f"{argument}=-1")
    elif hint is float:
        yield bad(name, argument, "a text", "0.5", ArgumentError, "give a finite number")
        yield bad(name, argument, "not a number", float("nan"), ArgumentError, "not finite")
        yield bad(name, argument, "infinite", float("inf"), ArgumentError, "not finite")
    elif hint in (bool, bool | None):
        yield bad(name, argument, "a text", "yes", ArgumentError, "give True or False")
    elif "float" in text and "Sequence" in text:
        yield bad(name, argument, "a single number", 0.5, ArgumentError, "give a list")
        yield bad(name, argument, "a list of texts", ["0.5"], ArgumentError, "finite numbers")
        yield bad(name, argument, "a list with nan", [1.0, float("nan")], ArgumentError, "finite numbers")
    elif hint in (str, str | None):
        yield bad(name, argument, "a number", 3, ArgumentError, "give a text")
    elif get_origin(hint) in (Mapping,) or "Mapping" in text:
        yield bad(name, argument, "a number in place of a mapping", 3, ArgumentError, "give .*mapping|give a text")
    elif "Head]" in text or "tuple[int, int]" in text:
        yield bad(name, argument, "a single number", 3.5, ArgumentError, "give")
        yield bad(name, argument, "heads of a larger model", [(40, 0)], EditError, r"\(40, 0\) is out of range")
        yield bad(name, argument, "numbers, no pairs", [3, 4], EditError, "(no|not a) .layer, head. pair")
        yield bad(name, argument, "a head twice", [(2, 1), (2, 1)], EditError, "given twice")
        yield bad(name, argument, "negative heads", [(-1, 0)], EditError, "out of range")
    elif get_args(hint) and get_origin(hint) in (Sequence, Iterable):
        yield bad(name, argument, "a single number", 3, ArgumentError, "give a list")
    elif hint != At:
        yield bad(name, argument, "an object of no known type", object(), ArgumentError, "=<object>.: an object; give")


def by_function(name: str) -> Iterable[Kind]:
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        first = next(iter(parameters))
        says = f"did you mean '{first}'"
        yield Kind(f"si.{name}", "a misspelt argument", ArgumentError, says, lambda room: function(**{first + "x": 1}))
    elif name != "intervene":  # it notes whatever it is told
        yield Kind(f"si.{name}", "an unknown setting", ScaleInterpError, "epoch", lambda room: function(**given(room, name, epoch=3)))
    if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        yield Kind(f"si.{name}", "no arguments", ArgumentError, "missing a required argument", lambda room: function())
    hints = get_type_hints(function)
    for argument, parameter in parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            yield from by_hint(name, argument, hints[argument])


BY_TYPE = [kind for name in FUNCTIONS if name not in ("load", *LATER) for kind in by_function(name)]
