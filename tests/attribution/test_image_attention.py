"""Attention of the last token: equal to eager transformers, patch grids against painted pictures, box mass, AUROC, localization heads."""

import copy
import json
from dataclasses import replace
from math import log

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest
import torch
from markupsafe import escape
from PIL import Image
from scipy import stats
from torch import nn
from typer.testing import CliRunner

import scale_interp as si
from scale_interp import cli
from scale_interp.attribution.attention.auroc import auroc
from scale_interp.attribution.attention.grid import PatchGrid, Raster, patch_grid
from scale_interp.attribution.attention.last_token import image_mass, read_attention, spatial_entropy
from scale_interp.attribution.attention.localization import choose_localization, localization_heads
from scale_interp.attribution.attention.objects import ObjectAttention, object_attention
from scale_interp.attribution.elbow_rule import elbow
from scale_interp.errors import DataError, DataWarning, FileError, ModelError, PathWarning
from scale_interp.jobs.attention import notes, study_attention
from scale_interp.models import zoo
from scale_interp.models.zoo.families import SIDE
from scale_interp.viz.attention_map import attention_over_picture
from scale_interp.vlm.patch_layout import LAYOUTS
from tests.support.oracle import plain_inputs
from tests.support.zoo_models import BIDIRECTIONAL, FIRST, RECENT, Models, noise

SIZES = ((64, 90), (150, 50))


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.fixture(scope="module")
def questions():
    """Prompts of different lengths, so that a batch is padded; one has two pictures, one choices that need a tree."""
    return [
        si.Question("Where is the red circle?", ("left", "right"), 0, picture=noise(60, 40), id="a"),
        si.Question(
            "Where is the blue square relative to the green star?", ("left circle", "left square"), 0, picture=noise(40, 90, 1), id="b"
        ),
        si.Question("Is the cat in both?", ("yes", "no"), 0, picture=[noise(60, 40, 3), noise(30, 60, 4)], id="c"),
    ]


# --- weights


def eager_weights(vlm, question):
    """[L, H, T] by transformers' own eager attention in one whole forward pass."""
    before = vlm.decoder.config._attn_implementation
    vlm.hf_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = vlm.hf_model(**plain_inputs(vlm, question), output_attentions=True, use_cache=False)
    finally:
        vlm.hf_model.set_attn_implementation(before)
    return torch.cat([weights[:, :, -1] for weights in out.attentions])


@pytest.mark.parametrize("name", FIRST)
def test_weights_are_eager_transformers(models, questions, name):
    vlm = models[name]
    before = vlm.decoder.config._attn_implementation
    found = {"packed": read_attention(vlm, questions, path="packed"), "reference": read_attention(vlm, questions, path="reference")}
    for path, weights in found.items():
        for question, mine in zip(questions, weights, strict=True):
            expected = eager_weights(vlm, question)
            assert mine.shape == expected.shape == (vlm.n_layers, vlm.n_heads, plain_inputs(vlm, question)["input_ids"].shape[1]), path
            assert (mine - expected).abs().max() <= 1e-6, path
            assert (mine.sum(-1) - 1).abs().max() <= 1e-6 and mine.min() >= 0
    assert vlm.decoder.config._attn_implementation == before, "put back"


def test_sliding_layers_see_their_window_alone(models, questions):
    (weights,) = read_attention(models["gemma3"], questions[0])
    window = models["gemma3"].hf_model.config.get_text_config().sliding_window
    assert (weights[[0, 2], :, :-window] == 0).all() and (weights[1] > 0).all()


def test_bidirectional_prompts_take_the_reference_path(questions):
    with pytest.warns(PathWarning, match="both directions"):
        result = read_attention(si.load("tiny-random/paligemma"), questions[0])
    assert (result[0].sum(-1) - 1).abs().max() <= 1e-6


# --- patch grids


