"""Losses of the margin alone: u = βh, h = Δ+ − Δ−, so that c+ = βL′(u) = −c−, wherever Δ+ is."""

import math

from torch.nn.functional import logsigmoid, relu

from lmdyn.losses.base import Relative, within


class DPO(Relative, name="dpo"):
    """−(1−ε) log σ(βh) − ε log σ(−βh): direct preference optimisation.

    c+ = −β(σ(−βh) − ε) = −c−. Without label smoothing ε it never stops; with it, at the margin
    where σ(−βh) = ε. Rafailov et al. 2023, arXiv 2305.18290; the smoothing is Mitchell's *A note on
    DPO with noisy preferences*. TRL's ``sigmoid``, which has no smoothing any more.
    """

    label_smoothing: float = within(0, 0.5, "[)", default=0.0)  #: ε, the share of flipped labels

    def _value(self, given):
        u, eps = self.beta * given.margin, self.label_smoothing
        return -(1 - eps) * logsigmoid(u) - eps * logsigmoid(-u)


class SPIN(Relative, name="spin"):
    """−log σ(βh): self-play finetuning, the formula of `DPO` on other data.

    The rejected response is a sample of ``ref``, the model of the previous round. Chen et al. 2024,
    arXiv 2401.01335, where β is λ. Not in TRL.
    """

    def _value(self, given):
        return -logsigmoid(self.beta * given.margin)


class IPO(Relative, name="ipo"):
    """(h − 1/2β)²: identity preference optimisation.

    c+ = 2(h − 1/2β) = −c−: it pulls the margin *back* once it is beyond 1/2β. Azar et al. 2023,
    arXiv 2310.12036, equation 17, where β is τ. TRL's ``ipo`` is ``average=True``: h is then the
    difference of Δ/n over the n tokens of a response, and each coefficient is divided by its own n.
    """

    average: bool = False  #: take Δ per token

    @property
    def needs_lengths(self) -> bool:
        return self.average

    def _value(self, given):
        n = given.lengths if self.average else {"chosen": 1, "rejected": 1}
        h = given.delta("chosen") / n["chosen"] - given.delta("rejected") / n["rejected"]
        return (h - 1 / (2 * self.beta)).square()


class Hinge(Relative, name="hinge"):
    """max(0, 1 − βh): a hinge on the margin.

    c+ = −β = −c− while βh < 1, then zero. Liu et al. 2023, arXiv 2309.06657, where β is γ. TRL's
    ``hinge``, listed there under SLiC: unlike `SLiC` it is relative to a reference.
    """

    def _value(self, given):
        return relu(1 - self.beta * given.margin)


class Robust(Relative, name="robust"):
    """[−(1−ε) log σ(βh) + ε log σ(−βh)] / (1 − 2ε): DPO debiased for flipped labels.

    c+ = −β[(1−ε)σ(−βh) + εσ(βh)] / (1 − 2ε) = −c−: no margin stops it. Chowdhury, Kini and
    Natarajan 2024, arXiv 2403.00409. TRL's ``robust``, with the ε that it recommends.
    """

    label_smoothing: float = within(0, 0.5, "[)", default=0.1)  #: ε, the share of flipped labels

    def _value(self, given):
        u, eps = self.beta * given.margin, self.label_smoothing
        return (eps * logsigmoid(-u) - (1 - eps) * logsigmoid(u)) / (1 - 2 * eps)


class EXO(Relative, name="exo"):
    """σ(βh) log(σ(βh)/(1−ε)) + σ(−βh) log(σ(−βh)/ε): efficient exact optimisation, of a pair.

    c+ = βσ(βh)σ(−βh)(βh − log((1−ε)/ε)) = −c−: it stops at βh = log((1−ε)/ε), and hardly moves a
    pair that it has far the wrong way round. Ji et al. 2024, arXiv 2402.00856, equation 16. TRL's
    ``exo_pair``, with the ε that it recommends.
    """

    label_smoothing: float = within(0, 0.5, "()", default=1e-3)  #: ε

    def _value(self, given):
        u = self.beta * given.margin
        log_label, log_other = math.log1p(-self.label_smoothing), math.log(self.label_smoothing)
        kl_label = u.sigmoid() * (logsigmoid(u) - log_label)
        return kl_label + (-u).sigmoid() * (logsigmoid(-u) - log_other)


class DiscoPOP(Relative, name="discopop"):
    """−(1−m) log σ(u) + m exp(−u), u = βh, m = σ(u/τ): discovered preference optimisation.

    c+ = β[m′(log σ(u) + exp(−u)) − (1−m)σ(−u) − m exp(−u)] = −c−, with m′ = m(1−m)/τ: DPO below a
    margin of zero, an exponential above, and around zero a bump that pushes the pair back. Lu et
    al. 2024, arXiv 2406.08414, equation 5, with its τ. TRL's ``discopop``.
    """

    tau: float = within(0, 1, "()", default=0.05)  #: τ, the width of the blend in u

    def _value(self, given):
        u = self.beta * given.margin
        v = u / self.tau
        # m exp(−u) in one exponential: apart, 0 · ∞.
        return -(-v).sigmoid() * logsigmoid(u) + (logsigmoid(v) - u).exp()
