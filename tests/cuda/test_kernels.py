"""The device's fused kernels against a softmax in float64: with masks and without, grouped heads, long prompts and wide heads."""

import warnings

import pytest
import torch

from scale_interp.interventions import kernels
from scale_interp.interventions.shared_prompt import attend

FUSED = {"cpu": {False: ("on_cpu",), True: ("on_cpu",)}, "cuda": {False: ("flash", "efficient"), True: ("efficient",)}}


def random(device, dtype, *shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def padded(device, B, K):
    seen = torch.ones(B, 1, 1, K, dtype=torch.bool, device=device)
    seen[1, ..., : K // 3] = False
    return seen


def oracle(query, keys, values, seen, scaling):
    scores = scaling * query.double() @ keys.double().mT
    scores = scores if seen is None else scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(-1) @ values.double(), scores.logsumexp(-1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 4, 37, 75, 16), (2, 4, 64, 594, 128), (3, 2, 301, 1203, 80), (2, 1, 1, 8, 64), (2, 2, 5, 33, 256)])
def test_the_chosen_kernel_is_right(device, shape, dtype, masked):
    B, Hkv, M, K, D = shape
    query, keys, values = (random(device, dtype, B, Hkv, n, D, seed=seed) for seed, n in enumerate((M, K, K)))
    seen = padded(device, B, K) if masked else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one that is not right says so
        out, total = attend(query, keys, values, seen, D**-0.5)
    chosen = kernels._chosen(device.type, dtype, D, masked)
    assert chosen is not None and chosen.__name__ in FUSED[device.type][masked]
    expected, expected_total = oracle(query, keys, values, seen, D**-0.5)
    near = kernels.ALLOWED[dtype]
    assert float((out.double() - expected).abs().max()) <= near * float(expected.abs().max())
    assert float((total.double() - expected_total).abs().max()) <= near * float(expected_total.abs().max())
    written, written_total = kernels.written_out(query, keys, values, seen, D**-0.5)
    assert float((out - written).float().abs().max()) <= 2 * near * float(expected.abs().max())
    assert float((total - written_total).abs().max()) <= 2 * near * float(expected_total.abs().max())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_behind_a_fused_forward(device, dtype, masked):
    B, Hkv, M, K, D = 2, 2, 33, 130, 64
    query, keys, values = (random(device, dtype, B, Hkv, n, D, seed=seed) for seed, n in enumerate((M, K, K)))
    seen = padded(device, B, K) if masked else None
    leaf, exact = query.clone().requires_grad_(), query.double().requires_grad_()
    out, total = attend(leaf, keys, values, seen, D**-0.5)
    slope = torch.autograd.grad(out.float().square().sum() + total.sum(), leaf)[0]
    right, right_total = oracle(exact, keys, values, seen, D**-0.5)
    expected = torch.autograd.grad(right.square().sum() + right_total.sum(), exact)[0]
    assert float((slope.double() - expected).abs().max()) <= kernels.ALLOWED[dtype] * float(expected.abs().max())


def test_keys_and_values_that_are_parts_of_larger_tensors(device):
    """As a batch's part for a micro-batch is."""
    whole = [random(device, torch.float32, 5, 3, 200, 32, seed=seed) for seed in range(2)]
    keys, values = (one[1:3, :, :119] for one in whole)
    query = random(device, torch.float32, 2, 3, 40, 32, seed=2)
    out, total = attend(query, keys, values, padded(device, 2, 119), 0.2)
    expected, expected_total = oracle(query, keys, values, padded(device, 2, 119), 0.2)
    assert float((out.double() - expected).abs().max()) <= 1e-5 and float((total.double() - expected_total).abs().max()) <= 1e-5
