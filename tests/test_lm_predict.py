"""The first-order change of responses: against differences, Jacobians and the measured change."""

import copy
from functools import partial

import brute
import numpy as np
import pytest
import torch
from tiny import FAMILIES, first, on_smollm2, tiny, tiny_rows
from torch.autograd import forward_ad
from torch.nn.functional import one_hot, scaled_dot_product_attention

from lmdyn import log_softmax_jacobian, losses
from lmdyn.lm import predict
from lmdyn.lm.data import as_probes
from lmdyn.lm.models import load
from lmdyn.lm.predict import _dual, measure_change, predict_change, sgd_direction, update_direction
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import ways

ROWS = tiny_rows()
BOTH = predict_change, measure_change


def direction_of(model, size=1e-2):
    torch.manual_seed(1)
    return {name: size * torch.randn_like(p) for name, p in model.named_parameters()}


def moved(model, direction, step=1.0):
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, move in direction.items():
            model.get_parameter(name).add_(step * move)
    return model


@torch.no_grad()
def log_probs(model, tokenizer, rows=ROWS):
    """[row][type] → (T, V), each sequence alone."""
    return [
        {
            name: brute.logits(model, row.prompt, ids).log_softmax(-1)
            for name, ids in row.responses.items()
        }
        for row in encode(tokenizer, as_probes(rows))
    ]


def combined(weights, *of):
    """Σ weight · log-probs, row by row and type by type."""
    return [
        {name: sum(w * x[i][name] for w, x in zip(weights, of, strict=True)) for name in row}
        for i, row in enumerate(of[0])
    ]


def derivative(model, tokenizer, direction, h=1e-3):
    """Central differences of `log_probs` along the direction, extrapolated to order h⁴."""
    at = [log_probs(moved(model, direction, s * h), tokenizer) for s in (1, -1, 2, -2)]
    return combined([8 / 12 / h, -8 / 12 / h, -1 / 12 / h, 1 / 12 / h], *at)


def assert_same(change, whole, tokenizer, rtol, atol=1e-12):
    """A `Change` with vocab equals [row][type] → (T, V), in all its forms."""
    for i, encoded in enumerate(encode(tokenizer, as_probes(ROWS))):
        ids = encoded.responses
        assert change.vocab[i].keys() == change.tokens[i].keys() == whole[i].keys() == ids.keys()
        for r, name in enumerate(change.types):
            if name not in ids:
                assert np.isnan(change.logp[i, r])
                continue
            torch.testing.assert_close(change.vocab[i][name], whole[i][name], rtol=rtol, atol=atol)
            terms = whole[i][name][range(len(ids[name])), ids[name]].numpy()
            np.testing.assert_allclose(change.tokens[i][name], terms, rtol=rtol, atol=atol)
            np.testing.assert_allclose(change.logp[i, r], terms.sum(), rtol=rtol, atol=atol)


def assert_equal(one, other, tolerance):
    np.testing.assert_allclose(one.logp, other.logp, rtol=tolerance, atol=tolerance)


# The change


@pytest.mark.parametrize("family", first(*FAMILIES))
def test_prediction_is_the_derivative_by_every_way(family, monkeypatch):
    model, tokenizer = tiny(family)
    direction = direction_of(model)
    change = predict_change(model, tokenizer, ROWS, direction, vocab=True)
    assert change.types == ("chosen", "rejected", "irr_train", "random_permute")
    truth = derivative(model, tokenizer, direction)
    scale = max(float(x.abs().max()) for row in truth for x in row.values())
    assert_same(change, truth, tokenizer, rtol=1e-6, atol=1e-9 * scale)
    if family in ("gpt_neox", "qwen2"):
        return  # two families are enough for the other ways
    monkeypatch.setattr(predict, "CHUNK", 3)
    again = predict_change(model, tokenizer, ROWS, direction, vocab=True, tokens=40)
    assert_same(again, change.vocab, tokenizer, rtol=1e-9, atol=1e-11)
    model.set_attn_implementation("eager")
    # Eager attention takes its softmax in float32, whatever comes.
    assert_equal(predict_change(model, tokenizer, ROWS, direction), change, 1e-5)
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(predict, "ways", partial(ways, shared=False))
    for tokens in (1, 4096):
        plain = predict_change(model, tokenizer, ROWS, direction, tokens=tokens)
        assert_equal(plain, change, 1e-9)


