"""All methods on the same splits: nothing leaks, everything is tuned on validation questions alone, and what is saved comes back."""

import json
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli, viz
from scale_interp.adapters import PASTA, AdaptVis, AttentionScale
from scale_interp.core.statistics import holm
from scale_interp.data.items import shuffled_answers
from scale_interp.errors import DataError, EditError, FileError, LeakError
from scale_interp.evaluation.comparison import located, tuning
from scale_interp.evaluation.comparison.comparison import Comparison, compare
from scale_interp.evaluation.comparison.head_sets import HeadSets
from scale_interp.evaluation.comparison.tuning import LEARN, Chosen, Option, Tuner, describe_setting

pytestmark = pytest.mark.full
N = {"train": 48, "validation": 32, "test": 32}
COLUMNS = {
    "method",
    "accuracy",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "parameters",
    "tuned",
    "passes",
    "others_change",
    "others_low",
    "others_high",
}


@pytest.fixture(scope="module")
def splits():
    return {split: si.load_questions("scenes/relation", split, n) for split, n in N.items()}


@pytest.fixture(scope="module")
def others():
    return [q for task in ("exists", "colour") for q in si.load_questions(f"scenes/{task}", "test", 10)]


@pytest.fixture(scope="module")
def small():
    """Every grid and sample small enough for a test."""
    patch = pytest.MonkeyPatch()
    patch.setattr(located, "ASKED", 12)
    patch.setattr(located, "CHAINS", 8)
    patch.setattr(located, "functional_heads", partial(si.functional_heads, epochs=4))
    patch.setattr(tuning, "fit_scales", partial(si.fit_scales, epochs=8))
    patch.setattr(tuning, "PROFILED", 2)
    patch.setattr(tuning, "PASTA_HEADS", (48,))
    patch.setattr(tuning, "PASTA_ALPHAS", (0.1,))
    patch.setattr(tuning, "ITI_HEADS", (4, 8))
    patch.setattr(tuning, "WEIGHTS", (0.5, 1.0, 2.0))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def kept(vlm, splits, others, small, tmp_path_factory):
    """A comparison, its folder, and what was said of its steps."""
    folder, said = tmp_path_factory.mktemp("comparison"), []
    return compare(vlm, *splits.values(), others=others, top=4, folder=folder, say=said.append), folder, said


def test_every_method_has_a_row_with_all_columns(kept):
    found, _, _ = kept
    frame = found.to_frame()
    assert set(frame.columns) == COLUMNS and list(frame["method"]) == ["base", *LEARN]
    assert not found.left_out and not frame.iloc[1:].drop(columns=["p"]).isna().any().any()
    idle = frame["tuned"] == "do nothing"
    assert (found.shown().loc[idle, "minus base"] == "0").all() and (frame.loc[idle, "difference"] == 0).all()
    passes = dict(zip(frame["method"], frame["passes"], strict=True))
    assert passes.pop("AdaptVis") == 2 and set(passes.values()) == {1}


def test_differences_are_paired_and_corrected_over_the_methods(kept):
    found, _, _ = kept
    frame = found.to_frame().set_index("method")
    for i, name in enumerate(found.methods[1:], 1):
        delta = (found.right[:, i] - found.right[:, 0]).numpy()
        wins, losses = int((delta > 0).sum()), int((delta < 0).sum())
        p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert frame.loc[name, "p"] == pytest.approx(p) and frame.loc[name, "difference"] == pytest.approx(delta.mean())
        assert frame.loc[name, "others_change"] == pytest.approx(float((found.others[:, i] - found.others[:, 0]).mean()))
    assert np.array_equal(frame["p_holm"].iloc[1:], holm(frame["p"].iloc[1:].to_numpy()))
    assert {"exists", "colour"} == set(found.by_task()["task"])


def test_base_and_scalingvis_are_what_evaluate_says(kept, vlm, splits):
    found, _, _ = kept
    assert torch.equal(found.right[:, 0], si.evaluate(vlm, splits["test"]).per_question)
    setting = found.tuned["ScalingVis"]["setting"]
    (scaled,) = si.evaluate_scaled(vlm, splits["test"], [AttentionScale(setting.get("weight", 1.0))])
    assert torch.equal(found.right[:, found.methods.index("ScalingVis")], scaled.per_question)


