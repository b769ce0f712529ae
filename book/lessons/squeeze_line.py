"""Statements about a negative step, each tried on thousands of random distributions."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lmdyn import log_softmax_jvp, softmax_step, squeeze_line

CONCENTRATIONS = torch.tensor([0.03, 0.1, 0.3, 1, 3, 10, 100]).double()
TINY = 1e-12  # rounding


class Case(NamedTuple):
    """N distributions over V labels, a label of each, a size of the negative step on it."""

    p: Tensor
    y: Tensor
    eta: Tensor


def draw(n_labels: int, per_concentration: int = 250) -> Case:
    """From nearly one-hot to nearly flat, step sizes over three decades.

    Half of the labels y are drawn uniformly, half from the distribution. A ten-thousandth of the
    uniform distribution is mixed in: a softmax gives no zero, and a strict inequality should not
    be lost in rounding.
    """
    concentration = CONCENTRATIONS.repeat_interleave(per_concentration)
    p = torch.distributions.Dirichlet(concentration[:, None].expand(-1, n_labels)).sample()
    p = (1 - 1e-4) * p + 1e-4 / n_labels
    n = len(p)
    uniform = torch.randint(n_labels, (n,))
    y = torch.where(torch.rand(n) < 0.5, uniform, torch.multinomial(p, 1)[:, 0])
    return Case(p, y, 10 ** (3 * torch.rand(n) - 2))


def log_alpha(p: Tensor, y: Tensor, eta: Tensor) -> Tensor:
    """Change of every log-probability by a negative step, nats."""
    return softmax_step(p, y, -eta).log() - p.log()


def at(values: Tensor, index: Tensor) -> Tensor:
    """The entry of each row at its index."""
    return values.gather(-1, index[:, None])[:, 0]


def hide(values: Tensor, y: Tensor, fill) -> Tensor:
    """Each row with the entry of y replaced."""
    return values.scatter(-1, y[:, None], fill)


def rivals(p: Tensor, y: Tensor) -> Tensor:
    """i*, the likeliest label other than y, of each row."""
    return hide(p, y, -1.0).argmax(-1)


def _others(p: Tensor, y: Tensor) -> Tensor:
    """The shares q of the labels other than y."""
    return hide(p, y, 0.0) / (1 - at(p, y))[:, None]


def lemma_1(p: Tensor, y: Tensor, eta: Tensor) -> Tensor:
    """The paper's closed form of every α, as two explicit cases."""
    eta = eta[:, None, None]
    # The weight of label j in the sum for label i: exp(−η'(p_i − p_j)), corrected on y.
    weight = torch.exp(-eta * (p[:, :, None] - p[:, None, :]))
    is_y = one_hot(y, p.shape[-1]).bool()
    weight = torch.where(is_y[:, None, :], weight * torch.exp(-eta), weight)  # j = y
    weight = torch.where(is_y[:, :, None], weight * torch.exp(eta), weight)  # i = y
    return 1 / (weight * p[:, None, :]).sum(-1)


