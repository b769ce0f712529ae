"""The claims of the chapter on losses; each function returns a row of its `ClaimTable`."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from audit import found, guarantee, trend

Row = tuple[str, str, str, str]


def two_numbers(n: int, on_logits: float, on_weights: float) -> Row:
    """Errors of G = −c (π − e_y) against autograd, over ``n`` losses of a pair."""
    return (
        "every loss of the zoo of pairs is two numbers, $G^\\pm = -c^\\pm(\\pi - e_y)$",
        "derived loss by loss",
        f"{n} losses, within {on_logits:.0e} on logits, {on_weights:.0e} on weights",
        guarantee(on_logits < 1e-12 and on_weights < 1e-6),
    )


def number_a_token(n: int, error: float) -> Row:
    """The same for ``n`` losses of one sample, whose c differs from token to token."""
    return (
        "every loss of a sample is one number a token, $G_l = -c_l(\\pi_l - e_{y_l})$",
        "",
        f"{n} losses, within {error:.0e} on logits",
        guarantee(error < 1e-10),
    )


def same_step(error: float) -> Row:
    return (
        "losses with the same two numbers make the same step",
        "",
        f"DPO, hinge and IPO within {error:.0e}",
        guarantee(error < 1e-10),
    )


def mirrored(n: int, error: float) -> Row:
    """``error``: of c⁺ + c⁻ = 0, over ``n`` losses of the margin."""
    return (
        "a loss of the margin alone pushes down as hard as it pulls up",
        "",
        f"{n} losses, within {error:.0e}",
        guarantee(error < 1e-12),
    )


def one_curve(error: float) -> Row:
    return (
        "on a single pair all losses of the margin run along one curve",
        "",
        f"toy: DPO and hinge within {error:.0e} nats",
        guarantee(error < 1e-10),
    )


def weaker(pulls: Mapping[str, Sequence[float]]) -> Row:
    """``pulls``: name → (S,) at rising margins, far enough that what fades is gone at the end."""
    sizes = {name: np.abs(np.asarray(pull)) for name, pull in pulls.items()}
    falls = {name: bool((np.diff(size) <= 0).all()) for name, size in sizes.items()}
    rests = [name for name in pulls if falls[name] and sizes[name][-1] > 1e-2 * sizes[name][0]]
    told = f"{sum(falls.values())} of {len(falls)} losses of the margin: "
    told += ", ".join(name for name in falls if falls[name])
    return (
        "the wider the margin, the weaker the push",
        "generally",
        told + (f" ({', '.join(rests)} only down to a constant)" if rests else ""),
        trend(*falls.values()),
    )


def stops(dpo: Sequence[float], endings: Mapping[str, Sequence[float | None]]) -> Row:
    """``dpo``: its pull at rising margins; ``endings``: name → margins at which c⁺, c⁻ end."""
    done = {name: None not in endings[name] for name in ("ipo", "hinge", "sppo")}
    at = ", ".join(f"{endings[name][1]:.0f}" if done[name] else "–" for name in done)
    return (
        "DPO never stops pushing apart; IPO, hinge and SPPO do",
        "",
        f"at $h$ = {at}",
        guarantee(
            bool((np.asarray(dpo) > 0).all())
            and set(endings["dpo"]) == {None}
            and all(done.values())
        ),
    )


def ipo_directions(near: bool, far: bool, end: float) -> Row:
    """Whether IPO and DPO push the same ways before and beyond IPO's ``end``."""
    return (
        "IPO pushes in the directions of DPO",
        "stated",
        f"up to $h$ = {end:.0f}, the reverse beyond",
        trend(near, far),
    )


def ipo_residual(stated: Sequence[float], exact: Sequence[float]) -> Row:
    """Its pull at some margins, the start first, as stated and by the chain rule."""
    stated, exact = np.asarray(stated), np.asarray(exact)
    return (
        "IPO's residual is DPO's with $a = h - 1/2\\beta$",
        "stated",
        f"at the start {exact[0] / stated[0]:.1f} times as large, and it ends at another margin",
        trend(bool(np.allclose(stated, exact, rtol=1e-5, atol=1e-8))),
    )


def sppo_lifts(start: Sequence[float], somewhere: bool) -> Row:
    """Its pushes at the start; whether there is a state in which it is as the paper draws it."""
    return (
        "SPPO lifts both responses, $y^+$ with the longer vector",
        "Figure 2",
        f"at the start {start[0]:+.0f} and {start[1]:+.0f}; both up only where "
        "$\\Delta^- < -\\Delta^*$, $y^+$ the more where also $h < 2\\Delta^*$",
        trend(bool(start[1] > 0), somewhere),
    )


def rises_by_the_leak(below: float, above: float, hits: float) -> Row:
    """The change of y⁺ with r at 0.95 and 1.05 of the limit; the toy's steps whose sign fits."""
    return (
        "to first order $y^+$ rises exactly if $r\\lambda < 1$",
        "",
        f"tiny model: turns between 0.95 and 1.05 of the limit; toy: {hits:.0%} of the steps",
        guarantee(below > 0 > above and hits > 0.95),
    )