def without_mixing(vlm):
    """A copy whose vision tower leaves every patch by itself: what its blocks would add is 0."""
    model = copy.deepcopy(vlm.hf_model)
    core = getattr(model, "model", model)
    tower = next(getattr(core, name) for name in ("vision_tower", "vision_model", "visual") if hasattr(core, name))
    last = ("out_proj", "o_proj", "proj", "fc2", "down_proj", "linear_fc2", "projection_layer")
    zeroed = 0
    for name, module in tower.named_modules():
        inside = any(part in f".{name}." for part in (".layers.", ".layer.", ".blocks."))
        if inside and isinstance(module, nn.Linear) and name.removesuffix(".linear").rsplit(".", 1)[-1] in last:
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            zeroed += 1
    assert zeroed >= 4
    return model


def embeddings(vlm, model, question):
    """What the text decoder is given, [T, d]."""
    seen = []
    hook = model.get_decoder().register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True)
    try:
        with torch.no_grad():
            model(**plain_inputs(vlm, question), use_cache=False)
    finally:
        hook.remove()
    return seen[0][0]


def check_by_painting(vlm, sizes):
    """Paint a spot in the middle of each token's box: that token's features change, and no token's whose box is far from the spot."""
    model = without_mixing(vlm)
    pictures = [Image.new("RGB", size, (120, 130, 110)) for size in sizes]
    question = si.Question("Where is the red circle?", ("left", "right"), 0, picture=pictures)
    base, grid = embeddings(vlm, model, question), patch_grid(vlm, question)
    assert grid.n_tokens == len(base) and grid.sizes == tuple(sizes)
    checked = 0
    for raster in grid.rasters:
        boxes, typical = raster.boxes().flatten(0, 1), raster.areas.max()
        for token, box, area in zip(raster.tokens.flatten(), boxes, raster.areas.flatten(), strict=True):
            if area < 0.9 * typical:
                continue  # cut at the picture's edge: its middle lies near its neighbours
            left, top, right, bottom = box.tolist()
            x, y = (left + right) / 2, (top + bottom) / 2
            half = max(1, round(0.08 * (right - left))), max(1, round(0.08 * (bottom - top)))
            spot = (max(0, round(x) - half[0]), max(0, round(y) - half[1]), round(x) + half[0], round(y) + half[1])
            painted = pictures[raster.picture].copy()
            painted.paste((250, 10, 240), spot)
            other = [painted if i == raster.picture else p for i, p in enumerate(pictures)]
            changed = (embeddings(vlm, model, replace(question, picture=other)) - base).abs().amax(-1) > 1e-5
            near = (
                spot[0] - 0.3 * (right - left),
                spot[1] - 0.3 * (bottom - top),
                spot[2] + 0.3 * (right - left),
                spot[3] + 0.3 * (bottom - top),
            )
            assert changed[token], (raster.picture, box)
            allowed = grid.cover([near], raster.picture) > 0
            for coarse in grid.rasters:  # a spot blurs further in a view of fewer pixels
                if coarse.tokens.numel() < raster.tokens.numel():
                    allowed[coarse.tokens] = True
            assert not (changed & ~allowed).any(), (raster.picture, box, changed.nonzero().flatten())
            checked += 1
    assert checked >= 4 * len(sizes)
    # what shows nothing never changes, whatever the picture
    swapped = embeddings(vlm, model, replace(question, picture=[noise(*size, seed=7) for size in sizes]))
    assert ((swapped - base).abs().amax(-1) > 1e-5).tolist() == grid.shown.tolist()
    return grid