def lemma(cases: list[Case]) -> tuple[float, float]:
    """Largest error of the lemma (nats), and of refill and sharpen (probability)."""
    error, reading = 0.0, 0.0
    for p, y, eta in cases:
        few = slice(None, None, max(1, p.shape[-1] // 10))  # the lemma's double sum is V by V
        one = p[few], y[few], eta[few]
        error = max(error, (lemma_1(*one).log() - log_alpha(*one)).abs().max().item())
        new, q = softmax_step(p, y, -eta), _others(p, y)
        sharpened = q * torch.exp((eta * (1 - at(p, y)))[:, None] * q)
        sharpened = sharpened / sharpened.sum(-1, keepdim=True)
        refilled = (1 - at(new, y)[:, None]) * sharpened
        reading = max(reading, (refilled - hide(new, y, 0.0)).abs().max().item())
    return error, reading


def claims_1_to_3(cases: list[Case]) -> tuple[float, float, float]:
    """Largest log α of y, smallest of i*, and the error of Claim 3 as an identity; nats."""
    worst_y, worst_best, slope_error = -torch.inf, torch.inf, 0.0
    for p, y, eta in cases:
        change, best = log_alpha(p, y, eta), rivals(p, y)
        worst_y = max(worst_y, at(change, y).max().item())
        worst_best = min(worst_best, at(change, best).min().item())
        # The identity relative to i*: it implies that for every pair.
        gap = change - at(change, best)[:, None] - eta[:, None] * (p - at(p, best)[:, None])
        slope_error = max(slope_error, hide(gap, y, 0.0).abs().max().item())
    return worst_y, worst_best, slope_error


class Line(NamedTuple):
    """How the exact squeeze line fared, after negative and after positive steps."""

    wrong: int  # labels on the wrong side
    labels: int
    error: float  # of log α = η'(p − T), nats
    excess: float  # over Hoeffding's bound, or below the first-order line
    facts: bool  # it never falls as η' grows, and stays below the rival's probability


def line(cases: list[Case]) -> Line:
    wrong, labels, error, excess, facts = 0, 0, 0.0, -torch.inf, True
    for p, y, eta in cases:
        best, first = hide(p, y, -1.0).max(-1).values, squeeze_line(p, y)
        for sign in (1, -1):  # negative steps, then positive ones
            change, exact = log_alpha(p, y, sign * eta), squeeze_line(p, y, -sign * eta)
            distance = p - exact[:, None]
            off = change - sign * eta[:, None] * distance
            error = max(error, hide(off, y, 0.0).abs().max().item())
            clear = hide(distance.abs(), y, 0.0) > 1e-9  # closer than this, rounding decides
            wrong += ((change > 0) != (sign * distance > 0))[clear].sum().item()
            labels += clear.sum().item()
            moved = sign * (exact - first)
            bound = eta / 8 * (1 + best - at(p, y)) ** 2
            excess = max(excess, (moved - bound).max().item(), -moved.min().item())
        rises = squeeze_line(p, y, -2 * eta) >= squeeze_line(p, y, -eta) - TINY
        facts &= bool(rises.all() and (squeeze_line(p, y, -eta) < best).all())
    return Line(wrong, labels, error, excess, facts)


class Shapes(NamedTuple):
    """Claim 3A, B and C: cases of each sufficient condition, failures, and shares that gain."""

    flat: int
    flat_failures: int
    peaky: int
    peaky_failures: int
    if_common: float  # the share of nearly equal others that gain, if y is as likely as they
    if_rare: float  # and if y is rare


def shapes(cases: list[Case], n_labels: int) -> Shapes:
    counts = torch.zeros(4, dtype=torch.long)
    for p, y, eta in cases:
        flat = p.max(-1).values < 2 * p.min(-1).values
        below_all = squeeze_line(p, y) < hide(p, y, 1.0).min(-1).values  # to first order
        peaky = hide(p, y, 0.0).max(-1).values > 3**-0.5
        alone = (hide(log_alpha(p, y, eta), y, -1.0) > 0).sum(-1) == 1
        counts += torch.stack([c.sum() for c in (flat, flat & ~below_all, peaky, peaky & ~alone)])
    crowd = torch.distributions.Dirichlet(torch.full((1000, n_labels), 100.0)).sample()
    zero = torch.zeros(1000, dtype=torch.long)
    rare = 1e-4 * one_hot(torch.tensor(0), n_labels) + (1 - 1e-4) * _others(crowd, zero)
    gain = [
        (log_alpha(of, torch.tensor(0), torch.tensor(0.1))[:, 1:] > 0).double().mean().item()
        for of in (crowd, rare)
    ]
    return Shapes(*counts.tolist(), *gain)


def with_p_y(p: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """The same shares among the others, another probability s of y."""
    rest = (1 - s)[:, None] * _others(p, y)
    return hide(rest, y, 0.0) + s[:, None] * one_hot(y, p.shape[-1])


def claim_4(cases: list[Case]) -> dict[str, int]:
    """Exceptions to each part of Claim 4, and in how many cases i* grows by the larger factor."""
    parts = ("fewer gain", "fall harder", "sharper", "larger share", "third label", "better")
    found = dict.fromkeys((*parts, "larger factor"), 0)
    for p, y, eta in cases:
        n = len(p)
        high = 10 ** (-2.5 * torch.rand(n) - 0.05)
        low = high * (0.05 + 0.9 * torch.rand(n))
        before = with_p_y(p, y, low), with_p_y(p, y, high)
        after = [softmax_step(of, y, -eta) for of in before]
        a_low, a_high = (
            hide(new.log() - old.log(), y, 0.0) for old, new in zip(before, after, strict=True)
        )
        best = rivals(p, y)
        found["fewer gain"] += ((a_low > TINY) & (a_high < -TINY)).sum().item()
        found["fall harder"] += ((a_high < -TINY) & (a_low > a_high)).sum().item()
        q_low, q_high = (at(new, best) / (1 - at(new, y)) for new in after)
        found["sharper"] += (q_low < q_high - TINY).sum().item()
        share_low, share_high = (
            at(new - old, best) / (new - old).clamp(min=0).sum(-1)
            for old, new in zip(before, after, strict=True)
        )
        found["larger share"] += (share_low < share_high - 1e-9).sum().item()
        found["larger factor"] += (at(a_low, best) > at(a_high, best)).sum().item()
        # In a valley, to first order: no label does better at the smaller p_y.
        n_q = _others(p, y).square().sum(-1)
        rate_low, rate_high = (of - squeeze_line(of, y)[:, None] for of in before)
        better = hide(rate_low > rate_high, y, False) & (high < n_q / (1 + n_q))[:, None]
        found["better"] += better.sum().item()
        # The other reading: a second label of the same distribution.
        other = (y + torch.randint(1, p.shape[-1], (n,))) % p.shape[-1]
        rarer = torch.where(at(p, y) < at(p, other), y, other)
        likelier = y + other - rarer
        third = log_alpha(p, rarer, eta) - log_alpha(p, likelier, eta)
        found["third label"] += (hide(hide(third, rarer, 0.0), likelier, 0.0) > TINY).sum().item()
    return found


def claim_5(cases: list[Case]) -> dict[str, int]:
    """Exceptions to each part of Claim 5 if steps are doubled, and cases where a gainer turns."""
    parts = ("y falls more", "i* gains more", "the fallen fall", "fewer gain", "turned")
    found = dict.fromkeys(parts, 0)
    for p, y, eta in cases:
        small, large, best = log_alpha(p, y, eta), log_alpha(p, y, 2 * eta), rivals(p, y)
        found["y falls more"] += (at(large, y) >= at(small, y)).sum().item()
        found["i* gains more"] += (at(large, best) <= at(small, best)).sum().item()
        found["the fallen fall"] += ((small < -TINY) & (large >= small)).sum().item()
        found["fewer gain"] += ((small < -TINY) & (large > TINY)).sum().item()
        found["turned"] += ((small > TINY) & (large < small - TINY)).any(-1).sum().item()
    return found


def repeat(p: Tensor, y: int, lr: float, steps: int) -> Tensor:
    """(steps + 1, V), the prediction after each of many steps."""
    path = [p]
    for _ in range(steps):
        path.append(softmax_step(path[-1], y, lr))
    return torch.stack(path)


def collapse(case: Case, steps: int = 1000) -> tuple[int, float]:
    """(starts, the least p of i* in the end).

    Two kinds of start would take much longer and are left out: a lead of i* near zero (with none,
    the guarantee is silent), and a p_y near one, where G is near 0.
    """
    two = _others(case.p, case.y).topk(2, dim=-1).values
    clear = (two[:, 0] - two[:, 1] > 1e-3) & (at(case.p, case.y) < 0.99)
    end, y = case.p[clear], case.y[clear]
    best = rivals(end, y)
    for _ in range(steps):
        end = softmax_step(end, y, -5.0)
    return len(end), at(end, best).min().item()


def one_context(cases: list[Case]) -> tuple[float, float, float]:
    """A pair in one context: least gain of chosen, largest of rejected, spread of the others."""
    chosen_low, rejected_high, common = torch.inf, -torch.inf, 0.0
    for p, y, eta in cases:
        # y is rejected; another label of the same distribution is chosen.
        chosen = (y + torch.randint(1, p.shape[-1], y.shape)) % p.shape[-1]
        push = one_hot(chosen, p.shape[-1]) - one_hot(y, p.shape[-1])
        change = (p.log() + eta[:, None] * push).log_softmax(-1) - p.log()
        chosen_low = min(chosen_low, at(change, chosen).min().item())
        rejected_high = max(rejected_high, at(change, y).max().item())
        rest = hide(hide(change, y, torch.nan), chosen, torch.nan)
        middle = rest.nanmean(-1, keepdim=True)
        common = max(common, (rest - middle).abs().nan_to_num(0.0).max().item())
    return chosen_low, rejected_high, common


def toy_dpo(p, chosen, rejected, rho, length, lr=0.4, beta=0.1, steps=4000):
    """DPO on two contexts with the same first prediction p.

    Returns the log-probs at x⁺ and x⁻, (steps + 1, 2, V), and each step's first-order change of
    the chosen label at x⁺.
    """
    k = torch.tensor([[1.0, rho * length], [rho * length, length**2]])
    labels = one_hot(torch.tensor([chosen, rejected]), len(p)).double()
    z = p.log().repeat(2, 1)
    path, predicted = [], []
    for _ in range(steps + 1):
        logp = z.log_softmax(-1)
        path.append(logp)
        h = (logp[0, chosen] - logp[1, rejected]) - (p[chosen].log() - p[rejected].log())
        w = beta * torch.sigmoid(-beta * h)
        g = torch.stack([w, -w])[:, None] * (logp.exp() - labels)
        dz = -lr * k @ g
        predicted.append(log_softmax_jvp(logp[0], dz[0])[chosen])
        z = z + dz
    return torch.stack(path), torch.stack(predicted)


def push_down(p, y, make_optimizer, batch, drop=3.0, seed=0):
    """Δ log π after training against y until it lost ``drop`` nats, and after the first step; (V,).

    With a ``batch``, so many other examples share each step: their inputs are orthogonal to ours
    and their labels drawn from the model's own prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, generator=generator)
    x = x / x.norm()
    weight = torch.outer(p.log() - p.log().mean(), x).requires_grad_()
    optimizer = make_optimizer([weight])
    first, change = None, torch.zeros(len(p))
    while change[y] > -drop:
        optimizer.zero_grad()
        loss = -cross_entropy(weight @ x, torch.tensor(y))
        if batch:
            others = torch.randn(batch, 8, generator=generator)
            others = others - (others @ x)[:, None] * x
            logits = others / others.norm(dim=1, keepdim=True) @ weight.T
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
            loss = loss + cross_entropy(logits, drawn[:, 0], reduction="sum")
        loss.backward()
        optimizer.step()
        change = (weight.detach() @ x).log_softmax(-1) - p.log()
        first = change if first is None else first
    return change, first


def squeezed(change: Tensor, y: int) -> bool:
    """Only few gain, and the typical bystander, neither label 0 nor y, falls."""
    bystanders = [i for i in range(len(change)) if i not in (0, y)]
    few = (change > 0).sum() <= len(change) // 10
    return bool(few and change[bystanders].median() < -0.05)
