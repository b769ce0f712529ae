import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian
from torch.nn.functional import cross_entropy

from lmdyn import (
    entropy_jvp,
    entropy_line,
    jacobian_norm_sq,
    log_softmax_jacobian,
    log_softmax_jvp,
    softmax_step,
    squeeze_line,
)

# A first call to torch takes longer than hypothesis allows one example by default.
settings.register_profile("torch", deadline=None, max_examples=30)
settings.load_profile("torch")

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
)
ON_EACH = pytest.mark.parametrize("device", ["cpu", CUDA])
IN_EACH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])

# Logits this far apart keep every probability above 1e-7, so that a strict inequality is
# far larger than a rounding error in float64.
logit_rows = st.lists(st.floats(-6, 6), min_size=2, max_size=20).map(
    lambda row: torch.tensor(row, dtype=torch.float64)
)
negative_steps = st.floats(-20, -0.01)
steps = st.one_of(negative_steps, st.floats(0.01, 20))


@st.composite
def cases(draw, lr=steps):
    """A distribution, a label, a step size."""
    probs = draw(logit_rows).softmax(-1)
    return probs, draw(st.integers(0, len(probs) - 1)), draw(lr)


def others(probs, y):
    return torch.arange(len(probs)) != y


def log_alpha(probs, y, lr):
    """log of p'/p, nats."""
    return softmax_step(probs, y, lr).log() - probs.log()


# --- A ------------------------------------------------------------------------------------------


