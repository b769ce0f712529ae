from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmdyn.lm import _inner, _layers
from lmdyn.lm.data import as_probes
from lmdyn.lm.influence import influence
from lmdyn.lm.predict import predict_change, sgd_direction
from lmdyn.lm.tokens import Format, encode
from lmdyn.losses import Loss

# float64 on both sides: what is left is the order of summation
EXACT = {"rtol": 1e-10, "atol": 1e-10}
ROWS = tiny_rows()


@dataclass(frozen=True)
class Margin(Loss):
    """−log σ(β(Δ+/n+ − Δ−/n−)): two responses, a reference and lengths."""

    beta: float = 0.3
    responses = ("chosen", "rejected")
    needs_ref = True

    def value(self, logps, ref=None, lengths=None):
        a, b = ((logps[name] - ref[name]) / lengths[name] for name in self.responses)
        return -nn.functional.logsigmoid(self.beta * (a - b))

    def coefficients(self, logps, ref=None, lengths=None):
        logps = {name: logps[name].clone().requires_grad_() for name in self.responses}
        value = self.value(logps, ref, lengths).sum()
        return dict(zip(logps, torch.autograd.grad(value, logps.values()), strict=True))


def log_prob(model, encoded, name):
    """One sequence alone, all logits."""
    response = encoded.responses[name]
    logps = model(input_ids=torch.tensor([encoded.prompt + response])).logits[0].log_softmax(-1)
    return sum(logps[len(encoded.prompt) - 1 + i, token] for i, token in enumerate(response))


def gradient(model, value):
    params = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


def brute(model, tokenizer, updates, probes, loss=None, ref=None):
    """One flat gradient a sequence, by plain autograd."""
    updates, probes = as_probes(updates), as_probes(probes)
    ours = []
    for u, encoded in enumerate(encode(tokenizer, updates)):
        if loss is None:
            ours.append(-gradient(model, log_prob(model, encoded, "chosen")))
            continue
        names = loss.responses
        logps = {name: log_prob(model, encoded, name) for name in names}
        own = {name: logp.detach() for name, logp in logps.items()}
        lengths = {name: len(encoded.responses[name]) for name in names}
        row_ref = own if ref is None else {name: ref[name][u] for name in names}
        ours.append(gradient(model, loss.value(logps, row_ref, lengths)))
    found = np.full((len(ours), len(probes), len(probes.types)), np.nan)
    for o, encoded in enumerate(encode(tokenizer, probes)):
        for r, name in enumerate(probes.types):
            if name in encoded.responses:
                theirs = gradient(model, log_prob(model, encoded, name))
                found[:, o, r] = [-float(own @ theirs) for own in ours]
    return found


def check(model, tokenizer, updates, probes):
    expected = brute(model, tokenizer, updates, probes)
    np.testing.assert_allclose(influence(model, tokenizer, updates, probes), expected, **EXACT)
    return expected


@contextmanager
def watch_generic(monkeypatch):
    """The numbers of parameters that took the generic path."""
    seen, blocks = set(), _layers.Gradients.blocks

    def watched(self, *args):
        names = {p: name for name, p in self.model.named_parameters()}
        yield from blocks(self, *args)
        seen.update(names[p] for p in self.generic)

    with monkeypatch.context() as patch:
        patch.setattr(_layers.Gradients, "blocks", watched)
        yield seen


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_brute_force(family, tied, monkeypatch):
    model, tokenizer = tiny(family, tie_word_embeddings=tied)
    with watch_generic(monkeypatch) as generic:
        expected = check(model, tokenizer, ROWS[:3], ROWS)
    assert not generic
    missing = [["irr_train"] if i == 3 else ["random_permute"] if i == 1 else [] for i in range(5)]
    types = as_probes(ROWS).types
    assert [[t for t, x in zip(types, row, strict=True) if np.isnan(x)] for row in expected[0]] == (
        missing
    )


