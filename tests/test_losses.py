from dataclasses import fields

import pytest
import torch

from lmdyn import losses

EVERY = pytest.mark.parametrize("name", losses.names())


def log_probs(loss, rows=7, seed=0):
    """Random sequence log-probs under the model and the reference, and lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return {
            r: -40 * torch.rand(rows, dtype=torch.float64, generator=generator)
            for r in loss.responses
        }

    lengths = {r: torch.randint(1, 30, (rows,), generator=generator) for r in loss.responses}
    return draw(), draw(), lengths


@EVERY
def test_coefficients_are_the_derivatives_of_the_value(name):
    loss = losses.get(name)
    logps, ref, lengths = log_probs(loss)
    logps = {r: x.requires_grad_() for r, x in logps.items()}
    value = loss.value(logps, ref, lengths)
    by_autograd = torch.autograd.grad(value.sum(), list(logps.values()))
    closed = loss.coefficients(logps, ref, lengths)
    assert list(closed) == list(loss.responses)
    for response, expected in zip(loss.responses, by_autograd, strict=True):
        torch.testing.assert_close(closed[response], expected, rtol=1e-12, atol=1e-12)


@EVERY
def test_each_row_has_a_loss_of_its_own(name):
    loss = losses.get(name)
    logps, ref, lengths = log_probs(loss)
    whole = loss.value(logps, ref, lengths)
    assert whole.shape == (7,)
    third = [{r: x[2:3] for r, x in part.items()} for part in (logps, ref, lengths)]
    torch.testing.assert_close(loss.value(*third), whole[2:3], rtol=0, atol=0)
    for response, c in loss.coefficients(logps, ref, lengths).items():
        alone = loss.coefficients(*third)[response]
        torch.testing.assert_close(alone, c[2:3], rtol=0, atol=0)


@EVERY
def test_residual_is_the_gradient_of_the_loss_with_respect_to_the_logits(name):
    # Two rows, three tokens, five words: from logits to the loss, by autograd and by G.
    loss = losses.get(name)
    _, ref, lengths = log_probs(loss, rows=2)
    generator = torch.Generator().manual_seed(1)
    logits, labels, logps = {}, {}, {}
    for r in loss.responses:
        z = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator).requires_grad_()
        y = torch.randint(5, (2, 3), generator=generator)
        logits[r], labels[r] = z, y
        logps[r] = z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).sum((1, 2))
    value = loss.value(logps, ref, lengths).sum()
    expected = torch.autograd.grad(value, list(logits.values()))
    c = loss.coefficients(logps, ref, lengths)
    for r, g in zip(loss.responses, expected, strict=True):
        probs = logits[r].detach().softmax(-1)
        ours = losses.residual(probs, labels[r], c[r].detach().unsqueeze(1))
        torch.testing.assert_close(ours, g, rtol=1e-12, atol=1e-12)


def test_sft_pulls_the_label_up_with_strength_one():
    sft = losses.get("sft")
    logps = {"chosen": torch.tensor([-2.0, -30.0])}
    torch.testing.assert_close(sft.value(logps), torch.tensor([2.0, 30.0]))
    torch.testing.assert_close(sft.coefficients(logps)["chosen"], torch.tensor([-1.0, -1.0]))
    assert (sft.responses, sft.needs_ref) == (("chosen",), False)


def test_residual_has_the_sign_of_the_paper():
    probs = torch.tensor([0.5, 0.3, 0.2])
    pulled = losses.residual(probs, 1, -1.0)  # learning label 1: π − e_1
    torch.testing.assert_close(pulled, torch.tensor([0.5, -0.7, 0.2]))
    torch.testing.assert_close(losses.residual(probs, 1, 2.0), -2 * pulled)


@EVERY
def test_a_loss_is_known_by_its_hyperparameters(name):
    loss = losses.get(name)
    assert losses.get(name, **{f.name: f.default for f in fields(loss)}) == loss
    assert "=" in repr(loss) or not fields(loss)


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown loss 'stf': did you mean 'sft'\?"):
        losses.get("stf")


def test_an_unknown_hyperparameter_names_its_loss():
    with pytest.raises(ValueError, match="unknown hyperparameter of sft 'beta'"):
        losses.get("sft", beta=0.1)


@pytest.mark.parametrize(
    ("labels", "coefficient", "message"),
    [(3, 1.0, "label 3 is out of range"), (0, [1.0, 2.0, 3.0], "coefficient has shape")],
)
def test_residual_refuses_what_does_not_fit(labels, coefficient, message):
    with pytest.raises(ValueError, match=message):
        losses.residual(torch.full((2, 3), 1 / 3), labels, torch.tensor(coefficient))


def test_residual_refuses_logits():
    with pytest.raises(ValueError, match="pass logits"):
        losses.residual(torch.tensor([1.0, 2.0]), 0, 1.0)
