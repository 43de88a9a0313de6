"""Memory that really runs out, under a cap: sweeps, fits and readings go on in halves and give the same numbers; and a plan that holds."""

import warnings
from contextlib import nullcontext

import pytest
import torch

import scale_interp as si
from scale_interp.bench.realistic import realistic
from scale_interp.errors import MemoryWarning, ModelError
from scale_interp.interventions.prefix import PrefixStore
from scale_interp.jobs.plan import make_plan

MB = 10**6


@pytest.fixture
def greedy(device):
    """`demo` told to take everything at once."""
    vlm = si.load("demo", device=str(device), dtype=torch.float32)
    vlm.memory = 2**40
    return vlm


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", "train", n=32)


def test_a_sweep_goes_on_in_halves(greedy, train, capped):
    """16 questions in 1,536 variants: one layer's MLP alone computes 50 MB and more."""
    edit = si.Edit(scale=2 * torch.rand(1536, greedy.n_layers, greedy.n_heads, generator=torch.Generator().manual_seed(0)))
    prompts = PrefixStore(greedy, train[:16], 16)
    expected = si.run_edits(greedy, train[:16], edit, prompts=prompts)
    with capped(60 * MB), pytest.warns(MemoryWarning, match="no memory for 1536 edits at once"):
        found = si.run_edits(greedy, train[:16], edit, prompts=prompts)
    assert float((found - expected).nan_to_num(0, 0, 0).abs().max()) <= 2e-5 * float(expected[expected.isfinite()].abs().max())
    with warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)  # and later calls are not larger
        si.run_edits(greedy, train[:16], edit, prompts=prompts)


def test_fits_go_on_in_halves(greedy, train, capped):
    """32 questions of 256 fits: their graph takes about 500 MB."""
    fits = [si.Fit(f"seed {seed}", seed=seed) for seed in range(256)]
    prompts = PrefixStore(greedy, train, 32)
    settings = {"epochs": 1, "batch_size": 32, "micro_batch": 32, "lr": 0.02, "prompts": prompts}
    expected = si.fit_scales(greedy, train, fits, **settings)
    with capped(60 * MB), pytest.warns(MemoryWarning, match="no memory for gradients of 32 questions"):
        found = si.fit_scales(greedy, train, fits, **settings)
    for one, other in zip(found, expected, strict=True):
        assert float((one.scalars - other.scalars).abs().max()) <= 1e-5 and float((other.scalars - 1).abs().max()) > 1e-3


def test_prompts_are_read_in_halves(device, train, capped):
    """The pixels of 96 prompts take 130 MB, and each layer about 100; halves are joined beside themselves."""
    asked = si.load_questions("scenes/relation", "train", n=96)
    vlm = realistic(2, 4, 64)
    vlm.hf_model.to(device)
    si.evaluate(vlm, asked[:1])
    expected = PrefixStore(vlm, asked, 96)[0]
    with capped(3 * expected.nbytes + 70 * MB), pytest.warns(MemoryWarning, match="no memory to read"):
        found = PrefixStore(vlm, asked, 96)[0]
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert float((one.keys - other.keys).abs().max()) <= 1e-4 and float((one.values - other.values).abs().max()) <= 1e-4


@pytest.mark.filterwarnings("ignore::scale_interp.errors.MemoryWarning")
def test_no_memory_at_all_says_what_to_give(greedy, train, capped, device):
    if device.type == "cpu":
        pytest.skip("Python itself could not go on without memory; played by stand-ins in tests/exactness/test_families.py")
    edit = si.Edit(scale=torch.ones(4, greedy.n_layers, greedy.n_heads) * 0.5)
    prompts = PrefixStore(greedy, train, 32)
    wide = si.Edit(scale=edit.scale.repeat(64, 1, 1))
    _ = prompts[0]
    with capped(0), pytest.raises(ModelError, match="no memory for one edit on one question"):
        si.run_edits(greedy, train, wide, prompts=prompts)


@pytest.mark.parametrize("place", ["memory", "host", "disk", "recompute"])
def test_wherever_prompts_are_kept_the_numbers_are_the_same(there, train, place):
    expected = si.ablate(there, train[:12]).per_question
    there.prefix_cache = place
    try:
        prompts = PrefixStore(there, train[:12], 6)
        runs = [si.ablate(there, train[:12], prompts=prompts).per_question for _ in range(2)]
        assert prompts.reads == (4 if place == "recompute" else 2)
    finally:
        there.prefix_cache = "auto"
    assert torch.equal(*runs) and float((runs[0] - expected).abs().max()) <= 1e-4


def test_a_plan_holds(device, capped):
    """What a plan says fits does: a sweep and a fit on a capped card never run out of memory."""
    asked = si.load_questions("scenes/relation", "train", n=32)
    vlm = realistic(2, 8, 128)
    vlm.hf_model.to(device)
    # A CPU's free memory is the machine's, whatever this process may take.
    with capped(600 * MB) if device.type == "cuda" else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("error", MemoryWarning)
        plan = make_plan(vlm, asked)
        si.ablate(vlm, asked[:16])
        fitted = si.fit_scale(vlm, asked, epochs=1, batch_size=32)
    assert plan.batch == 32 >= plan.micro_batch >= 1 and sum(plan.places.values()) == 32
    assert fitted.n_parameters == vlm.n_layers * (vlm.n_heads + 1)
