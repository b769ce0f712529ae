"""Losses of samples, with a coefficient at each token: closed forms, properties, bad input."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmdyn import losses

settings.register_profile("torch", deadline=None, max_examples=30)
settings.load_profile("torch")
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SPECS = [(name, {}) for name in losses.names() if losses.get(name).needs_advantage]
SPECS += [(name, {"beta": 0.3}) for name in ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "gspo")]
SPECS += [("grpo", {"epsilon_low": 0.0, "epsilon_high": 0.0}), ("rloo", {"epsilon_high": 0.5})]
EACH = pytest.mark.parametrize(
    "loss", [losses.get(name, **hyper) for name, hyper in SPECS], ids=str
)
BY_TOKEN = [losses.get(name, **hyper) for name, hyper in SPECS if losses.get(name).per_token]


def samples(seed=0, rows=8, width=6, apart=0.5):
    """What a loss of samples reads: the model has moved a little, or not at all, since."""
    some = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=some, dtype=torch.float64)

    old = -4 * draw(rows, width)
    new = (old + apart * (2 * draw(rows, width) - 1)).clamp(max=0)
    lengths = torch.randint(1, width + 1, (rows,), generator=some)
    return {
        "logps": {"response": new},
        "ref": {"response": (old + draw(rows, width) - 0.5).clamp(max=0)},
        "lengths": {"response": lengths},
        "old": {"response": old},
        "advantage": 4 * draw(rows) - 2,
    }


def closed_form(loss, logps, ref, lengths, old, advantage):
    """c (B, T) by hand, from the table of PAPER's section 9."""
    (x, r, o), n = (side["response"] for side in (logps, ref, old)), lengths["response"][:, None]
    real, a = torch.arange(x.shape[1]) < n, advantage[:, None]
    norm = {"dr_grpo": 512.0, "rloo": 1, "reinforce": 1, "grpo": n, "gspo": n}
    norm = norm.get(loss.name, n.sum())
    log_ratio = torch.where(real, x - o, 0)
    if loss.name == "reinforce":
        return torch.where(real, -a, 0)
    if loss.name == "rloo":
        log_ratio = log_ratio.sum(1, keepdim=True)
    if loss.name == "gspo":
        log_ratio = log_ratio.sum(1, keepdim=True) / n
    ratio = log_ratio.exp()
    if loss.name == "cispo":
        c = -ratio.clamp(max=1 + loss.epsilon_high) * a
    else:
        out = (a > 0) & (ratio > 1 + loss.epsilon_high) | (a < 0) & (ratio < 1 - loss.epsilon_low)
        c = torch.where(out, 0, -ratio * a)
    c = c + getattr(loss, "beta", 0) * (1 - (r - x).exp())
    return torch.where(real, c / norm, 0)


@EACH
def test_coefficients_are_those_of_the_closed_form(loss):
    clipped = 0
    for seed in range(20):
        data = samples(seed, apart=0.5 if loss.name != "gspo" else 2e-3)
        c, by_hand = loss.coefficients(**data)["response"], closed_form(loss, **data)
        torch.testing.assert_close(c, by_hand, **EXACT)
        padding = torch.arange(6) >= data["lengths"]["response"][:, None]
        assert not c[padding].any()
        clipped += int((c[~padding] == 0).sum())
    assert bool(clipped) == (loss.name not in ("reinforce", "cispo") and not loss.needs_ref)


@EACH
def test_padding_may_hold_anything(loss):
    data = samples()
    value, c = loss.value(**data), loss.coefficients(**data)["response"]
    for filler in (-7.0, math.nan, -math.inf):
        padding = torch.arange(6) >= data["lengths"]["response"][:, None]
        sides = {
            s: {"response": data[s]["response"].masked_fill(padding, filler)}
            for s in ("logps", "ref", "old")
        }
        assert torch.equal(loss.value(**data | sides), value)
        assert torch.equal(loss.coefficients(**data | sides)["response"], c)


