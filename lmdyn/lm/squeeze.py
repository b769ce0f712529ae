"""The rule that calls a squeeze: what the paper sees in DPO, as a test on probed prompts."""

from dataclasses import dataclass

import numpy as np

ERRORS = 1.64  # standard errors that a mean must be from zero: 5%, one-sided, for each of three
FALL = 0.25  # nats that chosen must have lost since the start: a fifth of its probability


@dataclass(frozen=True)
class Alert:
    """A squeeze: both responses fall while the likeliest tokens gain.

    Attributes:
        step: the update after which it was seen.
        since: the update since which the changes are counted, where ``chosen`` stood highest.
        chosen: mean change of log π(y+), nats.
        rejected: mean change of log π(y−), nats.
        argmax: mean change of the likeliest tokens' log-prob along y+, nats.
    """

    step: int
    since: int
    chosen: float
    rejected: float
    argmax: float

    def __str__(self) -> str:
        return (
            f"squeeze at step {self.step}: since step {self.since} the chosen responses have "
            f"changed by {self.chosen:+.1f} nats and the rejected ones by {self.rejected:+.1f}, "
            f"while the likeliest tokens have gained {self.argmax:+.1f}. Probability leaves both "
            "answers for what the model says anyway. Train on both answers before (extend), add "
            "an SFT term (loss 'rpo'), spare the rejected tokens in a valley, or drop the pairs "
            "that push hardest."
        )


def squeeze(steps, chosen, rejected, argmax) -> Alert | None:
    """Whether the last of S probings shows a squeeze: DPO off-policy, section 4.2 of the paper.

    Counted since the probing at which the mean of ``chosen`` stood highest: its log-probs and
    those of ``rejected`` have fallen and those of the argmax have risen, each by more than 1.64
    standard errors of the mean over the prompts (paired). And ``chosen`` stands at least 0.25 nats
    below where it started: SFT that overfits turns all three alike, and pushes nothing.
    The chapter "Probe your own run" has what this rule finds in runs that it was not made on.

    Args:
        steps: (S,) updates.
        chosen: (S, N) log-probs of N prompts, nats; NaN for prompts left out.
        rejected: (S, N), as all below.
        argmax: along ``chosen``.
    """
    chosen, rejected, argmax = (np.asarray(x, dtype=np.float64) for x in (chosen, rejected, argmax))
    there = ~np.isnan(chosen + rejected + argmax).any(0)
    if len(steps) < 2 or there.sum() < 2:
        return None
    peak = int(chosen[:, there].mean(1).argmax())
    moved = [x[-1, there] - x[peak, there] for x in (chosen, rejected, argmax)]
    if (chosen[0, there] - chosen[-1, there]).mean() < FALL or not all(
        _beyond(change * sign) for change, sign in zip(moved, (-1, -1, 1), strict=True)
    ):
        return None
    return Alert(int(steps[-1]), int(steps[peak]), *(float(change.mean()) for change in moved))


def _beyond(change: np.ndarray) -> bool:
    error = change.std(ddof=1) / np.sqrt(len(change))
    return bool(change.mean() > ERRORS * error)
