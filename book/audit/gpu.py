"""What chapter 13 claims: of plans, of resuming, of precision, and of DPO after SFT and extend."""

from collections.abc import Mapping, Sequence

import numpy as np

from audit import found, guarantee, trend
from audit.scale import Moved, Scale, margins

NUMBERS = ("chosen", "rejected", "chosen_gptsemantic", "irr_train", "argmax")
SHOWN = ("chosen", "rejected", "argmax")
HELD_OUT = "chosen, held out"
Changes = Mapping[str, float]  # type → by how much it moved, nats; NaN where nobody knows

# Log-probs at the start and the end of DPO in the paper's logs, of `NUMBERS`; None if not logged.
# Each log has prompts of its own. The argmax of the first two was logged by faulty code.
LOGS = {
    "Pythia-410M": ((-152.0, -146.3), (-121.4, -197.6), (-155.9, -187.9), (-193.4, -223.0), None),
    "Pythia-1B": ((-132.3, -139.0), (-103.6, -291.8), (-138.1, -205.3), (-173.6, -252.1), None),
    "Pythia-410M, repaired": ((-152.0, -156.2), None, None, None, (-61.6, -41.2)),
    "Qwen1.5-0.5B, repaired": ((-132.7, -159.8), None, None, None, (-51.6, -35.9)),
}
# The independent repetition, Qwen1.5-1.8B: after SFT, after extend.
REPEATED = {
    "Qwen1.5-1.8B": (
        ((-54.4, -113.3), (-106.5, -325.3), (-140.5, -289.1), (-144.0, -317.0), (-30.0, -15.4))
    ),
    "Qwen1.5-1.8B, extend": (
        ((-87.5, -127.0), (-67.5, -214.6), (-130.0, -222.4), (-142.3, -261.8), (-42.2, -23.4))
    ),
}

# What is seen: the types that it is about, and the rule, on the changes a (after extend: b).
OBSERVED = {
    "rejected falls, and most of all": (
        ("rejected", "chosen_gptsemantic", "irr_train"),
        lambda a, b: a["rejected"] < 0 and a["rejected"] == np.nanmin(list(a.values())),
    ),
    "rephrase and other answers fall too": (
        ("chosen_gptsemantic", "irr_train"),
        lambda a, b: a["chosen_gptsemantic"] < 0 and a["irr_train"] < 0,
    ),
    "chosen ends lower than it began": (("chosen",), lambda a, b: a["chosen"] < 0),
    "the argmax rises": (("argmax",), lambda a, b: a["argmax"] > 0),
    "after extend rejected falls less": (
        ("rejected",),
        lambda a, b: None if b is None else b["rejected"] > a["rejected"],
    ),
    "after extend chosen ends higher beside its start": (
        ("chosen",),
        lambda a, b: None if b is None else b["chosen"] > a["chosen"],
    ),
}


def logged(ends: Sequence[tuple[float, float] | None]) -> Changes:
    """The changes in a log of the paper."""
    return {
        name: np.nan if pair is None else pair[1] - pair[0]
        for name, pair in zip(NUMBERS, ends, strict=True)
    }


def changed(trajectory, split: str = "train") -> Changes:
    """The changes in a run, of the mean over its prompts of a split."""
    means = {name: trajectory.mean(name, split=split) for name in NUMBERS}
    return {name: float(curve[-1] - curve[0]) for name, curve in means.items()}


def changed_at_scale(record: Scale, run: str, group: str = "train") -> Changes:
    last = len(record.runs[run]["steps"]) - 1
    return {name: float(record.changes(run, name, group, last).mean()) for name in NUMBERS}


def look(a: Changes, b: Changes | None = None) -> dict[str, bool | None]:
    """Observation → whether it is seen; None where the numbers do not tell."""
    return {
        text: None if any(np.isnan(a[name]) for name in names) else rule(a, b)
        for text, (names, rule) in OBSERVED.items()
    }


def in_logs() -> dict[str, str]:
    """Observation → in how many of the paper's logs that can tell it is seen; in its repetition."""
    seen = [look(logged(ends)) for ends in LOGS.values()]
    again = look(*map(logged, REPEATED.values()))
    known = {text: [log[text] for log in seen if log[text] is not None] for text in OBSERVED}
    own = {text: f"in {sum(log)} of {len(log)} logs; " for text, log in known.items() if log}
    yes = {text: "yes" if again[text] else "no" for text in known}
    return {text: f"{own.get(text, '')}its repetition: {yes[text]}" for text in known}


# --- at the same margin ---------------------------------------------------------------------------


def curves_of(trajectory) -> dict[str, np.ndarray]:
    """(S, n) log π of `SHOWN` on training prompts, and of y+ on those held out."""
    curves = {name: trajectory.values(name, split="train") for name in SHOWN}
    return curves | {HELD_OUT: trajectory.values("chosen", split="test")}


