"""Fits on the device: any micro-batch gives the same fit, alone or side by side, with questions to retain and at long answers."""

import pytest
import torch

import scale_interp as si
from scale_interp.adapters.scale.fit import FitSettings, Learner
from scale_interp.interventions.prefix import PrefixStore

SETTINGS = {"epochs": 2, "batch_size": 6, "lr": 0.02, "l1": 0.1}


@pytest.fixture(scope="module")
def train():
    return si.load_questions("scenes/relation", "train", n=30)


def differs(a, b):
    return max(float((a.scalars - b.scalars).abs().max()), float((a.mlp_scalars - b.mlp_scalars).abs().max()))


def test_any_micro_batch_gives_the_same_fit(there, train):
    retain = si.load_questions("scenes/count", "train", n=4)
    whole, one, three, own = (si.fit_scale(there, train[:9], retain=retain, micro_batch=n, **SETTINGS) for n in (6, 1, 3, None))
    assert float((whole.scalars - 1).abs().max()) > 0.01
    assert max(differs(whole, other) for other in (one, three, own)) <= 1e-5


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_gradients_accumulate_to_the_same_numbers(models, train, name, dtype, allowed):
    """Of one step; in half precision, where products of other shapes round differently, relative to the largest."""
    vlm, slopes = models(name, dtype), []
    for micro in (12, 5, 1):
        learner = Learner(vlm, train, [si.Fit(), si.Fit("few", ((1, 1), (1, 0)), seed=1)], FitSettings(batch_size=12), None)
        with torch.no_grad():
            learner.theta += 0.3
        prompts = PrefixStore(vlm, train, micro, within=12)
        learner.optimiser.step = lambda: None
        learner.step(prompts, prompts.steps[1], None, 0)
        slopes.append(torch.cat([learner.theta.grad.flatten(), learner.phi.grad.flatten()]))
    for other in slopes[1:]:
        largest = 1.0 if dtype == torch.float32 else float(slopes[0].abs().max())
        assert float((other - slopes[0]).abs().max()) <= allowed * largest


def test_a_step_waits_for_the_gpu_as_often_in_every_model(there, train, waits):
    """Once to see that scores are finite, and for the two gradients that go back to the optimiser; not once a layer."""
    learner = Learner(there, train, [si.Fit()], FitSettings(batch_size=12), None)
    prompts = PrefixStore(there, train, 12, within=12)
    learner.step(prompts, prompts.steps[0], None, 0)
    with waits() as found:
        learner.step(prompts, prompts.steps[0], None, 0)
    assert 0 < len(found) <= 3, found


def test_side_by_side_is_one_by_one(there, train):
    fits = [si.Fit("all"), si.Fit("few", ((2, 1), (3, 0)), seed=1), si.Fit("frozen", frozen=True)]
    together = si.fit_scales(there, train[:12], fits, **SETTINGS)
    alone = [si.fit_scales(there, train[:12], [fit], **SETTINGS)[0] for fit in fits]
    assert max(differs(a, b) for a, b in zip(together, alone, strict=True)) <= 1e-5
    assert differs(together[2], si.ScAle.neutral(there)) == 0


def test_answers_of_several_tokens(there, train):
    longer = [si.Question(q.text, ("above left", "above right", "below"), i % 3, picture=q.picture, id=str(i)) for i, q in enumerate(train)]
    whole, one = (si.fit_scale(there, longer[:9], micro_batch=n, **SETTINGS) for n in (6, 1))
    assert differs(whole, one) <= 1e-5 < float((whole.scalars - 1).abs().max())
