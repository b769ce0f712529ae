"""What the chapter "What helps" claims.

World: numbers come seed by seed, (seeds,). Records: of SmolLM2 on 48 pairs, one for each run.
Scale: of SmolLM2 on 300 pairs, `Paired` differences over held-out prompts.
"""

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np

from audit import found, trend
from audit.dpo import spread
from audit.scale import Paired

AT_SCALE = "SmolLM2, 300 pairs, held-out $y^+$ at the same trained margin:"


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p of wins against losses, ties aside, if neither were likelier."""
    n, k = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction of several p, as many as there are."""
    adjusted, so_far = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.get)):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = so_far
    return adjusted


def winners(counts: Mapping[str, tuple[int, int]], level: float = 0.05) -> list[str]:
    """The arms with more wins than losses by the corrected sign test."""
    p = holm({name: sign_test(*of) for name, of in counts.items()})
    return [name for name, (wins, losses) in counts.items() if wins > losses and p[name] < level]


def for_all(differences: np.ndarray, arms: int, draws: int = 20_000, seed: int = 0) -> Paired:
    """A mean over (N,) prompts, and an interval that holds for all arms at once, 95%."""
    return Paired.of(differences, draws, seed, n_at_once=arms)


def signs(differences: np.ndarray) -> tuple[int, int]:
    """At how many prompts a difference is above zero, and at how many below."""
    return int((differences > 0).sum()), int((differences < 0).sum())


def versus(ours, others, digits: int = 1, sign: bool = True) -> str:
    return f"{spread(ours, digits, sign)} against {spread(others, digits, sign)}"


def _48_pairs(told: Sequence[str]) -> str:
    """Of records of SmolLM2 on 48 pairs, their trained prompts, one for each order of the rows."""
    orders = {1: "one order", 2: "two orders"}.get(len(told), f"{len(told)} orders")
    return f"; SmolLM2, 48 pairs, trained, {orders}: {', '.join(told)}"


def _smollm2(pairs) -> str:
    return _48_pairs([f"{ours:+.1f} against {other:+.1f}" for ours, other in pairs])


def _true(*parts) -> list[bool]:
    return [bool(part) for of in parts for part in np.ravel(of)]


def extend_falls_less(ours, dpo, records: Sequence[tuple], margin: tuple, margins: Sequence[tuple]):
    """The change of y+ after extend and after SFT; ``records``: the same, run by run.

    What does not fall after SFT cannot fall less. ``margin`` and ``margins``: of the same runs.
    """
    risen = sum(plain >= 0 for _, plain in records)
    only = f"; in {risen} of these {len(records)} DPO lifts $y^+$, which cannot then fall less"
    return (
        "extend: after as many updates, and less margin, $y^+$ ends higher beside its start",
        "it falls less, −39.5 against −58.9 (repetition, Qwen1.5-1.8B)",
        f"toy world: {versus(ours, dpo)}{_smollm2(records)}{only if risen else ''}; margins, toy "
        f"world: {versus(*margin)}{_smollm2(margins)}",
        trend(*_true((ours > dpo) & (dpo < 0), [a > b and b < 0 for a, b in records])),
    )


def extend_ends_likelier(ours, dpo):
    return (
        "extend: $y^+$ is likelier in the end",
        "",
        f"toy world: {versus(ours, dpo)}; the repetition: −127.0 against −113.3",
        found(*_true(ours > dpo)),
    )


def extend_keeps_more(trained, held_out, records: Sequence[float], scale: Paired):
    """How much more of y+ than DPO, at the same margin."""
    text, verdict = _kept(trained, held_out, records, scale)
    return "extend: more of $y^+$ is kept at the same margin", "", text, verdict


