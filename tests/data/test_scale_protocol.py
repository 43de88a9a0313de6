"""ScAle's task and split, against the recipe of its code written out, on a SpatialEval of full size with made-up content."""

import math

import numpy as np
import pytest

import scale_interp as si
from scale_interp.data.items import groups
from scale_interp.data.scale_protocol import TASKS
from scale_interp.errors import DataError, DataWarning
from tests.support.official_sets import photograph, spatialeval_rows, spatialeval_table

NAMES = {"map": "spatialmap", "maze": "mazenav", "grid": "spatialgrid"}


@pytest.fixture(scope="module")
def rows():
    """Every scene has an image of its own, which its three questions share."""
    found = spatialeval_rows("vqa")
    for row in found:
        task, _, scene, _ = row["id"].split(".")
        row["image"] = {"bytes": photograph(f"{task}{scene}"), "path": None}
    return found


@pytest.fixture(scope="module")
def root(rows, tmp_path_factory):
    place = tmp_path_factory.mktemp("protocol")
    (place / "spatialeval/vqa").mkdir(parents=True)
    spatialeval_table("vqa", rows).to_parquet(place / "spatialeval/vqa/test.parquet")
    return place


def recipe(rows, seed):
    """Task -> rows of the whole table to train and to test on, in order."""
    generator, found = np.random.RandomState(seed), {}
    for task in ("map", "maze", "grid"):
        own = [i for i, row in enumerate(rows) if row["id"].startswith(NAMES[task])]
        shuffled = [own[k] for k in generator.permutation(len(own))]
        first = math.floor(len(own) * 0.20)
        found[task] = shuffled[:first], shuffled[first:]
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_split_is_the_recipe_s_row_by_row(rows, root, seed):
    for task, (train, test) in recipe(rows, seed).items():
        for split, wanted in (("train", train), ("test", test)):
            asked = si.load_questions(f"spatialeval/vqa/{task}", split, seed=seed, root=root, protocol="scale")
            assert [q.meta["row"] for q in asked] == wanted and len(wanted) == {"train": 300, "test": 1200}[split]
            assert all(q.text == rows[i]["text"] for q, i in zip(asked, wanted, strict=True))
            assert all(q.choices == ("A", "B", "C", "D") for q in asked)
            assert [q.answer_text for q in asked] == [rows[i]["oracle_option"] for i in wanted]


def test_a_third_of_the_test_questions_show_an_image_that_was_trained_on(root):
    leaked = {}
    for seed in (0, 1, 2):
        train, test = (si.load_questions("spatialeval/vqa/map", s, seed=seed, root=root, protocol="scale") for s in ("train", "test"))
        leaked[seed] = int(np.isin([q.group for q in test], [q.group for q in train]).sum())
    assert leaked == {0: 438, 1: 438, 2: 438}  # 36.5%; by chance the same for all three seeds
    merged = groups([*train, *test])  # by pixels too
    assert int(np.isin(merged[len(train) :], merged[: len(train)]).sum()) == leaked[2]


def test_what_the_code_passes_over_is_counted(rows, tmp_path):
    few = [dict(row) for row in rows if int(row["id"].split(".")[2]) < 2010]
    few[3]["oracle_option"], few[4]["oracle_option"], few[5]["oracle_option"] = "E", None, " b "
    few[6]["text"] = "No list of options at all."
    (tmp_path / "vqa").mkdir()
    spatialeval_table("vqa", few).to_parquet(tmp_path / "vqa/test.parquet")
    with pytest.warns(DataWarning, match="are left out, their answer is no letter from A to D") as said:
        both = [si.load_questions("spatialeval/vqa/map", s, root=tmp_path, protocol="scale") for s in ("train", "test")]
    by_row = {q.meta["row"]: q for asked in both for q in asked}
    assert set(by_row) == set(range(30)) - {3, 4} and by_row[5].answer_text == "B" and by_row[6].text == few[6]["text"]
    assert sum(int(str(w.message).split(": ")[1].split(" of ")[0]) for w in said) == 2


def test_the_first_n_and_other_tasks(root):
    few = si.load_questions("spatialeval/vqa/grid", "train", 5, root=root, protocol="scale")
    whole = si.load_questions("spatialeval/vqa/grid", "train", root=root, protocol="scale")
    assert [q.id for q in few] == [q.id for q in whole[:5]] and few.seed == 0
    for name, says in (("spatialeval/vqa/real", "trains on"), ("spatialeval/tqa/map", "trains on"), ("pope/random", "trains on")):
        with pytest.raises(DataError, match=says):
            si.load_questions(name, root=root, protocol="scale")
    with pytest.raises(DataError, match="choose from train, test"):
        si.load_questions("spatialeval/vqa/map", "validation", root=root, protocol="scale")
    with pytest.raises(DataError, match="own words"):
        si.load_questions("spatialeval/vqa/map", root=root, protocol="scale", template="{text}")


def test_generated_questions_are_split_alike():
    train, test = (si.load_questions("generated/vqa/map", s, 50, seed=1, protocol="scale") for s in ("train", "test"))
    whole = si.load_questions("generated/vqa/map", n=50, options="letters")
    order = np.random.RandomState(1).permutation(50)
    assert [q.id for q in (*train, *test)] == [whole[int(i)].id for i in order] and len(train) == 10
    assert TASKS == ("map", "maze", "grid")


def test_splits_that_cannot_be_drawn_are_refused():
    with pytest.raises(DataError, match="a fifth of 4 questions is none to train on; give at least 5"):
        si.load_questions("generated/vqa/map", "test", 4, protocol="scale")
    assert len(si.load_questions("generated/vqa/map", "train", 5, protocol="scale")) == 1
    with pytest.raises(DataError, match="seed=4294967296: protocol='scale' draws with numpy's RandomState; give 0 to 4294967295"):
        si.load_questions("generated/vqa/map", n=5, seed=2**32, protocol="scale")
