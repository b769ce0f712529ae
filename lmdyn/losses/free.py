"""Losses without a reference model: the log-probs themselves, or ℓ̄ = log π(y)/n, per token."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from lmdyn.losses.base import Loss, nonnegative, positive


class SFT(Loss, name="sft"):
    """−log π(y+): supervised finetuning.

    c+ = −1, so G is π − e_y. A sum over tokens, as in the paper; TRL's is the mean over a batch's.
    """

    responses = ("chosen",)

    def _value(self, given):
        return -given.logps["chosen"]


class PerTokenSFT(SFT, name="sft_per_token"):
    """−ℓ̄+: supervised finetuning in which long and short answers weigh alike.

    c+ = −1/n+, n+ the tokens of y+.
    """

    needs_lengths = True

    def _value(self, given):
        return -given.mean("chosen")


class GradientAscent(Loss, name="ga"):
    """log π(y): unlearning by gradient ascent.

    c = 1, however unlikely y has become: it never stops. Not in TRL.
    """

    responses = ("response",)

    def _value(self, given):
        return given.logps["response"]


class SLiC(Loss, name="slic"):
    """max(0, δ − log π(y+) + log π(y−)) − β log π(y_ref): sequence likelihood calibration.

    c+ = −1 and c− = 1 while log π(y+) − log π(y−) < δ, then zero; −β on y_ref throughout. Zhao et
    al. 2023, arXiv 2305.10425, where β is λ. Not in TRL. The defaults are ours.
    """

    delta: float = nonnegative(default=1.0)  #: δ, the margin to reach, nats
    beta: float = nonnegative(default=0.1)  #: the weight of y_ref
    target: str = "chosen"  #: the response that is y_ref

    @property
    def responses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["chosen", "rejected", self.target]))

    def _value(self, given):
        gap = self.delta - given.logps["chosen"] + given.logps["rejected"]
        return relu(gap) - self.beta * given.logps[self.target]


class SimPO(Loss, name="simpo"):
    """−log σ(β(ℓ̄+ − ℓ̄−) − γ): simple preference optimisation.

    c+ = −(β/n+) σ(γ − β(ℓ̄+ − ℓ̄−)), c− = (β/n−) σ(γ − β(ℓ̄+ − ℓ̄−)): of a pair, the longer response
    is moved less. Meng, Xia and Chen 2024, arXiv 2405.14734, whose values for Llama-3-8B are the
    defaults. TRL's ``simpo``, in its ``CPOTrainer``, which adds SFT unless ``cpo_alpha=0``.
    """

    needs_lengths = True
    beta: float = positive(default=2.0)  #: how fast the push fades with the margin, tokens per nat
    gamma: float = nonnegative(default=1.0)  #: γ; the margin to reach is γ/β nats per token

    def _value(self, given):
        return -logsigmoid(self.beta * (given.mean("chosen") - given.mean("rejected")) - self.gamma)


class ORPO(Loss, name="orpo"):
    """−ℓ̄+ − λ log σ(o), o = log(p+/(1−p+)) − log(p−/(1−p−)), p = exp ℓ̄: odds ratio optimisation.

    c+ = −[1 + λσ(−o)/(1−p+)]/n+, c− = λσ(−o)/((1−p−)n−). Hong, Lee and Thorne 2024, arXiv
    2403.07691, with its λ. TRL's ``ORPOTrainer``, where λ is ``beta`` and the first term is a mean
    over all the tokens of the batch, those of the prompts included.
    """

    needs_lengths = True
    weight: float = nonnegative(default=0.1)  #: λ, of the odds ratio

    def _value(self, given):
        chosen, rejected = given.mean("chosen"), given.mean("rejected")
        return -chosen - self.weight * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: Tensor) -> Tensor:
    """log(p/(1−p)) of log p, finite up to p = 1, which counts as the number before it."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    # log(1−p): each way is exact on its own side of p = ½, and both have finite slopes there.
    return logp - torch.where(logp < -math.log(2), (-logp.exp()).log1p(), (-logp.expm1()).log())