@pytest.mark.parametrize("way", ["tokens", "gradients"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_to_inner_products(family, way, monkeypatch):
    model, tokenizer = tiny(family, tie_word_embeddings=True)
    costs = {"tokens": (0, 1), "gradients": (1, 0)}[way]
    monkeypatch.setattr(_inner, "_costs", lambda *args: costs)
    monkeypatch.setattr(_inner, "SLAB_BYTES", 20_000)  # a few rows of the weights
    check(model, tokenizer, ROWS[:3], ROWS)


@pytest.mark.parametrize(("tokens", "memory"), [(1, 1), (30, 1), (512, 1e6), (1, 1e9)])
def test_blocks_give_the_same(tokens, memory, monkeypatch):
    model, tokenizer = tiny("gpt2")
    expected = influence(model, tokenizer, ROWS[:3], ROWS[2:])
    monkeypatch.setattr(_layers, "PASS_TOKENS", tokens)
    found = influence(model, tokenizer, ROWS[:3], ROWS[2:], memory=memory)
    np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize("kept", ["norm", "embed", "bias", "lm_head", "layers.1", "o_proj"])
def test_frozen_parameters_do_not_count(kept):
    model, tokenizer = tiny("qwen2", tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kept in name)
    expected = check(model, tokenizer, ROWS[:2], ROWS[1:])
    model.requires_grad_(True)
    assert not np.allclose(influence(model, tokenizer, ROWS[:2], ROWS[1:]), expected)


@pytest.mark.parametrize("given", [False, True])
def test_a_loss_of_two_responses(given):
    model, tokenizer = tiny("llama")
    ref = {"chosen": [-9.0, -20.0, -7.0], "rejected": [-3.0, -18.0, -30.0]} if given else None
    expected = brute(model, tokenizer, ROWS[:3], ROWS, Margin(), ref)
    found = influence(model, tokenizer, ROWS[:3], ROWS, Margin(), ref=ref)
    np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_pull_and_push(family):
    model, tokenizer = tiny(family)
    loss, ref = Margin(), {"chosen": [-9.0, -20.0, -7.0], "rejected": [-3.0, -18.0, -30.0]}
    parts = influence(model, tokenizer, ROWS[:3], ROWS, loss, ref=ref, by_response=True)
    assert parts.shape == (3, 2, len(ROWS), len(as_probes(ROWS).types))
    logps, lengths = {}, {}
    for name in loss.responses:  # each part is SFT on one response, times −c
        encoded = encode(tokenizer, as_probes(ROWS[:3], [name]))
        logps[name] = torch.stack([log_prob(model, row, name).detach() for row in encoded])
        lengths[name] = torch.tensor([len(row.responses[name]) for row in encoded])
    given = {name: torch.tensor(values).double() for name, values in ref.items()}
    coefficients = loss.coefficients(logps, given, lengths)
    for part, name in zip(parts.swapaxes(0, 1), loss.responses, strict=True):
        learned = [{"prompt": row["prompt"], "chosen": row[name]} for row in ROWS[:3]]
        alone = brute(model, tokenizer, learned, ROWS)
        np.testing.assert_allclose(
            part, -coefficients[name].numpy()[:, None, None] * alone, **EXACT
        )
    whole = brute(model, tokenizer, ROWS[:3], ROWS, loss, ref)
    np.testing.assert_allclose(parts.sum(1), whole, **EXACT)


def test_types_and_format():
    model, tokenizer = tiny("llama")
    form = Format(max_length=9, max_prompt=4)
    with pytest.warns(UserWarning, match="were cut"):
        found = influence(
            model, tokenizer, ROWS[:2], ROWS, types=["rejected", "chosen"], format=form
        )
    with pytest.warns(UserWarning, match="were cut"):
        expected = brute(
            model,
            tokenizer,
            as_probes(ROWS[:2], ["chosen"], form),
            as_probes(ROWS, ["rejected", "chosen"], form),
        )
    np.testing.assert_allclose(found, expected, **EXACT)


class Wrapped(nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


class GemmaNorm(nn.Module):
    """A norm that scales by 1 + weight."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.randn(32, dtype=torch.float64)), norm

    def forward(self, x):
        return self.norm(x) * (1 + self.weight)


def tokens_first(layer, x):
    return layer(x.transpose(0, 1)).transpose(0, 1)


def last_first(layer, x):
    return layer(x.flip(0)).flip(0)


def weight_decayed(layer, x):
    return layer(x) * (1 - 0.1 * layer.weight.square().mean())


def one_at_a_time(layer, x):
    return torch.cat([layer(row) for row in x.split(1)])


@pytest.mark.parametrize("function", [tokens_first, last_first, weight_decayed, one_at_a_time])
def test_unusual_uses_take_the_generic_path(function, monkeypatch):
    model, tokenizer = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.up_proj = Wrapped(mlp.up_proj, function)
    with watch_generic(monkeypatch) as generic:
        check(model, tokenizer, ROWS[:3], ROWS)
    assert generic == {"model.layers.1.mlp.up_proj.layer.weight"}


def test_an_odd_parameter_takes_the_generic_path(monkeypatch):
    model, tokenizer = tiny("llama")
    model.model.norm = GemmaNorm(model.model.norm)
    with watch_generic(monkeypatch) as generic:
        check(model, tokenizer, ROWS[:3], ROWS)
    assert generic == {"model.norm.weight"}


def test_layers_used_twice_and_norms_of_heads(monkeypatch):
    model, tokenizer = tiny("llama")
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    norm = nn.LayerNorm(8).double()
    attention = first.self_attn
    attention.q_proj = Wrapped(
        attention.q_proj, lambda layer, x: norm(layer(x).unflatten(-1, (4, 8))).flatten(-2)
    )
    attention.q_proj.norm = norm
    nn.init.normal_(norm.weight)
    with watch_generic(monkeypatch) as generic:
        check(model, tokenizer, ROWS[:3], ROWS)
    assert not generic


class Experts(nn.Module):
    """The data decides which layer a token takes."""

    def __init__(self, experts):
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, x):
        out = torch.zeros_like(x)
        chosen = (x.sum(-1) > 0).long()
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero(as_tuple=True)
            if len(rows[0]):
                out = out.index_put(rows, expert(x[rows]))
        return out


def test_a_way_that_depends_on_the_data():
    model, tokenizer = tiny("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in model.model.layers:
            layer.mlp = Experts([nn.Linear(32, 32).double() for _ in range(2)])
    check(model, tokenizer, ROWS[:3], ROWS)


def test_scaled_logits(monkeypatch):
    model, tokenizer = tiny("gpt_neox")
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 3 * out.logits.tanh()
        return out

    monkeypatch.setattr(model, "forward", scaled)
    check(model, tokenizer, ROWS[:2], ROWS)


def test_predicts_a_small_step():
    model, tokenizer = tiny("gpt2")
    lr = 1e-6
    predicted = lr * influence(model, tokenizer, ROWS[:1], ROWS, types=["chosen", "rejected"])[0]
    encoded = encode(tokenizer, as_probes(ROWS))

    def measure():
        with torch.no_grad():
            return np.array(
                [[log_prob(model, e, t).item() for t in ("chosen", "rejected")] for e in encoded]
            )

    before = measure()
    loss = -log_prob(model, encoded[0], "chosen")
    params = list(model.parameters())
    for parameter, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        parameter.data -= lr * grad
    np.testing.assert_allclose(measure() - before, predicted, rtol=1e-3, atol=1e-8)


def test_agrees_with_the_prediction_of_a_step():
    model, tokenizer = tiny("qwen2")
    found = influence(model, tokenizer, ROWS[:2], ROWS)
    for row, own in zip(ROWS[:2], found, strict=True):
        step = sgd_direction(model, tokenizer, [row], "sft", lr=1e-3)
        predicted = predict_change(model, tokenizer, ROWS, step).logp
        np.testing.assert_allclose(1e-3 * own, predicted, **EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_cpu(family):
    model, tokenizer = tiny(family)
    expected = influence(model, tokenizer, ROWS[:3], ROWS)
    found = influence(model.cuda(), tokenizer, ROWS[:3], ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_an_update_raises_itself():
    model, tokenizer = tiny("llama")
    own = influence(model, tokenizer, ROWS, ROWS, types=["chosen"])[..., 0]
    assert (np.diagonal(own) > 0).all()
    np.testing.assert_allclose(own, own.T, **EXACT)


class Largest(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape != torch.Size([]):
            strides = zip(out.shape, out.stride(), strict=True)
            self.size = max(self.size, prod(n for n, stride in strides if stride))
        return out


def test_no_gradient_over_all_parameters_is_held(monkeypatch):
    model, tokenizer = tiny("llama")
    monkeypatch.setattr(_inner, "SLAB_BYTES", 10_000)
    monkeypatch.setattr(_layers, "PASS_TOKENS", 30)
    with Largest() as largest:
        influence(model, tokenizer, ROWS, ROWS)
    assert largest.size < sum(p.numel() for p in model.parameters()) / 2


def test_the_model_is_left_alone():
    model, tokenizer = tiny("gpt2", resid_pdrop=0.5)
    expected = influence(model, tokenizer, ROWS[:2], ROWS)
    model.train()
    model.transformer.ln_f.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        np.testing.assert_array_equal(influence(model, tokenizer, ROWS[:2], ROWS), expected)
    assert model.training and model.transformer.h[0].training
    assert not model.transformer.ln_f.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_lower_precision(family):
    model, tokenizer = tiny(family, initializer_range=0.05)
    expected = influence(model, tokenizer, ROWS[:3], ROWS)
    scale = np.nanmax(abs(expected))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        found = influence(model.to(dtype), tokenizer, ROWS[:3], ROWS)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


def test_bad_input():
    model, tokenizer = tiny("llama")
    with pytest.raises(ValueError, match="unknown loss 'stf': did you mean 'sft'"):
        influence(model, tokenizer, ROWS, ROWS, "stf")
    with pytest.raises(ValueError, match=r"updates\[1\] has no 'rejected'.* Margin reads"):
        influence(model, tokenizer, [ROWS[0], {"prompt": "how", "chosen": "so"}], ROWS, Margin())
    with pytest.raises(ValueError, match="ref must map 'rejected' to 2 log-probs"):
        ref = {"chosen": [0.0, 0.0], "rejected": [0.0]}
        influence(model, tokenizer, ROWS[:2], ROWS, Margin(), ref=ref)
    with pytest.raises(ValueError, match="longer than the 128 tokens"):
        influence(model, tokenizer, ROWS, [{"prompt": "the " * 130, "chosen": "word"}])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to learn"):
        influence(model, tokenizer, ROWS, ROWS)


def test_weights_that_are_not_finite():
    model, tokenizer = tiny("qwen2", tie_word_embeddings=False)
    people = tokenizer.convert_tokens_to_ids("people")
    model.model.embed_tokens.weight.data[people] = float("nan")
    bad = [{"prompt": "how", "chosen": "so"}, {"prompt": "people", "chosen": "now"}]
    with pytest.raises(ValueError, match=r"probes\[1\]: log π of 'chosen' is nan"):
        influence(model, tokenizer, ROWS[:2], bad)
    with pytest.raises(ValueError, match=r"updates\[1\]: log π of 'chosen' is nan"):
        influence(model, tokenizer, bad, ROWS)
