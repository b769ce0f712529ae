"""Losses of samples: policy gradients, which weigh each token by its sample's advantage A.

With ρ_l = π(y_l)/π_old(y_l), the token's ratio to the model that sampled, most take the clipped
ρ̂_l = min(ρ_l, 1 + ε_high) for A ≥ 0, max(ρ_l, 1 − ε_low) for A < 0 (Schulman et al. 2017, arXiv
1707.06347): c_l is 0 where the clip acts. Right after sampling ρ ≡ 1: the value is −A, whatever the
model, and only c tells what it learns. With β > 0, β · k3 is added, k3 = e^{−δ} + δ − 1 of δ_l =
log π(y_l) − log π_ref(y_l), an estimate of KL(π‖π_ref): to c_l, β (1 − e^{−δ}) over the same norm.
"""

import math
import warnings

import torch
from torch import Tensor

from lmdyn.checks import check_finite, check_known
from lmdyn.losses.base import Loss, nonnegative, positive, unpadded, within


class Reinforce(Loss, name="reinforce"):
    """−A log π(y): the policy gradient.

    c = −A. Williams 1992; with advantages "rloo", Ahmadian et al. 2024, arXiv 2402.14740.
    """

    responses, baseline = ("response",), "rloo"
    needs_advantage = True

    def _value(self, given):
        return -given.advantage * given.logps["response"]


class Sampled(Loss):
    """A sum of `_terms` (B, T) over the tokens of a sample, divided by a norm."""

    responses = ("response",)
    needs_old = needs_advantage = needs_lengths = per_token = True
    epsilon_high: float = nonnegative(default=0.2)  #: ε_high, TRL's
    beta: float = nonnegative(default=0.0)  #: β, the weight of k3

    @property
    def needs_ref(self) -> bool:
        return self.beta > 0

    def _norm(self, lengths: Tensor) -> Tensor | float:
        return lengths.sum() if self.of_batch else lengths

    def _value(self, given):
        terms = self._terms(given)
        if self.beta:
            below = -given.delta("response")
            terms = terms + self.beta * (below.expm1() - below)
        lengths = given.lengths["response"]
        return unpadded(terms, lengths).sum(1) / self._norm(lengths)


class GRPO(Sampled, name="grpo"):
    """−(1/n) Σ_l ρ̂_l A: group relative policy optimisation.

    c_l = −Aρ_l/n, 0 where clipped; n the sample's tokens. Shao et al. 2024, arXiv 2402.03300. The
    mean over rows is TRL's ``grpo``, where ε_low is ``epsilon``.
    """

    epsilon_low: float = within(0, 1, "[)", default=0.2)  #: ε_low

    def _terms(self, given):
        log_ratio = given.logps["response"] - given.old["response"]
        return _clipped(self, log_ratio, given.advantage.unsqueeze(1))


class DrGRPO(GRPO, name="dr_grpo"):
    """−(1/L) Σ_l ρ̂_l A: GRPO done right, without its two biases.

    c_l = −Aρ_l/L, 0 where clipped: a token counts alike in long samples and in short ones. Liu et
    al. 2025, arXiv 2503.20783. The mean over rows is TRL's, where L is ``max_completion_length``.
    """

    baseline = "dr_grpo"
    max_length: float = positive(default=512.0)  #: L; the default is TRL's

    def _norm(self, lengths):
        return self.max_length


class BNPO(GRPO, name="bnpo"):
    """−(1/Σn) Σ_l ρ̂_l A: GRPO with one mean over all tokens of the batch.

    c_l = −Aρ_l/Σn, 0 where clipped; Σn the tokens of all rows. The *sum* over rows is TRL's.
    """

    of_batch = True


class DAPO(BNPO, name="dapo"):
    """−(1/Σn) Σ_l ρ̂_l A, ε_high > ε_low: `BNPO` with more room for unlikely tokens to rise.

    Yu et al. 2025, arXiv 2503.14476. TRL's takes Σn of all the rows of an update.
    """

    epsilon_high: float = nonnegative(default=0.28)  #: ε_high; the default is the paper's