PLACED = [pytest.param(name, marks=pytest.mark.full) for name in RECENT if name != "internvl_gpt_oss"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", [*(n for n in FIRST if n != "paligemma2"), *PLACED])
def test_boxes_are_where_paint_is_seen(models, name, size):
    grid = check_by_painting(models[name], [size])
    tiled = ("llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm", "aya_vision", "internvl_gpt_oss", "lfm2_vl", "llama4")
    views = 2 if name in tiled else 1
    # a picture that is nearly a square is one tile to InternVL, and one that is small to LFM2-VL
    square = name in ("internvl", "internvl_gpt_oss", "aya_vision", "lfm2_vl") and size == (64, 90) and len(grid.rasters) == 1
    assert len(grid.rasters) == (1 if square else views)


@pytest.mark.parametrize("name", [*(n for n in FIRST if n != "paligemma2"), *PLACED])
def test_several_pictures_have_their_own_boxes(models, name):
    grid = check_by_painting(models[name], [(90, 64), (50, 100)])
    assert {raster.picture for raster in grid.rasters} == {0, 1}


def test_grid_of_a_padded_square_and_of_a_class_token(models):
    """LLaVA with its pads, and with all features kept: the processor's own numbers decide."""
    vlm = copy.copy(models["llava"])
    vlm.processor = copy.deepcopy(vlm.processor)
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    vlm.processor.image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"height": SIDE, "width": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    grid = check_by_painting(vlm, [(90, 60)])
    assert grid.rasters[0].y.tolist() == [[0, 30], [30, 60]] and grid.rasters[0].x.tolist() == [[0, 45], [45, 90]]
    grid = patch_grid(vlm, si.Question("Where?", ("left", "right"), 0, picture=noise(60, 20)))
    assert grid.rasters[0].y.tolist() == [[0, 10], [10, 20]], "cut at the picture's edges"


def test_pan_and_scan_crops(models, monkeypatch):
    vlm = models["gemma3"]
    for key, value in {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20}.items():
        monkeypatch.setitem(type(vlm.processor).images_kwargs, key, value)
    for size, shape in (((150, 50), (2, 6)), ((50, 150), (6, 2)), ((60, 60), None)):
        grid = check_by_painting(vlm, [size])
        assert [tuple(r.tokens.shape) for r in grid.rasters] == [(2, 2), *([shape] if shape else [])]


def test_unknown_layouts_are_refused(models, monkeypatch):
    vlm, question = models["llava"], si.Question("Where?", ("left", "right"), 0, picture=noise(60, 20))
    monkeypatch.setattr(vlm, "family", "vipllava")
    with pytest.raises(ModelError, match="family 'vipllava' with a LlavaProcessor is not known"):
        patch_grid(vlm, question)
    monkeypatch.setattr(vlm, "family", "paligemma")
    monkeypatch.setattr(vlm.processor, "image_seq_length", 9, raising=False)
    with pytest.raises(ModelError, match="has 9 tokens, but its prompt has 4"):
        patch_grid(vlm, question)
    assert patch_grid(vlm, si.Question("Where?", ("left", "right"), 0)).rasters == ()


def hand_grid():
    """A 40 x 20 picture as 2 x 4 patches of 10 pixels behind one word, and whole as one patch."""
    x = torch.tensor([[0.0, 10], [10, 20], [20, 30], [30, 40]], dtype=torch.float64)
    fine = Raster(0, torch.arange(1, 9).view(2, 4), x, x[:2])
    whole = Raster(0, torch.tensor([[9]]), torch.tensor([[0.0, 40]]).double(), torch.tensor([[0.0, 20]]).double())
    return PatchGrid(11, ((40, 20),), (whole, fine))


def test_cover_counts_shares_and_unions_once():
    grid = hand_grid()
    cover = grid.cover([(5, 0, 15, 10)])
    assert cover.tolist() == [0, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 0.125, 0]
    assert torch.equal(grid.cover([(5, 0, 15, 10), (5, 0, 15, 10), (5, 0, 12, 5)]), cover)
    assert grid.cover([(5, 0, 15, 10), (15, 0, 20, 10)])[[1, 2, 9]].tolist() == [0.5, 1, 0.1875]
    assert grid.cover([(-9, -9, 99, 99)]).tolist() == grid.shown.double().tolist()
    assert not grid.cover([(0, 0, 40, 20)], picture=1).any()
    draw = np.random.default_rng(0)
    boxes = [tuple(map(float, (*(c := draw.integers(0, 20, 2)), *(c + draw.integers(1, 20, 2))))) for _ in range(5)]
    pixels = np.zeros((20, 40), bool)
    for left, top, right, bottom in boxes:
        pixels[int(top) : int(bottom), int(left) : int(right)] = True
    tiles = pixels.reshape(2, 10, 4, 10).mean((1, 3))
    assert np.allclose(grid.cover(boxes)[1:9].view(2, 4), tiles) and np.isclose(grid.cover(boxes)[9], pixels.mean())


def test_upsampling_keeps_the_mass_and_the_place():
    grid, weights = hand_grid(), torch.zeros(11)
    weights[4], weights[9], weights[0] = 0.5, 0.25, 0.25
    heat = grid.upsample(weights)
    assert heat.shape == (20, 40) and float(heat.sum()) == pytest.approx(0.75)
    assert heat[3, 33] == pytest.approx(0.5 / 100 + 0.25 / 800) and heat[15, 5] == pytest.approx(0.25 / 800)
    small = grid.upsample(weights, longest=7)
    assert small.shape == (4, 7) and float(small.sum()) == pytest.approx(0.75)


# --- numbers of a map


def test_spatial_entropy_counts_places():
    grid, weights = hand_grid(), torch.zeros(1, 4, 11)
    weights[0, 0, [1, 2]] = 0.5  # one place
    weights[0, 1, [1, 8]] = 0.5  # two, far apart
    weights[0, 2, [1, 6]] = 0.5  # two patches that meet at a corner
    weights[0, 3, 1:9] = 0.125  # everywhere alike
    assert spatial_entropy(weights, grid)[0].tolist() == pytest.approx([0, log(2), 0, log(8)], abs=1e-6)
    assert image_mass(weights, grid)[0].tolist() == [1, 1, 1, 1]
    share = torch.zeros(1, 1, 11)
    share[0, 0, [1, 3, 8]] = torch.tensor([0.5, 0.3, 0.2])
    excess = np.array([0.5, 0.3]) - 0.25
    p = excess / excess.sum()
    assert float(spatial_entropy(share, grid)) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6), "0.2 is below twice the mean"


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([10, 9, 1, 1, 1, 1], 2),
        ([1, 1, 10, 1, 9, 1], 2),
        ([5, 5, 5, 5, 0], 4),
        ([3, 3, 3], 3),
        ([4, 3, 2, 1], 4),
        ([7], 1),
        ([2, 1], 2),
        ([100, 0, 0, 0], 1),
    ],
)
def test_elbow(values, kept):
    values = torch.tensor(values, dtype=torch.float32)
    assert elbow(values) == elbow(values * 3 - 1) == elbow(values.flip(0)) == kept


