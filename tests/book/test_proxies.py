"""LBK and SignDelta: the bound holds and can be sharp; the reference's form is its code's."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import tiny, tiny_rows

from lmdyn.lm import Format, Trajectory, score
from lmdyn.lm.data import as_probes
from proxies import FORMS, lbk, sign_delta


def logits(model, tokenizer, prompt, ids):
    """(T, V), one row for each token of the response."""
    prompt = tokenizer(prompt)["input_ids"]
    return model(torch.tensor([prompt + list(map(int, ids))])).logits[0, len(prompt) - 1 : -1]


def step(model, tokenizer, rows, scores, lr):
    """One SGD step on the sum of −log π(chosen) of the rows."""
    total = 0
    for row, tokens in zip(rows, scores.tokens, strict=False):
        y = torch.as_tensor(tokens["chosen"].ids).long()
        logp = logits(model, tokenizer, row["prompt"], y).log_softmax(-1)
        total = total + logp.gather(1, y[:, None]).sum()
    parameters = list(model.parameters())
    with torch.no_grad():
        for p, g in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
            p += lr * g


def test_lbk_is_a_lower_bound_of_the_kernel():
    model, tokenizer = tiny("gpt_neox", num_hidden_layers=1)
    rows = [
        {"prompt": "where", "chosen": " down", "rejected": " no"},
        {"prompt": "what is it", "chosen": " water", "rejected": " some words"},
    ]
    lr = 1e-6
    before = score(model, tokenizer, rows, per_token=True)

    def jacobian(i, name):
        """J (T·V, P): the gradient of every logit that predicts a token of the response."""
        z = logits(model, tokenizer, rows[i]["prompt"], before.tokens[i][name].ids).flatten()
        one_each = torch.eye(len(z)).to(z)
        parts = torch.autograd.grad(z, list(model.parameters()), one_each, is_grads_batched=True)
        return torch.cat([part.flatten(1) for part in parts], 1)

    updates = torch.cat([jacobian(0, "chosen"), jacobian(1, "chosen")])
    norm = torch.linalg.matrix_norm(jacobian(0, "rejected") @ updates.T, 2)
    step(model, tokenizer, rows, before, lr)
    after = score(model, tokenizer, rows)

    at = 0, before.types.index("rejected")
    each = lbk(before, after, per_row=True)
    assert 0 < each[at] <= lr**2 * float(norm) ** 2
    # and it is what the definition says
    rho = before.n_tokens * before.residual_norm_sq
    change = after.logp[at] - before.logp[at]
    assert each[at] == pytest.approx(change**2 / (rho[at] * rho[:, 0].sum()))
    # all rows of a type together are a weighted mean of the rows
    assert np.nanmin(each[:, 1]) <= lbk(before, after)[1] <= np.nanmax(each[:, 1])


def test_lbk_is_the_kernel_where_cauchy_schwarz_is_sharp():
    """Learning a bias of the logits alone on one token: K is the identity, and A = Gᵀ there."""
    model, tokenizer = tiny("llama", tie_word_embeddings=False)
    bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size, dtype=torch.float64))
    model.lm_head.bias = bias
    one_token = Format("paper", max_length=2, max_prompt=1)  # and no EOS
    probes = as_probes([{"prompt": "where", "chosen": "down"}], format=one_token)
    with pytest.warns(UserWarning, match="were cut"):
        before = score(model, tokenizer, probes, per_token=True)
    y, lr = before.tokens[0]["chosen"].ids, 1e-5
    with torch.no_grad():
        p = logits(model, tokenizer, "where", y)[0].softmax(-1)
        bias -= lr * p
        bias[int(y[0])] += lr
    with pytest.warns(UserWarning, match="were cut"):
        after = score(model, tokenizer, probes)
    assert lbk(before, after).item() == pytest.approx(lr**2, rel=1e-4)
    assert sign_delta(before, after).item() > 0


@pytest.fixture(scope="module")
def scores():
    """The rows of `tiny_rows` before training and after each of two steps on the first three."""
    model, tokenizer = tiny("llama")
    found = []
    for _ in range(3):
        found.append(score(model, tokenizer, tiny_rows(), per_token=True))
        step(model, tokenizer, tiny_rows()[:3], found[-1], 1e-4)
    return found


def course(scores, split=("",) * 5, dtype=np.float64):
    """The scores as a trajectory."""
    stats = {
        field.name: np.stack([getattr(s, field.name) for s in scores]).astype(dtype)
        for field in dataclasses.fields(Trajectory)
        if np.shape(getattr(scores[0], field.name, None)) == scores[0].logp.shape
    }
    return Trajectory(
        **stats | {"n_tokens": scores[0].n_tokens},
        steps=np.arange(3),
        examples_seen=3 * np.arange(3),
        types=scores[0].types,
        vocab_size=scores[0].vocab_size,
        split=np.array(split),
    )


def test_the_reference_form_is_that_of_its_code(scores):
    trajectory, v = course(scores), scores[0].vocab_size
    found, signs = (proxy(trajectory, form="reference") for proxy in (lbk, sign_delta))
    for s, after in enumerate(scores[1:]):
        g = [
            np.sqrt(row["chosen"].prob_sq - 2 * row["chosen"].label_prob + 1).mean()
            for row in after.tokens
        ]
        for r, name in enumerate(trajectory.types):
            has = [i for i, row in enumerate(tiny_rows()) if name in row]
            delta = after.logp[has, r] - scores[s].logp[has, r]
            norms = [np.sqrt(after.tokens[i][name].prob_sq).mean() for i in has]
            scale = math.sqrt(np.mean([math.sqrt(v * n**2 + v - 2) for n in norms])) * np.mean(g)
            assert found[s, r] == pytest.approx(np.linalg.norm(delta) / scale)
            assert signs[s, r] == pytest.approx(np.mean(delta) / scale)
    each = lbk(trajectory, form="reference", per_row=True)
    assert each.shape == (2, 5, 4)
    assert np.isnan(each).sum() == 2 * 2  # two rows lack a type


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("proxy", [lbk, sign_delta])
def test_a_trajectory_is_its_steps_one_by_one(scores, proxy, form):
    for per_row in (True, False):
        found = proxy(course(scores), form=form, per_row=per_row)
        for s, pair in enumerate(pairwise(scores)):
            expected = proxy(*pair, form=form, per_row=per_row)
            np.testing.assert_array_equal(found[s], expected)
    # A recorded trajectory holds float32, so a small change has few digits.
    recorded = proxy(course(scores, dtype=np.float32), form=form)
    np.testing.assert_allclose(recorded, proxy(course(scores), form=form), rtol=0.02)


def test_sign_delta_is_the_mean_change(scores):
    change = scores[1].logp - scores[0].logp
    np.testing.assert_allclose(sign_delta(course(scores))[0], np.nanmean(change, 0))
    np.testing.assert_array_equal(sign_delta(course(scores), per_row=True)[0], change)


def test_only_learned_rows_count_as_updates(scores):
    split = course(scores, split=["train", "train", "train", "test", "test"])
    whole = course(scores)
    np.testing.assert_array_equal(lbk(split), lbk(whole, rows=[0, 1, 2]))
    assert (lbk(split) > lbk(whole)).all()


def test_proxies_name_what_is_wrong(scores):
    with pytest.raises(ValueError, match="unknown form 'exakt': did you mean 'exact'"):
        lbk(course(scores), form="exakt")
    with pytest.raises(ValueError, match="unknown response type 'choosen'"):
        lbk(course(scores), learned="choosen")
    with pytest.raises(ValueError, match="give the scores before and after"):
        sign_delta(scores[0])
    model, tokenizer = tiny("llama")
    with pytest.raises(ValueError, match="of the same rows and types"):
        lbk(scores[0], score(model, tokenizer, tiny_rows()[:2]))
    bare = score(model, tokenizer, tiny_rows(), stats=False)
    with pytest.raises(ValueError, match="has no 'prob_sq': score with stats=True"):
        lbk(bare, bare)