def test_the_setting_is_the_best_of_the_grid_and_doing_nothing_is_in_it(kept, vlm, splits):
    found, _, _ = kept
    base = si.evaluate(vlm, splits["validation"]).accuracy
    for name, about in found.tuned.items():
        grid, best = about["grid"], max(row["accuracy"] for row in about["grid"])
        assert best >= base - 1e-6, name
        chosen = [row for row in grid if about["setting"].items() <= row.items()]
        assert any(row["accuracy"] == best for row in chosen), name
        if not about["setting"]:
            assert about["parameters"] == 0 and best == pytest.approx(base)


def test_poisoned_test_labels_change_no_tuned_value(kept, vlm, splits, others, small):
    found, _, _ = kept
    poisoned = shuffled_answers(splits["test"], seed=1)
    methods = ["ScalingVis", "ScAle"]
    again = compare(vlm, splits["train"], splits["validation"], poisoned, methods=methods, top=4)
    assert again.heads.sets.items() <= found.heads.sets.items()
    for name in methods:
        assert again.tuned[name] == found.tuned[name]
    assert not torch.equal(again.right[:, 0], found.right[:, 0])


def test_shuffled_validation_labels_can_change_a_tuned_value(kept, vlm, splits, small):
    sets = HeadSets(vlm.n_layers, vlm.n_heads, {})
    wrong = [replace(q, answer=(q.answer + 1) % len(q.choices)) for q in splits["validation"]]
    settings = [LEARN["ScalingVis"](Tuner(vlm, splits["train"], v, sets)).grid for v in (splits["validation"], wrong)]
    assert settings[0] != settings[1]


@pytest.mark.parametrize("pair", list(combinations(("train", "validation", "test"), 2)))
def test_shared_pictures_are_refused(vlm, splits, pair):
    a, b = pair
    leaking = splits | {b: [*splits[b], splits[a][0]]}
    with pytest.raises(LeakError, match="1 image"):
        compare(vlm, *leaking.values(), methods=["ScalingVis"])
    with pytest.raises(LeakError, match="1 image"):
        compare(vlm, *splits.values(), others=splits["validation"][:1], methods=["ScalingVis"])


def test_test_pictures_among_the_decomposed_scenes_are_refused(vlm, splits, small):
    chain = located.cog_questions("train", 8, 0, located.WITHOUT_CONTEXT)[0]
    with pytest.raises(LeakError, match="1 image"):
        compare(vlm, *list(splits.values())[:2], [chain.question], methods=["CogVSR emphasis"])


def test_bad_input(vlm, splits):
    with pytest.raises(DataError, match="choose from ScalingVis"):
        compare(vlm, *splits.values(), methods=["Scaling"])
    with pytest.raises(DataError, match="empty"):
        compare(vlm, splits["train"], [], splits["test"])


def test_a_comparison_survives_the_disk(kept, tmp_path):
    found, _, _ = kept
    found.save(tmp_path / "c.safetensors")
    again = Comparison.load(tmp_path / "c.safetensors")
    pd.testing.assert_frame_equal(again.to_frame(), found.to_frame())
    pd.testing.assert_frame_equal(again.by_task(), found.by_task())
    assert list(again.heads.sets.items()) == list(found.heads.sets.items()) and again.heads.about == found.heads.about
    assert list(again.tuned.items()) == list(json.loads(json.dumps(found.tuned)).items()) and again.provenance == found.provenance
    (tmp_path / "c.safetensors").write_bytes(b"no")
    with pytest.raises(FileError, match="damaged"):
        Comparison.load(tmp_path / "c.safetensors")


def test_without_others_the_change_is_unknown(vlm, splits, tmp_path):
    found = compare(vlm, *splits.values(), methods=["ScalingVis"], top=2, folder=tmp_path)
    assert found.to_frame()["others_change"].isna().all() and found.by_task().empty
    found.save(tmp_path / "c.safetensors")
    assert Comparison.load(tmp_path / "c.safetensors").to_frame().equals(found.to_frame())