def test_elbow_needs_numbers():
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(DataError, match="finite"):
            elbow(torch.tensor(bad))


def test_auroc_is_mann_whitney_and_its_interval_goes_by_pictures():
    draw = np.random.default_rng(0)
    right = draw.random(80) < 0.6
    values = draw.normal(size=(80, 2, 3)).round(1)  # with ties
    values[:, 1, 2] += 3 * right
    found, low, high, p = auroc(values, right, np.arange(80))
    for at in np.ndindex(2, 3):
        u = stats.mannwhitneyu(values[:, *at][right], values[:, *at][~right])
        assert found[at] == pytest.approx(u.statistic / (right.sum() * (~right).sum()))
        assert p[at] == pytest.approx(u.pvalue)
        assert low[at] <= found[at] <= high[at]
    assert p[1, 2] < 1e-6 and low[1, 2] > 0.9
    four = np.repeat(np.arange(80), 4)
    wide, alone = (
        auroc(np.repeat(values, 4, 0), np.repeat(right, 4), four),
        auroc(np.repeat(values, 4, 0), np.repeat(right, 4), np.arange(320)),
    )
    assert np.allclose(wide[0], found) and np.allclose(wide[2] - wide[1], high - low, atol=0.02)
    assert (alone[2] - alone[1])[0, 0] < 0.7 * (high - low)[0, 0]
    assert wide[3][0, 0] == pytest.approx(p[0, 0], abs=0.05) and wide[3][1, 2] < 1e-6
    for same in (np.ones(80), np.zeros(80)):
        with pytest.raises(DataError, match="needs both"):
            auroc(values, same, np.arange(80))


