"""The claims of the chapter "What SFT does", and what counts as a bell or a clear rise."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from audit import found, guarantee, spread, trend


class Change(NamedTuple):
    """A change over prompts, nats: its mean, the standard error of that, how many of them rise."""

    mean: float
    error: float
    share: float = float("nan")

    @classmethod
    def of(cls, change: np.ndarray) -> "Change":
        """Of (N,) changes; NaN where a prompt lacks the response."""
        change = np.asarray(change, dtype=float)
        change = change[~np.isnan(change)]
        error = change.std(ddof=1) / np.sqrt(len(change))
        return cls(float(change.mean()), float(error), float((change > 0).mean()))

    @property
    def up(self) -> bool:
        """A rise by more than two standard errors."""
        return self.mean > 2 * self.error

    @property
    def down(self) -> bool:
        """A fall by more than two standard errors."""
        return self.mean < -2 * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.error:.1f}"


class Bell(NamedTuple):
    """From the start to the peak of the mean curve, and from there to the end."""

    rise: Change
    fall: Change
    peak: int  # the probing

    @classmethod
    def of(cls, logp: np.ndarray) -> "Bell":
        """Of log π at S probings of N prompts, (S, N)."""
        peak = int(np.nanmean(logp, 1).argmax())
        return cls(Change.of(logp[peak] - logp[0]), Change.of(logp[peak] - logp[-1]), peak)

    @property
    def holds(self) -> bool:
        """Both the rise and the fall exceed two standard errors over the prompts."""
        return self.rise.up and self.fall.up


Bells = Mapping[str, Sequence[Bell]]  # type → one for each run
Changes = Mapping[str, Mapping[str, Change]]  # split → type → Change

# SmolLM2 has two records: a small one of 48 rows, one run, and a large one of 300 rows, a run for
# each seed (``large``). Both are told. The verdict is on the large one, in every seed.


def chosen_rises(world: np.ndarray, real: Change, record: np.ndarray, large: Sequence[np.ndarray]):
    """World: (runs, S) mean log π(y+); record: (S,); large: (S, N) of each seed."""
    rising, of_record = (np.diff(world) > 0).mean(1), (np.diff(record) > 0).mean()
    at_scale = np.array([(np.diff(of.mean(1)) > 0).mean() for of in large])
    told = ", ".join(str(Change.of(of[-1] - of[0])) for of in large)
    return (
        "$y^+$ rises throughout",
        "rises",
        f"world: {spread(world[:, -1] - world[:, 0], 1, True)} nats, rising in {spread(rising)} "
        f"of the epochs; SmolLM2: {real}, in {of_record:.2f} of the epochs; on 300 rows: {told}, "
        f"in {spread(at_scale)} of the thirds of an epoch",
        trend(bool((rising == 1).all()), bool((at_scale == 1).all())),
    )


def _bells(claim: str, what: str, world: Bells, record: Mapping[str, Bell], large: Bells):
    held = [[bell.holds for bell in of] for of in world.values()]
    told = ", ".join(f"{sum(of)} of {len(of)}" for of in held)
    real = ", ".join("yes" if bell.holds else "no" for bell in record.values())
    at_scale = [[bell.holds for bell in large[name]] for name in record]
    seeds = ", ".join(f"{sum(of)} of {len(of)}" for of in at_scale)
    said = f"world: {what}, {told} runs; SmolLM2: {real}; on 300 rows: {seeds} seeds"
    every = chain(*held, *at_scale, (bell.holds for bell in record.values()))
    return (claim, "bell", said, trend(*every))


def rephrases_bell(world: Bells, record: Mapping[str, Bell], large: Bells):
    """Each by type: self-rephrase and rephrase."""
    claim = "rephrases of $y^+$ rise, then fall back"
    return _bells(claim, "of either kind", world, record, large)


def rejected_bells(world: Bells, record: Mapping[str, Bell], large: Bells):
    """Each by type: rejected and its rephrase."""
    return _bells("so does $y^-$", "it and its rephrase", world, record, large)


def channel_rises(world: Mapping[str, tuple], real: Changes, large: Sequence[Changes]):
    """World: split → (trained, held-out answers), each (runs,); large: each seed's changes."""
    (train, _), (test, _) = world["train"], world["test"]
    here = f"world: {spread(train, 1, True)}, held-out prompts {spread(test, 1, True)}"
    small = [real[split]["irr_train"] for split in ("train", "test")]
    at_scale = [[of[split]["irr_train"] for of in large] for split in ("train", "test")]
    told = [", ".join(map(str, of)) for of in at_scale]
    return (
        "other training answers rise",
        "rise clearly",
        f"{here}; SmolLM2: {small[0]}, held-out prompts {small[1]}; on 300 rows: {told[0]}, "
        f"held-out prompts {told[1]}",
        trend(
            *(bool((up > 0).all()) for up, _ in world.values()),
            *(all(c.up for c in of) for of in at_scale),
        ),
    )


