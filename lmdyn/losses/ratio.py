"""Losses of Δ+ and Δ− each, not of their difference alone: Δ± = log π(y±) − log π_ref(y±).

Each response has a target of its own, so the two pulls may differ in strength and in sign.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from lmdyn.losses.base import Relative, deltas, nonnegative, positive


@dataclass(frozen=True)
class SPPO(Relative):
    """(Δ+ − η/2)² + (Δ− + η/2)²: self-play preference optimisation.

    c+ = 2(Δ+ − η/2), c− = 2(Δ− + η/2): two pulls, y+ to η/2 nats above the reference and y− to
    η/2 below it, and neither further. Wu et al. 2024, *Self-Play Preference Optimization for
    Language Model Alignment*, arXiv 2405.00675, with a win probability of 1 for y+ and 0 for y−.
    TRL's ``sppo_hard`` with η = 1/β; the default is TRL's β = 0.1.

    Args:
        eta: η, how far apart the two targets are, nats.
    """

    eta: float = positive(10.0)

    def _value(self, chosen, rejected):
        return (chosen - self.eta / 2).square() + (rejected + self.eta / 2).square()

    def _slopes(self, chosen, rejected):
        return 2 * (chosen - self.eta / 2), 2 * (rejected + self.eta / 2)


@dataclass(frozen=True)
class NCA(Relative):
    """−log σ(βΔ+) − ½ log σ(−βΔ+) − ½ log σ(−βΔ−): noise contrastive alignment, of a pair.

    c+ = −β(σ(−βΔ+) − ½σ(βΔ+)), c− = ½βσ(βΔ−): y+ is drawn to σ(βΔ+) = ⅔, a little above the
    reference, and y− pushed down without end. Chen et al. 2024, *Noise Contrastive Alignment of
    Language Models with Explicit Rewards*, arXiv 2402.05369. TRL's ``nca_pair``; the default β is
    TRL's.

    Args:
        beta: how fast a pull fades with its Δ, per nat.
    """

    beta: float = positive(0.1)

    def _value(self, chosen, rejected):
        a, b = self.beta * chosen, self.beta * rejected
        return -logsigmoid(a) - 0.5 * logsigmoid(-a) - 0.5 * logsigmoid(-b)

    def _slopes(self, chosen, rejected):
        a, b = self.beta * chosen, self.beta * rejected
        c_chosen = self.beta * (0.5 * a.sigmoid() - (-a).sigmoid())
        return c_chosen, 0.5 * self.beta * b.sigmoid()


@dataclass(frozen=True)
class BCO(Relative):
    """−log σ(βΔ+) − log σ(−βΔ−): binary classifier optimisation, of a pair.

    c+ = −βσ(−βΔ+), c− = βσ(βΔ−): unlike DPO's, each fades with its own Δ. Jung et
    al. 2024, *Binary Classifier Optimization for Large Language Model Alignment*, arXiv
    2404.04656, without its reward shift (a running mean of the rewards), as in TRL's ``bco_pair``
    since 0.29. The default β is TRL's.

    Args:
        beta: as in `NCA`.
    """

    beta: float = positive(0.1)

    def _value(self, chosen, rejected):
        return -logsigmoid(self.beta * chosen) - logsigmoid(-self.beta * rejected)

    def _slopes(self, chosen, rejected):
        c_chosen = -self.beta * (-self.beta * chosen).sigmoid()
        return c_chosen, self.beta * (self.beta * rejected).sigmoid()


@dataclass(frozen=True)
class APOZero(Relative):
    """1 − σ(βΔ+) + σ(βΔ−): anchored preference optimisation, for y+ better than the model.

    c+ = −βσ′(βΔ+), c− = βσ′(βΔ−), σ′ = σ(1−σ): y+ up and y− down, both hardest at the reference.
    D'Oosterlinck et al. 2024, *Anchored Preference Optimization and Contrastive Revisions:
    Addressing Underspecification in Alignment*, arXiv 2408.06266, equation 7. TRL's ``apo_zero``;
    the default β is TRL's.

    Args:
        beta: as in `NCA`.
    """

    beta: float = positive(0.1)

    def _value(self, chosen, rejected):
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()

    def _slopes(self, chosen, rejected):
        bump_chosen, bump_rejected = bump(self.beta * chosen), bump(self.beta * rejected)
        return -self.beta * bump_chosen, self.beta * bump_rejected


@dataclass(frozen=True)
class APODown(Relative):
    """σ(βΔ+) + 1 − σ(βh): anchored preference optimisation, for y+ worse than the model.

    c+ = β(σ′(βΔ+) − σ′(βh)), c− = βσ′(βh): at the reference y− falls and y+ stays where it is;
    once h exceeds the size of Δ+, both fall. Equation 8 of the paper of `APOZero`. TRL's
    ``apo_down``; the default β is TRL's.

    Args:
        beta: as in `NCA`.
    """

    beta: float = positive(0.1)

    def _value(self, chosen, rejected):
        return (self.beta * chosen).sigmoid() + (self.beta * (rejected - chosen)).sigmoid()

    def _slopes(self, chosen, rejected):
        of_margin = bump(self.beta * (chosen - rejected))
        return self.beta * (bump(self.beta * chosen) - of_margin), self.beta * of_margin


@dataclass(frozen=True)
class KTO(Relative):
    """λ_D (1 − σ(β(Δ+ − kl))) + λ_U (1 − σ(β(kl − Δ−))): Kahneman-Tversky optimisation.

    c+ = −λ_D βσ′(β(Δ+ − kl)), c− = λ_U βσ′(β(kl − Δ−)), σ′ = σ(1−σ). The two terms are unpaired,
    one for y+ and one for y−. kl ≥ 0 estimates how far the model is from the reference: the mean
    of Δ over the batch for answers to other prompts, zero if negative, a constant for the
    gradient. Here it is the mean over the rows given of Δ of ``irr_train``, the chosen answer to
    another training prompt, whose coefficient is zero; TRL's ``kto`` takes the answers of the
    batch, chosen and rejected, each for the next prompt. Ethayarajh et al. 2024, *KTO: Model
    Alignment as Prospect Theoretic Optimization*, arXiv 2402.01306. The defaults are TRL's.

    A row's loss depends on the other rows through kl.

    Args:
        beta: as in `NCA`.
        desirable: λ_D, the weight of y+.
        undesirable: λ_U, the weight of y−.
    """

    responses = ("chosen", "rejected", "irr_train")

    beta: float = positive(0.1)
    desirable: float = nonnegative(1.0)
    undesirable: float = nonnegative(1.0)

    def value(self, logps, ref=None, lengths=None):
        a, b = self._logits(logps, ref, lengths)
        return self.desirable * (-a).sigmoid() + self.undesirable * b.sigmoid()

    def coefficients(self, logps, ref=None, lengths=None):
        a, b = self._logits(logps, ref, lengths)
        return {
            "chosen": -self.desirable * self.beta * bump(a),
            "rejected": self.undesirable * self.beta * bump(b),
            "irr_train": a.new_zeros(a.shape),
        }

    def _logits(self, logps, ref, lengths) -> tuple[Tensor, Tensor]:
        """β(Δ − kl) of y+ and y−."""
        self._check(logps, ref, lengths)
        kl = (logps["irr_train"] - ref["irr_train"]).detach().mean().clamp(min=0)
        chosen, rejected = deltas(logps, ref)
        return self.beta * (chosen - kl), self.beta * (rejected - kl)


def bump(u: Tensor) -> Tensor:
    """σ′(u) = σ(u)σ(−u)."""
    return u.sigmoid() * (-u).sigmoid()