# --- attention to objects


@pytest.fixture(scope="module")
def asked():
    return si.load_questions("scenes/relation", "train", n=24)


@pytest.fixture(scope="module")
def found(vlm, asked):
    return object_attention(vlm, asked)


def test_masses_are_sums_over_patches(vlm, asked, found):
    """demo: 7 x 7 patches of 8 pixels, the picture's tokens in a row."""
    for q in (0, 5):
        ids = vlm.encode(asked[q])["input_ids"][0]
        at = (ids == vlm.image_token_id).nonzero()[:, 0]
        weights = eager_weights(vlm, asked[q])[..., at]
        mask = np.zeros((56, 56))
        for name in asked[q].about:
            left, top, right, bottom = asked[q].boxes[name]
            mask[top:bottom, left:right] = 1
        share = torch.tensor(mask.reshape(7, 8, 7, 8).mean((1, 3)).flatten(), dtype=torch.float32)
        assert torch.allclose(found.image_mass[q], weights.sum(-1), atol=1e-6)
        assert torch.allclose(found.box_mass[q], (weights * share).sum(-1), atol=1e-6)
        assert float(found.area[q]) == pytest.approx(float(share.mean()))
        assert torch.allclose(found.lift.per_question[q], (weights * share).sum(-1) / weights.sum(-1) - share.mean(), atol=1e-5)
    assert found.box.unit == "share of attention" and (found.image_mass > found.box_mass).all()


def test_answers_are_those_of_evaluate(vlm, asked, found):
    ev = si.evaluate(vlm, asked)
    assert torch.equal(found.correct, ev.per_question)
    assert torch.allclose(found.confidence, ev.scores.softmax(-1).amax(-1), atol=1e-5)
    table = found.by_relation().set_index("relation")
    for row in ev.by("relation").itertuples():
        assert table.loc[row.relation, ["n", "accuracy", "accuracy_low"]].tolist() == pytest.approx([row.n, row.accuracy, row.low])
    assert table["confidence"].is_monotonic_increasing and (table["confidence_low"] <= table["confidence"]).all()
    assert found.auroc(ev).equals(found.auroc()) and found.auroc(ev.per_question).equals(found.auroc())
    assert si.evaluate(vlm, asked[:3]).per_question.shape == (3,)
    with pytest.raises(DataError, match="no answer to question"):
        found.auroc(si.evaluate(vlm, asked[:3]))
    with pytest.raises(DataError, match="give 24 values"):
        found.auroc([1, 0])


def test_auroc_finds_the_head_that_looks_when_right(found):
    right = np.random.default_rng(0).random(24) < 0.5
    box = found.box_mass.clone()
    box[:, 2, 3] = torch.tensor(0.1 + 0.2 * right, dtype=torch.float32)
    planted = replace(found, box_mass=box, correct=torch.tensor(right, dtype=torch.float32))
    table = planted.auroc()
    best = table.loc[table["auroc"].idxmax()]
    assert best[["layer", "head", "auroc", "low"]].tolist() == [2, 3, 1, 1] and best["p"] < 0.01
    assert (table["p"] < 0.05).sum() == 1
    with pytest.raises(DataError, match="choose from 'box'"):
        planted.auroc(of="nose")


def test_layers_are_means_over_their_heads(found):
    table = found.by_layer()
    assert table["image"].tolist() == pytest.approx(found.image_mass.mean((0, 2)).tolist())
    assert table["box"].tolist() == pytest.approx(found.box_mass.mean((0, 2)).tolist())
    assert table["lift"].tolist() == pytest.approx(found.lift.per_question.mean((0, 2)).tolist())
    assert (table["lift_low"] <= table["lift"]).all() and (table["lift"] <= table["lift_high"]).all()
    right = np.arange(24) % 2
    box = torch.zeros_like(found.box_mass)
    box[:, 4] = torch.tensor(right[:, None] * np.linspace(0.1, 0.8, 8))  # no head of its own alone, the layer together
    layers = replace(found, box_mass=box).auroc(right, by="layer")
    assert list(layers.columns) == ["layer", "auroc", "low", "high", "p"] and layers["auroc"].tolist() == [0.5] * 4 + [1.0, 0.5]
    assert layers["p"][4] == pytest.approx(6 * stats.mannwhitneyu(right[right == 1], right[right == 0]).pvalue)
    with pytest.raises(DataError, match="by='nose'"):
        found.auroc(right, by="nose")


