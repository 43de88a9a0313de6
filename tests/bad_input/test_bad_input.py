"""Bad input of every kind ends in an error of the library that says which value, why, and what to do instead."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scale_interp as si
from scale_interp import errors
from scale_interp.errors import FileError, ScaleInterpError
from tests.bad_input import KINDS, arguments, results, saved
from tests.bad_input.mend import instruction
from tests.bad_input.room import Room, offline
from tests.support import ROOT

"""What was said of every kind."""


@pytest.fixture(scope="module")
def rooms(tmp_path_factory, vlm):
    with offline(tmp_path_factory.mktemp("cache")):
        yield Room(tmp_path_factory.mktemp("bad"), vlm)


@pytest.fixture
def room(rooms, tmp_path):
    rooms.folder = tmp_path
    return rooms


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_refused_with_a_mend(kind, room):
    with pytest.raises(ScaleInterpError) as caught:
        kind.call(room)
    said = str(caught.value)
    assert isinstance(caught.value, kind.error), repr(caught.value)
    assert re.search(kind.says, said, re.DOTALL), said
    assert instruction(said), f"it does not say what to do: {said}"


@pytest.mark.parametrize(
    ("message", "mends"),
    [
        ("n=2.5: a float; give a whole number", True),
        ("a pickle: where you trust it, convert it", True),
        ("unknown argument 'vml': did you mean 'vlm'?", True),
        ("the file has 3 axes; it must hold 2", False),
        ("the model has a set of 6 layers, and takes 8 heads: keep is of torch.bool", False),
        ("missing a required argument. It takes vlm, train, path", False),
        ("the name of a set, and the word for it, are given twice", False),
    ],
)
def test_what_counts_as_a_mend(message, mends):
    assert bool(instruction(message)) is mends


def test_every_kind_is_there_once():
    twice = [name for name, n in Counter(kind.id for kind in KINDS).items() if n > 1]
    assert not twice


def test_every_public_function_saved_result_and_error_has_kinds():
    public = {name: getattr(si, name) for name in si.__all__}
    targets = {kind.target for kind in KINDS}
    functions = {f"si.{name}" for name, found in public.items() if inspect.isfunction(found)}
    assert functions - {f"si.{name}" for name in arguments.LATER} <= targets
    saved_classes = {name for name, found in public.items() if hasattr(found, "load") or hasattr(found, "from_pretrained")}
    assert saved_classes <= {target.partition("'")[0] for target in targets}
    raised = {found for found in vars(errors).values() if inspect.isclass(found) and issubclass(found, ScaleInterpError)}
    assert raised == {kind.error for kind in KINDS}


@pytest.mark.parametrize("name", saved.SAVERS)
def test_what_is_not_spoiled_is_read(room, name):
    """So that the kinds above fail by their mistake alone."""
    path = room.copied(name)
    found = next(s for s in (*results.TENSORS, *results.JSONS) if s.name == name)
    assert found.load(path) is not None
    if found in results.TENSORS:
        results.rewrite(path / found.file if found.file else path, lambda tensors, header: None)
    elif name != "benchmarks":
        results.edited(lambda content: None)(path / found.file if found.file else path)
    assert found.load(path) is not None


def test_no_pickle_was_read():
    assert not results.LOADED


def test_the_page_names_every_target():
    page = (ROOT / "docs/bad_input.md").read_text()
    missing = sorted({kind.target for kind in KINDS if f"`{kind.target}`" not in page})
    assert not missing, f"{missing}: run `python -m tests.bad_input.page`"


# Random values within a kind.

few = settings(max_examples=60, deadline=None, derandomize=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)
RECORD = {"image": "a.png", "question": "Where?", "choices": ["left", "right"], "answer": "left"}


def refused_or_read(read, *args):
    """The library's own error, or a result; anything else fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read(*args)
        except ScaleInterpError:
            return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@few
@given(content=st.binary(max_size=300))
@pytest.mark.parametrize(
    "read",
    [
        lambda path: list(si.load_questions(f"jsonl:{path}")),
        lambda path: si.load_questions(f"boxes:{path}"),
        si.read_cog,
        si.HeadMap.load,
        si.Falsification.load,
        si.HeadSets.load,
        lambda path: si.Question("Where?", ("a", "b"), 0, picture=path).image,
    ],
    ids=["jsonl", "boxes", "cog", "HeadMap", "Falsification", "HeadSets", "picture"],
)
def test_random_bytes_are_refused(place, read, content):
    (place / "bytes").write_bytes(content)
    assert refused_or_read(read, place / "bytes") is None


@few
@given(field=st.sampled_from([*RECORD, "id", "group", "task", "relation", "about", "boxes", "meta"]), value=values)
def test_a_random_value_in_a_record_is_refused_or_asked(place, field, value):
    (place / "mine.jsonl").write_text(json.dumps(RECORD | {field: value}))
    found = refused_or_read(si.load_questions, f"jsonl:{place}/mine.jsonl")
    assert found is None or (len(found) == 1 and found[0].answer_text in found[0].choices)


@few
@given(field=st.sampled_from(["text", "choices", "answer", "id", "group", "task", "relation", "about", "boxes", "meta"]), value=values)
def test_a_random_value_in_a_question_is_refused_or_taken(field, value):
    fields = {"text": "Where?", "choices": ("left", "right"), "answer": 0} | {field: value}
    found = refused_or_read(lambda: si.Question(**fields))
    assert found is None or found.choices[found.answer] == found.answer_text


@few
@given(at=st.floats(0, 1), name=st.sampled_from(["HeadMap", "Comparison", "ScAle's scalars", "Steering's directions", "Chosen"]))
def test_no_changed_bit_of_a_result_becomes_another_number(rooms, place, at, name):
    rooms.folder = place / str(len(list(place.iterdir())))
    rooms.folder.mkdir()
    found = next(s for s in results.TENSORS if s.name == name)
    path = found.path(rooms)
    results.flip(path, at)
    with pytest.raises(FileError):
        found.opened(path)


@few
@given(argument=st.sampled_from(["n", "seed", "split", "template", "root"]), value=values)
def test_a_random_argument_is_refused_or_taken(argument, value):
    options = {"n": 2} | {argument: value}
    if argument == "n" and isinstance(value, int) and not isinstance(value, bool):
        options["n"] = min(value, 3)  # a million scenes are no mistake
    found = refused_or_read(lambda: si.load_questions("scenes/relation", **options))
    assert found is None or len(found) == 200 or len(found) == options["n"]
