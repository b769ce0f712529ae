import copy

import brute
import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, sequence
from torch import nn
from torch.nn import functional as F

from lmdyn import entk, entk_vp, kernel, one_step
from lmdyn.kernel import factors

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
ALL = [*models.STRUCTURED, *models.GENERIC]
# float64 on both sides: what is left is the order of summation
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def same(found, expected):
    torch.testing.assert_close(found, expected, **EXACT)


def plan(model, x):
    return factors.Plan(model, x[:1], [*kernel.learned(model).values()], set())


@pytest.mark.parametrize("name", ALL)
def test_equals_brute_force(name):
    model, x = build(name)
    expected = brute.kernel(model, x, x)
    same(entk(model, x), expected)
    with torch.no_grad():
        same(entk(model, x[:2], x[1:]), expected[:2, 1:])
    g = torch.randn(len(x), expected.shape[-1], dtype=torch.float64)
    same(entk_vp(model, x[:2], x, g), torch.einsum("ouij,uj->oi", expected[:2], g))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["batch_norm", "tied", "attention"])
@pytest.mark.parametrize("bytes_each", [1, 20_000])
def test_small_chunks_give_the_same(name, bytes_each, monkeypatch):
    model, x = build(name)
    x = x[:3]
    whole = entk(model, x)
    monkeypatch.setattr(factors, "CHUNK_BYTES", bytes_each)
    same(entk(model, x), whole)
    same(entk(model, x, x.clone()), whole)


def test_passes_of_a_few_examples_give_the_same(monkeypatch):
    model, x = build("mlp")
    g = torch.randn(7, 3, dtype=torch.float64)
    whole, product = entk(model, x), entk_vp(model, x, x, g)
    for module in (kernel, factors):
        monkeypatch.setattr(module, "PASS_EXAMPLES", 3)
    same(entk(model, x), whole)
    same(entk_vp(model, x, x, g), product)


class Loud(torch.autograd.Function):
    """tanh, whose backward pass looks at a number: not for several logits at once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(y := x.tanh())
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y) if grad.abs().sum().item() else grad


@pytest.mark.parametrize(
    ("act", "logits", "per_set"),
    [
        pytest.param(nn.Tanh(), 16, 1, id="at once"),
        pytest.param(nn.Tanh(), 3, 2, id="by threes"),
        pytest.param(models.Lambda(Loud.apply), 16, 1 + 4, id="one by one"),
    ],
)
def test_a_pass_goes_back_for_several_logits_at_once_and_once_more(
    act, logits, per_set, monkeypatch
):
    """What tells examples apart is added up from the passes of the logits, but for one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), act, nn.Flatten(), nn.Linear(18, 4)).double()
    x, passes, grad = torch.randn(5, 1, 5, 5, dtype=torch.float64), [], torch.autograd.grad

    def counted(*given, **named):
        passes.append(given)
        return grad(*given, **named)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    monkeypatch.setattr(factors, "LOGITS", logits)
    found = entk(model, x[:2], x[2:])
    assert len(passes) == 2 * (per_set + 1)
    same(found, brute.kernel(model, x, x)[:2, 2:])


def test_which_path_the_weights_take():
    for name in models.STRUCTURED:
        assert not plan(*build(name)).generic, name
    model, x = build("attention")
    assert {n for n, p in model.named_parameters() if p in plan(model, x).generic} == {
        f"1.self_attn.{n}" for n in ("in_proj_weight", "in_proj_bias")
    } | {f"1.self_attn.out_proj.{n}" for n in ("weight", "bias")}
    model, x = build("custom_function")
    assert plan(model, x).generic == {model.layer.weight}
    model, x = build("reordered")  # its rows belong to no single example
    its = plan(model, x)
    assert its.factors(x) == [] and its.unclear == set(model.parameters())


@pytest.mark.parametrize("elementwise", [-1e9, 1e9])  # what makes the outer form cheap, or dear
@pytest.mark.parametrize("name", ["mlp", "positions_first", "tied", "batch_norm", "written_out"])
def test_both_forms_of_a_unit_agree(name, elementwise, monkeypatch):
    model, x = build(name)
    expected = entk(model, x)
    monkeypatch.setattr(factors, "ELEMENTWISE", elementwise)
    same(entk(model, x), expected)