@pytest.mark.parametrize("name", [name for name, hyper in SPECS[:8]])
def test_right_after_sampling_the_value_says_nothing_and_c_does(name):
    loss, data = losses.get(name), samples(apart=0.0)
    data["advantage"] -= data["advantage"].mean()
    data["lengths"] = {"response": torch.full((8,), 6)}
    c = loss.coefficients(**data)["response"]
    norm = {"reinforce": 1, "rloo": 1, "dr_grpo": 512, "grpo": 6, "gspo": 6}.get(name, 48)
    torch.testing.assert_close(c, -data["advantage"][:, None].expand(8, 6) / norm, **EXACT)
    if name not in ("reinforce", "cispo"):
        assert abs(loss.value(**data).sum()) < 1e-12
        # Nothing but the numbers that the model gives is differentiated: not what sampled.
        same = {"response": data["logps"]["response"].requires_grad_()}
        value = loss.value(**data | {"logps": same, "old": same}).sum()
        grad = torch.autograd.grad(value, same["response"])[0]
        torch.testing.assert_close(grad, c, **EXACT)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clipped_ratio_beyond_all_numbers_has_no_slope(loss, dtype):
    data = samples()
    far = {"response": torch.full((8, 6), -1e4, dtype=dtype)}
    near = {"response": torch.zeros(8, 6, dtype=dtype)}
    for up, sides in ((1.0, {"logps": near, "old": far}), (-1.0, {"logps": far, "old": near})):
        more = {"ref": sides["logps"], "advantage": torch.full((8,), up)}
        value, c = loss.value(**data | sides | more), loss.coefficients(**data | sides | more)
        assert value.dtype == c["response"].dtype == dtype
        assert value.isfinite().all() and c["response"].isfinite().all()
        assert loss.name in ("reinforce", "cispo") or not c["response"].any()


