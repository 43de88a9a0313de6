"""Attention over a shared prompt: its log-sum-exp, its gradient, and the guard around fused kernels; stand-ins play CUDA's."""

import warnings

import pytest
import torch

from scale_interp.errors import PathWarning
from scale_interp.interventions import kernels, shared_prompt
from scale_interp.interventions.rows import packed_attention
from scale_interp.interventions.shared_prompt import PROMPT, Prompt, attend

B, HKV, M, K, D = 2, 2, 14, 30, 8


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def prompt_parts(rows=M):
    return drawn(B, HKV, rows, D), drawn(B, HKV, K, D, seed=1), drawn(B, HKV, K, D, seed=2)


def masks():
    padded = torch.ones(B, 1, 1, K, dtype=torch.bool)
    padded[1, ..., :9] = False
    by_row = padded.expand(B, 1, M, K).clone()
    by_row[:, :, 3, 4:20] = False
    blind = by_row.clone()
    blind[0, :, 5] = False
    return {"all": None, "padded": padded, "by row": by_row, "one row sees none": blind}


def oracle(query, keys, values, seen, scaling, softcap=None):
    """A softmax with one more key of score 0 and value 0, in float64: outputs and log-sum-exp of the others follow from it."""
    scores = scaling * query.double() @ keys.double().mT
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores if seen is None else scores.masked_fill(~seen, float("-inf"))
    whole = torch.cat([scores, torch.zeros_like(scores[..., :1])], -1).softmax(-1)
    shares, beside = whole[..., :-1], whole[..., -1]
    some = shares.sum(-1, keepdim=True)
    return torch.where(some > 0, shares @ values.double() / some, 0.0), (1 / beside - 1).log()


@pytest.fixture(autouse=True)
def fresh():
    kernels._chosen.cache_clear()
    yield
    kernels._chosen.cache_clear()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("mask", masks())
def test_outputs_totals_and_gradients(mask, softcap):
    seen = masks()[mask]
    by_all = mask != "one row sees none"
    query, keys, values = prompt_parts()
    expected = oracle(query, keys, values, seen, 0.4, softcap)
    for found in (attend(query, keys, values, seen, 0.4, softcap, by_all), kernels.written_out(query, keys, values, seen, 0.4, softcap)):
        assert torch.allclose(found[0].double(), expected[0], atol=1e-5) and torch.allclose(found[1].double(), expected[1], atol=1e-5)
    to_out, to_total = drawn(B, HKV, M, D, seed=3), drawn(B, HKV, M, seed=4)
    if not by_all:
        to_total[0, :, 5] = 0
    leaf, exact = query.clone().requires_grad_(), query.double().requires_grad_()
    out, total = attend(leaf, keys, values, seen, 0.4, softcap, by_all)
    loss = (out * to_out).sum() + (total.nan_to_num(neginf=0.0) * to_total).sum()
    found = torch.autograd.grad(loss, leaf)[0]
    right = oracle(exact, keys, values, seen, 0.4, softcap)
    at = slice(None) if by_all else [i for i in range(M) if i != 5]
    loss = (right[0] * to_out)[:, :, at].sum() + (right[1] * to_total)[:, :, at].sum()
    slope = torch.autograd.grad(loss, exact)[0].float()
    assert torch.allclose(found[:, :, at], slope[:, :, at], atol=1e-5) and torch.isfinite(found).all()


def test_gradients_in_pieces_are_the_same(monkeypatch):
    query, keys, values = prompt_parts()
    slopes = []
    for piece in (shared_prompt.PIECE, 4 * B * HKV * K * 3):
        monkeypatch.setattr(shared_prompt, "PIECE", piece)
        leaf = query.clone().requires_grad_()
        slopes.append(torch.autograd.grad(attend(leaf, keys, values, masks()["by row"], 0.4)[0].square().sum(), leaf)[0])
    assert torch.allclose(*slopes, atol=1e-6)


def test_autograd_keeps_no_copy_of_the_prompt_and_no_scores():
    query, keys, values = prompt_parts()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attend(query.requires_grad_(), keys, values, None, 0.4)
    assert {t.data_ptr() for t in kept if t.numel() == keys.numel()} <= {keys.data_ptr(), values.data_ptr()}
    assert all(t.shape[-1] != K for t in kept)


def test_a_prompt_that_is_trained_too_gets_its_gradient():
    query, keys, values = prompt_parts()
    leaves = [t.clone().requires_grad_() for t in (query, keys, values)]
    exact = [t.double().requires_grad_() for t in (query, keys, values)]
    found = torch.autograd.grad(attend(*leaves, masks()["padded"], 0.4)[0].square().sum(), leaves)
    expected = torch.autograd.grad(oracle(*exact, masks()["padded"], 0.4)[0].square().sum(), exact)
    assert all(torch.allclose(a, b.float(), atol=1e-4) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("R", [1, 3])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [False, True])
