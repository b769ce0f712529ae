"""Losses of samples on models: directions, influence and training, and the change of entropy."""

import copy

import brute
import numpy as np
import pytest
import torch
from tiny import first, tiny, tiny_rows

from lmdyn import losses
from lmdyn.lm import finetune, influence, measure_change, predict_change, score, sgd_direction
from lmdyn.lm.data import as_probes
from lmdyn.lm.tokens import encode

ADVANTAGES = (1.5, -0.7, 0.2, -1.1, 0.4)
PLAIN = tiny_rows()
ROWS = [
    {**row, "response": row["rejected"], "advantage": a}
    for row, a in zip(PLAIN, ADVANTAGES, strict=True)
]
OF_SAMPLES = [name for name in losses.names() if losses.get(name).needs_advantage]


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


def by_autograd(model, tokenizer, loss, rows, old_apart=0.0, key="response"):
    """The loss of all rows and its gradient, (P,), from each sequence alone."""
    encoded = encode(tokenizer, as_probes(rows, [key]))
    parts = []
    for row in encoded:
        ids = row.responses[key]
        parts.append(brute.logits(model, row.prompt, ids).log_softmax(-1)[range(len(ids)), ids])
    n = torch.tensor([len(part) for part in parts])
    logps = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    old = {"response": logps.detach() + old_apart}
    advantage = torch.tensor([row["advantage"] for row in rows], dtype=torch.float64)
    more = {"old": old, "advantage": advantage}
    values = loss.value({"response": logps}, old, {"response": n}, **more)
    return values.detach(), brute.gradient(model, values.sum()), old


def flat(direction, model):
    return torch.cat([direction[name].flatten() for name, _ in model.named_parameters()])


@pytest.mark.parametrize("name", first("gspo", *sorted({*OF_SAMPLES} - {"gspo"}), "ga", "npo"))
def test_a_direction_is_the_gradient_of_the_loss_of_samples(name, llama):
    loss = losses.get(name)
    _, gradient, _ = by_autograd(*llama, loss, ROWS)
    found = sgd_direction(*llama, ROWS, name, lr=0.5)
    torch.testing.assert_close(flat(found, llama[0]), -0.5 * gradient, rtol=1e-8, atol=1e-10)
    # With others that sampled, some of it is clipped.
    _, gradient, old = by_autograd(*llama, loss, ROWS, old_apart=0.3)
    if loss.per_token:
        found = sgd_direction(*llama, ROWS, name, old=old, ref=old)
        torch.testing.assert_close(flat(found, llama[0]), -gradient, rtol=1e-8, atol=1e-10)


def test_rows_without_a_response_are_read_at_chosen(llama):
    rows = [{**row, "advantage": a} for row, a in zip(PLAIN, ADVANTAGES, strict=True)]
    _, gradient, _ = by_autograd(*llama, losses.get("grpo"), rows, key="chosen")
    found = sgd_direction(*llama, rows, "grpo")
    torch.testing.assert_close(flat(found, llama[0]), -gradient, rtol=1e-8, atol=1e-10)
    only = [{k: row[k] for k in ("prompt", "response", "advantage")} for row in ROWS]
    assert as_probes(only).types == ("response",)
    torch.testing.assert_close(
        sgd_direction(*llama, only, "grpo"), sgd_direction(*llama, ROWS, "grpo")
    )


