"""Path patching and direct logit attribution = plain torch hooks on the transformers model, one run a number."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import LlavaForConditionalGeneration

import scale_interp as si
from scale_interp.attribution.metric import contrast_diff
from scale_interp.errors import DataError, EditError, ModelError
from scale_interp.models.zoo import NAMES
from tests.support.oracle import heads_of, hooked_scores
from tests.support.watched import inputs_of

POST_NORMS = {
    "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "paligemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4v": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
NOT_A_SUM = {
    "gemma4": r"\(gemma4\): heads and MLPs miss the residual stream by .* change by per_layer_input_gate and layer_scalar as well",
    "aya_vision": r"\(aya_vision\): norm \(Cohere2LayerNorm\) is not a gain times one number",
}
CHOICES = (("left", "right"), ("yes", "no"), ("red", "blue", "green"))


@pytest.fixture(scope="module")
def model():
    """name -> VLM, each loaded once."""
    loaded = {}

    def get(name):
        if name not in loaded:
            family, biased = name.removesuffix(" with biases"), name.endswith(" with biases")
            loaded[name] = vlm = si.load(family if family == "demo" else f"tiny-random/{family}")
            for layer in vlm.decoder.layers if biased else ():
                draw = torch.Generator().manual_seed(0)
                layer.self_attn.o_proj.bias = torch.nn.Parameter(torch.randn(vlm.d_model, generator=draw), requires_grad=False)
        return loaded[name]

    return get


def noise(seed, side=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def questions():
    """Pictures of different sizes, prompts of different lengths, two and three choices."""
    texts = ("Where is the cat?", "Is there a dog near the red circle in the picture?", "What colour is the square?")
    sides = ((40, 30), (30, 64), (56, 56))
    return [si.Question(t, c, i % 2, picture=noise(i, s)) for i, (t, c, s) in enumerate(zip(texts, CHOICES, sides, strict=True))]


def contrast(question, seed, choices=None):
    """The same words with another picture and another answer."""
    choices = choices or question.choices
    clean = si.Question(question.text, choices, 0, picture=question.picture)
    return si.Contrast(clean, si.Question(question.text, choices, 1, picture=noise(seed, (56, 42))))


@pytest.fixture(scope="module")
def pairs(questions):
    return [contrast(q, 10 + i) for i, q in enumerate(questions)]


@contextmanager
def hooks(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(vlm, question):
    """Logits [V] at the prompt's last token of a whole forward pass."""
    return vlm.hf_model(**vlm.encode(question), use_cache=False).logits[0, -1]


def seen_by(module, keep):
    return module.register_forward_pre_hook(
        lambda m, args, kwargs: keep.append((args or (kwargs["hidden_states"],))[0].clone()), with_kwargs=True
    )


def written(module, row):
    """A pre-hook that replaces the module's input at the last token by row(old)."""

    def hook(m, args):
        x = args[0].clone()
        x[0, -1] = row(x[0, -1])
        return (x, *args[1:])

    return module.register_forward_pre_hook(hook)


def after_attention(layer):
    """The module that reads the residual stream right after a layer's attention was added."""
    return getattr(layer, "pre_feedforward_layernorm", None) or layer.post_attention_layernorm


