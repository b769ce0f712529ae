"""The rule that calls a squeeze: what the paper sees in DPO, as a test on probed prompts."""

from dataclasses import dataclass

import numpy as np

ERRORS = 1.64  # standard errors that a mean must be from zero: 5%, one-sided, for each of three
FALL = 0.25  # nats that chosen must have lost since the start: a fifth of its probability
REMEDIES = (
    "Train on both answers first (extend): SFT on chosen and on rejected, then the same tuning.",
    "Add an SFT term to the loss, as RPO does: finetune(…, loss='rpo').",
    "Let no gradient through rejected tokens in a valley: finetune(…, spare_valleys=True).",
    "Drop the pairs that push hardest: python -m lmdyn diagnose FILE --model MODEL ranks them.",
    "Take rejected answers from the model itself: finetune_on_policy.",
)


@dataclass(frozen=True)
class Alert:
    """A squeeze: both responses fall while the likeliest tokens gain."""

    step: int  #: the update after which it was seen
    since: int  #: the update since which changes are counted, where ``chosen`` stood highest
    chosen: float  #: mean change of log π(y+), nats
    rejected: float  #: of log π(y−)
    argmax: float  #: of the likeliest tokens along y+

    @property
    def account(self) -> str:
        return (
            f"since step {self.since} the chosen responses have changed by {self.chosen:+.1f} nats "
            f"and the rejected ones by {self.rejected:+.1f}, while the likeliest tokens have gained"
            f" {self.argmax:+.1f}. Probability leaves both answers for what the model says anyway."
        )

    def __str__(self) -> str:
        return f"squeeze at step {self.step}: {self.account} {' '.join(REMEDIES)}"


def squeeze(steps, chosen, rejected, argmax) -> Alert | None:
    """Whether the last of S probings shows a squeeze: DPO off-policy, section 4.2 of the paper.

    Counted since the probing at which the mean of ``chosen`` stood highest: its log-probs and
    those of ``rejected`` have fallen and those of the argmax have risen, each by more than 1.64
    standard errors of the mean over the prompts (paired). And ``chosen`` stands at least 0.25 nats
    below where it started: SFT that overfits turns all three alike, and pushes nothing.

    Args:
        steps: (S,) updates.
        chosen, rejected, argmax: (S, N) log-probs of N prompts, nats; NaN for prompts left out.
    """
    curves = np.array([chosen, rejected, argmax], dtype=np.float64)
    curves = curves[..., ~np.isnan(curves).any((0, 1))]  # (3, S, prompts)
    prompts = curves.shape[-1]
    if len(steps) < 2 or prompts < 2:
        return None
    peak = int(curves[0].mean(1).argmax())
    moved = curves[:, -1] - curves[:, peak]
    change, error = moved.mean(1), moved.std(1, ddof=1) / np.sqrt(prompts)
    fall = (curves[0, 0] - curves[0, -1]).mean()
    if fall < FALL or not (change * (-1, -1, 1) > ERRORS * error).all():
        return None
    return Alert(int(steps[-1]), int(steps[peak]), *change.tolist())
