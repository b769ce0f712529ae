import copy
from contextlib import contextmanager
from math import prod

import brute
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tiny import FAMILIES, first, tiny, tiny_rows
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmdyn import losses
from lmdyn.lm.data import as_probes
from lmdyn.lm.influence import _gradients, influence, pushes
from lmdyn.lm.predict import measure_change, predict_change, sgd_direction, update_direction
from lmdyn.lm.tokens import Format, encode

# float64 on both sides: what is left is the order of summation
EXACT = {"rtol": 1e-10, "atol": 1e-10}
ROWS = tiny_rows()
REF = {"chosen": [-9.0, -20.0], "rejected": [-3.0, -18.0]}


def truth(model, tokenizer, updates, probes, loss="sft", ref=None):
    """(N_u, S, N_o, R): −c ⟨∇ log π(y_u), ∇ log π(y_o)⟩, one flat gradient a sequence."""
    loss, updates, probes = losses.get(loss), as_probes(updates), as_probes(probes)
    found = np.full((len(updates), len(loss.responses), len(probes), len(probes.types)), np.nan)
    theirs = {
        (o, r): brute.gradient(model, brute.log_prob(model, row.prompt, row.responses[name]))
        for o, row in enumerate(encode(tokenizer, probes))
        for r, name in enumerate(probes.types)
        if name in row.responses
    }
    for u, row in enumerate(encode(tokenizer, updates)):
        of = {name: row.responses[name] for name in loss.responses}
        logps = {n: brute.log_prob(model, row.prompt, ids)[None] for n, ids in of.items()}
        own = {n: logp.detach().requires_grad_() for n, logp in logps.items()}
        given = {
            n: x.detach() if ref is None else x.new_tensor([ref[n][u]]) for n, x in own.items()
        }
        lengths = {n: torch.tensor([len(ids)]) for n, ids in of.items()}
        c = torch.autograd.grad(loss.value(own, given, lengths).sum(), list(own.values()))
        for s, (logp, push) in enumerate(zip(logps.values(), c, strict=True)):
            ours = brute.gradient(model, logp.sum())
            for at, gradient in theirs.items():
                found[u, s][at] = -float(push * (ours @ gradient))
    return found


def check(model, tokenizer, updates=ROWS[:2], probes=ROWS):
    expected = truth(model, tokenizer, updates, probes).sum(1)
    np.testing.assert_allclose(influence(model, tokenizer, updates, probes), expected, **EXACT)
    return expected


@contextmanager
def watch_generic(model, monkeypatch):
    """The parameters that take a backward pass for each response."""
    names = {p: name for name, p in model.named_parameters()}
    seen, grad = set(), torch.autograd.grad

    def watched(outputs, inputs, *args, **kwargs):
        if kwargs.get("retain_graph") and outputs.ndim == 0 and isinstance(inputs[0], nn.Parameter):
            seen.update(names[p] for p in inputs)
        return grad(outputs, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", watched)
        yield seen


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", first(*FAMILIES))
def test_equals_brute_force(family, tied, monkeypatch):
    model, tokenizer = tiny(family, tie_word_embeddings=tied)
    monkeypatch.setattr(_gradients, "SLAB_BYTES", 20_000)  # a few rows of the weights
    expected = truth(model, tokenizer, ROWS[:2], ROWS).sum(1)
    assert np.argwhere(np.isnan(expected[0])).tolist() == [[1, 3], [3, 2]]  # what the rows lack
    for elementwise in (-1e9, 1e9):  # makes one of the two ways cheap
        monkeypatch.setattr(_gradients, "ELEMENTWISE", elementwise)
        with watch_generic(model, monkeypatch) as generic:
            found = influence(model, tokenizer, ROWS[:2], ROWS)
        np.testing.assert_allclose(found, expected, **EXACT)
        assert not generic


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "memory"), [(1, 1), (30, 1), (512, 1e6), (1, 1e9)])
def test_blocks_give_the_same(tokens, memory, monkeypatch):
    model, tokenizer = tiny("gpt2")
    expected = influence(model, tokenizer, ROWS[:3], ROWS[2:])
    monkeypatch.setattr(_gradients, "PASS_TOKENS", tokens)
    found = influence(model, tokenizer, ROWS[:3], ROWS[2:], memory=memory)
    np.testing.assert_allclose(found, expected, **EXACT)