def test_a_finished_folder_is_read_and_a_half_finished_one_goes_on(kept, vlm, splits, others, small):
    found, folder, said = kept
    assert len(said) == 6 + len(LEARN) + 1 + len(LEARN)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (folder / "methods" / "iti.safetensors").unlink()
    (folder / "answers" / "adaptvis.safetensors").unlink()
    told = []
    again = compare(vlm, *splits.values(), others=others, top=4, folder=folder, say=told.append)
    assert told == ["learning and tuning ITI", "test questions: AdaptVis"]
    assert again.to_frame().equals(found.to_frame())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    with pytest.raises(FileError, match="another comparison"):
        compare(vlm, *splits.values(), others=others, top=5, folder=folder)
    with pytest.raises(FileError, match="test was"):
        compare(vlm, *list(splits.values())[:2], shuffled_answers(splits["test"], 0), others=others, top=4, folder=folder)


def test_data_without_functions_take_heads_from_a_probe_of_the_answer(splits):
    assert located.function_of(splits["train"]) == "relational reasoning"
    bare = [replace(q, meta={}) for q in splits["train"]]
    assert located.function_of(bare) is None
    sets = located.locate(si.load("tiny-random/llava"), bare, [], top=4)["functional"]()
    above, latent = sets.sets["functional"], sets.sets["latent"]
    assert above and latent and not set(above) & set(latent) and "probe a head" in sets.about["functional"]


def test_what_cannot_run_is_left_out_with_the_reason(vlm, splits, small):
    blind = [replace(q, about=(), boxes={}) for q in splits["train"]]
    assert "what it is about" in located.locate(vlm, blind, [], top=2)["box attention"]().left_out["box attention"]
    right = [q for q, r in zip(splits["train"], si.evaluate(vlm, splits["train"]).per_question, strict=True) if r]
    found = compare(vlm, right, splits["validation"], splits["test"], methods=["ITI", "CogVSR emphasis"], top=2)
    assert "all" in found.left_out["ITI"] and "ITI" not in found.methods
    assert all("alpha" not in row for row in found.tuned["CogVSR emphasis"]["grid"])
    assert any("could not run" in line for line in found.findings())


@pytest.mark.filterwarnings("ignore::scale_interp.errors.PathWarning")
def test_a_model_without_a_frozen_prompt_is_compared_without_what_needs_gradients(splits):
    parts = [questions[:6] for questions in splits.values()]
    found = compare(si.load("tiny-random/paligemma"), *parts, methods=["ScalingVis", "ScAle"], top=2)
    assert found.methods == ("base", "ScalingVis") and "gradients" in found.left_out["ScAle"]
    assert "gradients" in found.heads.left_out["gradient"] and "zero ablation" in found.heads.sets


@pytest.mark.parametrize("method", [AttentionScale(2.0), AdaptVis(0.5, 1.5, 0.4), PASTA(((1, 2),), 0.1)])
def test_a_chosen_attention_method_survives_the_disk(method, tmp_path):
    chosen = Chosen("m", method, {"weight": 2.0}, 1, ({"weight": 2.0, "accuracy": 0.5},), ((1, 2),), "so")
    chosen.save(tmp_path / "m.safetensors")
    again = Chosen.load(tmp_path / "m.safetensors")
    assert again.method == method and (again.heads, again.setting, again.grid) == (chosen.heads, chosen.setting, chosen.grid)


def test_a_chosen_edit_survives_the_disk(kept, tmp_path):
    _, folder, _ = kept
    chosen = Chosen.load(folder / "methods" / "scale.safetensors")
    chosen.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (folder / "methods" / "scale.safetensors").read_bytes()
    assert isinstance(chosen.method, si.Edit) and chosen.method.scope == "each_new_token"
    with pytest.raises(FileError, match="Comparison"):
        Comparison.load(tmp_path / "again.safetensors")


def test_of_equal_settings_the_first_is_taken(vlm, splits):
    tuner = Tuner(vlm, splits["train"], splits["validation"][:4], HeadSets(vlm.n_layers, vlm.n_heads, {}))
    same = Option({"gain": 1.0}, tuner.nothing.method, 1)
    assert tuner.choose("m", [tuner.nothing, same]).setting == {}
    assert describe_setting({}) == "do nothing"