class CISPO(Sampled, name="cispo"):
    """−(1/Σn) Σ_l w_l A log π(y_l), w_l = min(ρ_l, 1 + ε_high): clipped weights, not updates.

    c_l = −w_l A/Σn, never 0: w is a constant for the gradient. MiniMax 2025, arXiv 2506.13585. The
    *sum* over rows is TRL's, whose ``epsilon_high`` is 1 + ε_high.
    """

    of_batch = True
    epsilon_high: float = nonnegative(default=4.0)  #: ε_high; TRL advises 5 for its own

    def _terms(self, given):
        log_ratio = given.logps["response"].detach() - given.old["response"]
        weight = log_ratio.clamp(max=math.log1p(self.epsilon_high)).exp()
        return -weight * given.advantage.unsqueeze(1) * given.logps["response"]


class GSPO(GRPO, name="gspo"):
    """−ŝA, s = exp((1/n) Σ_l log ρ_l): group sequence policy optimisation.

    c_l = −As/n, 0 where s is clipped. Zheng et al. 2025, arXiv 2507.18071, with its ε. The mean
    over rows is TRL's ``grpo`` with ``importance_sampling_level="sequence"``.
    """

    epsilon_high: float = nonnegative(default=4e-4)  #: ε_high
    epsilon_low: float = within(0, 1, "[)", default=3e-4)  #: ε_low

    def _terms(self, given):
        log_ratio = given.logps["response"] - given.old["response"]  # zeros at padding
        mean = log_ratio.sum(1, keepdim=True) / given.lengths["response"].unsqueeze(1)
        return _clipped(self, mean, given.advantage.unsqueeze(1)).expand_as(log_ratio)


class RLOO(Reinforce, name="rloo"):
    """−ŝA, s = π(y)/π_old(y): REINFORCE leave-one-out, with a clipped ratio.

    c = −As, 0 where clipped. The mean over rows is TRL's, which takes a KL from the rewards.
    """

    needs_old = True
    epsilon_high: float = nonnegative(default=0.2)  #: ε_high, TRL's
    epsilon_low: float = within(0, 1, "[)", default=0.2)  #: ε_low

    def _value(self, given):
        return _clipped(self, given.logps["response"] - given.old["response"], given.advantage)


def _clipped(loss: GRPO | RLOO, log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """−ρ̂A of log ρ, clipped as a logarithm so that a ratio beyond all numbers has a slope of 0."""
    low, high = math.log1p(-loss.epsilon_low), math.log1p(loss.epsilon_high)
    log_ratio = torch.where(advantage < 0, log_ratio.clamp(min=low), log_ratio.clamp(max=high))
    return -advantage * log_ratio.exp()


def advantages(rewards: Tensor, kind: str = "grpo") -> Tensor:
    """How much better than its group each sample is, (..., K), for rewards R (..., K) of groups.

    ``kind`` is "grpo", (R − mean)/(std + 10⁻⁴), TRL's; "dr_grpo", R − mean; or "rloo", R − mean of
    the others. A group of one, or of equal rewards, has advantages of 0, with one warning for all.

    Example:
        >>> advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), "rloo")
        tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    check_known("kind of advantage", kind, ("grpo", "dr_grpo", "rloo"))
    check_finite(rewards, "rewards")
    n = rewards.shape[-1]
    same = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    if same.any():
        told = f"{int(same.sum())} of {same.numel()} groups of {n} have equal rewards"
        warnings.warn(f"{told}: their advantages are 0", stacklevel=2)
    centred = (rewards - rewards.mean(-1, keepdim=True)).masked_fill(same, 0)
    if kind == "grpo":
        return centred / ((centred.square().sum(-1, keepdim=True) / max(n - 1, 1)).sqrt() + 1e-4)
    return centred * (n / max(n - 1, 1)) if kind == "rloo" else centred
