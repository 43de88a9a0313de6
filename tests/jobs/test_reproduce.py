"""Published experiments by one command, on tiny models and small sets in the official forms."""

import json
import random

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.errors import DataError
from scale_interp.evaluation.reproduction.adaptvis import AdaptVisRun, adaptvis_questions, paper_row, tuned_on
from scale_interp.evaluation.reproduction.scale import PARTS, ScaleRun, chosen_epoch
from scale_interp.evaluation.reproduction.scale import paper_row as scale_paper
from tests.support.official_sets import photograph, spatialeval_rows, spatialeval_table, write_controlled
from tests.support.released import Loop


def invoke(*words):
    result = CliRunner().invoke(cli.app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A SpatialEval of 10 scenes a task."""
    place = tmp_path_factory.mktemp("sets")
    rows = [row for row in spatialeval_rows("vqa") if int(row["id"].split(".")[2]) < 2010]
    for row in rows:
        row["image"] = {"bytes": photograph(row["id"].rsplit(".", 1)[0]), "path": None}
    (place / "vqa").mkdir()
    spatialeval_table("vqa", rows).to_parquet(place / "vqa/test.parquet")
    return place


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "scale"
    words = ("reproduce", "scale", "tiny-random/qwen2_5_vl", "--root", root, "--epochs", 2, "--n-test", 10, "--out", folder)
    return folder, words, invoke(*words)


@pytest.mark.full
def test_scale_as_released_is_the_released_loop(root, run):
    """Baseline and every epoch's accuracy on training and test questions, for MLPs and heads together."""
    folder, _, _ = run
    vlm = si.load("tiny-random/qwen2_5_vl", choice_space="apart")
    train, test = (si.load_questions("spatialeval/vqa/map", s, root=root, protocol="scale") for s in ("train", "test"))
    test = test[:10]
    loop, epochs = Loop(vlm), pd.read_csv(folder / "epochs.csv")
    both = epochs[epochs["part"] == "both"]
    for epoch in range(3):
        assert both["test_accuracy"].iloc[epoch] == pytest.approx(loop.accuracy(test), abs=1e-6)
        assert both["train_accuracy"].iloc[epoch] == pytest.approx(loop.accuracy(train), abs=1e-6)
        logits = torch.stack([loop.last_logits(q) for q in test]).detach().log_softmax(-1)
        letters = [ids[0] for ids in vlm.choice_ids(test[0])]
        assert both["letter_mass"].iloc[epoch] == pytest.approx(float(logits[:, letters].exp().sum(1).mean()), abs=1e-6)
        assert both["test_loss"].iloc[epoch] == pytest.approx(float(-logits[range(10), [letters[q.answer] for q in test]].mean()), abs=1e-4)
        if epoch < 2:
            loop.epoch(train)
    scale = si.ScAle.from_pretrained(folder / "released/both")
    assert (scale.scalars - loop.scalars()[0]).abs().max() < 1e-5
    groups = {q.group for q in train}
    found = ScaleRun.load(folder / "answers.safetensors")
    assert found.trained.tolist() == [int(q.group in groups) for q in test]
    clean = np.array([q.group not in groups for q in test])
    assert both["untrained_accuracy"].iloc[-1] == pytest.approx(found.right[2, -1].numpy()[clean].mean(), abs=1e-6)


def test_the_page_says_what_leak_and_choice_are_worth(run):
    folder, _, printed = run
    summary = json.loads((folder / "summary.json").read_text())
    assert "random weights" in summary["findings"][0] and "random weights" in printed
    words = " ".join(summary["findings"])
    assert "show an image that was trained on" in words and "Held-out training images choose" in words and "The paper has no" in words
    rows = {row["part"]: row for row in summary["rows"]}
    assert set(rows) == set(PARTS)
    epochs = pd.read_csv(folder / "epochs.csv").set_index(["part", "epoch"])
    for part, row in rows.items():
        untrained = epochs["untrained_accuracy"][part]
        assert row["chosen"] == pytest.approx(untrained[row["chosen_epoch"]])
        assert row["choice"] == pytest.approx(untrained[row["best_epoch"]] - row["chosen"])
        assert row["best_on_test"] == pytest.approx(epochs["test_accuracy"][part][1:].max())
        assert row["leak"] == pytest.approx((row["last"] - row["base"]) - (row["last_untrained"] - row["base_untrained"]))
    held = si.ScAle.from_pretrained(folder / "held_out/heads")
    best = max(row["validation_accuracy"] for row in held.history)
    assert held.history[chosen_epoch(held)]["validation_accuracy"] == best and rows["heads"]["chosen_epoch"] == chosen_epoch(held)
    assert (folder / "report.html").stat().st_size > 100_000 and "scale-interp reproduce scale" in (folder / "report.html").read_text()


def test_a_run_continues_where_it_stopped(run):
    folder, words, _ = run
    made = (folder / "released/both/scale.safetensors").stat().st_mtime_ns
    (folder / "answers.safetensors").unlink()
    before = (folder / "summary.json").read_text()
    assert "answering" in invoke(*words) and (folder / "released/both/scale.safetensors").stat().st_mtime_ns == made
    assert json.loads((folder / "summary.json").read_text())["rows"] == json.loads(before)["rows"]
    assert "answering" not in invoke(*words)
    assert "reproduce scale" in invoke("show", folder)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("scale", "--task", "road"), "task 'road': ScAle's code trains on map, maze, grid; give one of these"),
        (("scale", "--data", "spatialeval/vqa/maze"), "data 'spatialeval/vqa/maze' is of task 'maze', not 'map': give task='maze' too"),
        (("scale", "--n-train", 0), "n_train=0: give at least 1"),
        (("scale", "--n-test", -5), "n_test=-5: give at least 1"),
        (("scale", "--epochs", 0), "epochs=0: give at least 1"),
        (("adaptvis", "--n", -3), "n=-3: give at least 1"),
    ],
)
def test_what_cannot_be_repeated_is_refused_before_anything_is_read(words, says, tmp_path):
    result = CliRunner().invoke(cli.app, ["reproduce", words[0], "demo", "--out", str(tmp_path / "run"), *map(str, words[1:])])
    assert result.exit_code != 0 and says in str(result.exception) and not (tmp_path / "run").exists()