def test_confidence_is_scored_as_attention_is(found):
    right = np.random.default_rng(1).random(24) < 0.5
    planted = replace(found, confidence=torch.tensor(0.5 + 0.3 * right, dtype=torch.float32))
    assert planted.confidence_auroc(right)["auroc"] == 1 and planted.confidence_auroc(right)["p"] < 1e-4
    u = stats.mannwhitneyu(found.confidence.numpy()[right], found.confidence.numpy()[~right])
    assert found.confidence_auroc(right)["p"] == pytest.approx(u.pvalue)


def test_shares_of_tokens(vlm, asked, found):
    ids = vlm.encode(asked[0])["input_ids"][0]
    assert float(found.image_share[0]) == pytest.approx(float((ids == vlm.image_token_id).float().mean()))


def test_object_attention_survives_the_disk(found, tmp_path):
    found.save(tmp_path / "a.safetensors")
    again = ObjectAttention.load(tmp_path / "a.safetensors")
    assert repr(again) == repr(found) and again.auroc().equals(found.auroc()) and again.by_relation().equals(found.by_relation())
    assert (again.ids, again.relations, again.skipped, again.provenance) == (found.ids, found.relations, found.skipped, found.provenance)
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(FileError, match="is not a saved HeadMap"):
        si.HeadMap.load(tmp_path / "a.safetensors")


def test_questions_without_boxes_are_named(vlm, asked):
    blind = si.Question("Is there a cat?", ("yes", "no"), 0, id="blind")
    bare = replace(asked[0], boxes={}, id="bare")
    outside = replace(asked[1], boxes={name: (200, 200, 210, 210) for name in asked[1].about}, id="outside")
    with pytest.warns(DataWarning, match="4 of 6 questions are skipped; question blind: it has no image"):
        some = object_attention(vlm, [blind, asked[2], bare, outside, asked[3], replace(asked[4], about=(), id="aimless")])
    assert some.ids == (asked[2].id, asked[3].id)
    assert list(some.skipped) == ["blind", "bare", "outside", "aimless"] and "outside the part" in some.skipped["outside"]
    with pytest.raises(DataError, match="question bare: it has no box of"):
        object_attention(vlm, [bare])


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "internvl", "gemma3", "idefics3", "paligemma"])
def test_every_family_gives_shares(models, name):
    boxes = {"cat": (0.0, 0.0, 30.0, 40.0)}
    asked = [
        si.Question("Where is the cat?", ("left", "right"), 0, picture=noise(90, 64, s), about=("cat",), boxes=boxes) for s in range(2)
    ]
    result = object_attention(models[name], asked, path="reference" if name in BIDIRECTIONAL else "packed")
    assert (result.box_mass >= 0).all() and (result.box_mass <= result.image_mass).all() and (result.image_mass <= 1).all()
    assert (result.area - 30 * 40 / (90 * 64)).abs().max() < 0.1
    assert result.relations == (None, None)
    with pytest.raises(DataError, match="no question has a relation"):
        result.by_relation()


def test_localization_heads(vlm, asked):
    result = localization_heads(vlm, asked, n=2)
    mass, entropy = result.image.scores, result.entropy.scores
    kept = elbow(mass)
    assert len(result.above) == kept and set(result.above) == set(result.image.top(kept))
    assert len(result.heads) == min(2, kept)
    others = [head for head in result.above if head not in result.heads]
    assert all(entropy[a] <= entropy[b] for a in result.heads for b in others)
    assert torch.allclose(result.image.per_question, object_attention(vlm, asked).image_mass)
    with pytest.raises(DataError, match="at least one head"):
        localization_heads(vlm, asked, n=0)
    with pytest.raises(DataError, match="blind has no image"):
        localization_heads(vlm, [si.Question("Is there a cat?", ("yes", "no"), 0, id="blind")])