def channel_beats_held_out(world: Mapping[str, tuple], real: Changes, large: Sequence[Changes]):
    """Arguments as in `channel_rises`."""
    cases = np.concatenate([up > other for up, other in world.values()])
    small, *at_scale = (
        [(of[split]["irr_train"].mean, of[split]["irr_test"].mean) for split in ("train", "test")]
        for of in (real, *large)
    )
    told = ", ".join(f"{of[0][0]:+.1f} against {of[0][1]:+.1f}" for of in at_scale)
    return (
        "more than held-out answers made by the same rule",
        "",
        f"world: in {cases.sum()} of {cases.size} cases; SmolLM2: {small[0][0]:+.1f} against "
        f"{small[0][1]:+.1f}; on 300 rows: {told}",
        found(
            *(bool((up > other).all()) for up, other in world.values()),
            *(trained > unseen for of in at_scale for trained, unseen in of),
        ),
    )


def channel_is_said(borrowed: np.ndarray, placebo: np.ndarray):
    """Both (runs, 2): the share of held-out answers before and after."""
    told = (" → ".join(map(spread, values.T)) for values in (borrowed, placebo))
    return (
        "the channel shows in what is said: values learned for other questions",
        "a cause of hallucination",
        "{}; values of strangers {}".format(*told),
        found(*(np.diff(borrowed) > np.diff(placebo))[:, 0]),
    )


def nonsense_falls(
    world: Mapping[str, np.ndarray],
    real: Mapping[str, Change],
    large: Sequence[Mapping[str, Change]],
):
    """All by type; the world's (runs,) changes; of the large record those of each seed."""
    at_scale = [[of[name] for of in large] for name in real]
    return (
        "shuffled and random text falls",
        "falls",
        f"world: {', '.join(spread(v, 1, True) for v in world.values())}; SmolLM2: "
        f"{', '.join(map(str, real.values()))}; on 300 rows: "
        f"{'; '.join(', '.join(map(str, of)) for of in at_scale)}",
        trend(
            *(bool((change < 0).all()) for change in world.values()),
            *(all(c.mean < -2 * c.error for c in of) for of in at_scale),
        ),
    )


def twins_weaker(
    twin: np.ndarray,
    rephrase: np.ndarray,
    real: tuple[Change, Change],
    large: Sequence[tuple[Change, Change]],
):
    """Of the format twin and the rephrase of y+: (runs,) changes in the world, and the records'."""
    weaker = np.abs(twin) < np.abs(rephrase)
    at_scale = [abs(a.mean) < abs(b.mean) and a.mean * b.mean > 0 for a, b in large]
    small, *told = (f"{a} against {b}" for a, b in (real, *large))
    return (
        "format twins react as rephrases do, weaker",
        "weaker",
        f"world: weaker in {weaker.sum()} of {len(weaker)} runs; SmolLM2: {small}; on 300 rows: "
        f"{', '.join(told)}",
        trend(bool(weaker.all()), all(at_scale)),
    )


def more_repetitive(world: float, hh: Mapping[str, float], sample: Mapping[str, float]):
    """The share of repeated 3-grams: the world's largest after SFT; each record before, after."""
    told = (f"{of['before']:.3f} → {of['after']:.3f}" for of in (hh, sample))
    return (
        "greedy text becomes more repetitive",
        "more repetitive",
        "world: answers too short, at most {:.3f}; SmolLM2: {} on HH, {} on the sample".format(
            world, *told
        ),
        trend(hh["after"] > hh["before"] + 0.01),
    )


def sum_of_pulls(error: float):
    return (
        "to first order, a step on all rows is the sum of their pulls",
        "Eq. 5",
        f"error {error:.1%}",
        guarantee(error < 0.05),
    )


def own_row_turns(first: np.ndarray, last: np.ndarray):
    """(runs,) the own row's pull on its answer's rephrase, at the start and half-way."""
    return (
        "half-way the own row pushes the rephrase of its answer down",
        "",
        f"pull {spread(first)} → {spread(last)}",
        found(*((first > 0) & (last < 0))),
    )


def influence_keeps_its_sign(first: np.ndarray, last: np.ndarray):
    """(runs, types) the own row's pull on each type, at the start and half-way."""
    same = (np.sign(first) == np.sign(last)).all(0)
    return (
        "who is pulled which way stays as it is",
        "assumed: relative influence is stable",
        f"world: the own row keeps its sign on {same.sum()} of {len(same)} types in all runs",
        trend(*same),
    )


def pulls_cancel(smaller: np.ndarray, less_aligned: np.ndarray):
    """(runs,) by what factor pulls of other rows shrink singly, and their alignment does."""
    return (
        "the common pull fades because pulls cancel, more than because they shrink",
        "",
        f"world: alignment falls {spread(less_aligned, 1)}-fold, a single pull "
        f"{spread(smaller, 1)}-fold",
        found(*(less_aligned > smaller)),
    )