@pytest.mark.parametrize("family", first(*FAMILIES))
def test_measured_change_is_measured(family):
    model, tokenizer = tiny(family)
    direction, before = direction_of(model), copy.deepcopy(model.state_dict())
    change = measure_change(model, tokenizer, ROWS, direction, vocab=True)
    old, new = (log_probs(m, tokenizer) for m in (model, moved(model, direction)))
    assert_same(change, combined([1, -1], new, old), tokenizer, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_model_whose_layers_share_a_module_is_left_alone():
    model, tokenizer = tiny("llama")
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    before = dict(model.named_parameters())
    step = sgd_direction(model, tokenizer, ROWS[:1], lr=1e-6)
    predicted, measured = (change(model, tokenizer, ROWS, step).logp for change in BOTH)
    np.testing.assert_allclose(predicted, measured, rtol=0.01, atol=0.01 * np.nanmax(abs(measured)))
    assert all(p is before[name] for name, p in model.named_parameters())
    assert first.mlp.up_proj.weight is before["model.layers.0.mlp.up_proj.weight"]


@pytest.mark.parametrize("family", first("llama", "gpt2"))
def test_remainder_is_of_second_order(family):
    model, tokenizer = tiny(family)
    gradient = sgd_direction(model, tokenizer, ROWS[:2])
    lrs, errors = 1e-6 * 2.0 ** np.arange(3), []
    for lr in lrs:
        step = {name: lr * move for name, move in gradient.items()}
        predicted, measured = (change(model, tokenizer, ROWS, step).logp for change in BOTH)
        errors.append(np.sqrt(np.nansum((measured - predicted) ** 2)))
    slope = np.polyfit(np.log(lrs), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.02


@pytest.mark.parametrize("family", first("llama", "gpt2"))
def test_a_direction_may_name_some_parameters(family):
    model, tokenizer = tiny(family)
    direction, total = direction_of(model), 0
    names = list(direction)
    for part in (names[:1], names[1:-2], names[-2:]):  # first embedding; last norm and head
        some = {n: direction[n] for n in part}
        change = predict_change(model, tokenizer, ROWS, some)
        still = {n: torch.zeros_like(p) for n, p in direction.items()}
        assert_equal(change, predict_change(model, tokenizer, ROWS, still | some), 1e-12)
        total = total + change.logp
    whole = predict_change(model, tokenizer, ROWS, direction)
    np.testing.assert_allclose(total, whole.logp, rtol=1e-9)  # it is linear


@pytest.mark.slow
def test_prediction_is_equation_5():
    """−η Σ_l A_m K_ml G_l from the Jacobians of two sequences, with respect to every weight."""
    model, tokenizer = tiny("llama", num_hidden_layers=1, hidden_size=16)
    update, probe = (as_probes([ROWS[i]], ["chosen"]) for i in (4, 3))
    (u, y_u), (o, _) = (
        (row.prompt, row.responses["chosen"])
        for probes in (update, probe)
        for row in encode(tokenizer, probes)
    )
    z_o, z_u = (brute.logits(model, *of) for of in ((o, _), (u, y_u)))
    k = torch.einsum("mip,ljp->mlij", brute.jacobian(model, z_o), brute.jacobian(model, z_u))
    g = z_u.softmax(-1) - one_hot(torch.tensor(y_u), z_u.shape[1])
    truth = -1e-2 * torch.einsum("mvi,mlij,lj->mv", log_softmax_jacobian(z_o), k, g)
    direction = sgd_direction(model, tokenizer, update, "sft", 1e-2)
    change = predict_change(model, tokenizer, probe, direction, vocab=True)
    torch.testing.assert_close(change.vocab[0]["chosen"], truth.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["causal", "mask", "added"])  # the last by PyTorch's own, unfused
@pytest.mark.parametrize("moving", [{0}, {1, 2}, {0, 1, 2}])
def test_attention_on_dual_tensors(how, moving, monkeypatch):
    monkeypatch.setattr(_dual, "QUERIES", 4)
    torch.manual_seed(0)
    shapes = (2, 6, 11, 8), (2, 2, 11, 8), (2, 2, 11, 5)
    inputs, moves = ([torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(2))
    mask = (torch.rand(2, 1, 11, 11) < 0.3) | torch.eye(11, dtype=torch.bool)
    added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e9)
    options = {"causal": {"is_causal": True}, "mask": {"attn_mask": mask}}
    options = options.get(how, {"attn_mask": added}) | {"scale": 0.3, "enable_gqa": True}

    def attention(step):
        at = [x + step * m * (i in moving) for i, (x, m) in enumerate(zip(inputs, moves))]  # noqa: B905
        return scaled_dot_product_attention(*at, **options)

    with forward_ad.dual_level(), _dual.DualAttention():
        duals = list(inputs)
        for i in moving:
            duals[i] = forward_ad.make_dual(inputs[i], moves[i])
        out, tangent = forward_ad.unpack_dual(scaled_dot_product_attention(*duals, **options))
    torch.testing.assert_close(out, attention(0.0))
    h = 1e-3
    truth = 8 * (attention(h) - attention(-h)) - (attention(2 * h) - attention(-2 * h))
    torch.testing.assert_close(tangent, truth / (12 * h), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", first("llama", "gpt2"))
def test_training_mode_checkpointing_and_dropout(family):
    dropout = ["attn_pdrop", "resid_pdrop"] if family == "gpt2" else ["attention_dropout"]
    model, tokenizer = tiny(family)
    direction = direction_of(model)
    truth = predict_change(model, tokenizer, ROWS, direction)
    step = sgd_direction(model, tokenizer, ROWS)
    training, _ = tiny(family, **dict.fromkeys(dropout, 0.5))
    training.train()
    training.activation_checkpointing_enable()
    training.get_input_embeddings().eval()
    with torch.inference_mode():  # would drop tangents in silence
        assert_equal(predict_change(training, tokenizer, ROWS, direction), truth, 1e-12)
        again = sgd_direction(training, tokenizer, ROWS)
    assert step.keys() == again.keys()
    assert all(torch.allclose(step[name], again[name], rtol=1e-9) for name in step)
    assert training.training and training.is_activation_checkpointing
    assert not training.get_input_embeddings().training
    assert all(p.grad is None and p.requires_grad for p in training.parameters())


@pytest.mark.parametrize("dtype", first(torch.bfloat16, torch.float16))
def test_half_precision_is_computed_in_float32(dtype):
    half, tokenizer = tiny("llama", dtype)
    full = copy.deepcopy(half).float()
    step, expected = (sgd_direction(m, tokenizer, ROWS[:1], lr=1e-3) for m in (half, full))
    assert all(torch.allclose(step[n], expected[n], rtol=1e-4, atol=1e-6) for n in expected)
    for change in BOTH:
        ours = change(half, tokenizer, ROWS, step, vocab=True)
        assert ours.vocab[0]["chosen"].dtype == torch.float32
        assert_equal(ours, change(full, tokenizer, ROWS, step), 1e-4)
    assert half.dtype == dtype


def test_the_record():
    model, tokenizer = tiny("llama")
    direction = direction_of(model)
    change = predict_change(model, tokenizer, ROWS, direction)
    assert repr(change) == "Change(5 prompts × 4 types)" and change.vocab is None
    assert change.logp.dtype == np.float64 and change.logp.shape == (5, 4)
    assert change.mean("irr_train") == pytest.approx(np.nanmean(change.logp[:, 2]))
    with pytest.raises(ValueError, match="'chosen'"):
        change.mean("choosen")
    with pytest.raises(ValueError, match="no row has a response of type irr_test"):
        predict_change(model, tokenizer, as_probes(ROWS).only("irr_test"), direction)


# Directions


def plain_gradient(model, tokenizer, loss, ref):
    """∇ Σ L by autograd through `Loss.value`, each sequence alone."""
    encoded = encode(tokenizer, as_probes(ROWS).only(*loss.responses))
    logps = {
        name: torch.stack([brute.log_prob(model, r.prompt, r.responses[name]) for r in encoded])
        for name in loss.responses
    }
    ref = {name: values.detach() for name, values in logps.items()} if ref is None else ref
    return brute.gradient(model, loss.value(logps, ref).sum())


@pytest.mark.parametrize("family", first(*FAMILIES))
def test_sgd_direction_is_the_gradient(family):
    model, tokenizer = tiny(family)
    ref = {n: torch.linspace(-30, -20, len(ROWS)).double() for n in ("chosen", "rejected")}
    dpo = losses.get("dpo", beta=0.05)
    for loss, given in ((losses.get("sft"), None), (dpo, None), (dpo, ref)):
        gradient = plain_gradient(model, tokenizer, loss, given)
        for tokens in (1, 1024):
            step = sgd_direction(model, tokenizer, ROWS, loss, 0.5, ref=given, tokens=tokens)
            assert list(step) == [name for name, _ in model.named_parameters()]
            flat = torch.cat([move.flatten() for move in step.values()])
            torch.testing.assert_close(flat, -0.5 * gradient, rtol=1e-9, atol=1e-9)


def test_frozen_parameters_are_left_out():
    model, tokenizer = tiny("gpt2")
    everything = sgd_direction(model, tokenizer, ROWS)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad"):
        sgd_direction(model, tokenizer, ROWS)
    model.transformer.h[1].mlp.requires_grad_(True)
    step = sgd_direction(model, tokenizer, ROWS)
    assert step.keys() == {n for n in everything if n.startswith("transformer.h.1.mlp.")}
    assert all(torch.allclose(everything[name], step[name]) for name in step)


def test_an_optimisers_update_is_a_direction():
    model, tokenizer = tiny("qwen2")
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1)
    for name, move in sgd_direction(model, tokenizer, ROWS[:2]).items():
        model.get_parameter(name).grad = -move
    optimizer.step()
    update = update_direction(before.state_dict(), model.state_dict())
    predicted, measured = (change(before, tokenizer, ROWS, update, vocab=True) for change in BOTH)
    truth = combined([1, -1], log_probs(model, tokenizer), log_probs(before, tokenizer))
    assert_same(measured, truth, tokenizer, rtol=1e-9, atol=1e-11)
    scale = np.nanmax(abs(measured.logp))
    np.testing.assert_allclose(predicted.logp, measured.logp, rtol=1e-2, atol=1e-2 * scale)


def test_tied_weights_go_by_either_name():
    model, tokenizer = tiny("gpt2")
    move = direction_of(model)["transformer.wte.weight"]
    one, other = {"transformer.wte.weight": move}, {"lm_head.weight": move.clone()}
    for change in BOTH:
        expected = change(model, tokenizer, ROWS, one)
        assert np.nanmax(abs(expected.logp)) > 1e-3
        for direction in (other, one | other):
            assert_equal(change(model, tokenizer, ROWS, direction), expected, 0)
    with pytest.raises(ValueError, match=r"tied"):
        predict_change(model, tokenizer, ROWS, one | {"lm_head.weight": 2 * move})


# Bad input


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (torch.zeros(3), "direction must map names of parameters"),
        ({}, "at least one"),
        (
            {"model.norm.weigth": torch.zeros(32)},
            "unknown parameter of the direction 'model.norm.weigth': did you mean 'model.norm.",
        ),
        ({"model.norm.weight": torch.zeros(31)}, r"shape \(32,\), got \(31,\)"),
        ({"model.norm.weight": torch.full((32,), torch.nan)}, "must be finite"),
    ],
)
def test_a_bad_direction(direction, message):
    model, tokenizer = tiny("llama")
    for change in BOTH:
        with pytest.raises(ValueError, match=message) as error:
            change(model, tokenizer, ROWS, direction)
        assert "\n" not in str(error.value)