@pytest.mark.parametrize("kept", ["norm", "embed", "bias", "lm_head", "layers.1", "o_proj"])
@pytest.mark.slow
def test_frozen_parameters_do_not_count(kept):
    model, tokenizer = tiny("qwen2", tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kept in name)
    expected = check(model, tokenizer, ROWS[:1], ROWS[3:])
    model.requires_grad_(True)
    assert not np.allclose(influence(model, tokenizer, ROWS[:1], ROWS[3:]), expected)


@pytest.mark.parametrize("name, ref", [("dpo", None), ("dpo", REF), ("simpo", None)])
def test_pull_and_push(name, ref):
    model, tokenizer = tiny("llama")
    loss = losses.get(name, beta=0.05)
    updates, probes = ROWS[:2], ROWS[1:4]
    expected = truth(model, tokenizer, updates, probes, loss, ref)
    whole = influence(model, tokenizer, updates, probes, loss, ref=ref)
    parts = influence(model, tokenizer, updates, probes, loss, ref=ref, by_response=True)
    np.testing.assert_allclose(parts, expected, **EXACT)
    np.testing.assert_allclose(whole, expected.sum(1), **EXACT)


def test_types_and_format():
    model, tokenizer = tiny("llama")
    form, types = Format("paper", max_length=9, max_prompt=4), ["rejected", "chosen"]
    with pytest.warns(UserWarning, match="were cut"):
        found = influence(model, tokenizer, ROWS[:2], ROWS, types=types, format=form)
        cut = as_probes(ROWS[:2], ["chosen"], form), as_probes(ROWS, types, form)
        np.testing.assert_allclose(found, truth(model, tokenizer, *cut).sum(1), **EXACT)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda layer, x: layer(x.transpose(0, 1)).transpose(0, 1),
        lambda layer, x: layer(x.flip(0)).flip(0),
        lambda layer, x: layer(x) * (1 - 0.1 * layer.weight.square().mean()),
        lambda layer, x: torch.cat([layer(row) for row in x.split(1)]),
    ],
    ids=["tokens first", "last first", "weight in the output", "one at a time"],
)
def test_unusual_uses_take_the_generic_path(function, monkeypatch):
    model, tokenizer = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.up_proj = Wrapped(mlp.up_proj, function)
    model.model.norm = GemmaNorm(model.model.norm)
    with watch_generic(model, monkeypatch) as generic:
        influence(model, tokenizer, ROWS[:1], ROWS[:1])
    assert generic == {"model.layers.1.mlp.up_proj.layer.weight", "model.norm.weight"}
    check(model, tokenizer, ROWS[:1], ROWS[1:4])


def test_layers_used_twice_and_norms_of_heads(monkeypatch):
    model, tokenizer = tiny("llama")
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    norm, attention = nn.LayerNorm(8).double(), first.self_attn
    nn.init.normal_(norm.weight)
    attention.q_proj = Wrapped(
        attention.q_proj, lambda layer, x: norm(layer(x).unflatten(-1, (4, 8))).flatten(-2)
    )
    attention.q_proj.norm = norm
    with watch_generic(model, monkeypatch) as generic:
        influence(model, tokenizer, ROWS[:1], ROWS[:1])
    assert not generic
    check(model, tokenizer)


class Stops(torch.autograd.Function):
    """Lets no gradient through, and says so by None."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_layer_below_a_function_that_stops_the_gradient_counts_for_nothing():
    model, tokenizer = tiny("llama")
    first, second = (layer.mlp for layer in model.model.layers)
    second.down_proj.register_forward_hook(lambda layer, args, out: Stops.apply(out))
    check(model, tokenizer)
    first.down_proj.register_forward_hook(lambda layer, args, out: Stops.apply(out))
    check(model, tokenizer)


class Experts(nn.Module):
    """The data decides which layer a token takes."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(32, 32).double() for _ in range(2)])

    def forward(self, x):
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = ((x.sum(-1) > 0) == number).nonzero(as_tuple=True)
            if len(rows[0]):
                out = out.index_put(rows, expert(x[rows]))
        return out


