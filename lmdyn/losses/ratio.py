"""Losses of Δ+ and Δ− each, so that the two pulls may differ in strength and in sign."""

from torch.nn.functional import logsigmoid

from lmdyn.losses.base import Loss, Relative, nonnegative, positive


class SPPO(Loss, name="sppo"):
    """(Δ+ − η/2)² + (Δ− + η/2)²: self-play preference optimisation.

    c+ = 2(Δ+ − η/2), c− = 2(Δ− + η/2): y+ to η/2 nats above the reference, y− to η/2 below it. Wu
    et al. 2024, arXiv 2405.00675, with a win probability of 1 for y+ and 0 for y−. TRL's
    ``sppo_hard`` with η = 1/β; the default is its β = 0.1.
    """

    needs_ref = True
    eta: float = positive(default=10.0)  #: η, how far apart the two targets are, nats

    def _value(self, given):
        up, down = given.delta("chosen") - self.eta / 2, given.delta("rejected") + self.eta / 2
        return up.square() + down.square()


class NCA(Relative, name="nca"):
    """−log σ(βΔ+) − ½ log σ(−βΔ+) − ½ log σ(−βΔ−): noise contrastive alignment, of a pair.

    c+ = −β(σ(−βΔ+) − ½σ(βΔ+)), c− = ½βσ(βΔ−): y+ is drawn to σ(βΔ+) = ⅔, and y− pushed down without
    end. Chen et al. 2024, arXiv 2402.05369. TRL's ``nca_pair``.
    """

    def _value(self, given):
        a, b = self.beta * given.delta("chosen"), self.beta * given.delta("rejected")
        return -logsigmoid(a) - 0.5 * logsigmoid(-a) - 0.5 * logsigmoid(-b)


class NPO(Relative, name="npo"):
    """−(2/β) log σ(−βΔ): negative preference optimisation, which unlearns.

    c = 2σ(βΔ): 1 at the reference, as of `GradientAscent`, fading as y falls below it. Zhang et al.
    2024, arXiv 2404.05868. Not in TRL.
    """

    responses = ("response",)

    def _value(self, given):
        return -2 / self.beta * logsigmoid(-self.beta * given.delta("response"))


class BCO(Relative, name="bco"):
    """−log σ(βΔ+) − log σ(−βΔ−): binary classifier optimisation, of a pair.

    c+ = −βσ(−βΔ+), c− = βσ(βΔ−): unlike DPO's, each fades with its own Δ. Jung et al. 2024, arXiv
    2404.04656, without its shift by the mean of rewards, as in TRL's ``bco_pair`` since 0.29.
    """

    def _value(self, given):
        a, b = self.beta * given.delta("chosen"), self.beta * given.delta("rejected")
        return -logsigmoid(a) - logsigmoid(-b)


class APOZero(Relative, name="apo_zero"):
    """1 − σ(βΔ+) + σ(βΔ−): anchored preference optimisation, for y+ better than the model.

    c+ = −βσ′(βΔ+), c− = βσ′(βΔ−), σ′ = σ(1−σ): y+ up and y− down, both hardest at the reference.
    D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7. TRL's ``apo_zero``.
    """

    def _value(self, given):
        a, b = self.beta * given.delta("chosen"), self.beta * given.delta("rejected")
        return (-a).sigmoid() + b.sigmoid()


class APODown(Relative, name="apo_down"):
    """σ(βΔ+) + 1 − σ(βh): anchored preference optimisation, for y+ worse than the model.

    c+ = β(σ′(βΔ+) − σ′(βh)), c− = βσ′(βh): at the reference y− falls and y+ stays where it is;
    once h exceeds the size of Δ+, both fall. Equation 8 of `APOZero`'s paper. TRL's ``apo_down``.
    """

    def _value(self, given):
        a = self.beta * given.delta("chosen")
        return a.sigmoid() + (-self.beta * given.margin).sigmoid()


class KTO(Relative, name="kto"):
    """λ_D (1 − σ(β(Δ+ − kl))) + λ_U (1 − σ(β(kl − Δ−))): Kahneman-Tversky optimisation.

    c+ = −λ_D βσ′(β(Δ+ − kl)), c− = λ_U βσ′(β(kl − Δ−)), σ′ = σ(1−σ). kl ≥ 0 estimates how far the
    model is from the reference, a constant for the gradient: the mean of Δ over the rows given, so
    that a row's loss depends on the others, of ``irr_train``, the chosen answer to another training
    prompt. TRL's ``kto`` takes the answers of the batch, each for the next prompt. Ethayarajh et
    al. 2024, arXiv 2402.01306. The defaults are TRL's.
    """

    responses = ("chosen", "rejected", "irr_train")
    desirable: float = nonnegative(default=1.0)  #: λ_D, the weight of y+
    undesirable: float = nonnegative(default=1.0)  #: λ_U, the weight of y−

    def _value(self, given):
        kl = given.delta("irr_train").detach().mean().clamp(min=0)
        a, b = (self.beta * (given.delta(r) - kl) for r in ("chosen", "rejected"))
        return self.desirable * (-a).sigmoid() + self.undesirable * b.sigmoid()