@given(logit_rows, st.integers(0, 2**31))
def test_jacobian_product_and_norm_are_those_of_autograd(logits, seed):
    a, v = jacobian(lambda z: z.log_softmax(-1), logits), len(logits)
    dz = torch.randn(v, generator=torch.manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(log_softmax_jacobian(logits), a)
    torch.testing.assert_close(log_softmax_jvp(logits, dz), a @ dz)
    norm = jacobian_norm_sq(logits)
    torch.testing.assert_close(norm, a.square().sum())
    assert v - 1 - 1e-12 <= norm <= 2 * v - 2 + 1e-12


@ON_EACH
@IN_EACH
def test_a_batches_over_leading_axes(device, dtype):
    logits = torch.randn(2, 3, 5, generator=torch.manual_seed(0), dtype=dtype).to(device)
    dz = torch.randn(3, 5, generator=torch.manual_seed(1), dtype=dtype).to(device)
    a, jvp = log_softmax_jacobian(logits), log_softmax_jvp(logits, dz)
    norm = jacobian_norm_sq(logits)
    assert a.shape == (2, 3, 5, 5) and jvp.shape == (2, 3, 5) and norm.shape == (2, 3)
    for result in (a, jvp, norm):
        assert result.dtype == dtype and result.device.type == device
    for i, j in itertools.product(range(2), range(3)):
        torch.testing.assert_close(a[i, j], log_softmax_jacobian(logits[i, j]))
        torch.testing.assert_close(jvp[i, j], a[i, j] @ dz[j])
        torch.testing.assert_close(norm[i, j], a[i, j].square().sum())


def test_extreme_logits_give_a_finite_jacobian():
    a = log_softmax_jacobian(torch.tensor([1000.0, 0.0, -1000.0]))
    torch.testing.assert_close(a, torch.eye(3) - torch.tensor([1.0, 0.0, 0.0]))


@IN_EACH
def test_a_logit_of_minus_infinity_is_probability_zero(dtype):
    logits, dz = torch.randn(2, 3, 5, dtype=dtype)
    logits[:, 2], rest = -math.inf, [0, 1, 3, 4]
    a, jvp, norm = (
        f(logits) for f in (log_softmax_jacobian, partial(log_softmax_jvp, dz=dz), jacobian_norm_sq)
    )
    torch.testing.assert_close(a[:, rest][..., rest], log_softmax_jacobian(logits[:, rest]))
    torch.testing.assert_close(jvp[:, rest], log_softmax_jvp(logits[:, rest], dz[:, rest]))
    torch.testing.assert_close(norm, a.square().sum((1, 2)))
    probs, less = logits.softmax(-1), logits[:, rest].softmax(-1)
    for lr in (-2.0, -0.1, 0.0, 3.0):
        stepped = softmax_step(probs, 1, lr)
        torch.testing.assert_close(stepped[:, rest], softmax_step(less, 1, lr))
        assert not stepped[:, 2].any()
        torch.testing.assert_close(squeeze_line(probs, 1, lr), squeeze_line(less, 1, lr))


# --- the step ------------------------------------------------------------------------------------


@ON_EACH
@IN_EACH
@pytest.mark.parametrize("norm", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("lr", [0.7, -0.7, 5.0, -5.0])
def test_step_is_one_of_sgd_on_a_softmax_regression(device, dtype, norm, lr):
    generator = torch.manual_seed(0)
    weight = torch.randn(6, 4, generator=generator, dtype=dtype).to(device).requires_grad_()
    x = torch.randn(4, generator=generator, dtype=dtype).to(device)
    x = norm * x / x.norm()
    y = torch.tensor(2, device=device)
    before = (weight @ x).softmax(-1).detach()
    # torch refuses a negative learning rate: ascend the loss instead.
    optimizer = torch.optim.SGD([weight], lr=abs(lr))
    (math.copysign(1, lr) * cross_entropy(weight @ x, y)).backward()
    optimizer.step()
    after = (weight @ x).softmax(-1).detach()
    stepped = softmax_step(before, y, lr * norm**2)
    assert stepped.dtype == dtype and stepped.device.type == device
    torch.testing.assert_close(stepped, after)


@ON_EACH
@IN_EACH
def test_step_and_line_broadcast_probs_labels_and_steps(device, dtype):
    logits = torch.randn(2, 1, 1, 5, generator=torch.manual_seed(0), dtype=dtype)
    probs = logits.softmax(-1).to(device)
    y = torch.tensor([[0], [4], [2]])
    lr = torch.tensor([-3.0, -0.1, 0.0, 0.5, 2.0], dtype=dtype)
    stepped, line = softmax_step(probs, y, lr), squeeze_line(probs, y, lr)
    first = squeeze_line(probs, y)
    assert stepped.shape == (2, 3, 5, 5) and line.shape == (2, 3, 5) and first.shape == (2, 3, 1)
    assert stepped.dtype == line.dtype == dtype and line.device.type == device
    for i, j, k in itertools.product(range(2), range(3), range(5)):
        one = probs[i, 0, 0], y[j].item(), lr[k].item()
        torch.testing.assert_close(first[i, j, 0], squeeze_line(*one[:2]))
        torch.testing.assert_close(stepped[i, j, k], softmax_step(*one))
        torch.testing.assert_close(line[i, j, k], squeeze_line(*one))


@given(cases())
def test_step_gives_a_distribution_and_changes_nothing_at_zero(case):
    probs, y, lr = case
    after = softmax_step(probs, y, lr)
    assert (after >= 0).all()
    torch.testing.assert_close(after.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(softmax_step(probs, y, 0.0), probs)


def test_a_label_without_probability_stays_without():
    after = softmax_step(torch.tensor([0.75, 0.25, 0.0]), 0, -2.0)
    assert after[2] == 0 and after.isfinite().all()


@given(cases())
def test_step_is_a_times_the_change_of_logits_to_first_order(case):
    probs, y, lr = case
    lr *= 1e-7
    dz = lr * (torch.eye(len(probs), dtype=torch.float64)[y] - probs)
    predicted = log_softmax_jvp(probs.log(), dz)
    torch.testing.assert_close(log_alpha(probs, y, lr), predicted, rtol=0, atol=1e-11)


# --- the lemma and the claims, as guarantees ------------------------------------------------------


@given(cases())
def test_lemma_1(case):
    probs, y, lr = case
    eta, e = -lr, (~others(probs, y)).double()
    exponent = -eta * (probs[:, None] - probs) + eta * (e[:, None] - e)
    total = (probs * exponent.exp()).sum(1)  # Σ_j π_j exp(−η(π_i − π_j) + η(e_i − e_j))
    torch.testing.assert_close(log_alpha(probs, y, lr), -total.log())


@given(cases())
def test_claims_1_and_2_the_label_moves_and_the_best_other_against_it(case):
    probs, y, lr = case
    change = log_alpha(probs, y, lr)
    best = torch.where(others(probs, y), probs, -1.0).argmax()
    assert change[y] * lr > 0  # a negative step lowers its label, a positive one raises it
    assert change[best] * lr < 0


@given(cases(negative_steps))
def test_claim_3_the_rich_get_richer(case):
    probs, y, lr = case
    rest = others(probs, y)
    change, p = log_alpha(probs, y, lr)[rest], probs[rest]
    torch.testing.assert_close(change[:, None] - change, -lr * (p[:, None] - p), rtol=0, atol=1e-11)


# --- the squeeze line -----------------------------------------------------------------------------


@given(cases())
def test_gain_is_the_distance_from_the_line(case):
    probs, y, lr = case
    rest = others(probs, y)
    change, distance = log_alpha(probs, y, lr)[rest], (probs - squeeze_line(probs, y, lr))[rest]
    torch.testing.assert_close(change, -lr * distance, rtol=0, atol=1e-12)
    clear = distance.abs() > 1e-9
    gains = distance[clear] > 0 if lr < 0 else distance[clear] < 0
    assert torch.equal(change[clear] > 0, gains)


@given(cases(st.sampled_from([-1.0, 1.0])))
def test_first_order_line_is_the_limit_and_zero_is_the_limit_itself(case):
    probs, y, sign = case
    limit = squeeze_line(probs, y)
    torch.testing.assert_close(limit, probs.square().sum() - probs[y])
    assert torch.equal(squeeze_line(probs, y, 0.0), limit)
    for lr in (1e-3, 1e-6, 1e-9, 1e-12):
        # The slope in lr is half the variance of a variable that lies in [−1, 1].
        error = (squeeze_line(probs, y, sign * lr) - limit).abs()
        assert error <= 0.51 * lr + 1e-15


@given(cases(negative_steps), st.floats(1.01, 10))
def test_line_rises_with_the_negative_step_and_never_passes_the_best_other(case, factor):
    probs, y, lr = case
    best = probs[others(probs, y)].max()
    near, far = squeeze_line(probs, y, lr), squeeze_line(probs, y, factor * lr)
    assert squeeze_line(probs, y) - 1e-12 <= near <= far + 1e-12
    assert far <= best


@IN_EACH
@pytest.mark.parametrize("lr", [-1e4, 1e4])
def test_a_huge_step_overflows_nothing(dtype, lr):
    probs = torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
    # The limits: the best other label, and for a positive step minus the largest exponent.
    expected = 0.5 if lr < 0 else probs[2].item() - 1
    torch.testing.assert_close(
        squeeze_line(probs, 2, lr), torch.tensor(expected, dtype=dtype), rtol=0, atol=1e-3
    )
    assert softmax_step(probs, 2, lr).isfinite().all()


@given(cases())
def test_float32_is_close_to_float64(case):
    probs, y, lr = case
    single = probs.float()
    torch.testing.assert_close(
        softmax_step(single, y, lr).double(), softmax_step(probs, y, lr), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        squeeze_line(single, y, lr).double(), squeeze_line(probs, y, lr), rtol=0, atol=2e-5
    )


# --- entropy --------------------------------------------------------------------------------------


def entropy(probs):
    return torch.special.entr(probs).sum(-1)


@given(logit_rows, st.integers(0, 2**31))
def test_change_of_entropy_is_that_of_autograd_and_the_first_of_a_finite_one(logits, seed):
    dz = torch.randn(len(logits), generator=torch.manual_seed(seed), dtype=torch.float64)
    slope = jacobian(lambda z: entropy(z.softmax(-1)), logits)
    found = entropy_jvp(logits, dz)
    torch.testing.assert_close(found, slope @ dz, rtol=1e-10, atol=1e-10)
    p, change = logits.softmax(-1), log_softmax_jvp(logits, dz)
    covariance = (p * (p.log() + entropy(p)) * change).sum()  # as Cov_π(log π, Δ log π)
    torch.testing.assert_close(found, -covariance, rtol=1e-10, atol=1e-10)
    for h in (1e-3, 1e-4):  # the rest is of second order
        moved = entropy((logits + h * dz).softmax(-1)) - entropy(p)
        assert abs(moved - h * found) < 40 * h**2 * (1 + dz.abs().max() ** 2)


@IN_EACH
def test_entropy_of_labels_without_probability(dtype):
    logits, dz = torch.randn(2, 3, 5, dtype=dtype, generator=torch.manual_seed(0))
    rest = [0, 1, 3, 4]
    logits[:, 2], dz[:, 2] = -math.inf, math.nan  # −inf after −inf
    found = entropy_jvp(logits, dz)
    assert found.shape == (3,) and found.dtype == dtype
    torch.testing.assert_close(found, entropy_jvp(logits[:, rest], dz[:, rest]))
    line = entropy_line(logits.softmax(-1))
    torch.testing.assert_close(line, entropy_line(logits[:, rest].softmax(-1)))
    one_hot = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    torch.testing.assert_close(entropy_line(one_hot), one_hot[0])


@pytest.mark.parametrize(("n", "v"), [(3000, 2), (3000, 3), (2000, 10), (100, 200)])
@pytest.mark.slow
def test_entropy_line_tells_which_labels_lower_the_entropy(n, v):
    generator = torch.manual_seed(v)
    scale = 8 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    logits = scale * torch.randn(n, v, generator=generator, dtype=torch.float64)
    probs, line = logits.softmax(-1), entropy_line(logits.softmax(-1))
    dz = torch.eye(v, dtype=torch.float64) - probs.unsqueeze(1)  # of each label, learned
    change = entropy_jvp(logits.unsqueeze(1), dz)
    # Guarantee, of first order: a label above the line lowers the entropy, one below raises it.
    clear = (change.abs() > 1e-12) & ((probs - line[:, None]).abs() > 1e-9)
    assert torch.equal((change < 0)[clear], (probs > line[:, None])[clear])
    # Guarantee: 1/perplexity ≤ collision probability ≤ line ≤ the likeliest label.
    marks = [(-entropy(probs)).exp(), probs.square().sum(-1), line, probs.amax(-1)]
    for low, high in itertools.pairwise(marks):
        assert (low <= high * (1 + 1e-9)).all()
    # So pushing down only raises the entropy where, to first order, all others gain.
    raises = clear & (change < 0)
    assert (squeeze_line(probs.unsqueeze(1), torch.arange(v))[raises] < 0).all()
    # Trend, of a finite step: so for most labels, and not for all.
    for lr, least in ((-0.1, 0.98), (0.1, 0.98), (-1.0, 0.9), (1.0, 0.88)):
        after = entropy(softmax_step(probs.unsqueeze(1), torch.arange(v), lr))
        same = ((after - entropy(probs)[:, None]) * lr < 0) == (change < 0)
        assert least < same[clear].double().mean() < 1


# --- bad input ------------------------------------------------------------------------------------

GOOD = torch.tensor([0.6, 0.3, 0.1])


@pytest.mark.parametrize("function", [log_softmax_jacobian, jacobian_norm_sq])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.tensor([0.0, math.nan]), r"logits must be finite: 1 NaN or infinite.*index \(1,\)"),
        (torch.tensor([[0.0, 1.0], [math.inf, 0.0]]), r"1 NaN or infinite.*index \(1, 0\)"),
        (torch.tensor([[0.0], [-math.inf]]), r"logits must be finite somewhere.* index \(1,\)"),
        (torch.tensor([1, 2]), r"floating-point tensor \(..., V\), got torch.int64 \(2,\)"),
        (torch.tensor(1.0), r"floating-point tensor \(..., V\), got torch.float32 \(\)"),
        ([0.0, 1.0], r"floating-point tensor \(..., V\), got list"),
    ],
)
def test_bad_logits(function, logits, message):
    with pytest.raises(ValueError, match=message):
        function(logits)