def received(vlm, pair, sender, receiver, into):
    """The receiver's z [D], read off a whole corrupt run whose q, k or v projection alone reads the changed stream.

    Also the logits of that run, and of the corrupt run as it is.
    """
    (l_s, h_s), (l_r, h_r), D = sender, receiver, vlm.head_dim
    before, behind = vlm.decoder.layers[l_s], vlm.decoder.layers[l_r]
    clean, kept, moved, stream, z = [], [], [], [], []
    with hooks(seen_by(before.self_attn.o_proj, clean)):
        run(vlm, pair.clean)
    with hooks(seen_by(after_attention(before), kept), seen_by(behind, stream)):
        unpatched = run(vlm, pair.corrupt)
    mine = slice(h_s * D, (h_s + 1) * D)
    with hooks(
        written(before.self_attn.o_proj, lambda x: torch.cat([x[: mine.start], clean[0][0, -1, mine], x[mine.stop :]])),
        seen_by(after_attention(before), moved),
    ):
        run(vlm, pair.corrupt)
    changed = stream[0][0, -1:] + moved[0][0, -1:] - kept[0][0, -1:]
    projection = getattr(behind.self_attn, f"{into}_proj")
    mine = h_r if into == "q" else h_r // (vlm.n_heads // vlm.n_kv_heads)

    def replace(module, args, out):
        out = out.clone()
        with torch.no_grad():
            other = F.linear(behind.input_layernorm(changed), module.weight, module.bias)
        out[0, -1, mine * D : (mine + 1) * D] = other[0, mine * D : (mine + 1) * D]
        return out

    with hooks(projection.register_forward_hook(replace), seen_by(behind.self_attn.o_proj, z)):
        logits = run(vlm, pair.corrupt)
    return z[0][0, -1, h_r * D : (h_r + 1) * D], logits, unpatched


def diff(vlm, logits, pair):
    ids = [i[0] for i in vlm.choice_ids(pair.clean)]
    return float(logits[ids[pair.clean.answer]] - logits[ids[pair.corrupt.answer]])


def expected(vlm, pair, sender, receiver, into):
    """Change of the logit difference; a query's change reaches no other head, so that run itself is the answer."""
    z, logits, unpatched = received(vlm, pair, sender, receiver, into)
    if into != "q":
        l_r, h_r = receiver
        D = vlm.head_dim
        with hooks(written(vlm.decoder.layers[l_r].self_attn.o_proj, lambda x: torch.cat([x[: h_r * D], z, x[(h_r + 1) * D :]]))):
            logits = run(vlm, pair.corrupt)
    return diff(vlm, logits, pair) - diff(vlm, unpatched, pair)


@pytest.mark.parametrize("into", ["q", "k", "v"])
@pytest.mark.parametrize("name", ["demo", "llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3"])
def test_path_patching_is_what_hooks_measure(model, pairs, name, into):
    vlm, pairs = model(name), pairs[1:]
    if name == "demo":
        pairs = si.contrasts(si.load_questions("scenes/relation", "train", n=2))
    last = vlm.n_layers - 1
    receivers = [(last, 3), (1, 0), (last, 0)]
    senders = {(last, 3): [(0, 1), (1, 2), (last - 1, 3)], (1, 0): [(0, 3)], (last, 0): [(0, 2)]}
    found = si.path_patch(vlm, pairs, receivers, into)
    assert list(found) == receivers
    gap = np.mean([diff(vlm, run(vlm, p.clean), p) - diff(vlm, run(vlm, p.corrupt), p) for p in pairs])
    sizes = []
    for receiver, maps in found.items():
        assert maps.per_question.shape == (len(pairs), vlm.n_layers, vlm.n_heads)
        assert maps.provenance["gap"] == pytest.approx(gap, abs=1e-5)
        for q, pair in enumerate(pairs):
            for layer, head in senders[receiver]:
                change = expected(vlm, pair, (layer, head), receiver, into)
                assert float(maps.per_question[q, layer, head]) * gap == pytest.approx(change, abs=1e-5)
                sizes.append(abs(change))
    assert max(sizes) > (1e-3 if name != "demo" else 1e-4)


