"""Losses without a reference model: the log-probs themselves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from lmdyn.losses.base import Loss, nonnegative, positive


@dataclass(frozen=True)
class SFT(Loss):
    """−log π(y+): c+ = −1, so G is π − e_y, as for a classifier.

    A sum over tokens, as in the paper; TRL's ``sft`` is the mean over all the tokens of a batch.
    """

    responses = ("chosen",)

    def value(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        return -logps["chosen"]

    def coefficients(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        return {"chosen": -torch.ones_like(logps["chosen"])}


@dataclass(frozen=True)
class SLiC(Loss):
    """max(0, δ − log π(y+) + log π(y−)) − β log π(y_ref): sequence likelihood calibration.

    c+ = −1 and c− = +1 while log π(y+) − log π(y−) < δ, zero from the kink on; −β on y_ref
    throughout. Zhao et al. 2023, *SLiC-HF: Sequence Likelihood Calibration with Human Feedback*,
    arXiv 2305.10425, where β is λ. Not in TRL, whose ``hinge`` is `Hinge`. The defaults are ours.

    Args:
        delta: δ, the margin to reach, nats.
        beta: the weight of y_ref.
        target: the response that is y_ref.
    """

    delta: float = nonnegative(1.0)
    beta: float = nonnegative(0.1)
    target: str = "chosen"

    @property
    def responses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(["chosen", "rejected", self.target]))

    def value(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        gap = self.delta - logps["chosen"] + logps["rejected"]
        return relu(gap) - self.beta * logps[self.target]

    def coefficients(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        gap = self.delta - logps["chosen"] + logps["rejected"]
        active = (gap > 0).to(gap)
        c = {name: torch.zeros_like(gap) for name in self.responses}
        c["chosen"], c["rejected"] = -active, active
        c[self.target] = c[self.target] - self.beta
        return c


@dataclass(frozen=True)
class SimPO(Loss):
    """−log σ(β(ℓ̄+ − ℓ̄−) − γ), ℓ̄ = log π(y)/n: simple preference optimisation.

    ℓ̄ is the average log-prob of the n tokens of a response. c+ = −(β/n+) σ(γ − β(ℓ̄+ − ℓ̄−)),
    c− = (β/n−) σ(γ − β(ℓ̄+ − ℓ̄−)): of a pair, the longer response is moved less. Meng, Xia and
    Chen 2024, *SimPO: Simple Preference Optimization with a Reference-Free Reward*, arXiv
    2405.14734, with its values for Llama-3-8B as the defaults. TRL's ``simpo``, in its
    ``CPOTrainer``, which adds SFT unless ``cpo_alpha=0``.

    Args:
        beta: how fast the push fades with the margin, tokens per nat.
        gamma: γ; the margin to reach is γ/β nats per token.
    """

    responses = ("chosen", "rejected")
    needs_lengths = True

    beta: float = positive(2.0)
    gamma: float = nonnegative(1.0)

    def value(self, logps, ref=None, lengths=None):
        return -logsigmoid(self._logit(logps, ref, lengths))

    def coefficients(self, logps, ref=None, lengths=None):
        c = self.beta * (-self._logit(logps, ref, lengths)).sigmoid()
        return {"chosen": -c / lengths["chosen"], "rejected": c / lengths["rejected"]}

    def _logit(self, logps, ref, lengths) -> Tensor:
        self._check(logps, ref, lengths)
        chosen, rejected = (logps[r] / lengths[r] for r in self.responses)
        return self.beta * (chosen - rejected) - self.gamma


@dataclass(frozen=True)
class ORPO(Loss):
    """−ℓ̄+ − λ log σ(o), o = log(p+/(1−p+)) − log(p−/(1−p−)), p = exp ℓ̄: odds ratio optimisation.

    ℓ̄ = log π(y)/n is the average log-prob of the n tokens of a response.
    c+ = −[1 + λσ(−o)/(1−p+)]/n+, c− = λσ(−o)/((1−p−)n−). Hong, Lee and Thorne 2024, *ORPO:
    Monolithic Preference Optimization without Reference Model*, arXiv 2403.07691, with its
    λ = 0.1. TRL's ``ORPOTrainer``, where λ is ``beta`` and the first term is a mean over all the
    tokens of the batch, those of the prompts included.

    Args:
        weight: λ, of the odds ratio.
    """

    responses = ("chosen", "rejected")
    needs_lengths = True

    weight: float = nonnegative(0.1)

    def value(self, logps, ref=None, lengths=None):
        chosen, rejected = self._means(logps, ref, lengths)
        odds_ratio = log_odds(chosen) - log_odds(rejected)
        return -chosen - self.weight * logsigmoid(odds_ratio)

    def coefficients(self, logps, ref=None, lengths=None):
        chosen, rejected = self._means(logps, ref, lengths)
        c = self.weight * (log_odds(rejected) - log_odds(chosen)).sigmoid()
        return {
            "chosen": -(1 + c * log_odds_slope(chosen)) / lengths["chosen"],
            "rejected": c * log_odds_slope(rejected) / lengths["rejected"],
        }

    def _means(self, logps, ref, lengths):
        self._check(logps, ref, lengths)
        return [logps[r] / lengths[r] for r in self.responses]


def log_odds(logp: Tensor) -> Tensor:
    """log(p/(1−p)) of log p, finite up to p = 1, which counts as the number before it."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    # log(1−p): each way is exact on its own side of p = ½.
    log_rest = torch.where(logp < -math.log(2), (-logp.exp()).log1p(), (-logp.expm1()).log())
    return logp - log_rest


def log_odds_slope(logp: Tensor) -> Tensor:
    """Its derivative, 1/(1−p); zero where p counts as another number."""
    certain = -torch.finfo(logp.dtype).eps
    return torch.where(logp > certain, 0.0, -1 / logp.clamp(max=certain).expm1())
