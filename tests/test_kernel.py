import copy

import brute
import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmdyn import entk, entk_vp, kernel
from lmdyn.kernel import factors
from lmdyn.kernel.factors import Plan

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
ALL = models.STRUCTURED + models.GENERIC
# float64 on both sides: what is left is the order of summation
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def build(make):
    torch.manual_seed(0)
    model, x = make()
    model(x)  # lazy layers take their shapes
    return model.double().eval(), x.double() if x.is_floating_point() else x


def plan(model, x):
    params = kernel.trainable(model)
    return Plan(model, [x[:1]], params, set())


@pytest.mark.parametrize("make", ALL)
def test_equals_brute_force(make):
    model, x = build(make)
    expected = brute.kernel(model, x, x).detach()
    torch.testing.assert_close(entk(model, x), expected, **EXACT)
    torch.testing.assert_close(entk(model, x[:3], x[1:]), expected[:3, 1:], **EXACT)


@pytest.mark.parametrize("make", ALL)
def test_product_equals_kernel_times_vector(make):
    model, x = build(make)
    k = brute.kernel(model, x[:3], x).detach()
    g = torch.randn(len(x), k.shape[-1], dtype=torch.float64)
    expected = torch.einsum("ouij,uj->oi", k, g)
    torch.testing.assert_close(entk_vp(model, x[:3], x, g), expected, **EXACT)


@pytest.mark.parametrize("make", [models.batch_norm, models.tied, models.attention])
@pytest.mark.parametrize("bytes_each", [1, 20_000])
def test_small_chunks_give_the_same(make, bytes_each, monkeypatch):
    model, x = build(make)
    whole, g = entk(model, x), torch.ones(len(x), model(x).shape[1], dtype=torch.float64)
    product = entk_vp(model, x, x, g)
    monkeypatch.setattr(kernel, "CHUNK_BYTES", bytes_each)
    torch.testing.assert_close(entk(model, x), whole, **EXACT)
    torch.testing.assert_close(entk(model, x, x.clone()), whole, **EXACT)
    torch.testing.assert_close(entk_vp(model, x, x, g), product, **EXACT)


def test_which_path_the_weights_take():
    for make in models.STRUCTURED:
        assert not plan(*build(make)).generic, make.__name__
    model, x = build(models.attention)
    generic = plan(model, x).generic
    names = {name for name, p in model.named_parameters() if p in generic}
    assert names == {f"1.self_attn.{n}" for n in ("in_proj_weight", "in_proj_bias")} | {
        "1.self_attn.out_proj.weight", "1.self_attn.out_proj.bias"
    }  # fmt: skip
    model, x = build(models.custom_function)
    assert plan(model, x).generic == {model.layer.weight}


def test_rows_that_belong_to_no_single_example_leave_the_structured_path():
    model, x = build(models.reordered)
    with torch.enable_grad(), pytest.raises(factors.NotStructured):
        plan(model, x).factors(x, len(x))


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize(
    "make",
    [models.mlp, models.positions_first, models.tied, models.batch_norm, models.written_out],
)
def test_both_forms_of_a_unit_agree(make, outer, monkeypatch):
    model, x = build(make)
    expected = entk(model, x)
    choose = factors._choose_form

    def forced(unit, calls, v):
        size = choose(unit, calls, v)
        kinds = {calls[n].kind if role == "weight" else role for n, role in unit.uses}
        unit.outer = outer and kinds in ({"matrix"}, {"product"}, {"lookup"})
        return size

    monkeypatch.setattr(factors, "_choose_form", forced)
    torch.testing.assert_close(entk(model, x), expected, **EXACT)