def test_diverged_weights_and_steps():
    model, tokenizer = tiny("llama")
    huge = {"model.norm.weight": torch.full((32,), 1.7e308, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"rows\[\d\]: .* the step is too large"):
        measure_change(model, tokenizer, ROWS, huge)
    model.model.norm.weight.data[0] = torch.inf
    for change in BOTH:
        with pytest.raises(ValueError, match=r"rows\[\d\]: .* have diverged"):
            change(model, tokenizer, ROWS, direction_of(model))
    with pytest.raises(ValueError, match="not finite"):
        sgd_direction(model, tokenizer, ROWS)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_what_cannot_be_predicted(monkeypatch):
    model, tokenizer = tiny("llama")
    direction = direction_of(model)
    with monkeypatch.context() as patch:
        patch.setattr(predict, "VOCAB_GIB", 1e-5)
        with pytest.raises(ValueError, match=r"GiB \(\d+ tokens × 100 labels\).*fewer rows"):
            predict_change(model, tokenizer, ROWS, direction, vocab=True)
    monkeypatch.setattr(model.model.layers[0].mlp.act_fn, "forward", Doubled.apply)
    with pytest.raises(ValueError, match=r"no forward-mode derivative .* custom kernels"):
        predict_change(model, tokenizer, ROWS, direction)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match=r"'flash_attention_2'.*set_attn_implementation"):
        predict_change(model, tokenizer, ROWS, direction)
    with torch.inference_mode():
        model, tokenizer = tiny("llama")
    for call in (
        lambda: predict_change(model, tokenizer, ROWS, direction),
        lambda: sgd_direction(model, tokenizer, ROWS),
    ):
        with pytest.raises(ValueError, match="inference_mode"):
            call()