@pytest.mark.parametrize(
    "loss",
    first(losses.get("dapo", beta=0.2), losses.get("reinforce"), losses.get("gspo")),
    ids=str,
)
def test_influences_add_up_to_the_prediction_of_a_step(loss, llama):
    parts = influence(*llama, ROWS, PLAIN, loss, types=["chosen", "rejected"])
    step = predict_change(
        *llama, as_probes(PLAIN, ["chosen", "rejected"]), sgd_direction(*llama, ROWS, loss)
    )
    np.testing.assert_allclose(parts.sum(0), step.logp, rtol=1e-7, atol=1e-10)
    apart = influence(*llama, ROWS, PLAIN, loss, types=["chosen"], by_response=True)
    np.testing.assert_allclose(apart.sum(1), parts[..., :1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", first("dapo", "reinforce", "grpo", "rloo"))
def test_an_update_is_a_step_on_the_loss(name):
    model, tokenizer = tiny("llama")
    before = copy.deepcopy(model)
    values, gradient, _ = by_autograd(before, tokenizer, losses.get(name), ROWS)
    run = finetune(
        model, tokenizer, ROWS, name, epochs=1, lr=0.01, batch_size=5, optimizer="sgd", clip=None
    )
    of_batch = losses.get(name).of_batch
    step = torch.cat(
        [(a - b).flatten() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    )
    expected = -0.01 * gradient / (1 if of_batch else 5)
    torch.testing.assert_close(step, expected, rtol=1e-6, atol=1e-9)
    loss = values.sum() if of_batch else values.mean()
    np.testing.assert_allclose(run.log["loss"], [loss], rtol=1e-5)
    summed = score(before, tokenizer, as_probes(ROWS, ["response"])).logp.mean()
    np.testing.assert_allclose(run.log["logp_response"], [summed], rtol=1e-6)


@pytest.mark.slow
def test_what_sampled_is_the_model_as_it_comes():
    # After some steps rows are clipped: further ones of lr 0 find the ratio where it was.
    model, tokenizer = tiny("llama")
    run = finetune(
        model, tokenizer, ROWS, "grpo", epochs=30, lr=0.01, batch_size=5, optimizer="sgd"
    )
    assert run.log["loss"][0] > run.log["loss"][-1]  # at first −mean A, of ratios 1
    np.testing.assert_allclose(run.log["loss"][0], -np.mean(ADVANTAGES), rtol=1e-5)
    assert run.log["loss"][-1] >= -np.mean([a * (1.2 if a > 0 else 0.8) for a in ADVANTAGES])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantage": None}, r"rows\[1\] has no finite 'advantage', which the loss GRPO reads"),
        ({"advantage": float("nan")}, r"rows\[1\] has no finite 'advantage'"),
        ({"advantage": float("inf")}, r"rows\[1\] has no finite 'advantage'"),
        ({"advantage": "much"}, r"rows\[1\] has no finite 'advantage'"),
        ({"response": None}, r"rows\[1\] has no 'response', which the loss GRPO reads"),
    ],
)
def test_a_row_that_lacks_something_is_named(change, message, llama):
    rows = [ROWS[0], ROWS[1] | change, ROWS[2]]
    with pytest.raises(ValueError, match=message):
        sgd_direction(*llama, rows, "grpo")
    with pytest.raises(ValueError, match=message):
        finetune(*llama, rows, "grpo", epochs=1, lr=1e-5, batch_size=2)
    with pytest.raises(ValueError, match=message.replace("rows", "updates")):
        influence(*llama, rows, PLAIN, "grpo")


# --- entropy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", first("grpo", "sft"))
@pytest.mark.slow
def test_the_change_of_entropy_is_predicted_to_first_order(loss, llama):
    model, tokenizer = llama
    step, errors = sgd_direction(model, tokenizer, ROWS[:2], loss), []
    was = score(model, tokenizer, PLAIN).entropy
    for lr in (1e-4, 1e-5, 1e-6):
        direction = {name: lr * move for name, move in step.items()}
        predicted = predict_change(model, tokenizer, PLAIN, direction)
        measured = measure_change(model, tokenizer, PLAIN, direction)
        there = ~np.isnan(measured.entropy)
        assert np.array_equal(there, ~np.isnan(measured.logp))
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, move in direction.items():
                moved.get_parameter(name).add_(move)
        now = score(moved, tokenizer, PLAIN).entropy
        np.testing.assert_allclose(measured.entropy, now - was, atol=1e-12)
        ours, theirs = predicted.entropy[there], measured.entropy[there]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.99
        errors.append(np.abs(ours - theirs).max())
    assert errors[0] > 80 * errors[1] > 6400 * errors[2]  # of second order
