import copy
import itertools

import brute
import pytest
import torch
from models import build, sequence
from torch.nn.functional import cross_entropy

from lmdyn import entk_vp, log_softmax_jvp, one_step

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("name", ["mlp", "lenet", "tied", "batch_norm", "attention"])
def test_predicted_is_the_product_of_its_parts(name):
    model, x = build(name)
    x_u, y_u = x[:2], torch.tensor([2, 0])
    step = one_step(model, x, x_u, y_u, lr=0.01)
    z_o, z_u = model(x).detach(), model(x_u).detach()
    a = torch.stack([torch.eye(z.numel()) - z.softmax(0).expand(z.numel(), -1) for z in z_o])
    g = z_u.softmax(1)
    g[[0, 1], y_u] -= 1
    k = brute.kernel(model, x, x_u)
    torch.testing.assert_close(step.A, a)
    torch.testing.assert_close(step.G, g)
    torch.testing.assert_close(step.K, k, **EXACT)
    by_hand = -0.01 * sum((a @ k[:, u] @ g[u, :, None]).squeeze(-1) for u in range(2))
    torch.testing.assert_close(step.predicted, by_hand, **EXACT)
    without_k = -0.01 * log_softmax_jvp(z_o, entk_vp(model, x, x_u, step.G))
    torch.testing.assert_close(step.predicted, without_k, **EXACT)


def test_measured_is_what_sgd_does_and_the_model_stays():
    for name in ("lenet", "batch_norm"):
        model, x = build(name)
        before = copy.deepcopy(model.state_dict())
        y = torch.tensor([1, 2])
        step = one_step(model, x, x[:2], y, lr=0.05)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
        moved = copy.deepcopy(model)
        optimizer = torch.optim.SGD(moved.parameters(), lr=0.05)
        cross_entropy(moved(x[:2]), y, reduction="sum").backward()
        optimizer.step()
        expected = moved(x).log_softmax(1) - model(x).log_softmax(1)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(step.measured, expected.detach(), **EXACT)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["mlp", "frozen_layer", "tied", "attention"])
def test_the_error_falls_with_the_square_of_the_step(name, sign):
    model, x = build(name)
    errors = []
    for lr in (1e-3, 1e-4, 1e-5):
        step = one_step(model, x, x[:2], 1, lr=sign * lr)
        errors.append((step.measured - step.predicted).norm())
    for large, small in itertools.pairwise(errors):
        assert large / small == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("inner", ["mlp", "attention"])
def test_a_label_that_is_ruled_out_is_as_if_it_were_not_there(inner):
    model, x = build(inner)
    ruled_out = torch.nn.functional.one_hot(torch.tensor(1), model(x).shape[1]).bool()
    masked = sequence(model, lambda z: z.masked_fill(ruled_out, -torch.inf))
    without = sequence(model, lambda z: z[:, ~ruled_out])
    step = one_step(masked, x, x[:2], 0, lr=0.01)
    expected = one_step(without, x, x[:2], 0, lr=0.01)
    for name in ("predicted", "measured", "G"):
        found = getattr(step, name)
        torch.testing.assert_close(found[:, ~ruled_out], getattr(expected, name), **EXACT)
        assert found.isfinite().all()
    assert not any(of[:, 1].any() for of in (step.predicted, step.measured, step.G))


@pytest.mark.parametrize(
    ("y", "lr", "message"),
    [
        (torch.tensor([0, 3]), 0.1, "label 3 is out of range: there are V = 3"),
        (-1, 0.1, "label -1 is out of range"),
        (torch.tensor([0, 1, 2]), 0.1, r"do not fit: probs \(2,\), labels \(3,\)"),
        (torch.tensor([0.5, 1.0]), 0.1, "labels must be integers, got torch.float32"),
        (0, float("nan"), "lr must be finite, got nan"),
        (0, 1e308, "after a step of lr = 1e\\+308 must be finite"),
    ],
)
def test_bad_input(y, lr, message):
    model, x = build("mlp")
    with pytest.raises(ValueError, match=message):
        one_step(model, x, x[:2], y, lr=lr)


def test_a_batch_norm_in_training_mode_keeps_its_statistics():
    model, x = build("batch_norm")
    before = copy.deepcopy(model.train().state_dict())
    with pytest.raises(ValueError, match="one example alone"):
        one_step(model, x, x[:1], 0, lr=0.1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