def extend_drags_less(ours: Mapping, dpo: Mapping, records: Mapping[str, Sequence[tuple]]):
    """type → its change, after extend and after SFT; the rephrase of y+, y− and its rephrase."""
    return (
        "extend: $y^-$ and what is near falls less",
        "−147.1 against −218.8, rephrase of $y^+$ −92.4 against −148.6 (repetition)",
        f"toy world: $y^-$ {versus(ours['rejected'], dpo['rejected'])}"
        + _smollm2(records["rejected"]),
        trend(
            *_true(*((ours[name] > dpo[name]).all() for name in ours)),
            *_true(*([a > b for a, b in pairs] for pairs in records.values())),
        ),
    )


def extend_argmax_rises_less(ours, dpo, records: Sequence[tuple]):
    return (
        "extend: the argmax rises less",
        "claimed; +18.8 against +14.6 (repetition)",
        f"toy world: {versus(ours, dpo)}{_smollm2(records)}",
        trend(*_true(ours < dpo, [a <= b for a, b in records])),
    )


def extend_degrades_less(broken, broken_dpo, true, true_dpo, won: tuple[int, int]):
    """Shares of held-out answers; ``won``: won and lost against DPO, by the truth."""
    p = sign_test(*won)
    return (
        "extend, toy world: after as many updates, and less margin, answers degrade less",
        "win rates .54 and .67 after six epochs",
        f"held out: broken {versus(broken, broken_dpo, 2, False)}, true "
        f"{versus(true, true_dpo, 2, False)}; won {won[0]}, lost {won[1]} (p = {p:.1g})",
        trend(
            *_true((broken < broken_dpo).all(), (true > true_dpo).all()),
            won[0] > won[1] and p < 0.05,
        ),
    )


def extend_at_a_large_margin(ours, dpo, broken, broken_dpo, per_nat: Sequence[float]):
    """Extend with three times the updates; ``per_nat`` of margin: the repetition's two."""
    return (
        "extend: so at a margin like DPO's",
        "",
        f"$y^+$ {versus(ours, dpo)}; broken {versus(broken, broken_dpo, 2, False)}; in the "
        f"repetition, per nat of margin {per_nat[1]:+.2f} against {per_nat[0]:+.2f}",
        found(*_true(ours > dpo, broken < broken_dpo)),
    )


def _kept(trained, held_out, records, scale: Paired) -> tuple[str, str]:
    more = _48_pairs([f"{kept:+.1f}" for kept in records])
    parts = trained > 0, held_out > 0, np.asarray(records) > 0, scale.verdict == "more"
    text = f"toy world: {spread(trained)}, held out {spread(held_out)}{more}; {AT_SCALE} "
    return f"{text}{scale}", found(*_true(*parts))


def both_answers_help(trained, held_out, records, scale: Paired):
    """Extend beside the control with its dose of y+, at the same margin."""
    text, verdict = _kept(trained, held_out, records, scale)
    return (
        "extend: $y^-$ in the SFT keeps more than its smaller dose of $y^+$ alone",
        "",
        text,
        (verdict),
    )


def smaller_dose_helps(trained, held_out, records, scale: Paired):
    """The control beside DPO, at the same margin."""
    text, verdict = _kept(trained, held_out, records, scale)
    return "the smaller dose of $y^+$ alone keeps more of it than DPO", "", text, verdict


def pull_keeps_more(kept: Mapping[str, tuple], scale: Mapping[str, Paired]):
    """arm → more of y+ than DPO at the same margin, trained and held out."""
    world = "; ".join(
        f"{arm} {spread(trained)}, held out {spread(held)}" for arm, (trained, held) in kept.items()
    )
    there = "; ".join(f"{arm} {paired}" for arm, paired in scale.items())
    return (
        "a stronger pull on $y^+$ keeps more of it at the same margin",
        "",
        f"toy world: {world}; {AT_SCALE} {there}",
        found(
            *_true(*((of > 0).all() for both in kept.values() for of in both)),
            *(paired.verdict == "more" for paired in scale.values()),
        ),
    )