def curves_at_scale(record: Scale, run: str) -> dict[str, np.ndarray]:
    curves = {name: record.values(run, name, "train") for name in SHOWN}
    return curves | {HELD_OUT: record.values(run, "chosen", "test")}


def mean_margin(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """(S,) of the training prompts, nats, since the first probing."""
    return margins(np.stack([curves["chosen"], curves["rejected"]], -1)).mean(1)


def changes_at(margin: float, curves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """(n,) of each curve, where the mean margin is first reached, between two probings.

    Raises:
        ValueError: the margin is not reached.
    """
    means = mean_margin(curves)
    i = int((means >= margin).argmax())
    if i == 0:
        raise ValueError(f"the mean margin is at most {means.max():.2f}, never {margin:.2f}")
    share = (margin - means[i - 1]) / (means[i] - means[i - 1])
    return {
        name: curve[i - 1] + share * (curve[i] - curve[i - 1]) - curve[0]
        for name, curve in curves.items()
    }


def moved_at(margin: float, curves: Mapping[str, np.ndarray]) -> dict[str, Moved]:
    return {name: Moved.of(change) for name, change in changes_at(margin, curves).items()}


# --- claims ---------------------------------------------------------------------------------------


def of_plans(off: Sequence[float], beyond: Sequence[float], catalogue: set, fits: set) -> list:
    """Claims on the plans of the six models.

    Args:
        off: the planned number of parameters less that counted by hand, millions.
        beyond: planned GB beyond 16 bytes a parameter.
        catalogue: models that have a recipe for a T4.
        fits: models that fit one, by the plan.
    """
    off, low, high = max(map(abs, off)), min(beyond), max(beyond)
    return [
        (
            "the plan counts the parameters of all six models",
            "",
            f"off by at most {off:.2f} M",
            guarantee(off < 0.06),
        ),
        (
            "RMSprop in float32 takes at least 16 bytes a parameter",
            "",
            f"planned beyond that: {abs(low):.1f} to {high:.1f} GB",
            guarantee(low > -0.01),
        ),
        (
            "the recipes for a T4 are those that the plan says fit",
            "",
            ", ".join(sorted(catalogue)),
            guarantee(catalogue == fits),
        ),
    ]


def of_runs(gap: float, drift: float, moved: float) -> list:
    """Claims on a run that was cut off, and on one in less memory: largest differences, nats."""
    return [
        (
            "a run that was cut off and resumed is the uninterrupted one",
            "",
            f"largest difference {gap:g} nats, on a CPU",
            guarantee(gap == 0),
        ),
        (
            "half the batch, accumulated, activations computed twice: the same updates",
            "",
            f"up to {drift:.0e} nats, of {moved:.1f}",
            guarantee(drift < 1e-3),
        ),
    ]


def of_precision(stirred: Mapping[str, float]) -> list:
    """Claim on the share of weights that an update of 5e-7 moves, by precision."""
    whole, half = stirred["float32"], stirred["bfloat16"]
    return [
        (
            "an update of 5e-7 needs weights in float32",
            "float32 weights",
            f"it moves {whole:.0%} of them, in bfloat16 {half:.1%}",
            guarantee(whole > 0.99 > 0.1 > half),
        )
    ]


def of_dpo(seen: Mapping[str, Mapping[str, bool | None]]) -> list:
    """Claims of the paper on DPO: where → what `look` saw there."""
    rows = []
    for text, paper in in_logs().items():
        known = {where: log[text] for where, log in seen.items() if log[text] is not None}
        told = ", ".join(f"{where}: {'yes' if log else 'no'}" for where, log in known.items())
        rows.append((text, paper, told, trend(*known.values())))
    return rows


def of_extend(
    margin: float, after_sft: np.ndarray, after_extend: np.ndarray, on_page: str
) -> tuple:
    """Claim on y+ held out, (n,) changes of the same prompts where both reach a margin."""
    less = Moved.of(after_extend - after_sft)
    return (
        "record of 300 pairs: at one margin, held-out chosen falls less after extend",
        "",
        f"at {margin:.0f} nats by {less} nats less, {len(after_sft)} prompts, one seed; on this "
        f"page {on_page}",
        found(less.verdict == "rises" and after_sft.mean() < 0),
    )


def of_measured(rows: Sequence, differences: Mapping[str, float]) -> list:
    """Claims on a real GPU: plans that held, and agreement with the CPU in float64, nats.

    The rows are those of a record of ``benchmarks/gpu.py``, with its names.
    """
    held = [row.peak_gb <= row.planned_gb for row in rows if row.planned_gb is not None]
    worst = max(differences.values())
    return [
        (
            "what a run takes on a GPU is within its plan",
            "",
            f"in {sum(held)} of {len(held)} measurements",
            found(all(held)),
        ),
        (
            "a GPU and a CPU in float64 agree to 0.001 nats",
            "",
            f"largest difference {worst:.0e} nats",
            found(worst < 1e-3),
        ),
    ]