class TestHeadSets:
    about = {"a": "so", "b": "", "c": ""}
    sets = HeadSets(2, 4, {"a": ((0, 0), (0, 1), (0, 2)), "b": ((0, 1), (0, 2), (1, 3)), "c": ((1, 0),)}, about, {"d": "why"})

    def test_overlap_is_jaccard_with_the_chance_of_random_sets(self):
        frame = self.sets.overlap().set_index(["a", "b"])
        assert frame.loc[("a", "b"), "jaccard"] == 0.5 and frame.loc[("a", "c"), "jaccard"] == 0
        every = list(combinations(range(8), 3))
        p = sum(len({0, 1, 2} & set(drawn)) >= 2 for drawn in every) / len(every)
        assert frame.loc[("a", "b"), "p"] == pytest.approx(p) and frame.loc[("a", "c"), "p"] == pytest.approx(1)
        assert frame.loc[("a", "b"), "p_holm"] == pytest.approx(3 * p) and frame.loc[("a", "b"), "by_chance"] == 9 / 8
        assert np.array_equal(self.sets.matrix(), self.sets.matrix().T) and set(np.diag(self.sets.matrix())) == {1.0}

    def test_counts_and_table(self):
        assert self.sets.counts().tolist() == [[1, 2, 2, 0], [1, 0, 0, 1]]
        table = self.sets.to_frame()
        assert table["a"].sum() == 3 and len(table) == 8

    def test_save_load_and_join(self, tmp_path):
        self.sets.save(tmp_path / "s.json")
        again = HeadSets.load(tmp_path / "s.json")
        assert (again.sets, again.about, again.left_out) == (self.sets.sets, self.sets.about, self.sets.left_out)
        joined = HeadSets.join([HeadSets(2, 4, {"e": ((0, 3),)}), self.sets])
        assert list(joined.sets) == ["e", "a", "b", "c"]
        (tmp_path / "s.json").write_text("{}")
        with pytest.raises(FileError, match="no head sets"):
            HeadSets.load(tmp_path / "s.json")
        with pytest.raises(DataError, match="different shape"):
            HeadSets.join([self.sets, HeadSets(3, 4, {})])
        with pytest.raises(EditError, match=r"\(2, 0\)"):
            HeadSets(2, 4, {"a": ((2, 0),)})


@pytest.mark.parametrize("dark", [False, True])
def test_figures_show_the_numbers(kept, dark):
    found, _, _ = kept
    figure = viz.comparison(found, dark=dark)
    frame = found.to_frame().iloc[1:]
    assert np.allclose(figure.data[0].x, frame["difference"]) and np.allclose(figure.data[1].x, frame["others_change"])
    assert list(figure.data[0].y) == list(frame["method"])
    marks = viz.head_marks(found.heads, dark=dark)
    assert np.array_equal(marks.data[0].z, found.heads.counts())
    for trace, heads in zip(marks.data[1:], found.heads.sets.values(), strict=True):
        assert [(round(y), round(x)) for x, y in zip(trace.x, trace.y, strict=True)] == list(heads)
    overlap = viz.head_overlap(found.heads, dark=dark).data[0]
    names = list(found.heads.sets)
    assert overlap.z[1, 0] == found.heads.matrix().loc[names[2], names[0]]
    with pytest.raises(DataError, match="at least two"):
        viz.head_overlap(HeadSets(2, 4, {}))


def test_the_command_writes_a_table_and_goes_on(kept, small, tmp_path):
    flags = ["--n-train=40", "--n-validation=16", "--n-test=16", "--n-others=4", "--others=scenes/exists", "--top=2"]
    command = ["compare", "--model", "tiny-random/llava", "--data", "scenes/relation", "--out", str(tmp_path / "c"), *flags]
    first = CliRunner().invoke(cli.app, command)
    assert first.exit_code == 0, first.output
    summary = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [row["method"] for row in summary["methods"]] == ["base", *LEARN] and summary["settings"]["others"] == ["scenes/exists"]
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Overlap of head sets" in page and summary["command"] in page
    kept_files = {p: p.read_bytes() for p in (tmp_path / "c").rglob("*.safetensors")}
    second = CliRunner().invoke(cli.app, command)
    assert second.exit_code == 0 and "learning" not in second.output and second.stdout == first.stdout
    assert all(path.read_bytes() == content for path, content in kept_files.items())
    other = CliRunner().invoke(cli.app, [*command, "--seed=1"])
    assert isinstance(other.exception, FileError)