@pytest.mark.parametrize(
    ("rows", "loss", "options", "message"),
    [
        (ROWS, "stf", {}, "unknown loss 'stf': did you mean 'sft'"),
        (ROWS, "sft", {"lr": float("nan")}, "lr must be finite"),
        ([ROWS[0], {"prompt": "a", "chosen": "b"}], "dpo", {}, r"rows\[1\] has no 'rejected', whi"),
        (ROWS, "dpo", {"ref": {"chosen": [0.0] * 5}}, r"needs ref\['rejected'\]"),
    ],
)
def test_a_bad_step(rows, loss, options, message):
    with pytest.raises(ValueError, match=message):
        sgd_direction(*tiny("llama"), rows, loss, **options)


def test_a_bad_update():
    state = tiny("llama")[0].state_dict()
    with pytest.raises(ValueError, match="nothing changed: copy"):
        update_direction(state, state)
    with pytest.raises(ValueError, match=r"only one of them has 'model\.norm\.weight'"):
        update_direction(state, {n: p for n, p in state.items() if n != "model.norm.weight"})


# A real model


def at_two_rates(predicted, change, gradient):
    """Of a change and its first order at lr 1e-5 and 1e-6: their correlations, relative errors."""
    found = []
    for lr in (1e-5, 1e-6):
        measured = np.ravel(change({name: lr * move for name, move in gradient.items()}))
        pair = lr * np.ravel(predicted), measured
        off = np.linalg.norm(pair[0] - measured) / np.linalg.norm(measured)
        found.append((np.corrcoef(pair)[0, 1], off))
    return np.transpose(found)