def sparing_keeps_more(trained, held_out, scale: Paired):
    return (
        "sparing valleys keeps more of $y^+$ at the same margin",
        "",
        f"toy world: {spread(trained)}, held out {spread(held_out)}; {AT_SCALE} {scale}",
        found(*_true((trained > 0).all(), (held_out > 0).all(), scale.verdict == "more")),
    )


def lower_rate_keeps_more(trained, held_out):
    return (
        "a lower learning rate keeps more of $y^+$ at the same margin",
        "",
        f"{spread(trained)}, held out {spread(held_out)}",
        found(*_true((trained > 0).all(), (held_out > 0).all())),
    )


def on_policy_does_not_squeeze(rephrase, rephrase_dpo, margin, judged, scale: Mapping[str, tuple]):
    """``scale``: y+ and argmax of held-out prompts, as `at_update` tells them (DPO first).

    Less after as many updates, which comes in part of learning less, is a part of "no squeeze".
    """
    dpo, own, beyond = zip(*scale.values(), strict=True)
    told = ", ".join(f"{a} against {b}" for a, b in zip(own, dpo, strict=True))
    less = [of.verdict for of in beyond] == ["more", "less"]
    none = own[0].verdict != "falls" and own[1].verdict != "rises"
    return (
        "on-policy $y^-$ does not squeeze",
        "no squeeze",
        f"less after as many updates; toy world: rephrase {versus(rephrase, rephrase_dpo)}, but a "
        f"margin of {spread(margin)}, judged {spread(judged)}; SmolLM2, 300 pairs, held-out $y^+$ "
        f"and $y^*$ {told}",
        trend(*_true(rephrase > rephrase_dpo), less, none),
    )


def beats_dpo(counts: Mapping[str, tuple[int, int]]):
    """arm → answers won and lost against plain DPO."""
    better = winners(counts)
    lost = [arm for arm in counts if arm not in better]
    text = f"{len(better)} of {len(counts)} by the sign test" + ", not " * bool(lost)
    return (
        "a cure beats plain DPO by the truth",
        "",
        text + ", ".join(lost),
        found(*(arm in better for arm in counts)),
    )


def beats_sft(counts: Mapping[str, tuple[int, int]]):
    """arm → answers won and lost against the plain SFT that DPO began with."""
    better = winners(counts)
    alone = [arm for arm, of in counts.items() if of[0] > of[1] and sign_test(*of) < 0.05]
    return (
        "a cure beats the plain SFT that DPO began with",
        "",
        f"by the sign test, corrected for {len(counts)} arms: {', '.join(better) or 'none'}; "
        f"uncorrected: {', '.join(alone) or 'none'}",
        found(*(arm in better for arm in counts)),
    )


def gains_more_where_it_stops(beyond: Mapping[str, np.ndarray]):
    """arm → (2, N), held-out margin and y+ beyond DPO's, each where it does best."""
    sure = {arm: [for_all(of, len(beyond)) for of in both] for arm, both in beyond.items()}
    told = "; ".join(f"{arm} {margin}, $y^+$ {kept}" for arm, (margin, kept) in sure.items())
    best = max(sure, key=lambda arm: sure[arm][0].mean)
    wins, losses = signs(beyond[best][0])
    return (
        "stopped where it does best, a cure gains more held-out margin than DPO does",
        "",
        f"SmolLM2, 300 pairs, intervals that hold for all {len(beyond)} at once: {told}. {best}, "
        f"alone: {Paired.of(beyond[best][0])}, more at {wins} prompts and less at {losses} "
        f"(p = {sign_test(wins, losses):.2g})",
        found(*(margin.verdict == "more" for margin, _ in sure.values())),
    )


def made_again(off: float, tolerance: float, live: int, arms: int):
    return (
        "the record can be made again",
        "",
        f"{live} of {arms} arms, one seed: within {max(off, 0):.1g} nats",
        found(off < tolerance),
    )
