"""Losses of a pair that hold y+ up, or go gently on y−."""

import math

from torch.nn.functional import logsigmoid, relu

from lmdyn.losses.base import Loss, Relative, nonnegative, positive, within


class RPO(Relative, name="rpo"):
    """−log σ(βh) − α log π(y+)/n+: DPO and SFT together.

    c+ = −βσ(−βh) − α/n+, c− = βσ(−βh), with n+ the tokens of y+. Pang et al. 2024, arXiv
    2404.19733, with its α = 1; the name is that of Liu et al. 2024, arXiv 2405.16436. TRL's
    ``["sigmoid", "sft"]``, weights 1 and α, with a mean over all the tokens of a batch in the end.
    """

    needs_lengths = True
    weight: float = nonnegative(default=1.0)  #: α, of the average negative log-prob of y+

    def _value(self, given):
        return -logsigmoid(self.beta * given.margin) - self.weight * given.mean("chosen")


class DPOP(Relative, name="dpop"):
    """−log σ(u), u = β(h − λ max(0, −Δ+)): DPO-positive.

    c+ = −βσ(−u)(1 + λ[Δ+ < 0]), c− = βσ(−u): while y+ is below the reference, it is pulled up
    1 + λ times as hard as y− is pushed down. Pal et al. 2024, arXiv 2402.13228. Not in TRL.
    """

    penalty: float = nonnegative(default=50.0)  #: λ; the default of implementations of the paper

    def _value(self, given):
        return -logsigmoid(self.beta * (given.margin - self.penalty * relu(-given.delta("chosen"))))


class CalDPO(Relative, name="cal_dpo"):
    """−log σ(h) + (Δ+ − 1/2β)² + (Δ− + 1/2β)²: calibrated DPO.

    c+ = −σ(−h) + 2(Δ+ − 1/2β), c− = σ(−h) + 2(Δ− + 1/2β): `SPPO` with η = 1/β, and DPO with β = 1.
    Xiao et al. 2024, arXiv 2412.14516, with rewards of ±½; the authors' code takes half of the
    squares, and β = 0.001. Not in TRL.
    """

    def _value(self, given):
        half = 1 / (2 * self.beta)
        up, down = given.delta("chosen") - half, given.delta("rejected") + half
        return up.square() + down.square() - logsigmoid(given.margin)


class CWDPO(Relative, name="cw_dpo"):
    """−log σ(β(Δ+ − wΔ−)), w = σ((ℓ̄− − floor)/τ): cooling-weighted DPO, its second stage.

    c+ = −βσ(−u), c− = wβσ(−u), u what the outer σ is taken of: the lower the average log-prob ℓ̄− of
    y−, the softer the push. w is a constant for the gradient. Our reading, on text, of descriptions
    of Zhang et al. 2025, arXiv 2510.11978, not checked against it. Not in TRL. Defaults are ours.
    """

    needs_lengths = True
    floor: float = within(-math.inf, 0, "(]", default=-3.0)  #: ℓ̄− at which the push is halved
    tau: float = positive(default=1.0)  #: τ, how gradually, nats per token

    def _value(self, given):
        w = ((given.mean("rejected").detach() - self.floor) / self.tau).sigmoid()
        return -logsigmoid(self.beta * (given.delta("chosen") - w * given.delta("rejected")))


class GateDPO(Relative, name="gate_dpo"):
    """−log σ(βh), its push on y− times g = σ(α(p − τ)), p = exp ℓ̄−: gradient-gated DPO.

    c+ = −βσ(−βh), c− = gβσ(−βh): an unlikely y− is hardly pushed; the value is DPO's. Mouiche 2026,
    arXiv 2605.02626, "seq" in its repository, which tells no α and τ: ours here. Not in TRL.
    """

    needs_lengths = True
    alpha: float = positive(default=100.0)  #: α, how sharp the gate is
    tau: float = within(0, 1, "()", default=0.05)  #: τ, the p at which it is half open

    def _value(self, given):
        gate = (self.alpha * (given.mean("rejected").detach().exp() - self.tau)).sigmoid()
        down = gate * given.delta("rejected") + (1 - gate) * given.delta("rejected").detach()
        return -logsigmoid(self.beta * (given.delta("chosen") - down))


class CWSFT(Loss, name="cw_sft"):
    """−log π(y+) + λ max(0, log π(y−) − floor · n−): SFT before `CWDPO`, its first stage.

    c+ = −1, c− = λ while the n− tokens of y− have an average log-prob above the floor. Source and
    caveat are those of `CWDPO`, where the second stage cools at the default floor.
    """

    needs_lengths = True
    weight: float = nonnegative(default=0.1)  #: λ
    floor: float = within(-math.inf, 0, "(]", default=-3.0)  #: ℓ̄− below which y− is let be

    def _value(self, given):
        above = given.logps["rejected"] - self.floor * given.lengths["rejected"]
        return self.weight * relu(above) - given.logps["chosen"]