@given(st.integers(0, 2**31), st.sampled_from(BY_TOKEN), st.floats(0.01, 3))
def test_each_row_counts_alone_but_for_the_norm_of_the_batch(seed, loss, apart):
    data = samples(seed, apart=apart)

    def some(pick):
        cut = {k: {"response": x["response"][pick]} for k, x in data.items() if k != "advantage"}
        return loss.coefficients(**cut, advantage=data["advantage"][pick])["response"]

    whole, first, n = some(slice(None)), some(slice(3)), data["lengths"]["response"]
    of_batch = loss.name in ("bnpo", "dapo", "cispo")
    torch.testing.assert_close(
        first * (n[:3].sum() if of_batch else 1), whole[:3] * (n.sum() if of_batch else 1), **EXACT
    )


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_advantages_compare_a_sample_with_its_group(kind):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 3.0], [2.0, 2.0, 2.0, -1.0]]).double()
    found = losses.advantages(rewards, kind)
    for row, a in zip(rewards.tolist(), found.tolist(), strict=True):
        for i, (r, own) in enumerate(zip(row, a, strict=True)):
            rest, mean = row[:i] + row[i + 1 :], sum(row) / 4
            std = math.sqrt(sum((x - mean) ** 2 for x in row) / 3)
            expected = {"grpo": (r - mean) / (std + 1e-4), "rloo": r - sum(rest) / 3}
            assert own == pytest.approx(expected.get(kind, r - mean), rel=1e-12, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.advantages(rewards, kind)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_groups_that_say_nothing_teach_nothing_and_are_told_once(kind):
    with pytest.warns(UserWarning, match="2 of 3 groups of 7 have equal rewards") as told:
        found = losses.advantages(torch.tensor([[0.1] * 7, [0.1] * 6 + [0.0], [0.3] * 7]), kind)
    assert len(told) == 1 and not found[[0, 2]].any() and found[1].all()
    with pytest.warns(UserWarning, match="1 of 1 groups of 1 have equal rewards"):
        assert losses.advantages(torch.tensor([0.7]), kind).tolist() == [0.0]


def test_bad_rewards():
    with pytest.raises(ValueError, match=r"rewards must be finite: 1 NaN .* at index \(1, 0\)"):
        losses.advantages(torch.tensor([[1.0, 0.0], [math.nan, 1.0]]))
    with pytest.raises(ValueError, match="unknown kind of advantage 'gpro': did you mean 'grpo'"):
        losses.advantages(torch.ones(2), "gpro")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"old": None}, r"GRPO needs old\['response'\]: .*: logps, if its weights are those"),
        ({"advantage": None}, r"GRPO needs advantage, a tensor \(8,\); there is none"),
        ({"advantage": torch.zeros(8, 6)}, r"a tensor \(8,\); there is torch.float32 \(8, 6\)"),
        ({"advantage": torch.full((8,), math.nan)}, r"advantage must be finite: 8 .*index \(0,\)"),
        ({"logps": {"response": torch.zeros(8)}}, r"→ \(B, T\) log-probs; there is .*\(8,\)"),
        ({"old": {"response": torch.zeros(8)}}, r"old\['response'\].*\(B, T\)"),
        ({"old": {"response": torch.zeros(8, 5)}}, r"old\['response'\]"),
        ({"lengths": {"response": torch.full((8,), 7)}}, "no more than there are log-probs"),
        ({"lengths": None}, r"GRPO needs lengths\['response'\]"),
        ({"ref": None}, r"GRPO needs ref\['response'\]"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    for call in (losses.get("grpo", beta=0.1).value, losses.get("grpo", beta=0.1).coefficients):
        with pytest.raises(ValueError, match=message):
            call(**samples() | wrong)
    losses.get("grpo").value(**samples() | {"ref": None})  # of no use without the KL term


# --- losses that read whole distributions ---------------------------------------------------------

ROWS = st.lists(st.floats(-8, 8), min_size=2, max_size=12)


@given(ROWS, st.integers(0, 2**31))
def test_vector_residuals_are_the_gradients_of_their_losses(row, seed):
    z = torch.tensor(row, dtype=torch.float64).requires_grad_()
    t = 3 * torch.randn(len(row), generator=torch.manual_seed(seed), dtype=torch.float64)
    logp, logq = z.log_softmax(-1), t.log_softmax(-1)
    found = losses.entropy_residual(z.detach()), losses.kl_residual(z.detach(), t)
    found += (losses.kl_residual(z.detach(), t, "forward"),)
    values = [(logp.exp() * logp), (logp.exp() * (logp - logq)), logq.exp() * (logq - logp)]
    for g, value in zip(found, values, strict=True):
        expected = torch.autograd.grad(value.sum(), z, retain_graph=True)[0]
        torch.testing.assert_close(g, expected, **EXACT)
        assert abs(g.sum()) < 1e-12  # a shift of all logits changes nothing


def test_a_label_without_probability_takes_no_part():
    z, t = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.manual_seed(0))
    z[:, 2], rest = -math.inf, [0, 1, 3, 4]
    g = losses.entropy_residual(z)
    assert not g[:, 2].any()
    torch.testing.assert_close(g[:, rest], losses.entropy_residual(z[:, rest]))
    reverse = losses.kl_residual(z, t)
    assert not reverse[:, 2].any() and reverse.isfinite().all()
    logq = t.log_softmax(-1)[:, rest]  # of a teacher who knows one more label
    p = z[:, rest].softmax(-1)
    gap = p.log() - logq
    torch.testing.assert_close(reverse[:, rest], p * (gap - (p * gap).sum(-1, keepdim=True)))
    torch.testing.assert_close(losses.kl_residual(z, t, "forward"), z.softmax(-1) - t.softmax(-1))
    both = losses.kl_residual(z, z + 1)
    torch.testing.assert_close(both, torch.zeros_like(both))
    with pytest.raises(ValueError, match=r"infinite: other is -inf at index \(0, 2\)"):
        losses.kl_residual(t, z)


@pytest.mark.parametrize(
    ("logits", "other", "direction", "message"),
    [
        (torch.zeros(3), torch.zeros(4), "reverse", r"other \(4,\) and logits \(3,\) do not fit"),
        (torch.zeros(2, 3), torch.zeros(5, 3), "forward", r"other \(5,\), logits \(2,\)"),
        (torch.zeros(3), torch.full((3,), math.nan), "forward", "other must be finite"),
        (torch.zeros(3), torch.zeros(3), "reversed", "did you mean 'reverse'"),
    ],
)
def test_bad_teachers(logits, other, direction, message):
    with pytest.raises(ValueError, match=message):
        losses.kl_residual(logits, other, direction)
