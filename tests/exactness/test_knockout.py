"""Attention knockout: packed rows and whole passes against attention that is written out here, on every family."""

import functools
from contextlib import contextmanager

import pytest
import torch

import scale_interp as si
from scale_interp.errors import DataError, EditError
from scale_interp.interventions.engine import run_with_clean
from scale_interp.interventions.positions import choose_path_at
from scale_interp.models import zoo
from tests.support.oracle import eager_attention, hooked_scores, plain_inputs
from tests.support.zoo_models import CAUSAL, RECENT, mostly_full, three_questions

NOT_SEEN = "llama4"
"""Its chunks of attention end between the image and the last token."""


@functools.cache
def model(name):
    return si.load(f"tiny-random/{name}")


@pytest.fixture(scope="module")
def questions():
    return three_questions()


# --- the oracle: attention in loops, in the place of the modelling file's own


@contextmanager
def written_out(vlm, mode, on, source, target, image):
    """The decoder's attention written out; on [L, H]: the edited heads, the others are sets of places."""
    modules = [block.attention() for block in vlm.head_layers]

    def attend(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
        _, H, S, _ = query.shape
        out, sinks = torch.empty(1, S, H, value.shape[-1]), getattr(module, "sinks", None)
        for h in range(H):
            kv = h * key.shape[1] // H
            scores = query[0, h] @ key[0, kv].T * scaling
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            scores = scores + attention_mask[0, 0]
            edited = source if on[modules.index(module), h] else set()
            for s in edited if mode != "move" else ():
                scores[s, list({"block": target, "only": set(range(S)) - target}[mode] - {s})] = -torch.inf
            if sinks is not None:
                scores = torch.cat([scores, sinks[h].expand(S, 1)], 1)
            weights = torch.softmax(scores, -1)[:, :S]
            for s in edited if mode == "move" else ():
                aim, pool = sorted(target - {s}), sorted(image - {s})
                before = weights[s].clone()
                if aim and before[aim].sum() > 0:
                    weights[s, list(image - target - {s})] = 0
                    weights[s, aim] = before[aim] / before[aim].sum() * before[pool].sum()
            out[0, :, h] = weights @ value[0, kv]
        return out, None

    with eager_attention(vlm, modules, attend):
        yield


def expected(vlm, question, edit, variant, source, target):
    """Choice scores of one variant, in one whole pass per choice; source and target are functions of (T, image)."""
    inputs = plain_inputs(vlm, question)
    T = inputs["input_ids"].shape[1]
    image = set(vlm.token_groups(question)["image"])
    assert 1 <= len(image) < T
    ids = vlm.choice_ids(question)
    assert max(map(len, ids)) == 1
    with torch.no_grad(), written_out(vlm, edit.mode, edit.heads[variant], source(T, image), target(T, image), image):
        return vlm.hf_model(**inputs, use_cache=False).logits[0, -1, [i[0] for i in ids]]


def last(T, image):
    return {T - 1}


def whole_image(T, image):
    return set(image)


def places(*numbers):
    return lambda T, image: {n % T for n in numbers}


def two_variants(vlm):
    """One head of the second layer; all heads of the first and the last layer."""
    heads = torch.zeros(2, vlm.n_layers, vlm.n_heads, dtype=torch.bool)
    heads[0, 1, 2] = heads[1, 0] = heads[1, -1] = True
    return heads


def _set_kernel(vlm, name, kernel):
    if (name, kernel) == ("internvl_gpt_oss", "sdpa"):
        pytest.skip("transformers has no sdpa for attention sinks")
    vlm.hf_model.set_attn_implementation(kernel)


def worst(vlm, questions, edit, scores, source, target):
    found = 0.0
    for q, question in enumerate(questions):
        for n in range(edit.n_variants):
            wanted = expected(vlm, question, edit, n, source, target)
            found = max(found, float((scores[q, n, : len(wanted)] - wanted).abs().max()))
    return found


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", mostly_full([*CAUSAL, *RECENT]))
def test_the_last_token_is_cut_off_from_the_image_on_every_family(questions, name, kernel):
    vlm = model(name)
    _set_kernel(vlm, name, kernel)
    for mode in ("block", "only"):
        edit = si.AttentionEdit(two_variants(vlm), mode=mode)
        edited, clean = run_with_clean(vlm, questions, edit, "packed")
        assert worst(vlm, questions, edit, edited, last, whole_image) <= 1e-5, mode
        if name != NOT_SEEN:
            assert (edited - clean)[edited.isfinite()].abs().max() > 1e-4, mode


@pytest.mark.parametrize("name", mostly_full(zoo.NAMES))
def test_whole_passes_cut_any_tokens_off_from_any_others(questions, name):
    """A part of the image and words in between as source; itself among its targets; the image moved onto one of its patches."""
    vlm = model(name)
    heads = two_variants(vlm)
    some = questions[:1]
    at = vlm.token_groups(some[0])["image"]
    tried = {
        "block": ("image", "image", whole_image, whole_image),
        "only": ((-4, -2), (*at[:2], -3, -2), places(-4, -2), places(*at[:2], -3, -2)),
        "move": ((-3, at[-1], -1), at[-3:-1], places(-3, at[-1], -1), places(*at[-3:-1])),
    }
    for mode, (source, target, source_places, target_places) in tried.items():
        edit = si.AttentionEdit(heads, source, target, mode)
        edited, clean = run_with_clean(vlm, some, edit, "reference")
        assert worst(vlm, some, edit, edited, source_places, target_places) <= 1e-5, mode
        if (name, mode) != (NOT_SEEN, "block"):
            assert (edited - clean)[edited.isfinite()].abs().max() > 1e-5, mode


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", mostly_full([*CAUSAL, *RECENT]))
def test_suffixes_are_cut_as_whole_passes_are(questions, name, kernel):
    """Words and the image as source, from prompts of different length in one batch; the image's own tokens too."""
    vlm = model(name)
    _set_kernel(vlm, name, kernel)
    path = choose_path_at(vlm, questions[0], "auto")
    assert path == "packed" or name in RECENT
    heads = two_variants(vlm)
    for mode, source, target in (
        ("block", "question", "image"),
        ("block", "image", "image"),
        ("only", ("question", "last"), ("question", "template")),
        ("move", "last", "image"),
    ):
        edit = si.AttentionEdit(heads, source, target, mode)
        edited, clean = run_with_clean(vlm, questions, edit, path)
        for q, question in enumerate(questions):
            groups = vlm.token_groups(question)
            mine, seen = (
                {t for group in ((where,) if isinstance(where, str) else where) for t in groups[group]} for where in (source, target)
            )
            for n in range(2):
                wanted = expected(vlm, question, edit, n, lambda T, image, mine=mine: mine, lambda T, image, seen=seen: seen)
                assert (edited[q, n, : len(wanted)] - wanted).abs().max() <= 1e-5, (mode, source, q, n)
        assert mode == "move" or name == NOT_SEEN or (edited - clean)[edited.isfinite()].abs().max() > 1e-5, (mode, source)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_one_patch_is_hidden_per_variant(questions, name):
    """From the last token and from words, by whole passes too; of a prompt with fewer patches, none."""
    vlm = model(name)
    images = [vlm.token_groups(question)["image"] for question in questions]
    nth = torch.tensor([0, min(map(len, images)), max(map(len, images)) - 1])
    for source, path in (("last", "packed"), ("question", "packed"), ("question", "reference")):
        edit = si.AttentionEdit(torch.ones(3, vlm.n_layers, vlm.n_heads, dtype=torch.bool), source, nth=nth)
        edited, clean = run_with_clean(vlm, questions, edit, path)
        for q, (question, image) in enumerate(zip(questions, images, strict=True)):
            mine = set(vlm.token_groups(question)[source])
            for n, number in enumerate(nth.tolist()):
                hidden = set(image[number : number + 1])
                wanted = expected(vlm, question, edit, n, lambda T, _, mine=mine: mine, lambda T, _, hidden=hidden: hidden)
                assert (edited[q, n, : len(wanted)] - wanted).abs().max() <= 1e-5, (source, path, q, n)
            assert (edited[q, 0] - clean[q, 0]).nan_to_num(0, 0, 0).abs().max() > 1e-5, (source, path, q)
    assert torch.equal(edit[2].nth, nth[2:]) and "one token of image" in repr(edit)
    with pytest.raises(EditError, match=r"nth is torch\.int64 \[2\]: give 3 whole numbers"):
        si.AttentionEdit(edit.heads, nth=nth[:2])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_both_paths_agree_in_every_mode_on_longer_answers(questions, name):
    vlm = model(name)
    asked = [si.Question(q.text, ("left circle", "left square", "above"), 0, picture=q.picture, id=q.id) for q in questions[:2]]
    assert max(map(len, vlm.choice_ids(asked[0]))) > 1
    first = int((vlm.encode(asked[0])["input_ids"][0] == vlm.image_token_id).nonzero()[0])
    for mode, source, target in (
        ("block", "last", "image"),
        ("only", "last", "image"),
        ("move", "last", [first, first + 1]),
        ("block", "question", "image"),
    ):
        edit = si.AttentionEdit(two_variants(vlm), source, target, mode)
        some = asked[:1] if mode == "move" else asked
        packed, whole = (si.run_edits(vlm, some, edit, path=path) for path in ("packed", "reference"))
        assert (packed - whole).abs().max() <= 1e-5, mode


@pytest.mark.parametrize("path", ["packed", "reference"])
def test_edits_that_take_nothing_away_keep_every_bit(questions, path):
    vlm = model("llava")
    everything = torch.ones(1, vlm.n_layers, vlm.n_heads, dtype=torch.bool)
    for edit in (
        si.AttentionEdit(everything, target=[]),
        si.AttentionEdit(everything, target="last"),  # a token always sees itself
        si.AttentionEdit(everything, target=[], mode="move"),
        si.AttentionEdit(~everything),
    ):
        edited, clean = run_with_clean(vlm, questions, edit, path)
        assert torch.equal(edited, clean)
    image_to_image, clean = run_with_clean(vlm, questions, si.AttentionEdit(everything, mode="move"), path)
    assert (image_to_image - clean).nan_to_num(0, 0, 0).abs().max() <= 1e-6
    T = vlm.encode(questions[0])["input_ids"].shape[1]
    all_seen, clean = run_with_clean(vlm, questions[:1], si.AttentionEdit(everything, target=range(T), mode="only"), path)
    assert torch.equal(all_seen, clean)


def test_what_cannot_be_cut_is_refused_by_name(questions):
    vlm = model("llava")
    heads = two_variants(vlm)
    with pytest.raises(EditError, match="give booleans"):
        si.AttentionEdit(heads.float())
    with pytest.raises(EditError, match="mode 'blok'"):
        si.AttentionEdit(heads, mode="blok")
    with pytest.raises(EditError, match="token numbers"):
        si.AttentionEdit(heads, source=[2.5])
    with pytest.raises(EditError, match=r"needs \[N, "):
        si.run_edits(vlm, questions, si.AttentionEdit(heads[:, :1]))
    with pytest.raises(DataError, match="token 900"):
        si.run_edits(vlm, questions, si.AttentionEdit(heads, target=[900]))
    with pytest.raises(EditError, match="not of the image"):
        si.run_edits(vlm, questions, si.AttentionEdit(heads, target=[-2], mode="move"))
    with pytest.raises(DataError, match="no token group 'imgae'"):
        si.knockout(vlm, questions, target="imgae")
    with pytest.raises(EditError, match="by='head'"):
        si.knockout(vlm, questions, by="head", window=2)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_heads_are_edited_beside_attention(questions, name):
    """Both in one run: hooks of the oracle's kind for the heads, around the written-out attention."""
    vlm = model(name)
    scale = torch.ones(2, vlm.n_layers, vlm.n_heads)
    scale[0, 2, 1], scale[1, 0, 3] = 0.0, 3.0
    edit = si.AttentionEdit(two_variants(vlm), beside=si.Edit(scale=scale, mlp_scale=torch.full((2, vlm.n_layers), 0.5)))
    for path in ("packed", "reference"):
        scores = si.run_edits(vlm, questions[:2], edit, path=path)
        for q, question in enumerate(questions[:2]):
            T, image = vlm.encode(question)["input_ids"].shape[1], set(vlm.token_groups(question)["image"])
            for n in range(2):
                with written_out(vlm, "block", edit.heads[n], {T - 1}, image, image):
                    wanted = hooked_scores(vlm, question, edit.beside, n)
                assert (scores[q, n, : len(wanted)] - wanted).abs().max() <= 1e-5
    for wrong in ({"beside": si.Edit(scale=torch.ones(3, vlm.n_layers, vlm.n_heads))}, {"beside": edit.beside, "source": "image"}):
        with pytest.raises(EditError, match="beside"):
            si.AttentionEdit(two_variants(vlm), **wrong)