@settings(max_examples=25, deadline=None)
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
    conv = nn.Conv2d(
        2 * groups, 3 * groups, kernel_size, 1 if padding == "same" else stride, padding, dilation,
        groups, bias,
    )  # fmt: skip
    model = nn.Sequential(conv, nn.Tanh(), models.Lambda(lambda h: h.flatten(2).sum(2)[:, :2]))
    model, x = model.double(), torch.randn(3, 2 * groups, 6, 5, dtype=torch.float64)
    assert not plan(model, x).generic
    torch.testing.assert_close(entk(model, x), brute.kernel(model, x, x).detach(), **EXACT)


def test_observations_of_another_length():
    model, x = build(models.tied)
    longer = torch.randint(0, 9, (3, 7))
    expected = brute.kernel(model, longer, x).detach()
    torch.testing.assert_close(entk(model, longer, x), expected, **EXACT)


def test_symmetric_and_positive():
    model, x = build(models.lenet)
    k = entk(model, x)
    torch.testing.assert_close(k, k.permute(1, 0, 3, 2), **EXACT)
    matrix = k.permute(0, 2, 1, 3).reshape(30, 30)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9 * matrix.diagonal().max()


def test_float32_is_close_to_float64():
    model, x = build(models.lenet)
    expected = entk(model, x)
    found = entk(model.float(), x.float())
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_the_model_is_left_alone():
    model, x = build(models.batch_norm)
    before = copy.deepcopy(model.state_dict())
    k = entk(model, x)
    entk_vp(model, x, x, torch.ones(len(x), 5))
    assert not k.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_works_under_no_grad():
    model, x = build(models.mlp)
    expected = entk(model, x)
    with torch.no_grad():
        torch.testing.assert_close(entk(model, x), expected, **EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", ALL)
def test_cuda_equals_cpu(make):
    model, x = build(make)
    expected = entk(model, x)
    found = entk(model.cuda(), x.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-10)


def bad_cases():
    torch.manual_seed(0)
    mlp, x = models.mlp()
    yield "0 \\(BatchNorm1d\\).*call model.eval", nn.Sequential(nn.BatchNorm1d(6)).train(), x
    stateless = nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)).eval()
    yield "track_running_stats", stateless, x
    yield "1 \\(Dropout\\) drops at random", nn.Sequential(mlp, nn.Dropout(0.1)), x
    attention = nn.MultiheadAttention(4, 2, dropout=0.1)
    yield "MultiheadAttention\\) drops at random", attention, x
    yield (
        r"logits \(N, V\) with N = 1, got \(1, 6, 1\)",
        nn.Sequential(nn.Linear(6, 6), models.Lambda(lambda h: h[..., None])),
        x,
    )
    yield "must return logits .* got tuple", nn.Sequential(mlp, models.Lambda(lambda z: (z,))), x
    broken = nn.Sequential(mlp, models.Lambda(lambda z: z.log()))
    yield "NaN or infinite logits, first for example 0", broken, x
    yield "nothing to learn", nn.Sequential(nn.Linear(6, 3).requires_grad_(False)), x
    yield "do not depend on any parameter", nn.Sequential(mlp, models.Lambda(torch.detach)), x
    half = nn.Linear(6, 3).to(torch.bfloat16)
    yield "needs float32 or float64 weights, got torch.bfloat16", half, x
    yield "x_o must be a batch", mlp, x[:0]
    yield "x_o must be a batch .* got list", mlp, [1.0]
    yield "x_o has NaN", mlp, x * float("nan")


@pytest.mark.parametrize(("message", "model", "x"), list(bad_cases()))
def test_bad_input(message, model, x):
    with pytest.raises(ValueError, match=message):
        entk(model, x)


def test_bad_vector():
    model, x = models.mlp()
    with pytest.raises(ValueError, match="N_u = 7"):
        entk_vp(model, x, x, torch.ones(6, 3))
    with pytest.raises(ValueError, match="g has V = 2, but the model has V = 3"):
        entk_vp(model, x, x, torch.ones(7, 2))
    with pytest.raises(ValueError, match="g must be finite"):
        entk_vp(model, x, x, torch.full((7, 3), float("nan")))
