"""ScAle and steering at a token group: against plain torch hooks, attached under generate, saved, and refused where it is not known."""

import json
from dataclasses import replace

import pytest
import torch

import scale_interp as si
from scale_interp.errors import EditError
from scale_interp.evaluation.retention import _only
from scale_interp.vlm.token_groups import positions_at
from tests.support.oracle import hooked_at, plain_inputs


@pytest.fixture(scope="module")
def questions():
    return si.load_questions("scenes/relation", n=3)


@pytest.fixture(scope="module")
def fitted(vlm):
    train = si.load_questions("scenes/relation", "train", n=16)
    return si.fit_scale(vlm, train, heads=[(0, 1), (1, 2), (2, 3)], at="image", epochs=2, lr=0.3)


def by_hooks(vlm, question, scale):
    """Logits [V] behind the prompt with the scalars at their group, by plain hooks."""
    changes = []
    for layer in range(vlm.n_layers):
        factors = scale.scalars[layer].repeat_interleave(vlm.head_dim)
        changes += [("head", layer, lambda z, f=factors: z * f), ("mlp", layer, lambda x, f=scale.mlp_scalars[layer]: x * f)]
    return hooked_at(vlm.hf_model, plain_inputs(vlm, question), changes, positions_at(vlm, question, scale.at))[-1]


def test_a_fit_moves_its_scalars_and_says_where(vlm, fitted):
    assert (fitted.at, fitted.scope) == ("image", "last") and fitted.settings["at"] == "image"
    losses = [row["train_loss"] for row in fitted.history]
    assert losses[-1] < losses[0] and (fitted.scalars != 1).sum() == 3
    frozen = si.fit_scales(vlm, si.load_questions("scenes/relation", "train", n=8), [si.Fit(frozen=True)], at="object", epochs=1)[0]
    assert (frozen.scalars == 1).all() and (frozen.mlp_scalars == 1).all()


def test_scores_and_attached_passes_are_those_of_plain_hooks(vlm, questions, fitted):
    scores = si.run_edits(vlm, questions, fitted)[:, 0]
    with fitted.attached(vlm, questions):
        batch = vlm.hf_model(**vlm.encode(questions), use_cache=False).logits[:, -1]  # left-padded
        answers = vlm.generate(questions)
        beams = vlm.generate(questions, num_beams=2)
    for q, question in enumerate(questions):
        expected, ids = by_hooks(vlm, question, fitted), [c[0] for c in vlm.choice_ids(question)]
        assert (scores[q] - expected[ids]).abs().max() <= 1e-4 and (batch[q] - expected).abs().max() <= 1e-4
        assert answers[q].startswith(vlm.tokenizer.decode([int(expected.argmax())]).strip())
    assert len(beams) == len(questions)


def test_it_is_saved_with_its_group_and_older_folders_mean_the_last_token(fitted, tmp_path):
    fitted.save_pretrained(tmp_path)
    again = si.ScAle.from_pretrained(tmp_path)
    assert again.at == "image" and torch.equal(again.scalars, fitted.scalars)
    plain = si.ScAle(torch.ones(2, 2), torch.ones(2), 0, ((0, 0),))
    assert plain.at == "last" and plain.edit().at == "last"
    plain.save_pretrained(tmp_path / "plain")
    path = tmp_path / "plain" / plain.config_file
    whole = json.loads(path.read_text())
    assert "at" not in whole and si.ScAle.from_pretrained(tmp_path / "plain").at == "last"
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != "sha256"} | {"at": "last"}))
    assert si.ScAle.from_pretrained(tmp_path / "plain").at == "last"


def test_sparsity_and_transfer_stay_at_the_group(vlm, questions):
    train = si.load_questions("scenes/relation", "train", n=8)
    options = {"epochs": 1, "lr": 0.3, "at": "image"}
    found = si.sparsity_path(vlm, train, questions, penalties=(), kept=(8,), **options)
    full = si.fit_scale(vlm, train, mlp=False, **options)
    best = [head for head, _ in full.ranking()[:8]]
    cut = replace(full, scalars=torch.where(torch.tensor([[(i, h) in best for h in range(8)] for i in range(6)]), full.scalars, 1.0))
    right = {"l1": si.evaluate(vlm, questions, full).accuracy, "cut": si.evaluate(vlm, questions, cut).accuracy}
    assert {row["path"]: row["accuracy"] for row in found.rows if row["path"] in right} == right
    assert found.about["base"] == si.evaluate(vlm, questions).accuracy
    (moved,) = si.transfer(vlm, {"a": train}, {"a": questions}, mlp=False, **options).rows
    assert (moved["base"], moved["accuracy"]) == (found.about["base"], right["l1"])
    assert _only(full, best).at == "image" and torch.equal(_only(full, best).scalars, cut.scalars)


def test_steering_at_a_group(vlm, questions, tmp_path):
    train = si.load_questions("scenes/relation", "train", n=32)
    steering = si.fit_steering(vlm, train, heads=[(1, 2)], alpha=2.0, at="object")
    steering.save_pretrained(tmp_path)
    again = si.Steering.from_pretrained(tmp_path)
    assert (again.at, again.scope) == ("object", "last")
    shift = 2.0 * again.sigma[1, 2] * again.directions[1, 2]

    def act(z):
        heads = z.clone().view(vlm.n_heads, -1)
        heads[2] += shift
        return heads.flatten()

    scores = si.run_edits(vlm, questions, again)[:, 0]
    for q, question in enumerate(questions):
        expected = hooked_at(vlm.hf_model, plain_inputs(vlm, question), [("head", 1, act)], positions_at(vlm, question, "object"))[-1]
        assert (scores[q] - expected[[c[0] for c in vlm.choice_ids(question)]]).abs().max() <= 1e-4


def test_a_prompt_whose_group_is_not_known_is_refused(vlm, questions, fitted):
    with pytest.raises(EditError, match="this edit acts at the token group 'image', which the token ids of a pass do not name"):
        fitted.attached(vlm)
    with pytest.raises(EditError, match="this edit acts at the token group 'image'"):
        fitted.attached(vlm.hf_model, questions)
    with fitted.attached(vlm, questions[:1]), pytest.raises(EditError, match="a prompt is read that is none of the questions given"):
        vlm.generate(questions[1])


def test_a_probe_at_a_group(vlm):
    m = si.probe(vlm, si.load_questions("scenes/relation", "train", n=24), at="image", folds=2, permutations=10)
    assert m.scores.shape == (vlm.n_layers, vlm.n_heads) and m.provenance["at"] == "image"