def brief_rise(turn: int, passes: int, steps: int, leaks: Sequence[float]) -> Row:
    """The toy's highest y⁺ and where its leak passes one, of ``steps``; leaks of real pairs."""
    return (
        "a toy of one pair: DPO lifts $y^+$ briefly, and turns as the leak passes one",
        "",
        f"toy: it turns at step {turn}, the leak passes one at step {passes}; "
        f"leak of {len(leaks)} pairs of the tiny model at the start at most {max(leaks):.2f}",
        found(0 < turn < steps - 1, bool(max(leaks) < 1)),
    )


def clipped(
    c: Mapping[str, Sequence[float]], outside: Mapping[str, Sequence[bool]], never: Collection
) -> Row:
    """Coefficients on both sides of the clip, which are ``outside``; ``never``: who has no clip."""
    fits = [
        ((np.asarray(c[name]) == 0) == (np.asarray(outside[name]) & (name not in never))).all()
        for name in c
    ]
    return (
        "where a clip acts, $c_l$ is exactly 0, and elsewhere it is not; CISPO's never is",
        "",
        f"{len(c)} losses, up to a millionth from the edge, both signs of $\\hat A$",
        guarantee(all(fits) and any(map(any, outside.values())) and set(never) < set(c)),
    )


def zero_loss(value: float, c: Sequence[float], ratio: Sequence[float]) -> Row:
    """The mean loss of groups right after sampling, and what it has for coefficients."""
    off, largest = np.abs(np.asarray(ratio) - 1).max(), np.abs(np.asarray(c)).max()
    return (
        "right after sampling GRPO's loss is 0, and its coefficients are not",
        "",
        f"$\\rho$ = 1 within {off:.0e}; loss {abs(value):.0e}, largest $|c_l|$ {largest:.3f}",
        guarantee(off < 1e-6 and abs(value) < 1e-6 and largest > 1e-3),
    )


def zero_loss_teaches(rewarded: Sequence[float], punished: Sequence[float]) -> Row:
    """The changes of the log-probs of samples by one step on that loss, nats."""
    up, down = np.mean(rewarded), np.mean(punished)
    return (
        "a step on a loss of 0 raises what was rewarded and lowers what was punished",
        "",
        f"{len(rewarded)} and {len(punished)} answers: mean {up:+.3f} and {down:+.3f} nats",
        found(bool(up > 0), bool(down < 0)),
    )


def norms(ratios: Mapping[str, float]) -> Row:
    """|c| at a token of a sample, over that in a sample half as long beside it."""
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    equal = [ratio for name, ratio in ratios.items() if name != "GRPO"]
    return (
        "in GRPO a token of an answer twice as long counts half; in Dr. GRPO and DAPO alike",
        "",
        told,
        guarantee(abs(ratios["GRPO"] - 0.5) < 1e-12 and all(abs(r - 1) < 1e-12 for r in equal)),
    )


def unlearns(ga: Sequence[float], npo: Sequence[float]) -> Row:
    """c where the response has fallen by 0 nats, and by ever more."""
    ga, npo = np.asarray(ga), np.asarray(npo)
    return (
        "NPO starts as gradient ascent and fades; gradient ascent never does",
        "",
        f"$c$ from {npo[0]:.2f} to {npo[-1]:.0e}; gradient ascent {ga[0]:.2f} to {ga[-1]:.2f}",
        guarantee(
            bool(abs(npo[0] - ga[0]) < 1e-12 and (np.diff(npo) < 0).all())
            and bool(npo[-1] < 1e-2 * npo[0] and (ga == ga[0]).all())
        ),
    )


def vectors(errors: Mapping[str, float]) -> Row:
    """Of the closed G of entropy and of both KLs, against autograd."""
    return (
        "entropy and KL have the $G$ of the closed forms",
        "",
        ", ".join(f"{name} {error:.0e}" for name, error in errors.items()) + " from autograd",
        guarantee(all(error < 1e-10 for error in errors.values())),
    )


def sum_over_labels(error: float) -> Row:
    """Of G = Σ_v −c_v (π − e_v), a number at each label of the vocabulary."""
    return (
        "reverse KL and entropy are a policy gradient averaged over all labels",
        "",
        f"within {error:.0e}",
        guarantee(error < 1e-10),
    )


def no_multiples(angles: Mapping[str, float]) -> Row:
    """Degrees between G and the nearest multiple of π − e_y, over all labels y."""
    return (
        "none of the three is a multiple of any $\\pi - e_y$ (by 5° at least)",
        "",
        "on the distribution drawn: "
        + ", ".join(f"{name} {angle:.0f}°" for name, angle in angles.items()),
        found(*(angle > 5 for angle in angles.values())),
    )