def test_own_keys_are_joined(R, apart, softcap, sinks):
    """Rows of several variants behind one padded prompt, as one softmax over everything a row sees in float64."""
    H, n = 2 * HKV, 4
    S = n * R
    query, own_keys, own_values = drawn(B, H, S, D), drawn(B, HKV, S, D, seed=5), drawn(B, HKV, S, D, seed=6)
    _, keys, values = prompt_parts()
    mask = torch.zeros(B, 1, R, K + R, dtype=torch.bool)
    mask[..., :K] = masks()["padded"]
    mask[..., K:] = torch.ones(R, R).tril().bool()
    sink = {"s_aux": drawn(H, seed=7)} if sinks else {}
    if apart:
        given = own_keys.clone(), own_values
        setattr(given[0], PROMPT, Prompt(keys, values, masks()["padded"], True, mask[..., K:]))
    else:
        given = torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2)
    found = packed_attention(None, query, *given, mask, 0.3, softcap=softcap, **sink)[0]
    alike = torch.block_diag(*[torch.ones(R, R).tril()] * n).bool().expand(B, 1, S, S)
    whole = torch.cat([masks()["padded"].expand(B, 1, S, K), alike], -1)
    every_key, every_value = (torch.cat(p, 2).double().repeat_interleave(2, 1) for p in ((keys, own_keys), (values, own_values)))
    scores = 0.3 * query.double() @ every_key.mT
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~whole, float("-inf"))
    if sinks:
        scores = torch.cat([scores, sink["s_aux"].double().view(1, H, 1, 1).expand(B, H, S, 1)], -1)
    expected = (scores.softmax(-1)[..., : K + S] @ every_value).transpose(1, 2).float()
    assert torch.allclose(found, expected, atol=2e-6)


def flash_stand_in(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    out, total = kernels.written_out(query, key, value, None, scale)
    return out, total, None, None, query.shape[2], key.shape[2], None, None, None


def efficient_stand_in(query, key, value, attn_bias, compute_log_sumexp, dropout_p=0.0, is_causal=False, *, scale=None):
    """It pads the rows of its log-sum-exp to a multiple of 32, and needs aligned masks."""
    assert compute_log_sumexp
    assert attn_bias is None or (attn_bias.shape == (*query.shape[:3], key.shape[2]) and attn_bias.stride(0) % 16 == 0)
    out, total = kernels.written_out(query, key, value, None if attn_bias is None else attn_bias == 0, scale)
    return out, torch.nn.functional.pad(total, (0, -query.shape[2] % 32)), None, None


@pytest.fixture
def as_cuda(monkeypatch):
    """CUDA's kernels in place of the CPU's, played by stand-ins of their signatures."""
    for name, stand_in in (("flash", flash_stand_in), ("efficient", efficient_stand_in)):
        monkeypatch.setattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention", stand_in)
    monkeypatch.setattr(kernels, "KERNELS", {("cpu", masked): kernels.KERNELS["cuda", masked] for masked in (False, True)})


@pytest.mark.parametrize("mask", ["all", "padded", "by row"])
def test_cudas_kernels_by_stand_ins(as_cuda, mask):
    query, keys, values = prompt_parts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = attend(query, keys, values, masks()[mask], 0.4)
    expected = oracle(query, keys, values, masks()[mask], 0.4)
    assert all(torch.allclose(a.double(), b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    name = "flash" if mask == "all" else "efficient"
    assert kernels._chosen("cpu", torch.float32, D, mask != "all").__name__ == name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_calls_fit_the_real_signatures(dtype):
    """On torch's meta device, which has the CUDA kernels' signatures and shapes and no numbers."""
    query, keys, values = (torch.empty(B, HKV, n, 64, device="meta", dtype=dtype) for n in (M, K, K))
    for found in (kernels.flash(query, keys, values, None, 0.1), kernels.efficient(query, keys, values, None, 0.1)):
        assert found[0].shape == query.shape and found[1].shape == query.shape[:3] and found[1].dtype == torch.float32


WRONG = {
    "outputs": lambda *given: (kernels.written_out(*given)[0] * 1.01, kernels.written_out(*given)[1]),
    "log-sum-exp": lambda *given: (kernels.written_out(*given)[0], kernels.written_out(*given)[1] + 0.1),
    "shapes": lambda *given: (kernels.written_out(*given)[0], kernels.written_out(*given)[1][..., None]),
    "no kernel image": lambda *given: (_ for _ in ()).throw(RuntimeError("no kernel image is available")),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_not_used(monkeypatch, what):
    wrong = WRONG[what]
    wrong.__name__ = "hurried"
    monkeypatch.setitem(kernels.KERNELS, ("cpu", False), (wrong,))
    query, keys, values = prompt_parts()
    with pytest.warns(PathWarning, match=rf"torch.float32 heads of {D} on this cpu \(hurried: .*{what}"):
        found = attend(query, keys, values, None, 0.4)
    expected = oracle(query, keys, values, None, 0.4)
    assert all(torch.allclose(a.double(), b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        attend(query, keys, values, None, 0.4)
