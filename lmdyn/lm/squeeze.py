"""The rules of the alert, on probed prompts: the squeeze of DPO, and answers that RL loses."""

from dataclasses import dataclass

import numpy as np

ERRORS = 1.64  # standard errors that a mean must be from zero: 5%, one-sided, for each of three
FALL = 0.02  # nats a token lost by chosen: a fiftieth of its probability; 0.25 in a dozen tokens
FADED = 1.5  # how much larger |log π| of right answers must have become, as they are lost
REMEDIES = (
    "Read some answers, and stop where the preference loss of held-out pairs is least.",
    "Add an SFT term to the loss, as RPO does: finetune(…, loss='rpo').",
    "Let no gradient through rejected tokens in a valley: finetune(…, spare_valleys=True).",
    "Begin with a shorter SFT, or one on chosen and on rejected answers (extend).",
    "Drop the pairs that push hardest: python -m lmdyn diagnose FILE --model MODEL ranks them.",
    "Take rejected answers from the model itself: finetune_on_policy.",
)


@dataclass(frozen=True)
class Alert:
    """A squeeze: both responses fall while the likeliest tokens along y+ gain."""

    step: int  #: the update after which it was seen
    since: int  #: the update since which changes are counted, where ``chosen`` stood highest
    chosen: float  #: mean change of log π(y+), nats a token
    rejected: float  #: of log π(y−), by the tokens of y−
    argmax: float  #: of the likeliest tokens along y+

    @property
    def account(self) -> str:
        return (
            f"since step {self.since} the chosen responses have changed by {self.chosen:+.3f} nats "
            f"a token and the rejected ones by {self.rejected:+.3f}, while the likeliest tokens "
            f"along chosen have gained {self.argmax:+.3f}. What gains along rejected is not told."
        )

    def __str__(self) -> str:
        return f"squeeze at step {self.step}: {self.account} {' '.join(REMEDIES)}"


def squeeze(steps, chosen, rejected, argmax, n_tokens) -> Alert | None:
    """Whether the last of S probings shows a squeeze: DPO off-policy, section 4.2 of the paper.

    In nats a token, since the mean of ``chosen`` stood highest: it and ``rejected`` have fallen and
    the argmax has risen, each by over 1.64 standard errors of the mean (paired). And ``chosen``
    stands 0.02 below its start: SFT that overfits turns all three alike, and pushes nothing.

    Args:
        steps: (S,) updates.
        chosen, rejected, argmax: (S, N) log-probs of N prompts, nats; NaN for prompts left out.
        n_tokens: (N, 2), of ``chosen``, along which the argmax is taken, and of ``rejected``.
    """
    of_chosen, of_rejected = np.transpose(n_tokens)
    curves = chosen / of_chosen, rejected / of_rejected, argmax / of_chosen
    if (curves := _complete(steps, *curves)) is None:
        return None
    peak = int(curves[0].mean(1).argmax())
    moved = curves[:, -1] - curves[:, peak]
    if (curves[0, 0] - curves[0, -1]).mean() < FALL or not is_sure(moved * [[-1], [-1], [1]]).all():
        return None
    return Alert(int(steps[-1]), int(steps[peak]), *moved.mean(1).tolist())


def fades(steps, correct, entropy) -> str | None:
    """Whether a run for a reward loses right answers that the first model gave: how, or None.

    Either log π of ``correct`` lies lower than at the start by half of what it was there, or
    entropy along it is less than half of that; by more than 1.64 standard errors of the mean over
    the prompts (paired). Healthy runs lose a part of it, as they settle on other right answers.

    Args:
        steps: (S,) updates.
        correct, entropy: (S, N), nats and nats a token, of N prompts; NaN for prompts left out.
    """
    if (curves := _complete(steps, correct, entropy)) is None:
        return None
    (logp, entropy), found = curves[:, [0, -1]], []
    if is_sure(FADED * logp[0] - logp[1]):
        found.append("right answers have gone from {:.1f} to {:.1f} nats".format(*logp.mean(1)))
    if is_sure(entropy[0] / 2 - entropy[1]):
        found.append("entropy has gone from {:.2f} to {:.2f}".format(*entropy.mean(1)))
    told = f"at step {steps[-1]} {' and '.join(found)}: fewer passes a round, a lower rate, or KL"
    return told if found else None


def _complete(steps, *curves) -> np.ndarray | None:
    """(curves, S, prompts), of prompts never left out; None if there are not two of each."""
    curves = np.array(curves, dtype=np.float64)
    curves = curves[..., ~np.isnan(curves).any((0, 1))]
    return curves if min(len(steps), curves.shape[-1]) > 1 else None


def is_sure(gaps: np.ndarray) -> np.ndarray:
    """Whether the mean over the last axis, of two or more, is 1.64 standard errors above zero."""
    return gaps.mean(-1) > ERRORS * np.sqrt(gaps.var(-1) / (gaps.shape[-1] - 1 or np.nan))