def test_bad_dz():
    logits = torch.zeros(2, 3)
    for dz in (torch.zeros(2), torch.zeros(4, 3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"do not fit.*"):
            log_softmax_jvp(logits, dz)
    with pytest.raises(ValueError, match="logits must be finite"):
        log_softmax_jvp(torch.full((3,), math.nan), torch.zeros(3))
    with pytest.raises(ValueError, match=r"do not fit.*"):
        entropy_jvp(logits, torch.zeros(2))
    with pytest.raises(ValueError, match="sum to one"):
        entropy_line(logits)


@pytest.mark.parametrize("function", [softmax_step, squeeze_line])
@pytest.mark.parametrize(
    ("probs", "y", "lr", "message"),
    [
        (torch.tensor([2.0, -1.0]), 0, 1.0, r"sum to one.*index \(\).*pass logits.softmax"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), 0, 1.0, r"index \(1,\) does not"),
        (torch.tensor([math.nan, 1.0]), 0, 1.0, "probs must be finite"),
        (torch.tensor([1, 0]), 0, 1.0, "probs must be a floating-point tensor"),
        (GOOD, 3, 1.0, "label 3 is out of range: there are V = 3 labels"),
        (GOOD, torch.tensor([0, -1]), 1.0, "label -1 is out of range"),
        (GOOD, 1.0, 1.0, "labels must be integers, got torch.float32"),
        (GOOD, torch.tensor([True]), 1.0, "labels must be integers, got torch.bool"),
        (GOOD, 0, math.nan, "lr must be finite"),
        (GOOD, 0, math.inf, "lr must be finite"),
        (
            GOOD.expand(2, 3),
            torch.tensor([0, 1, 2]),
            1.0,
            r"leading axes do not fit: probs \(2,\), labels \(3,\), lr \(\)",
        ),
        (GOOD, torch.tensor([0, 1]), torch.ones(3), r"labels \(2,\), lr \(3,\)"),
    ],
)
def test_bad_step(function, probs, y, lr, message):
    with pytest.raises(ValueError, match=message):
        function(probs, y, lr)
    if "lr" not in message:  # the line of first order checks its input too
        with pytest.raises(ValueError, match=message):
            squeeze_line(probs, y)