def test_path_patching_reads_longer_choices_at_the_last_token(model, questions):
    vlm = model("llava")
    pairs = [contrast(questions[0], 20, ("left of it", "right under it")), contrast(questions[1], 21)]
    receiver, sender = (1, 1), (0, 3)
    for into in "qv":
        found = si.path_patch(vlm, pairs, [receiver], into)[receiver]
        scores = []
        for pair in pairs:
            z, *_ = received(vlm, pair, sender, receiver, into)
            scale, shift = torch.ones(2, 3, 4), torch.zeros(2, 3, 4, vlm.head_dim)
            scale[0, 1, 1], shift[0, 1, 1] = 0, z
            scores.append(torch.stack([hooked_scores(vlm, pair.corrupt, si.Edit(scale, shift), n) for n in range(2)]))
        patched, corrupt = contrast_diff(torch.stack(scores), pairs).unbind(1)
        changes = found.per_question[:, 0, 3] * found.provenance["gap"]
        assert torch.allclose(changes, patched - corrupt, atol=1e-5) and changes.abs().max() > 2e-4


def test_nothing_before_the_receiver_is_left_out_and_nothing_after_it_scores(model, pairs):
    for receiver, found in si.path_patch(model("qwen3_vl"), pairs, [(2, 0), (1, 3)], "v").items():
        assert (found.per_question[:, receiver[0] :] == 0).all()
        assert (found.per_question[:, : receiver[0]] != 0).all()
        assert "path patch into v" in repr(found) and len(found.to_frame()) == 12


def test_chunks_and_batches_do_not_matter(model, pairs, monkeypatch):
    vlm, receivers = model("gemma3"), [(1, 2), (2, 0)]
    with inputs_of(vlm.decoder.layers[-1]) as passes:
        whole = si.path_patch(vlm, pairs, receivers)
    with inputs_of(vlm.decoder.layers[-1]) as more_passes:
        monkeypatch.setattr(vlm, "memory", 1)
        chunked = si.path_patch(vlm, pairs, receivers)
        monkeypatch.undo()
    assert len(more_passes) > 2 * len(passes)
    alone = [si.path_patch(vlm, [p], receivers) for p in pairs]
    for r in receivers:
        assert torch.allclose(chunked[r].per_question, whole[r].per_question, atol=1e-5)
        for q, found in enumerate(alone):
            scores = found[r].per_question[0] * found[r].provenance["gap"]
            assert torch.allclose(scores, whole[r].per_question[q] * whole[r].provenance["gap"], atol=1e-5)


@pytest.mark.parametrize(
    ("receivers", "into", "message"),
    [
        ([(3, 0)], "q", "out of range"),
        ([(1, 0), (1, 0)], "q", "given twice"),
        ([(0, 1)], "q", "no head comes before layer 0"),
        ([(1, 0)], "o", "choose 'q', 'k' or 'v'"),
        ([], "q", "no receivers"),
    ],
)
def test_receivers_that_cannot_be_are_refused(model, pairs, receivers, into, message):
    with pytest.raises(EditError, match=message):
        si.path_patch(model("llava"), pairs, receivers, into)


def test_pairs_and_paths_that_cannot_be_are_refused(model, pairs, questions):
    same = si.Question(questions[0].text, questions[0].choices, 1 - questions[0].answer, picture=questions[0].picture)
    for method in (si.patch, si.attribute, lambda vlm, pairs: si.path_patch(vlm, pairs, [(2, 0)])):
        with pytest.raises(DataError, match="the same logit difference"):
            method(model("llava"), [si.Contrast(questions[0], same)])
    with pytest.raises(DataError, match="build pairs with"):
        si.path_patch(model("llava"), questions, [(2, 0)])
    with pytest.raises(EditError, match="no reference path"):
        si.path_patch(model("llava"), pairs, [(2, 0)], path="reference")
    with pytest.raises(EditError, match="both directions"):
        si.path_patch(model("paligemma"), pairs, [(2, 0)])
    frozen = si.path_patch(model("paligemma"), pairs, [(2, 0)], path="packed")[2, 0]
    assert frozen.scores[:2].abs().min() > 0


def test_weights_that_are_not_finite_are_named(pairs):
    broken = si.load("tiny-random/llava")
    with torch.no_grad():
        broken.decoder.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        si.path_patch(broken, pairs, [(2, 0)])


