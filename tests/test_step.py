import copy
import itertools

import brute
import models
import pytest
import torch
from torch.nn.functional import cross_entropy

from lmdyn import entk_vp, log_softmax_jvp, one_step


def build(make=models.mlp):
    torch.manual_seed(0)
    model, x = make()
    return model.double().eval(), x.double() if x.is_floating_point() else x


MODELS = [models.mlp, models.lenet, models.tied, models.batch_norm, models.attention]


@pytest.mark.parametrize("make", MODELS)
def test_predicted_is_the_product_of_its_parts(make):
    model, x = build(make)
    x_u, y_u = x[:2], torch.tensor([2, 0])
    step = one_step(model, x, x_u, y_u, lr=0.01)
    z_o, z_u = model(x).detach(), model(x_u).detach()
    a = torch.stack([torch.eye(z.numel()) - z.softmax(0).expand(z.numel(), -1) for z in z_o])
    g = z_u.softmax(1)
    g[[0, 1], y_u] -= 1
    k = brute.kernel(model, x, x_u).detach()
    torch.testing.assert_close(step.A, a)
    torch.testing.assert_close(step.G, g)
    torch.testing.assert_close(step.K, k, rtol=1e-10, atol=1e-12)
    by_hand = -0.01 * sum((a @ k[:, u] @ g[u, :, None]).squeeze(-1) for u in range(2))
    torch.testing.assert_close(step.predicted, by_hand, rtol=1e-10, atol=1e-14)
    without_k = -0.01 * log_softmax_jvp(z_o, entk_vp(model, x, x_u, step.G))
    torch.testing.assert_close(step.predicted, without_k, rtol=1e-10, atol=1e-14)


def test_measured_is_what_sgd_does():
    model, x = build(models.lenet)
    y = torch.tensor([1, 2])
    step = one_step(model, x, x[:2], y, lr=0.05)
    moved = copy.deepcopy(model)
    optimizer = torch.optim.SGD(moved.parameters(), lr=0.05)
    cross_entropy(moved(x[:2]), y, reduction="sum").backward()
    optimizer.step()
    expected = moved(x).log_softmax(1) - model(x).log_softmax(1)
    torch.testing.assert_close(step.measured, expected.detach(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("make", [models.mlp, models.frozen_layer, models.tied, models.attention])
def test_the_error_falls_with_the_square_of_the_step(make, sign):
    model, x = build(make)
    errors = []
    for lr in (1e-3, 1e-4, 1e-5):
        step = one_step(model, x, x[:2], 1, lr=sign * lr)
        errors.append((step.measured - step.predicted).norm())
    for large, small in itertools.pairwise(errors):
        assert large / small == pytest.approx(100, rel=0.1)


def test_the_model_is_left_as_it_was():
    model, x = build(models.batch_norm)
    before = copy.deepcopy(model.state_dict())
    step = one_step(model, x, x[:1], 0, lr=1.0)
    assert step.measured.abs().max() > 1e-3
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 3]), "label 3 is out of range: there are V = 3"),
        (-1, "label -1 is out of range"),
        (torch.tensor([0, 1, 2]), r"labels have shape \(3,\), which does not fit \(2,\)"),
        (torch.tensor([0.5, 1.0]), "labels must be integers, got torch.float32"),
    ],
)
def test_bad_labels(y, message):
    model, x = build()
    with pytest.raises(ValueError, match=message):
        one_step(model, x, x[:2], y, lr=0.1)


def test_bad_model_and_step():
    model, x = build()
    with pytest.raises(ValueError, match="lr must be finite, got nan"):
        one_step(model, x, x[:1], 0, lr=float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        one_step(model, x, x[:1], 0, lr=1e308)
    model, x = models.batch_norm()
    before = copy.deepcopy(model.train().state_dict())
    with pytest.raises(ValueError, match="normalises by the statistics of the batch"):
        one_step(model, x, x[:1], 0, lr=0.1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
