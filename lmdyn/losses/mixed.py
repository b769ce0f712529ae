"""Losses of a pair that hold y+ up, or go gently on y−."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, relu

from lmdyn.losses.base import Loss, Relative, deltas, nonnegative, positive, within


@dataclass(frozen=True)
class RPO(Relative):
    """−log σ(βh) − α log π(y+)/n+: DPO and SFT together.

    c+ = −βσ(−βh) − α/n+, c− = βσ(−βh), with n+ the number of tokens of y+. Pang et al. 2024,
    *Iterative Reasoning Preference Optimization*, arXiv 2404.19733, with its α = 1; Liu et al.
    2024 call the sum regularized preference optimisation (arXiv 2405.16436). TRL's
    ``["sigmoid", "sft"]`` with weights 1 and α, whose second term is the mean over all the tokens
    of a batch: there a long response counts for more.

    Args:
        beta: as in `DPO`.
        weight: α, of the average negative log-prob of y+.
    """

    needs_lengths = True

    beta: float = positive(0.1)
    weight: float = nonnegative(1.0)

    def value(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        chosen, rejected = deltas(logps, ref)
        sft = -logps["chosen"] / lengths["chosen"]
        return -logsigmoid(self.beta * (chosen - rejected)) + self.weight * sft

    def coefficients(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        chosen, rejected = deltas(logps, ref)
        c = self.beta * (self.beta * (rejected - chosen)).sigmoid()
        return {"chosen": -c - self.weight / lengths["chosen"].to(c), "rejected": c}


@dataclass(frozen=True)
class DPOP(Relative):
    """−log σ(u), u = β(h − λ max(0, −Δ+)): DPO-positive.

    c+ = −βσ(−u)(1 + λ[Δ+ < 0]), c− = βσ(−u): while y+ is below the reference, it is pulled up
    1 + λ times as hard as y− is pushed down. Pal et al. 2024, *Smaug: Fixing Failure Modes of
    Preference Optimisation with DPO-Positive*, arXiv 2402.13228. Not in TRL. The default β is the
    one of `DPO`, λ = 50 what implementations of the paper use.

    Args:
        beta: as in `DPO`.
        penalty: λ.
    """

    beta: float = positive(0.1)
    penalty: float = nonnegative(50.0)

    def _value(self, chosen, rejected):
        return -logsigmoid(self._logit(chosen, rejected))

    def _slopes(self, chosen, rejected):
        c = self.beta * (-self._logit(chosen, rejected)).sigmoid()
        return -c * (1 + self.penalty * (chosen < 0).to(c)), c

    def _logit(self, chosen, rejected):
        return self.beta * (chosen - rejected - self.penalty * relu(-chosen))


@dataclass(frozen=True)
class CalDPO(Relative):
    """−log σ(h) + (Δ+ − 1/2β)² + (Δ− + 1/2β)²: calibrated DPO.

    c+ = −σ(−h) + 2(Δ+ − 1/2β), c− = σ(−h) + 2(Δ− + 1/2β): `SPPO` with η = 1/β, and a push of DPO
    with no β inside. Xiao et al. 2024, *Cal-DPO: Calibrated Direct Preference Optimization for
    Language Model Alignment*, arXiv 2412.14516, with rewards of ±½; the authors' code takes half
    of the squares, and β = 0.001. Not in TRL. The default β is the one of `DPO`.

    Args:
        beta: the targets are 1/2β nats above and below the reference.
    """

    beta: float = positive(0.1)

    def _value(self, chosen, rejected):
        half = 1 / (2 * self.beta)
        calibration = (chosen - half).square() + (rejected + half).square()
        return calibration - logsigmoid(chosen - rejected)

    def _slopes(self, chosen, rejected):
        half, c = 1 / (2 * self.beta), (rejected - chosen).sigmoid()
        return 2 * (chosen - half) - c, 2 * (rejected + half) + c


@dataclass(frozen=True)
class CWDPO(Relative):
    """−log σ(β(Δ+ − wΔ−)), w = σ((ℓ̄− − floor)/τ): cooling-weighted DPO, its second stage.

    c+ = −βσ(−u), c− = wβσ(−u), with u what the outer σ is taken of: the deeper the valley in which
    y− lies, that is the lower the average log-prob ℓ̄− of its tokens under the model itself, the
    softer the push. w is a constant for the gradient. Zhang et al. 2025, *Learning Dynamics of
    VLM Finetuning*, arXiv 2510.11978. This is our reading of its idea, on text: the formula is
    the one in descriptions of the paper, which we have not checked against the paper itself. Not
    in TRL. The default floor and τ are ours: w = ½ where a token has on average probability e⁻³.

    Args:
        beta: as in `DPO`.
        floor: the average log-prob at which the push is halved, nats per token.
        tau: τ, how gradually, nats per token.
    """

    needs_lengths = True

    beta: float = positive(0.1)
    floor: float = within(-math.inf, 0, "(]", default=-3.0)
    tau: float = positive(1.0)

    def value(self, logps, ref=None, lengths=None):
        return -logsigmoid(self._logit(logps, ref, lengths)[0])

    def coefficients(self, logps, ref=None, lengths=None):
        u, w = self._logit(logps, ref, lengths)
        c = self.beta * (-u).sigmoid()
        return {"chosen": -c, "rejected": w * c}

    def _logit(self, logps, ref, lengths):
        """What σ is taken of, and the cooling weight."""
        self._check(logps, ref, lengths)
        chosen, rejected = deltas(logps, ref)
        mean = logps["rejected"].detach() / lengths["rejected"]
        w = ((mean - self.floor) / self.tau).sigmoid()
        return self.beta * (chosen - w * rejected), w


@dataclass(frozen=True)
class CWSFT(Loss):
    """−log π(y+) + λ max(0, log π(y−) − floor · n−): SFT before `CWDPO`, its first stage.

    c+ = −1, c− = λ while the n− tokens of y− have an average log-prob above the floor: a gentle
    push, which ends where y− is unlikely enough. In the terms of Zhang et al. 2025 (see `CWDPO`),
    NLL(y+) + λ max(0, C − NLL(y−)), with the same caveat. That C = −floor counts per token, and
    both defaults, are ours: the floor is the one of `CWDPO`, where the second stage cools.

    Args:
        weight: λ.
        floor: the average log-prob below which y− is let be, nats per token.
    """

    responses = ("chosen", "rejected")
    needs_lengths = True

    weight: float = nonnegative(0.1)
    floor: float = within(-math.inf, 0, "(]", default=-3.0)

    def value(self, logps, ref=None, lengths=None):
        above = self._above(logps, ref, lengths)
        return self.weight * relu(above) - logps["chosen"]

    def coefficients(self, logps, ref=None, lengths=None):
        above = self._above(logps, ref, lengths)
        return {"chosen": -torch.ones_like(above), "rejected": self.weight * (above > 0).to(above)}

    def _above(self, logps, ref, lengths):
        """How far log π(y−) is above its floor, nats."""
        self._check(logps, ref, lengths)
        return logps["rejected"] - self.floor * lengths["rejected"]