# --- the figure


def test_the_figure_shows_map_boxes_and_peak(vlm, asked):
    question, grid = asked[0], patch_grid(vlm, asked[0])
    weights = torch.full((6, 8, grid.n_tokens), 0.3 / grid.n_tokens)
    token = grid.rasters[0].tokens[2, 5]
    weights[3, 4, token] += 0.7
    figure = attention_over_picture(question, weights, grid, 3, 4)
    heat, _, peak = figure.data
    assert heat.z.sum() == pytest.approx(float(weights[3, 4, grid.shown].sum()))
    assert (peak.x[0], peak.y[0]) == (44, 20), "the middle of patch (2, 5)"
    outlines = {(s.x0, s.y0, s.x1, s.y1) for s in figure.layout.shapes}
    assert outlines == {tuple(question.boxes[name]) for name in question.about}
    assert figure.layout.yaxis.range == (56, 0) and len(figure.layout.images) == 1
    for arguments, message in (
        ((weights[..., 1:], grid, 3, 4), "both of the same question"),
        ((weights, grid, 6, 0), "6 layers of 8 heads"),
    ):
        with pytest.raises(DataError, match=message):
            attention_over_picture(question, *arguments)
    with pytest.raises(DataError, match="image 1"):
        attention_over_picture(question, weights, grid, 0, 0, picture=1)


def test_results_draw_themselves(found, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    names = [trace.name for trace in found.plot().data if trace.type == "heatmap"]
    assert names == [found.map(of).method for of in ("box", "image", "focus", "lift", "entropy")]
    chosen = choose_localization(found.image, found.entropy, 2)
    assert len(chosen.plot().layout.shapes) == 2 * len(chosen.heads)
    for result in (found, chosen):
        assert "application/vnd.plotly.v1+json" in result._repr_mimebundle_()
    table = found.auroc(np.arange(24) % 2)
    heat, dots = si.viz.auroc_heatmap(table, dark=True).data
    assert heat.z[2][5] == table.set_index(["layer", "head"]).loc[(2, 5), "auroc"] and len(dots.x) == (table["p"] < 0.05).sum()
    with pytest.raises(DataError, match="no column 'head'"):
        si.viz.auroc_heatmap(found.auroc(np.arange(24) % 2, by="layer"))


# --- the command


def test_the_command_writes_what_it_found(vlm, tmp_path):
    arguments = ["attention", "demo", "--data", "scenes/relation", "--n", "30", "--pictures", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out"
    found = ObjectAttention.load(folder / "attention.safetensors")
    asked = si.load_questions("scenes/relation", n=30)
    expected = object_attention(vlm, asked)
    assert torch.equal(found.box_mass, expected.box_mass)
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["relation"] for row in summary["relations"]] == expected.by_relation()["relation"].tolist()
    heads = pd.read_csv(folder / "heads.csv")
    assert len(heads) == 48 and (heads["layer"][0], heads["head"][0]) == expected.box.top(1)[0]
    assert "look most at the asked" in result.output
    page = (folder / "report.html").read_text()
    assert page.count('class="panel figure ') == 1 + 1 + 2 and "scale-interp attention demo" in page and escape(summary["notes"][0]) in page
    right = study_attention(vlm, [q for q, r in zip(asked, expected.correct, strict=True) if r], 1)
    assert right.auroc is None and "No AUROC: all" in notes(right)[2] and len(right.pictures) == 1
    with pytest.raises(DataError, match="can be placed"):
        study_attention(vlm, [replace(q, boxes={}) for q in asked[:2]], 1)


def test_layouts_know_every_family_of_the_zoo():
    families = {name.removesuffix("2") if name in BIDIRECTIONAL else name for name in zoo.NAMES} - {"internvl_gpt_oss"}
    assert families <= set(LAYOUTS)
