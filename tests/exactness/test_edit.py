import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scale_interp as si
from scale_interp.errors import EditError
from scale_interp.interventions.edit import affine

L, H, D = 2, 3, 4


def drawn(seed, n=2):
    draw = torch.Generator().manual_seed(seed)
    return si.Edit(torch.randn(n, L, H, generator=draw), torch.randn(n, L, H, D, generator=draw), torch.randn(n, L, generator=draw))


def applied(edit, z, mlp):
    return affine(z, edit.scale, edit.shift), mlp if edit.mlp_scale is None else mlp * edit.mlp_scale[..., None]


@given(st.integers(0, 100), st.integers(101, 200))
def test_composed_edits_act_one_after_the_other(first, second):
    a, b = drawn(first), drawn(second)
    z, mlp = torch.randn(2, L, H, D), torch.randn(2, L, 5)
    once, twice = applied(a.compose(b), z, mlp), applied(b, *applied(a, z, mlp))
    assert all(torch.allclose(x, y, atol=1e-4) for x, y in zip(once, twice, strict=True))


def test_stack_keeps_order_and_fills_missing_parts():
    stacked = si.Edit.stack([drawn(0), si.Edit(scale=torch.full((1, L, H), 2.0)), si.Edit(mlp_scale=torch.full((1, L), 3.0))])
    assert stacked.n_variants == 4
    assert torch.equal(stacked[0].shift, drawn(0).shift[:1])
    assert (stacked.scale[2] == 2).all() and (stacked.mlp_scale[2] == 1).all() and (stacked.shift[2] == 0).all()
    assert (stacked.scale[3] == 1).all() and (stacked.mlp_scale[3] == 3).all()


def test_restrict_leaves_the_rest_alone():
    edit = drawn(1).restrict([(1, 2)], mlp_layers=[0])
    keep = torch.zeros(L, H, dtype=torch.bool)
    keep[1, 2] = True
    assert (edit.scale[:, ~keep] == 1).all() and (edit.shift[:, ~keep] == 0).all()
    assert torch.equal(edit.scale[:, 1, 2], drawn(1).scale[:, 1, 2])
    assert torch.equal(edit.mlp_scale[:, 0], drawn(1).mlp_scale[:, 0]) and (edit.mlp_scale[:, 1] == 1).all()


def test_restrict_drops_what_is_of_no_head_and_no_mlp():
    parts = {"attn_scale": torch.zeros(1, L), "resid_shift": torch.ones(1, L, 5), "mlp_shift": torch.ones(1, L, 5)}
    edit = si.Edit(scale=torch.zeros(1, L, H), **parts).restrict([(0, 1)], mlp_layers=[1])
    assert set(edit.parts) == {"scale", "mlp_shift"}
    assert edit.scale.tolist() == [[[1, 0, 1], [1, 1, 1]]] and edit.mlp_shift.sum(-1).tolist() == [[0, 5]]
    with pytest.raises(EditError, match="nothing of this edit acts on heads or MLPs"):
        si.Edit(attn_scale=torch.zeros(1, L)).restrict([(0, 1)])


def test_a_part_of_a_head_is_no_head():
    with pytest.raises(EditError, match=r"head \(1.7, 0\) is not a \(layer, head\) pair"):
        si.Edit.scaling([(1.7, 0)], 0.0, L, H)
    assert torch.equal(si.Edit.scaling([(1.0, torch.tensor(2))], 0.0, L, H).scale, si.Edit.scaling([(1, 2)], 0.0, L, H).scale)
    with pytest.raises(EditError, match="complex"):
        si.Edit(scale=torch.ones(1, L, H) + 1j)


def test_starts_are_the_first_changed_layers():
    scale = torch.ones(3, L, H)
    scale[1, 1, 0] = 0
    scale[2, 0, 2] = 0
    assert si.Edit(scale=scale).starts(L).tolist() == [L, 1, 0]
    assert si.Edit(scale=scale.requires_grad_()).starts(L).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("at", "message"),
    [(5, "give the name"), (None, "give the name"), ([0, "image"], "give the name"), ([0.5], "give the name")],
)
def test_tokens_that_are_none_are_refused(at, message):
    with pytest.raises(EditError, match=message):
        si.Edit(scale=torch.zeros(1, L, H), at=at)
    with pytest.raises(EditError, match=message):
        si.AttentionEdit(torch.ones(1, L, H, dtype=torch.bool), source=at)


@pytest.mark.parametrize(("heads", "message"), [([(0, 3)], "out of range"), ([(0, 1), (0, 1)], "twice"), ([3], "not a .layer, head. pair")])
def test_wrong_heads_are_refused(heads, message):
    with pytest.raises(EditError, match=message):
        si.Edit.scaling(heads, 0.0, L, H)
