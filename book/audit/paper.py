"""What the paper claims, claim by claim, and seven places where the paper or its code is checked.

A row is (claim, paper, its logs, here, verdict). A run is a dict: response type → log-probs of its
training prompts, (S, N).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from audit import ClaimTable, found, guarantee, slip, trend
from audit.dpo import spread
from lessons.paper import GREEDY, LOGS, OFF_POLICY, QWEN, WINS, arrow, gain, logged
from lmdyn.plots import NAMES

SURE = 2.0  # standard errors that a mean change must be from zero
UNTESTED = "not testable here"
VERDICTS = ("guarantee, holds", "reproduced", "found", "partly", "not reproduced", UNTESTED)
Run = Mapping[str, np.ndarray]
Parts = Iterable[tuple[str, str, bool]]  # what, where, whether it came out


class Row(NamedTuple):
    claim: str
    paper: str
    logs: str
    here: str
    verdict: str


class Claims(ClaimTable):
    """A claim table with the logs."""

    def __init__(self, rows: Iterable[Row]):
        super().__init__(rows, ("claim", "paper", "its logs", "here", "verdict"))


def judged(claim, paper, here, parts: Parts, logs="", word="reproduced", also="") -> Row:
    """A trend: its verdict follows from its parts; those that failed are named."""
    parts = [(what, where, bool(holds)) for what, where, holds in parts]
    verdict = trend(*(holds for *_, holds in parts), word=word)
    if verdict == "partly":
        here += f"; not: {_failed(parts)}"
    return Row(claim, paper, logs, here + (f"; {also}" if also else ""), verdict)


def exact(claim, paper, here, holds) -> Row:
    """A guarantee: one exception violates it."""
    return Row(claim, paper, "", here, guarantee(bool(holds)))


def quoted(claim, paper, chapter: tuple[str, str]) -> Row:
    """What a chapter of this book found, (here, verdict), on a claim of the paper."""
    return Row(claim, paper, "", *chapter)


def _failed(parts) -> str:
    groups = {}
    for what, where, holds in parts:
        groups.setdefault((what, where), []).append(holds)
    return ", ".join(
        what + (f" ({where})" if where else "") + (f" {sum(of)} of {len(of)}" if of[1:] else "")
        for (what, where), of in groups.items()
        if not all(of)
    )


# The rules.


def curve(run: Run, kind: str) -> np.ndarray:
    """(S,), the mean over the prompts."""
    return np.nanmean(run[kind], axis=1, dtype=float)


def change(run: Run, kind: str, since: int = 0, at: int = -1) -> np.ndarray:
    """(N,), from one probing to another; NaN where a prompt lacks the type."""
    return run[kind][at].astype(float) - run[kind][since]


def sign(values: np.ndarray) -> int:
    """+1 or −1 if the mean is more than SURE standard errors from zero, else 0."""
    values = values[~np.isnan(values)]
    error = values.std(ddof=1) / np.sqrt(len(values))
    return int(np.sign(values.mean())) if abs(values.mean()) > SURE * error else 0


def rises(run: Run, kind: str) -> bool:
    return sign(change(run, kind)) > 0


def falls(run: Run, kind: str) -> bool:
    return sign(change(run, kind)) < 0


def bell(run: Run, kind: str) -> bool:
    """A rise to the peak of the mean and a fall from it, both sure."""
    peak = int(curve(run, kind).argmax())
    return sign(change(run, kind, 0, peak)) > 0 > sign(change(run, kind, peak))


def to_the_end(run: Run, kind: str) -> bool:
    """Rises, and nowhere stood higher than at the end."""
    return rises(run, kind) and int(curve(run, kind).argmax()) == len(run[kind]) - 1


def throughout(run: Run, kind: str) -> bool:
    return rises(run, kind) and bool((np.diff(curve(run, kind)) > 0).all())


def told(run: Run, kind: str) -> str:
    """First → last (peak)."""
    mean = curve(run, kind)
    return arrow(mean[0], mean[-1], mean.max())


def moved(run: Run, kind: str) -> str:
    """Change ± its standard error."""
    values = change(run, kind)
    values = values[~np.isnan(values)]
    return f"{values.mean():+.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def name(kind: str) -> str:
    return NAMES[kind][1]


# One step, and the squeeze: p (N, V), y (N,), log α = log p′/p (N, V), of negative steps.


def slope(sizes, errors) -> Row:
    found_ = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    claim = r"$\Delta\log\pi = -\eta A K G + O(\eta^2)$"
    paper = "error of slope 2 (Proposition 1)"
    return exact(claim, paper, f"slope {found_:.3f} (MLP)", abs(found_ - 2) < 0.02)


def size_of_A(stated, computed) -> Row:
    error = (stated / computed - 1).abs().max().item()
    claim = r"$\lVert A\rVert_F^2 = V\lVert\pi\rVert^2 + V - 2$"
    return exact(claim, "stated", f"largest relative error {error:.0e}", error < 1e-12)


def arrows(coefficients: Mapping[str, Mapping[str, float]]) -> Row:
    """Of loss → response → c at the reference model."""
    parts = [
        (loss, "", c["chosen"] < 0 and (c.get("rejected", 0.0) > 0) == (loss != "sft"))
        for loss, c in coefficients.items()
    ]
    right = sum(holds for *_, holds in parts)
    claim = "SFT pulls $y^+$ up; DPO, IPO, SLiC, SPIN push $y^-$ down, too"
    here = f"signs at the reference model: {right} of {len(parts)}"
    return judged(claim, "Fig. 2, its arrows", here, parts)


def lemma(closed, log_alpha) -> Row:
    error = (closed - log_alpha).abs().max().item()
    claim = r"every $\alpha_i = p'_i/p_i$ in closed form"
    return exact(claim, "Lemma 1", f"within {error:.0e} nats", error < 1e-9)


def at(values, index):
    return values.gather(-1, index[:, None])[:, 0]


def without(values, y, fill):
    """Each row with the entry of y replaced."""
    return values.scatter(-1, y[:, None], fill)


def rival(p, y):
    """i*, the likeliest label other than y."""
    return without(p, y, -1.0).argmax(-1)


def claim_1(y, log_alpha) -> Row:
    worst = at(log_alpha, y).max().item()
    here = f"largest $\\log\\alpha_y$ of {len(y)}: {worst:.0e}"
    return exact(r"$\alpha_y < 1$", "Claim 1, guarantee", here, worst < 0)


def claim_2(p, y, log_alpha) -> Row:
    worst = at(log_alpha, rival(p, y)).min().item()
    here = f"smallest $\\log\\alpha_{{i^*}}$: {worst:.0e}"
    return exact(r"$\alpha_{i^*} > 1$", "Claim 2, guarantee", here, worst > 0)


def claim_3(p, y, eta, log_alpha) -> Row:
    best = rival(p, y)
    gap = log_alpha - at(log_alpha, best)[:, None] - eta[:, None] * (p - at(p, best)[:, None])
    error = without(gap, y, 0.0).abs().max().item()
    here = rf"$\log\alpha_i - \log\alpha_k = \eta'(p_i - p_k)$ within {error:.0e} nats"
    claim = r"the rich get richer: $\alpha_i$ increases with $p_i$"
    return exact(claim, "Claim 3, trend", here, error < 1e-9)


def claim_3a(log_alpha) -> Row:
    """Of the others, where p is uniform."""
    apart = (log_alpha.max() - log_alpha.min()).item()
    here, holds = f"they differ by {apart:.0e} nats", apart < 1e-12 and log_alpha.min() > 0
    return exact("uniform $p$: all others gain equally", "Claim 3A", here, holds)


def claim_3b(log_alphas: Mapping[str, np.ndarray]) -> Row:
    """Of where y stands in a flat p → log α of the others."""
    share = {how: (of > 0).double().mean().item() for how, of in log_alphas.items()}
    here = ", ".join(f"{100 * part:.0f} % gain if $y$ is {how}" for how, part in share.items())
    parts = [("if $y$ is " + how, "", part > 0.5) for how, part in share.items()]
    return judged("flat $p$: most gain a little", "Claim 3B", here, parts)


def claim_3c(p, y, log_alpha) -> Row:
    peaky = at(p, rival(p, y)) > 3**-0.5
    alone = (without(log_alpha, y, -1.0) > 0).sum(-1)[peaky] == 1
    here = rf"{alone.sum()} of {len(alone)} where $p_{{i^*}} > 1/\sqrt3$"
    return exact("peaky $p$: only $i^*$ gains", "Claim 3C", here, alone.all())


def claim_4(y, low, high) -> Row:
    """Of (p, log α) where p_y is a third of what it is in the other (p, log α)."""
    best = rival(high[0], y)
    harder = without((high[1] < -1e-12) & (low[1] > high[1]), y, False)
    taken = []
    for q, log_alpha in (low, high):
        gains = q * log_alpha.expm1()
        taken.append(at(gains, best) / gains.clamp(min=0).sum(-1))
    less = taken[0] < taken[1] - 1e-9
    factor = at(low[1], best) > at(high[1], best)
    here = f"exceptions: {int(harder.sum())} fall less, {int(less.sum())} times $i^*$ has a smaller"
    here += f" share; its factor is larger in {int(factor.sum())} of {len(y)}"
    parts = {"others": not harder.any(), "its share": not less.any(), "its factor": factor.all()}
    claim = "the smaller $p_y$, the harder the others fall, the more $i^*$ takes"
    return judged(claim, "Claim 4", here, [(part, "", holds) for part, holds in parts.items()])


def claim_5(p, y, small, large) -> Row:
    """Of log α of a step and of the double step."""
    best = rival(p, y)
    turned = ((small > 1e-12) & (large < small - 1e-12)).any(-1)
    parts = {
        "$y$": (at(large, y) < at(small, y)).all(),
        "$i^*$": (at(large, best) > at(small, best)).all(),
        "the fallen": not ((small < -1e-12) & (large >= small)).any(),
        "all who gain": not turned.any(),
    }
    here = f"some gainer gains less from the double step in {int(turned.sum())} of {len(p)}"
    claim = r"a larger $\eta'$ amplifies all of it"
    return judged(claim, "Claim 5", here, [(part, "", holds) for part, holds in parts.items()])


def simulation(gainers: Mapping[str, int], n_labels: int) -> Row:
    """Of where the label stands → how many others a negative step lifts."""
    wanted = {"flat": n_labels - 1, "peak": n_labels - 1, "valley": 1}
    here = ", ".join(f"{where}: {n} of {n_labels - 1} gain" for where, n in gainers.items())
    parts = [(where, "", n == wanted[where]) for where, n in gainers.items()]
    claim = "on a peak a negative step lifts the others, in a valley it squeezes"
    claim = claim if "peak" in gainers else "the same with many labels"
    return judged(claim, f"simulated, V = {n_labels}", here, parts)


# SFT: runs is label → run; also is the verdict of the chapter on SFT, which counts the world too.


def _every(runs: Mapping[str, Run], kinds, test: Callable, tell=moved):
    parts = [(name(kind), label, test(run, kind)) for label, run in runs.items() for kind in kinds]
    here = "; ".join(
        f"{label}: " + ", ".join(f"{name(kind)} {tell(run, kind)}" for kind in kinds)
        for label, run in runs.items()
    )
    return here, parts


def _with(also: str) -> str:
    return f"with the toy world: {also}" if also else ""


def sft_chosen(runs, also="") -> Row:
    logs = logged("chosen", *list(LOGS)[:2], "Qwen1.5-1.8B, SFT")
    found_ = _every(runs, ["chosen"], throughout, told)
    return judged("$y^+$ rises throughout", "rises", *found_, logs, also=_with(also))


def sft_rephrases(runs, also="") -> Row:
    logs = logged("chosen_gptsemantic", "Qwen1.5-1.8B, SFT")
    found_ = _every(runs, ["chosen_selfr", "chosen_gptsemantic"], bell, told)
    claim = "rephrases of $y^+$ rise, then fall back"
    return judged(claim, "bell", *found_, logs, also=_with(also))


def sft_rejected(runs, also="") -> Row:
    logs = logged("rejected", "Qwen1.5-1.8B, SFT")
    found_ = _every(runs, ["rejected"], bell, told)
    return judged("$y^-$ rises, then falls back", "bell", *found_, logs, also=_with(also))


def sft_channel(runs, also="") -> Row:
    logs = logged("irr_train", "Qwen1.5-1.8B, SFT")
    claim = "answers to other training questions rise: a cause of hallucination"
    found_ = _every(runs, ["irr_train"], rises)
    return judged(claim, "rise clearly", *found_, logs, also=_with(also))


def sft_random(runs, also="") -> Row:
    found_ = _every(runs, ["random_permute", "random_nonhum"], falls)
    return judged("shuffled and random words fall", "fall", *found_, also=_with(also))


def sft_format(runs, also="") -> Row:
    kinds, parts = ["chosen_gptsemantic", "chosen_gptformat"], []
    for label, run in runs.items():
        semantic, form = (np.nanmean(change(run, kind)) for kind in kinds)
        parts.append(("weaker", label, semantic * form > 0 and abs(form) < abs(semantic)))
    claim, (here, _) = "format twins react as rephrases do, weaker", _every(runs, kinds, rises)
    return judged(claim, "weaker", here, parts, also=_with(also))


def sft_argmax(runs, also="") -> Row:
    logs = logged("argmax", *list(LOGS)[:2], "Qwen1.5-1.8B, SFT")
    found_ = _every(runs, ["argmax"], rises, told)
    return judged("$y^*$ rises in SFT, too", "", *found_, logs, word="found")


def sft_repetition(repeats: Mapping[str, tuple[float, float]], also="") -> Row:
    here = "; ".join(f"{label}: {a:.3f} → {b:.3f} of 3-grams" for label, (a, b) in repeats.items())
    parts = [("more", label, after > before + 0.01) for label, (before, after) in repeats.items()]
    claim = "greedy text becomes more repetitive"
    return judged(claim, "more repetitive", here, parts, also=_with(also))


# DPO: runs is where → runs; pairs is where → pairs of runs that are compared prompt by prompt.


def _on_all(runs: Mapping[str, Sequence[Run]], kinds, test: Callable, tell=moved):
    """The first place is told run by run, the others by the range of their changes."""
    first, *others = runs
    parts, texts = [], []
    for kind in kinds:
        has = {where: [run for run in of if kind in run] for where, of in runs.items()}
        parts += [(name(kind), where, test(run, kind)) for where, of in has.items() for run in of]
        text = [f"{name(kind)} " + ", ".join(tell(run, kind) for run in has[first])]
        text += [
            f"{where} {spread([np.nanmean(change(run, kind)) for run in has[where]])}"
            for where in others
            if has[where]
        ]
        texts.append(", ".join(text))
    return "; ".join(texts), parts


def _compared(pairs: Mapping[str, Sequence[tuple[Run, Run]]], directions, falling=False):
    """Does a type change more (+1) or less (−1) in the first run of each pair?

    Args:
        directions: type → +1 or −1.
        falling: whether the type must fall in the second run, too: what does not fall cannot be
            said to fall less.
    """
    first, *others = pairs
    parts, texts = [], []
    for kind, direction in directions.items():
        apart = {
            where: [change(a, kind) - change(b, kind) for a, b in of] for where, of in pairs.items()
        }
        parts += [
            (name(kind), where, sign(d) == direction and (not falling or falls(plain, kind)))
            for where, of in apart.items()
            for d, (_, plain) in zip(of, pairs[where], strict=True)
        ]
        text = [f"{name(kind)} " + ", ".join(f"{np.nanmean(d):+.1f}" for d in apart[first])]
        text += [f"{where} {spread([np.nanmean(d) for d in apart[where]])}" for where in others]
        texts.append(", ".join(text))
    return "difference of the changes: " + "; ".join(texts), parts


def _all(runs) -> list[Run]:
    return [run for of in runs.values() for run in of]


def _fastest(run: Run, kind: str) -> bool:
    others = ("chosen", "chosen_gptsemantic", "irr_train")
    return falls(run, kind) and all(
        np.nanmean(change(run, kind)) < np.nanmean(change(run, other)) for other in others
    )


def dpo_rejected(runs) -> Row:
    claim, logs = "$y^-$ falls fast, faster than the rest", logged("rejected", *OFF_POLICY)
    return judged(claim, "falls fast", *_on_all(runs, ["rejected"], _fastest, told), logs)


def dpo_near(runs) -> Row:
    found_ = _on_all(runs, ["reject_gptsemantic", "reject_gptformat"], falls)
    return judged("what is near $y^-$ falls with it", "falls", *found_)


def dpo_chosen(runs) -> Row:
    logs = logged("chosen", *OFF_POLICY[:2], "Qwen1.5-0.5B, DPO", OFF_POLICY[2])
    here, parts = _on_all(runs, ["chosen"], bell, told)
    below = [falls(run, "chosen") for run in _all(runs)]
    here += f"; surely (two standard errors) below its start in {sum(below)} of {len(below)} runs"
    claim = f"48 pairs, {len(below)} runs: $y^+$ surely rises, then surely falls"
    return judged(claim, "rises, then falls", here, parts, logs)


def dpo_others(runs) -> Row:
    kinds = ["chosen_gptsemantic", "irr_train", "random_permute"]
    logs = "; ".join(
        f"{name(kind)}: {logged(kind, *OFF_POLICY[: 2 if kind == 'random_permute' else 3])}"
        for kind in kinds
    )
    claim = "rephrases, other training answers and shuffled words fall"
    return judged(claim, "all fall", *_on_all(runs, kinds, falls), logs)


def dpo_argmax(runs) -> Row:
    logs = logged("argmax", "Pythia-410M, DPO", "Qwen1.5-0.5B, DPO", "Qwen1.5-1.8B, DPO")
    here, parts = _on_all(runs, ["argmax"], to_the_end, told)
    up = [rises(run, "argmax") for run in _all(runs)]
    here += f"; rises over all in {sum(up)} of {len(up)} runs"
    paper = f"{GREEDY[0]} → {GREEDY[1]} (slip 1)"
    return judged("$y^*$ rises all the way", paper, here, parts, logs)


def dpo_faster(taught, rises_) -> Row:
    """Of (nats, examples, learning rate): y+ in SFT, and the argmax in runs of DPO."""
    rate, *rates = (nats / (seen * lr) for nats, seen, lr in (taught, *rises_))
    bar, *texts = (f"{nats:+.1f} in {n} examples at {lr:g}" for nats, n, lr in (taught, *rises_))
    logs = "; ".join(
        f"{model}: {gain(f'{model}, DPO', 'argmax'):+.1f} against "
        f"{gain(f'{model}, SFT', 'chosen'):+.1f}"
        for model in ("Pythia-410M", "Qwen1.5-0.5B", "Qwen1.5-1.8B")
    )
    claim, here = "$y^*$ rises more than $y^+$ does in SFT", f"{', '.join(texts)}; against {bar}"
    parts = [("faster", "SmolLM2", of > rate) for of in rates]
    return judged(claim, "read off the faulty log", here, parts, logs)


def dpo_squeezing(accounts, small) -> Row:
    """Of (3, N) accounts of SmolLM2's runs, and (seeds, 3) of the world's."""
    parts, texts = [], []
    for i, (what, direction) in enumerate({"$i^*$": 1, "the rest": -1}.items(), 1):
        parts += [(what, "SmolLM2", sign(run[i]) == direction) for run in accounts]
        parts += [(what, "world", np.sign(of[i]) == direction) for of in small]
        ours = ", ".join(f"{run[i].mean():+.3f}" for run in accounts)
        texts.append(f"{what} {ours}, world {spread(small[:, i], 3)}")
    claim = "what $y^-$ loses goes to the likeliest other token $i^*$; the rest pays"
    here = "mean probability at a token of $y^-$: " + "; ".join(texts)
    return judged(claim, "squeezing", here, parts)


def dpo_longer(pairs) -> Row:
    found_ = _compared(pairs, {"chosen": -1, "chosen_gptsemantic": -1, "irr_train": -1})
    return judged("longer SFT before DPO makes it worse", "worse", *found_)


def dpo_on_policy(pairs) -> Row:
    directions = {"chosen": 1, "chosen_gptsemantic": 1, "irr_train": 1, "argmax": -1}
    claim = "on-policy $y^-$ do not squeeze: $y^+$ and others keep, $y^*$ rises less"
    return judged(claim, "no squeeze", *_compared(pairs, directions))


# Extend: pairs of (extend, then DPO; SFT on y+, then DPO).


def _logs_compared(*kinds) -> str:
    return "; ".join(
        f"{name(kind)} {gain(QWEN[0], kind):+.1f} against {gain(QWEN[1], kind):+.1f}"
        for kind in kinds
    )


def extend_start(pairs) -> Row:
    first, *others = pairs
    apart = {
        where: [a["rejected"][0].astype(float) - b["rejected"][0] for a, b in of]
        for where, of in pairs.items()
    }
    here = "higher by " + ", ".join(f"{np.nanmean(d):.1f}" for d in apart[first])
    for where in others:
        here += f", {where} {spread([np.nanmean(d) for d in apart[where]], sign=False)}"
    parts = [("$y^-$", where, sign(d) > 0) for where, of in apart.items() for d in of]
    logs = f"{LOGS[QWEN[0]]['rejected'][0]} against {LOGS[QWEN[1]]['rejected'][0]}"
    return judged("$y^-$ is likelier before DPO", "starts higher", here, parts, logs)


def extend_rejected(pairs) -> Row:
    logs = _logs_compared("rejected")
    return judged("$y^-$ falls less", "falls less", *_compared(pairs, {"rejected": 1}), logs)


def extend_squeeze(pairs) -> Row:
    kinds = ("chosen", "chosen_gptsemantic", "irr_train")
    claim, found_ = "$y^+$ and the rest fall less", _compared(pairs, dict.fromkeys(kinds, 1), True)
    also = "what does not fall without extend cannot fall less"
    return judged(claim, "the squeeze is weaker", *found_, _logs_compared(*kinds), also=also)


def extend_argmax(pairs) -> Row:
    found_, logs = _compared(pairs, {"argmax": -1}), _logs_compared("argmax")
    return judged("$y^*$ rises less", "less", *found_, logs)


def extend_generations(repeats, true) -> Row:
    """Of pairs of (before, after) repeated 3-grams, and two lists of shares of true answers."""
    texts, parts = [], []
    for (a0, a1), (b0, b1) in repeats:
        texts.append(f"{a0:.3f} → {a1:.3f} against {b0:.3f} → {b1:.3f}")
        parts.append(("repetition", "SmolLM2", a1 - a0 < b1 - b0 and a1 <= b1))
    here = f"repeated 3-grams {', '.join(texts)}; true held-out answers in the world "
    here += f"{spread(true[0], 2, False)} against {spread(true[1], 2, False)}"
    parts += [("truth", "world", a > b) for a, b in zip(*true, strict=True)]
    return judged("generations degrade less", "less", here, parts)


def extend_wins() -> Row:
    paper = "; ".join(f"{judge} {', '.join(f'{w:.3f}' for w in of)}" for judge, of in WINS.items())
    paper += " after 0, 2, 4, 6 epochs of DPO (Qwen1.5-1.8B)"
    here = "no such judge at hand; the world's truth stands in the row above"
    return Row("extend wins over the baseline", paper, "", here, UNTESTED)


# Scale: runs is learning rate → run on 300 pairs.


def scale_rejected(runs) -> Row:
    found_ = _every(runs, ["rejected"], _fastest)
    return judged("300 pairs: $y^-$ falls, more than the rest", "falls fast", *found_)


def scale_chosen(runs) -> Row:
    here, parts = _every(runs, ["chosen"], bell, told)
    below = sum(falls(run, "chosen") for run in runs.values())
    here += f"; surely (two standard errors) below its start in {below} of {len(runs)} runs"
    claim = "300 pairs: $y^+$ surely rises, then surely falls"
    return judged(claim, "rises, then falls", here, parts)


def scale_argmax(runs) -> Row:
    found_ = _every(runs, ["argmax"], to_the_end, told)
    return judged("300 pairs: $y^*$ rises all the way", "rises", *found_)


def scale_extend(pairs: Mapping[str, tuple[Run, Run]]) -> Row:
    kinds = ("chosen", "chosen_gptsemantic", "irr_train")
    here, parts = _compared({"300 pairs": [*pairs.values()]}, dict.fromkeys(kinds, 1), True)
    plain = ", ".join(moved(run, "chosen") for _, run in pairs.values())
    margins = ", ".join(
        " against ".join(
            f"{np.nanmean(change(run, 'chosen') - change(run, 'rejected')):+.1f}" for run in pair
        )
        for pair in pairs.values()
    )
    here += f"; at {', '.join(pairs)}, where plain DPO moves $y^+$ by {plain}; margins {margins}"
    claim = "300 pairs: after extend, as many updates and less margin, $y^+$ and the rest fall less"
    return judged(claim, "the squeeze is weaker", here, parts)


def larger_models() -> Row:
    claim = "the findings hold on Pythia (410M to 2.8B) and Qwen1.5 (0.5B, 1.8B)"
    return Row(claim, "six models", "", "only their logs are compared here", UNTESTED)


def larger_data() -> Row:
    here = "`lm.load_probes` reads both; no run was made on UltraFeedback"
    return Row("and on UltraFeedback as on HH", "two data sets", "", here, UNTESTED)


# Where the paper or its code slips.


def slip_argmax(right, faulty) -> tuple:
    """Of two curves (S,): the argmax along y+, and what the overwritten log would have said."""
    starts = LOGS["Pythia-410M, SFT"]["argmax"][0], LOGS[OFF_POLICY[0]]["faulty"][0]
    here = f"Pythia-410M {starts[0]} after the repair; SmolLM2 {right[0]:.1f}, by the faulty log "
    here += f"{faulty[0]:.1f}"
    claim = "the argmax along $y^+$ is that of another response"
    return claim, f"starts at {starts[1]}", here, slip(faulty[0] < 1.5 * right[0])


def slip_norm(grown, plotted) -> tuple:
    claim = r"the plotted $\lVert A\rVert_F^2$ is a root of a root"
    here = f"in SFT it grows by {grown:.1%}, the plotted number by {plotted:.1%}"
    return claim, "its fourth root", here, slip(grown > 2 * plotted)


def slip_uniform(uniform_sq, n_labels) -> tuple:
    claim = r"$\lVert\pi\rVert^2$ of the uniform prediction is $1/V$"
    here = f"{uniform_sq:.3f} at $V = {n_labels}$"
    return claim, r"$1/\sqrt V$", here, slip(abs(uniform_sq - 1 / n_labels) < 1e-12)


def slip_diagonal(printed, right) -> tuple:
    """Of the largest errors of the printed diagonal and of the right one."""
    claim = r"the diagonal of $\nabla_z\pi$ is $\pi_i(1 - \pi_i)$"
    here = f"the printed one is off by up to {printed:.2f}"
    return claim, r"$1 - \pi_i\pi_i$", here, slip(right < 1e-12 < printed)


def slip_ipo(ratio) -> tuple:
    claim = r"IPO's scalar is $2(1/2\beta - h)$, not DPO's with another $a$"
    here = f"{ratio:.1f} times as large at the start"
    return claim, r"$\beta(1 - a)$ with $a = h - 1/2\beta$", here, slip(ratio > 2)


def slip_space(first, second, cost: str) -> tuple:
    claim = "in the probe files rephrases begin without a space, $y^+$ with one"
    here = f"first tokens `{first}` and `{second}`; costs a rephrase {cost}"
    return claim, "not mentioned", here, slip(first != second)


def extend_in_logs(risen: tuple[float, float], room: tuple[float, float]) -> tuple:
    """Of the argmax after extend and without: the rise in nats, and as a share of the possible."""
    here = f"the repetition's logs: {risen[0]:+.1f} against {risen[1]:+.1f}; of its distance to "
    here += f"zero {room[0]:.2f} against {room[1]:.2f}"
    return "after extend $y^*$ rises less, in nats", "less", here, trend(risen[0] < risen[1])


# What stands, in sum.


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Verdict → how many rows, in the order of VERDICTS."""
    of = Counter(row.verdict for row in rows)
    unknown = set(of) - {*VERDICTS, "violated", "not found"}
    if unknown:
        raise ValueError(f"no such verdict: {', '.join(sorted(unknown))}")
    return {verdict: of[verdict] for verdict in (*VERDICTS, "violated", "not found") if of[verdict]}


def counted(rows: Sequence[Row]) -> str:
    """`counts`, in words."""
    words = {"guarantee, holds": "guaranteed"}
    of = counts(rows).items()
    return f"{len(rows)} rows: " + ", ".join(f"{n} {words.get(word, word)}" for word, n in of)


def failed(rows: Iterable[Row]) -> list[str]:
    """The claims that come out not even in part."""
    return [r.claim for r in rows if re.match("not (reproduced|found)|violated", r.verdict)]


def topic(title: str, rows: Sequence[Row]) -> tuple:
    """A topic in one row: found if all its claims come out, partly if some fail outright."""
    missed = failed(rows)
    here = counted(rows) + (f". Not: {'; '.join(missed)}" if missed else "")
    return (
        f"{title}: its claims come out, at least in part",
        here,
        found(*(not failed([row]) for row in rows)),
    )