@settings(max_examples=10, deadline=None)
@given(
    groups=st.integers(1, 3),
    kernel_size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"])),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_convolution(groups, kernel_size, stride, dilation, padding, bias, seed):
    torch.manual_seed(seed)
    stride = 1 if padding == "same" else stride
    shape = 2 * groups, 3 * groups, kernel_size
    conv = nn.Conv2d(*shape, stride, padding, dilation, groups, bias)
    model = sequence(conv, torch.tanh, lambda h: h.flatten(2).sum(2)[:, :2]).double()
    x = torch.randn(2, 2 * groups, 6, 5, dtype=torch.float64)
    assert not plan(model, x).generic
    same(entk(model, x), brute.kernel(model, x, x))


def test_observations_of_another_length():
    model, x = build("tied")
    longer = torch.randint(0, 9, (3, 7))
    same(entk(model, longer, x), brute.kernel(model, longer, x))


def test_symmetric_positive_and_close_in_float32():
    model, x = build("lenet")
    k = entk(model, x)
    same(k, k.permute(1, 0, 3, 2))
    matrix = k.permute(0, 2, 1, 3).reshape(30, 30)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9 * matrix.diagonal().max()
    single = entk(model.float(), x.float())
    assert single.dtype == torch.float32 and (single - k).norm() < 1e-6 * k.norm()


def test_the_model_is_left_alone():
    model, x = build("batch_norm")
    before = copy.deepcopy(model.state_dict())
    k = entk(model, x)
    entk_vp(model, x, x, torch.ones(len(x), 5))
    assert not k.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Counting(nn.Module):
    """Buffers that a forward pass writes into, or replaces, without an effect on the output."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2, 6))

    def forward(self, x):
        self.seen += len(x)
        self.last = x.detach()
        return self.layer(x)


def test_buffers_that_a_forward_pass_changes_are_restored():
    model, x = Counting(), torch.randn(5, 6)
    last = model.last
    entk(model, x), entk_vp(model, x, x, torch.ones(5, 3)), one_step(model, x, x[:1], 0, lr=0.1)
    assert model.last is last and not model.seen and not last.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ALL)
def test_cuda_equals_brute_force_there(name):
    """The CPU may differ in the model itself: on CUDA weight_norm takes a float32 root."""
    model, x = build(name)
    model, x = model.cuda(), x.cuda()
    found = entk(model, x)
    assert found.is_cuda
    torch.testing.assert_close(found, brute.kernel(model, x, x), rtol=1e-8, atol=1e-10)


class DropPath(nn.Module):
    """Drops whole examples now and then, as timm's does, whatever its mode."""

    def forward(self, z):
        return z * (torch.rand(len(z), 1) > 0.05)


def functional_dropout(z):
    return F.dropout(z, 0.02)


def bad_cases():
    mlp, x = models.STRUCTURED["mlp"]()
    norm = sequence(nn.BatchNorm1d(6)).train()
    yield "not take one example alone .*Expected more than 1 value.*call model.eval", norm, x
    stateless = sequence(nn.BatchNorm1d(6, track_running_stats=False)).eval()
    yield "not take one example alone", stateless, x
    images = sequence(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).train()
    beside = "another answer beside others, so that none has its own kernel: call model.eval"
    yield beside, images, torch.randn(5, 1, 4, 4)
    yield beside, sequence(mlp, lambda z: z - z.mean(0)), x
    yield "another answer each time, at random", sequence(mlp, nn.Dropout(0.1)), x
    for odd in (DropPath(), lambda z: z + 1e-2 * torch.randn_like(z), functional_dropout):
        yield "another answer each time, at random: call model.eval", sequence(mlp, odd), x
    deep = sequence(nn.Linear(6, 6), lambda h: h[..., None])
    yield r"logits \(N, V\) with N = 1, got torch.float32 \(1, 6, 1\)", deep, x
    yield "must return logits .* got tuple", sequence(mlp, lambda z: (z,)), x
    yield (
        r"model\(x\) must be finite: 3 NaN or infinite, the first at index \(0, 0\)",
        sequence(mlp, lambda z: z.abs() / 0),
        x,
    )
    yield "nothing to learn", sequence(nn.Linear(6, 3).requires_grad_(False)), x
    yield "do not depend on any parameter", sequence(mlp, torch.detach), x
    half = nn.Linear(6, 3).to(torch.bfloat16)
    yield "needs float32 or float64 weights, got torch.bfloat16", half, x
    yield "x_o must be a batch", mlp, x[:0]
    yield "x_o must be a batch .* got list", mlp, [1.0]
    yield "x_o must be finite: 42 NaN", mlp, x * float("nan")


@pytest.mark.parametrize(("message", "model", "x"), list(bad_cases()))
def test_bad_input(message, model, x):
    with pytest.raises(ValueError, match=message):
        entk(model, x)


def test_bad_vector():
    model, x = models.STRUCTURED["mlp"]()
    for g, message in (
        (torch.ones(6, 3), r"\(N_u, V\) = \(7, 3\), got \(6, 3\)"),
        (torch.ones(7, 2), r"\(N_u, V\) = \(7, 3\), got \(7, 2\)"),
        (torch.full((7, 3), float("nan")), "g must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            entk_vp(model, x, x, g)