def frozen(norm, x):
    """The factors of a norm with its scale held at x, entry by entry."""
    return norm(x) / x


@torch.no_grad()
def hooked_parts(vlm, question):
    """Everything that is added to the last token's residual stream, read off one whole forward pass by hooks.

    What layers without heads add (states of the past, convolutions) counts to its start.
    """
    layers = vlm.decoder.layers
    start, z, mlp, others = [], [], [], []

    def last_row(out):
        out = out[0] if isinstance(out, tuple) else out  # experts return their router's scores as well
        return out.view(-1, vlm.d_model)[-1].clone()

    handles = [seen_by(layers[0], start)]
    for layer in layers:
        if found := heads_of(layer):
            handles.append(seen_by(found[0], z))
            handles.append(found[1].register_forward_hook(lambda m, a, out: mlp.append(last_row(out))))
        else:
            handles.append(layer.register_forward_hook(lambda m, a, out: others.append(last_row(out) - last_row(a[0]))))
    end = []
    with hooks(*handles, seen_by(vlm.norm, end)):
        logits = run(vlm, question)
    return sum(others, start[0][0, -1]), [part[0, -1] for part in z], mlp, end[0][0, -1], logits


def uncapped(vlm, logits):
    cap = getattr(vlm.hf_model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.atanh(logits / cap)


def answers(vlm, question, logits):
    """Token of the right choice, and of the other choice with the largest logit."""
    ids = [i[0] for i in vlm.choice_ids(question)]
    right = ids.pop(question.answer)
    return right, max(ids, key=lambda i: float(logits[i]))


@pytest.mark.filterwarnings("ignore::scale_interp.errors.PathWarning")
@pytest.mark.parametrize("name", ["demo", *(n for n in NAMES if n not in NOT_A_SUM), "llava with biases", "gemma3 with biases"])
def test_heads_biases_mlps_and_embedding_sum_to_the_logit_difference(model, questions, name):
    vlm = model(name)
    if name == "demo":
        questions = [q for task in ("relation", "count") for q in si.load_questions(f"scenes/{task}", n=2)]
    found = si.logit_attribution(vlm, questions)
    for q, question in enumerate(questions):
        start, z, mlp, end, logits = hooked_parts(vlm, question)
        right, other = answers(vlm, question, logits)
        weight = vlm.hf_model.get_output_embeddings().weight
        with torch.no_grad():
            onto = (weight[right] - weight[other]) * frozen(vlm.norm, end)
            total = found.per_question[q].sum() + onto @ start
            after_heads, after_mlp = POST_NORMS.get(name.removesuffix(" with biases"), (None, None))
            with_heads = [layer for layer in vlm.decoder.layers if heads_of(layer)]
            for layer, inputs, out in zip(with_heads, z, mlp, strict=True):
                output, _ = heads_of(layer)
                heads, bias = output(inputs), output.bias
                if after_heads is not None:
                    out = getattr(layer, after_mlp)(out)
                    bias = None if bias is None else bias * frozen(getattr(layer, after_heads), heads)
                total = total + onto @ out + (0 if bias is None else onto @ bias)
        plain = uncapped(vlm, logits)
        assert float(total) == pytest.approx(float(plain[right] - plain[other]), abs=2e-5)
    assert found.per_question.abs().max() > 0.01 and found.unit == "logit diff"


class Divided(LlavaForConditionalGeneration):
    """A LLaVA that divides its logits, as Granite's vision models do."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits / self.config.text_config.logits_scaling
        return out


def test_shares_are_of_the_logits_that_the_model_returns(model, questions):
    plain = model("llava")
    config = copy.deepcopy(plain.hf_model.config)
    config.text_config.logits_scaling = 4.0
    made = Divided(config).eval()
    made.load_state_dict(plain.hf_model.state_dict())
    divided = si.load(made, plain.processor)
    ratio = run(divided, questions[0]) / run(plain, questions[0])
    assert torch.allclose(ratio, torch.full_like(ratio, 0.25), atol=1e-5)
    found, whole = (si.logit_attribution(vlm, questions).per_question for vlm in (divided, plain))
    assert torch.allclose(found, whole * 0.25, atol=1e-6)


@pytest.mark.parametrize("name", NOT_A_SUM)
def test_families_whose_parts_do_not_add_up_are_refused_by_name(model, questions, name):
    for path in ("packed", "reference"):
        with pytest.raises(ModelError, match=NOT_A_SUM[name]):
            si.logit_attribution(model(name), questions, path=path)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_attribution_is_what_is_lost_without_the_head_behind_frozen_norms(model, questions, name):
    vlm = model(name)
    found = si.logit_attribution(vlm, questions)
    D = vlm.head_dim
    for q, question in enumerate(questions):
        _, z, _, end, logits = hooked_parts(vlm, question)
        right, other = answers(vlm, question, logits)
        for layer, head in [(0, 1), (1, 3), (2, 0)]:
            block, removed = vlm.decoder.layers[layer], z[layer].clone()
            removed[head * D : (head + 1) * D] = 0
            with torch.no_grad():
                whole, less = block.self_attn.o_proj(z[layer]), block.self_attn.o_proj(removed)
                gone = whole - less
                if name in POST_NORMS:
                    gone = gone * frozen(block.post_attention_layernorm, whole)
                held = frozen(vlm.decoder.norm, end)
            # The final norm, its scale held, reads the stream without what the head wrote into it.
            with hooks(vlm.decoder.norm.register_forward_hook(lambda m, args, out, g=gone, s=held: (args[0] - g) * s)):
                without = run(vlm, question)
            lost = float((logits[right] - logits[other]) - (without[right] - without[other]))
            assert float(found.per_question[q, layer, head]) == pytest.approx(lost, abs=1e-5)
            assert abs(lost) > 1e-4


def test_both_paths_and_batches_attribute_alike(model, questions):
    for name in ("gemma3", "paligemma2", "qwen2_5_vl"):
        packed, reference = (si.logit_attribution(model(name), questions, path=p) for p in ("packed", "reference"))
        assert torch.allclose(packed.per_question, reference.per_question, atol=1e-5)
        assert (packed.provenance["path"], reference.provenance["path"]) == ("packed", "reference")


def test_longer_choices_are_read_at_their_first_tokens(model, questions):
    vlm, q = model("llava"), questions[0]
    longer = si.Question(q.text, ("left of it", "right"), 0, picture=q.picture)
    read, plain = (si.logit_attribution(vlm, question).per_question for question in (longer, q))
    assert torch.allclose(read, plain, atol=1e-6) and plain.abs().max() > 0.1
    shared = si.Question(q.text, ("left", "right", "left of it"), 0, picture=q.picture, id="shared")
    with pytest.raises(DataError, match="question shared: choices 'left' and 'left of it' begin with the same token"):
        si.logit_attribution(vlm, [q, shared])


def test_models_whose_parts_do_not_add_up_are_refused(questions):
    other = si.load("tiny-random/llava")
    other.decoder.norm = torch.nn.LayerNorm(other.d_model)
    with pytest.raises(ModelError, match=r"norm \(LayerNorm\) is not a gain times one number"):
        si.logit_attribution(other, questions, path="reference")
    other = si.load("tiny-random/llava")
    real = other.decoder.layers[1].self_attn.forward
    other.decoder.layers[1].self_attn.forward = lambda *a, **k: (0.5 * (out := real(*a, **k))[0], out[1])
    with pytest.raises(ModelError, match="miss the residual stream"):
        si.logit_attribution(other, questions, path="packed")
    with pytest.raises(ModelError, match="miss the residual stream"):
        si.path_patch(other, [contrast(questions[0], 3)], [(2, 0)], path="packed")