def test_the_paper_s_rows():
    assert scale_paper("llava-hf/llava-v1.6-vicuna-7b-hf", "map") == {"base": 0.227, "heads": 0.45, "MLPs": 0.38, "both": 0.453}
    assert scale_paper("Qwen/Qwen2.5-VL-3B-Instruct", "grid") == {"base": 0.637, "heads": None, "MLPs": None, "both": 0.758}
    assert scale_paper("demo", "map") is None and paper_row("demo", "coco_qa/one") is None
    assert paper_row("llava-hf/llava-1.5-7b-hf", "vg_qa/two") == {"base": 0.408, "ScalingVis": 0.481, "AdaptVis": 0.481}


@pytest.fixture(scope="module")
def whatsup(tmp_path_factory):
    place = tmp_path_factory.mktemp("whatsup")
    write_controlled(place, "controlled_images")
    return place


@pytest.mark.full
def test_adaptvis_as_released(whatsup, tmp_path):
    """Texts under attached scaling, the draw of random.sample, and every gate from the same texts."""
    words = ("reproduce", "adaptvis", "tiny-random/llava", "--root", whatsup, "--n", 10, "--max-new-tokens", 3, "--out", tmp_path / "run")
    printed = invoke(*words)
    assert "random weights" in printed and "no licence" in printed
    found = AdaptVisRun.load(tmp_path / "run/answers.safetensors")
    chosen = sorted(random.Random(1).sample(range(10), 2))
    assert found.tuning.nonzero().flatten().tolist() == chosen == tuned_on(10)
    vlm = si.load("tiny-random/llava", prompt="{images}\n{text}", choice_space="with")
    asked = adaptvis_questions("whatsup/controlled_a", whatsup, n=10)
    assert vlm.prompt_text(asked[0]).startswith("<image>\nUSER: ") and vlm.prompt_text(asked[0]).endswith("\nASSISTANT:")
    assert {q.choices for q in asked} == {("left", "right", "on", "under")}
    with si.AttentionScale(1.5, layers=range(vlm.n_layers)).attached(vlm):
        assert list(found.texts[found.weights.index(1.5)]) == vlm.generate(list(asked), max_new_tokens=3)
    logits = torch.stack([vlm.hf_model(**vlm.encode(q)).logits[0, -1] for q in asked])
    assert torch.equal(found.confidence, logits.softmax(-1).amax(-1).double().round(decimals=2).float())
    grid = pd.read_csv(tmp_path / "run/grid.csv")
    assert len(grid) == 5 + 2 * 3 * 3
    row = grid.iloc[5 + 4]
    gate = (found.confidence < row["threshold"]).tolist()
    low, high = (found.right[found.weights.index(row[name])].tolist() for name in ("weight_low", "weight_high"))
    picked = [a if unsure else b for unsure, a, b in zip(gate, low, high, strict=True)]
    assert row["test"] == pytest.approx(np.mean([p for i, p in enumerate(picked) if i not in chosen]))
    assert "answering" not in invoke(*words)


def test_the_authors_prompts_are_taken_as_they_are(whatsup, tmp_path):
    count = len(si.load_questions("whatsup/controlled_a", root=whatsup))
    lines = [{"id": i, "question": f"<image>\nUSER:  Where is it ({i})?\n\nASSISTANT:", "answer": ["On"]} for i in range(count)]
    name = "Controlled_Images_A_with_answer_four_options.jsonl"
    (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    for place in (tmp_path, tmp_path / name):
        asked = adaptvis_questions("whatsup/controlled_a", whatsup, place)
        assert asked[3].text == "USER:  Where is it (3)?\n\nASSISTANT:" and asked[3].answer_text == "on"
    (tmp_path / name).write_text("\n".join(map(json.dumps, lines[:5])))
    with pytest.raises(DataError, match="5 prompts for"):
        adaptvis_questions("whatsup/controlled_a", whatsup, tmp_path)
    (tmp_path / name).write_text("\n".join(json.dumps({"question": "Where?"}) for _ in lines))
    with pytest.raises(DataError, match="no prompt in the form"):
        adaptvis_questions("whatsup/controlled_a", whatsup, tmp_path)
    with pytest.raises(DataError, match="AdaptVis' code asks"):
        adaptvis_questions("vsr/random")