@pytest.mark.slow
def test_a_way_that_depends_on_the_data():
    model, tokenizer = tiny("llama")
    torch.manual_seed(0)
    for layer in model.model.layers:
        layer.mlp = Experts()
    check(model, tokenizer)


class SometimesFlipped(nn.Module):
    """Looks usual in a pass of two sequences."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) if len(x) < 3 else self.layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.slow
def test_what_turns_out_late_is_exact_too(monkeypatch):
    model, tokenizer = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.up_proj = SometimesFlipped(mlp.up_proj)
    with watch_generic(model, monkeypatch) as generic:
        influence(model, tokenizer, ROWS[:2], ROWS)
    assert generic == {"model.layers.1.mlp.up_proj.layer.weight"}
    check(model, tokenizer)


def test_scaled_logits(monkeypatch):
    model, tokenizer = tiny("gpt_neox")
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = 3 * out.logits.tanh()
        return out

    monkeypatch.setattr(model, "forward", scaled)
    check(model, tokenizer)


@pytest.mark.slow
def test_agrees_with_the_prediction_of_a_step():
    model, tokenizer = tiny("qwen2")
    found = influence(model, tokenizer, ROWS[:2], ROWS)
    for row, own in zip(ROWS[:2], found, strict=True):
        step = sgd_direction(model, tokenizer, [row], "sft", lr=1e-3)
        predicted = predict_change(model, tokenizer, ROWS, step).logp
        np.testing.assert_allclose(1e-3 * own, predicted, **EXACT)
    own = influence(model, tokenizer, ROWS, ROWS, types=["chosen"])[..., 0]
    assert (np.diagonal(own) > 0).all()  # an update raises itself
    np.testing.assert_allclose(own, own.T, **EXACT)


class Largest(TorchDispatchMode):
    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape != torch.Size([]):
            strides = zip(out.shape, out.stride(), strict=True)
            self.size = max(self.size, prod(n for n, stride in strides if stride))
        return out


@pytest.mark.slow
def test_no_gradient_over_all_parameters_is_held(monkeypatch):
    model, tokenizer = tiny("llama")
    monkeypatch.setattr(_gradients, "SLAB_BYTES", 10_000)
    monkeypatch.setattr(_gradients, "PASS_TOKENS", 30)
    with Largest() as largest:
        influence(model, tokenizer, ROWS[:1], ROWS[3:])
    assert largest.size < sum(p.numel() for p in model.parameters()) / 2


def test_the_model_is_left_alone_and_the_result_repeats():
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


@pytest.mark.parametrize("family", ["gpt_neox", "qwen2"])
@pytest.mark.slow
def test_lower_precision(family):
    model, tokenizer = tiny(family, initializer_range=0.05)
    expected = influence(model, tokenizer, ROWS[:3], ROWS)
    scale = np.nanmax(abs(expected))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        found = influence(model.to(dtype), tokenizer, ROWS[:3], ROWS)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_cpu(family):
    model, tokenizer = tiny(family)
    expected = influence(model, tokenizer, ROWS[:3], ROWS)
    found = influence(model.cuda(), tokenizer, ROWS[:3], ROWS)
    # GPT-2 is float64 throughout; the others' norms or rotary angles are float32 by their code.
    tolerance = 1e-8 if family == "gpt2" else 1e-6 * np.nanmax(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=tolerance)


@pytest.mark.parametrize(
    ("updates", "probes", "loss", "message"),
    [
        (ROWS, ROWS, "stf", "unknown loss 'stf': did you mean 'sft'"),
        ([{"prompt": "how", "chosen": "so"}], ROWS, "dpo", r"updates\[0\] has no 'rejected'.* DPO"),
        (ROWS[:2], ROWS, "dpo", r"needs ref\['rejected'\]"),
        (ROWS, [{"prompt": "the " * 130, "chosen": "a"}], "sft", "longer than the 128 tokens"),
    ],
)
def test_bad_input(updates, probes, loss, message):
    model, tokenizer = tiny("llama")
    ref = {"chosen": [0.0, 0.0], "rejected": [0.0]}
    with pytest.raises(ValueError, match=message):
        influence(model, tokenizer, updates, probes, loss, ref=ref)
    with pytest.raises(ValueError, match="nothing to learn"):
        influence(model.requires_grad_(False), tokenizer, ROWS, ROWS)


def test_errors_say_whether_it_is_an_update_or_a_probe():
    model, tokenizer = tiny("llama")
    mixed = [ROWS[0], {"prompt": [5], "chosen": [{"role": "assistant", "content": "so"}]}]
    with pytest.raises(ValueError, match=r"^updates\[1\]: "):
        influence(model, tokenizer, mixed, ROWS)
    with pytest.raises(ValueError, match=r"^probes\[1\]: "):
        influence(model, tokenizer, ROWS, mixed)


@pytest.mark.parametrize("loss", ["simpo", "rpo", "orpo", "sft_per_token"])
def test_the_mode_of_the_caller_does_not_matter(loss):
    model, tokenizer = tiny("llama")
    rows = [{"response": row["chosen"], **row} for row in ROWS[:2]]
    expected = influence(model, tokenizer, rows, ROWS[:1], loss)
    step = sgd_direction(model, tokenizer, rows, loss)
    with torch.inference_mode():
        np.testing.assert_array_equal(influence(model, tokenizer, rows, ROWS[:1], loss), expected)
        for name, moved in sgd_direction(model, tokenizer, rows, loss).items():
            assert torch.equal(moved, step[name])


def test_weights_that_are_not_finite():
    model, tokenizer = tiny("qwen2", tie_word_embeddings=False)
    people = tokenizer.convert_tokens_to_ids("people")
    model.model.embed_tokens.weight.data[people] = float("nan")
    bad = [{"prompt": "how", "chosen": " so"}, {"prompt": "people", "chosen": " now"}]
    with pytest.raises(ValueError, match=r"probes\[1\]: log π of 'chosen' is nan"):
        influence(model, tokenizer, ROWS[:2], bad)
    with pytest.raises(ValueError, match=r"updates\[1\]: log π of 'chosen' is nan"):
        influence(model, tokenizer, bad, ROWS)


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, weight_decay=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, weight_decay=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, weight_decay=0.1, momentum=0.9),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9, dampening=0.3, weight_decay=0.1),
}


def with_optimizer(family, kind, steps, lr=1e-5):
    """A model after some steps, its optimizer, and how to make a step on rows."""
    model, tokenizer = tiny(family)
    weights = [*model.parameters()]
    groups = [{"params": weights[:3], "lr": lr / 3}, {"params": weights[3:], "lr": lr}]
    optimizer = OPTIMIZERS[kind](groups)

    def step(rows, loss="dpo"):
        gradient = sgd_direction(model, tokenizer, rows, loss, -1 / len(rows))
        for name, weight in model.named_parameters():
            weight.grad = gradient[name].clone()
        optimizer.step()
        model.zero_grad()

    for _ in range(steps):
        step(ROWS[3:])
    return model, tokenizer, optimizer, step


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", first(*OPTIMIZERS))
@pytest.mark.slow
def test_shares_add_up_to_the_step_of_an_optimizer(kind, steps):
    model, tokenizer, optimizer, step = with_optimizer("llama", kind, steps)
    shares = influence(model, tokenizer, ROWS[:3], ROWS, "dpo", optimizer=optimizer)
    before = copy.deepcopy(model)
    step(ROWS[:3])
    moved = update_direction(before.state_dict(), model.state_dict())
    first, real = (
        change(before, tokenizer, ROWS, moved).logp for change in (predict_change, measure_change)
    )
    told, scale = shares.rows.sum(0) + shares.momentum + shares.decay, np.nanmax(abs(first))
    np.testing.assert_allclose(told / scale, first / scale, rtol=0, atol=1e-7)
    np.testing.assert_allclose(told / scale, real / scale, rtol=0, atol=0.05)
    assert (np.nanmax(abs(shares.momentum)) > 0) == (steps > 0)


def test_of_each_row_an_optimizer_takes_what_its_diagonal_makes_of_it():
    model, tokenizer, optimizer, _ = with_optimizer("gpt2", "adamw", 2)
    shares = influence(
        model, tokenizer, ROWS[:2], ROWS, optimizer=optimizer, by_response=True, memory=1
    )
    grads = [sgd_direction(model, tokenizer, [row], "sft", -1 / 2) for row in ROWS[:2]]
    for row, own in zip(grads, shares.rows, strict=True):
        move = {}
        for name, p in model.named_parameters():
            group = next(g for g in optimizer.param_groups if any(p is q for q in g["params"]))
            v = (
                0.999 * optimizer.state[p]["exp_avg_sq"]
                + 1e-3 * (grads[0][name] + grads[1][name]) ** 2
            )
            size = group["lr"] * 0.1 / (1 - 0.9**3) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
            move[name] = -size * row[name]
        expected = predict_change(model, tokenizer, ROWS, move).logp
        np.testing.assert_allclose(own[0], expected, rtol=1e-7, atol=1e-12)


def test_an_optimizer_that_is_not_understood_is_refused():
    model, tokenizer = tiny("llama")
    other, weights = tiny("llama")[0], [*model.parameters()]

    def told(optimizer):
        with pytest.raises(ValueError) as error:
            influence(model, tokenizer, ROWS[:2], ROWS, optimizer=optimizer)
        return str(error.value)

    assert "does not hold model.embed_tokens" in told(torch.optim.AdamW(other.parameters()))
    assert "Adagrad is none of torch's" in told(torch.optim.Adagrad(weights))
    nesterov = torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)
    assert "SGD with nesterov=True is not known" in told(nesterov)


def test_pushes_of_the_own_pair_and_of_the_others():
    model, tokenizer = tiny("gpt2")
    watched = [{"prompt": "why", "chosen": "so"}, *ROWS[3::-2]]
    found = pushes(model, tokenizer, ROWS[:3], watched, "dpo", types=["chosen", "rejected"])
    each = influence(
        model, tokenizer, ROWS[:3], watched, "dpo", types=["chosen", "rejected"], by_response=True
    )
    np.testing.assert_allclose(found.pairs, each / 3, rtol=1e-12)
    np.testing.assert_allclose(found.own + found.others, each.sum(0) / 3, **EXACT)
    np.testing.assert_array_equal(found.own[:, 2], each[1, :, 2] / 3)  # of ROWS[1]
    assert not found.own[:, 1].any() and np.isnan(found.own[:, 0, 1]).all()
    step = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"pushes are of SGD: leave optimizer out, or ask influen"):
        pushes(model, tokenizer, ROWS[:3], watched, "dpo", optimizer=step)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.slow
def test_of_an_adapter_the_order_of_influences_is_similar_but_another():
    peft = pytest.importorskip("peft")
    model, tokenizer = tiny("llama")
    whole = influence(model, tokenizer, ROWS, ROWS, types=["chosen", "rejected"])
    torch.manual_seed(0)
    low = peft.LoraConfig(r=16, target_modules="all-linear")
    adapted = peft.get_peft_model(model, low).double()
    some = influence(adapted, tokenizer, ROWS, ROWS, types=["chosen", "rejected"])
    assert 0.6 < spearmanr(whole.ravel(), some.ravel()).statistic < 0.8


def test_responses_on_both_sides_pass_the_model_once(monkeypatch):
    model, tokenizer = tiny("llama")
    expected = truth(model, tokenizer, ROWS, ROWS, "dpo").sum(1)
    passed, logps = [], _gradients.Gradients._logps

    def counted(self, batch, *rest):
        passed.extend(batch.responses)
        return logps(self, batch, *rest)

    monkeypatch.setattr(_gradients.Gradients, "_logps", counted)
    found = influence(model, tokenizer, ROWS, ROWS, "dpo")
    np.testing.assert_allclose(found, expected, **EXACT)
    assert len(passed) == 4 + 10 + 7  # of the comparison, of both, of the probes alone
    one = influence(model, tokenizer, ROWS, ROWS, "dpo", memory=1)  # in several blocks
    np.testing.assert_allclose(one, expected, **EXACT)
