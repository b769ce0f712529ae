"""What a trajectory says, in plain words."""

from dataclasses import dataclass

import numpy as np

from lmdyn.lm.squeeze import ERRORS, Alert, squeeze
from lmdyn.lm.trajectory import Trajectory

ADVICE = (
    "Train on both answers first (extend): SFT on chosen and on rejected, then the same tuning.",
    "Add an SFT term to the loss, as RPO does: finetune(…, loss='rpo').",
    "Let no gradient through rejected tokens in a valley: finetune(…, spare_valleys=True).",
    "Drop the pairs that push hardest: python -m lmdyn diagnose FILE --model MODEL ranks them.",
    "Take rejected answers from the model itself: finetune_on_policy.",
)
# What to say of a type, where the run probed it.
_SUBJECTS = {
    "chosen": "The chosen responses",
    "rejected": "The rejected responses",
    "argmax": "The likeliest tokens along the chosen responses (argmax)",
    "chosen_selfr": "The model's own rephrases of the chosen responses",
    "chosen_gptsemantic": "The rephrases of the chosen responses",
    "reject_gptsemantic": "The rephrases of the rejected responses",
    "irr_train": "The answers to other training prompts",
}


@dataclass(frozen=True)
class Verdict:
    """The judgement on a run.

    Attributes:
        kind: "squeeze" at the end, "past" if there was one before, "fall" if the chosen
            responses fell without one, "none", or "open" where the probes cannot tell.
        headline: one sentence.
        facts: what happened to the responses, a sentence each.
        advice: what to do.
        alerts: of the squeeze, probing by probing.
    """

    kind: str
    headline: str
    facts: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    alerts: tuple[Alert, ...] = ()


def verdict(trajectory: Trajectory) -> Verdict:
    """Judge a run by its probings."""
    if not len(trajectory.steps):
        return Verdict(
            "open",
            "Not judged: nothing was probed.",
            advice=("Pass probes=… to finetune, or ProbeCallback(probes) to a trainer.",),
        )
    curves = trajectory.mean()
    facts = [_moved(trajectory, name) for name in _SUBJECTS if name in curves]
    facts = tuple(filter(None, [*facts, _splits(trajectory)]))
    if not {"chosen", "rejected"} <= set(trajectory.types):
        return Verdict(
            "open",
            "Not judged: a squeeze shows in chosen and rejected, and the probes lack one of them.",
            facts,
            ("Probe rows that have both chosen and rejected.",),
        )
    if len(trajectory.steps) < 2 or len(trajectory.split) < 2:
        lacking = "two probings" if len(trajectory.steps) < 2 else "two prompts"
        return Verdict("open", f"Not judged: that takes at least {lacking}.", facts)
    everywhere, held_out = _alerts(trajectory), []
    if not any(everywhere) and "test" in trajectory.split:
        held_out = _alerts(trajectory, "test")
    alerts = held_out if any(held_out) else everywhere
    if not any(alerts):
        return _without_alert(trajectory, facts)
    where = " on held-out prompts" if alerts is held_out else ""
    last = next(filter(None, reversed(alerts)))
    seen = (
        f"From step {last.since}, where the chosen responses{where} stood highest, to step "
        f"{last.step} they changed by {signed(last.chosen)} nats and the rejected ones by "
        f"{signed(last.rejected)}, while the likeliest tokens gained {signed(last.argmax)}: "
        "probability left both answers for what the model says anyway."
    )
    if alerts[-1]:
        kind = "squeeze"
        gaps = [i for i, alert in enumerate(alerts) if alert is None]
        alerts = alerts[gaps[-1] + 1 if gaps else 0 :]  # those that it has lasted for
        headline = (
            f"Squeeze{where}: chosen and rejected fall while the likeliest tokens gain, since step "
            f"{last.since} (first seen at step {alerts[0].step})."
        )
    else:
        kind = "past"
        alerts = [alert for alert in alerts if alert]
        headline = (
            f"A squeeze{where} was seen from step {alerts[0].step} to step {last.step}, and no "
            "longer at the end."
        )
    advice = ADVICE
    if last.since > trajectory.steps[0]:
        advice += (f"Or stop where the chosen responses stood highest: step {last.since}.",)
    return Verdict(kind, headline, (seen, *facts), advice, tuple(alerts))


def _without_alert(trajectory: Trajectory, facts: tuple[str, ...]) -> Verdict:
    change = _changes(trajectory, "chosen")
    if _is_noise(change) or change.mean() > 0:
        return Verdict(
            "none",
            "No squeeze: at no probing had chosen and rejected both fallen while the likeliest "
            "tokens gained.",
            facts,
        )
    highest = trajectory.steps[trajectory.mean("chosen").argmax()]
    return Verdict(
        "fall",
        f"No squeeze, yet the chosen responses fell by {-change.mean():.1f} nats.",
        facts,
        (
            f"They stood highest at step {highest}: stop there, or lower the learning rate.",
            "If they are to rise, add an SFT term to the loss: finetune(…, loss='rpo').",
        ),
    )


def signed(value: float) -> str:
    """A number for a sentence, with its sign."""
    return f"{value:+.1f}".replace("-", "−")


def _alerts(trajectory: Trajectory, split: str | None = None) -> list[Alert | None]:
    """What the rule says of each probing from the second on."""
    chosen, rejected = (trajectory.types.index(name) for name in ("chosen", "rejected"))
    rows = trajectory.split == split if split else slice(None)
    logp, argmax = trajectory.logp[:, rows], trajectory.argmax_logp[:, rows]
    curves = trajectory.steps, logp[..., chosen], logp[..., rejected], argmax[..., chosen]
    return [squeeze(*(curve[:s] for curve in curves)) for s in range(2, len(logp) + 1)]


def _changes(trajectory: Trajectory, name: str, split: str | None = None) -> np.ndarray:
    """How far each prompt that has the type came, nats."""
    argmax = name == "argmax" and name not in trajectory.types
    values = trajectory.argmax_logp if argmax else trajectory.logp
    values = values[..., trajectory.types.index("chosen" if argmax else name)]
    change = (values[-1] - values[0]).astype(np.float64)
    rows = np.ones(len(change), bool) if split is None else trajectory.split == split
    return change[rows & ~np.isnan(change)]


def _is_noise(change: np.ndarray) -> bool:
    """Whether a mean change is no further from zero than the rule of a squeeze asks."""
    error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else 0.0
    return bool(abs(change.mean()) <= ERRORS * error)


def _moved(trajectory: Trajectory, name: str) -> str:
    change, curve = _changes(trajectory, name), trajectory.mean(name)
    if len(trajectory.steps) < 2 or not len(change):
        return ""
    ends = f"{curve[0]:.1f} → {curve[-1]:.1f} nats".replace("-", "−")
    if _is_noise(change):
        said = f"changed by {signed(change.mean())}, within the noise of {len(change)} prompts"
    else:
        said = f"{'rose' if change.mean() > 0 else 'fell'} by {abs(change.mean()):.1f}"
    return f"{_SUBJECTS[name]} {said} ({ends})."


def _splits(trajectory: Trajectory) -> str:
    """Train against held-out."""
    if {"train", "test"} - set(trajectory.split) or len(trajectory.steps) < 2:
        return ""
    said = []
    for name in filter(trajectory.types.__contains__, ("chosen", "rejected")):
        of = [_changes(trajectory, name, split) for split in ("train", "test")]
        if all(map(len, of)):
            train, test = (signed(change.mean()) for change in of)
            said.append(f"{name} {train} on train prompts and {test} on held-out ones")
    return f"Train against held-out, change in nats: {'; '.join(said)}." if said else ""