@on_smollm2
def test_smollm2():
    """Over the whole vocabulary at all tokens; what is left is of second order."""
    model, tokenizer = load("smollm2-135m", device="cpu")
    answer = " Keep it in a paper bag, away from heat, and freeze what you cannot eat in two days."
    row = {"prompt": "How do I keep bread fresh?", "chosen": answer}
    gradient = sgd_direction(model, tokenizer, [row])
    per_lr = predict_change(model, tokenizer, [row], gradient, vocab=True).vocab[0]["chosen"]

    def change(step):
        return measure_change(model, tokenizer, [row], step, vocab=True).vocab[0]["chosen"]

    correlations, errors = at_two_rates(per_lr, change, gradient)
    assert (correlations >= 0.999).all()
    assert errors[0] <= 0.05 and errors[1] <= 0.006
    assert 5 < errors[0] / errors[1] < 15


def test_weights_that_are_packed_stay_as_they_are():
    """Integers are no floating-point numbers, whatever they hold: 4-bit weights are such."""
    model, tokenizer = tiny("llama")
    direction = direction_of(model)
    expected = predict_change(model, tokenizer, ROWS, direction).logp
    packed = torch.nn.Parameter(torch.arange(4, dtype=torch.uint8), requires_grad=False)
    layer = model.model.layers[0].mlp
    layer.register_parameter("packed", packed)

    def checked(layer, *_):
        assert layer.packed.dtype == torch.uint8

    with layer.register_forward_pre_hook(checked):
        found = predict_change(model, tokenizer, ROWS, direction).logp
        scored = sgd_direction(model, tokenizer, ROWS, "sft", lr=1e-3)
    assert np.array_equal(found, expected, equal_nan=True)
    assert set(scored) == set(sgd_direction(tiny("llama")[0], tokenizer, ROWS, "sft", lr=1e-3))


@on_smollm2
def test_smollm2_entropy():
    """The entropy of a response, its mean over tokens, follows its first order too."""
    model, tokenizer = load("smollm2-135m", device="cpu")
    said = [
        ("How do I keep bread fresh?", " Keep it in a paper bag, away from heat.", " In the sun."),
        ("What is a kettle for?", " To boil water, for tea or pasta.", " It is a kind of bird."),
        ("When does the shop open?", " At nine in the morning, on all days but one.", " Never."),
    ]
    rows = as_probes([dict(zip(("prompt", "chosen", "rejected"), of, strict=True)) for of in said])
    gradient = sgd_direction(model, tokenizer, rows[:1].only("chosen"))
    per_lr = predict_change(model, tokenizer, rows, gradient).entropy

    def change(step):
        return measure_change(model, tokenizer, rows, step).entropy

    correlations, errors = at_two_rates(per_lr, change, gradient)
    assert (correlations >= 0.99).all()
    # A tenth of the step: a tenth of the error, or less where its third order still shows.
    assert errors[0] <= 0.1 and errors[1] <= errors[0] / 5
