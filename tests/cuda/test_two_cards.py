"""A decoder whose layers lie on two GPUs, as device_map="auto" puts a large model there, against the same model on one device."""

import pytest
import torch
from accelerate import dispatch_model

import scale_interp as si

HALVES = ("tiny-random/llava", "tiny-random/qwen2_5_vl", "tiny-random/lfm2_vl")


@pytest.fixture(scope="module", params=HALVES)
def both(request, device):
    """The model on two GPUs and on one; the second has the later layers, the norm and the head."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        pytest.skip("one GPU here, or none")
    one = si.load(request.param, device="cuda:0", dtype=torch.float32)
    last = {id(layer): number >= one.n_layers // 2 for number, layer in enumerate(one.all_layers)}
    last |= {id(one.norm): True, id(one.hf_model.get_output_embeddings()): True}
    places = {}

    def place(module, name):
        for part, inner in module.named_children():
            path = f"{name}.{part}" if name else part
            if id(inner) in last:
                places[path] = int(last[id(inner)])
            elif any(id(deeper) in last for deeper in inner.modules()):
                place(inner, path)
            elif any(True for _ in (*inner.parameters(), *inner.buffers())):
                places[path] = 0

    place(one.hf_model, "")
    live = si.load(request.param, device="cpu", dtype=torch.float32)
    two = si.load(dispatch_model(live.hf_model, places, force_hooks=True), live.processor)
    assert {p.device.index for p in two.hf_model.parameters()} == {0, 1}
    return one, two


def test_edits_and_gradients(both):
    asked = si.load_questions("scenes/relation", n=2)
    pairs = si.contrasts(asked)
    works = {
        "ablate": lambda vlm: si.ablate(vlm, asked),
        "patch": lambda vlm: si.patch(vlm, pairs),
        "attribute": lambda vlm: si.attribute(vlm, asked),
        "integrated_gradients": lambda vlm: si.integrated_gradients(vlm, asked),
        "at words": lambda vlm: si.ablate(vlm, asked, at="object"),
        "positions": lambda vlm: si.patch_positions(vlm, pairs),
        "knockout": lambda vlm: si.knockout(vlm, asked),
        "lens": lambda vlm: si.logit_lens(vlm, asked),
        "vision heads": lambda vlm: si.patch_vision(vlm, pairs),
    }
    for name, work in works.items():
        found, expected = (work(vlm).per_question for vlm in both[::-1])
        assert found.shape == expected.shape and expected.any(), name
        assert float((found - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max())), name


def test_a_fit(both):
    train = si.load_questions("scenes/relation", "train", n=12)
    settings = {"epochs": 2, "lr": 0.02, "validation": 0.0, "keep": "last"}
    expected, found = (si.fit_scale(vlm, train, **settings) for vlm in both)
    assert float((found.scalars - expected.scalars).abs().max()) <= 1e-4 < 0.01 < float((expected.scalars - 1).abs().max())
