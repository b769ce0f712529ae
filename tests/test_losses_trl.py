"""Values and coefficients against TRL's own code, on sequences of token log-probs.

TRL has no public function of a loss: its trainers' methods run on a stand-in for the trainer that
has what they read, with reference log-probs computed before.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer
from trl.import_utils import TRLExperimentalWarning
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl.trainer.utils import nanstd

from lmdyn import losses

with warnings.catch_warnings():  # all it says is that these two may move
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.gkd import GKDTrainer
    from trl.experimental.orpo import ORPOTrainer

ROWS, TOKENS = 6, 9
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def exact():
    """TRL makes tensors of its own, in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Responses:
    """Random responses of three types: a log-prob at each token, and under the reference."""

    def __init__(self, seed=0, same_length=False):
        generator = torch.Generator().manual_seed(seed)
        names = ("chosen", "rejected", "irr_train")
        shortest = TOKENS if same_length else 1
        self.lengths = {
            r: torch.randint(shortest, TOKENS + 1, (ROWS,), generator=generator) for r in names
        }
        self.masks = {r: torch.arange(TOKENS) < n[:, None] for r, n in self.lengths.items()}
        self.tokens = {
            r: (-4 * torch.rand(ROWS, TOKENS, generator=generator)).requires_grad_() for r in names
        }
        self.ref = {
            r: (-4 * torch.rand(ROWS, TOKENS, generator=generator) * mask).sum(1)
            for r, mask in self.masks.items()
        }

    @property
    def logps(self):
        return {r: (x * self.masks[r]).sum(1) for r, x in self.tokens.items()}

    def ours(self, loss):
        """The value of each row, and the derivative of each token log-prob: the coefficient."""
        given = self.logps, self.ref, self.lengths
        c = loss.coefficients(*given)
        by_token = {r: c[r].detach()[:, None] * self.masks[r] for r in ("chosen", "rejected")}
        return loss.value(*given).detach(), by_token

    def theirs(self, value):
        """The derivatives of TRL's value."""
        names = ("chosen", "rejected")
        found = torch.autograd.grad(value, [self.tokens[r] for r in names])
        return dict(zip(names, found, strict=True))

    def forward(self, **_):
        """What TRL has a model return."""
        both = ("chosen", "rejected")
        log_probs = torch.cat([self.tokens[r] * self.masks[r] for r in both])
        nothing = torch.zeros_like(log_probs)
        return SimpleNamespace(
            log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    def inputs(self, **more):
        mask = torch.cat([self.masks["chosen"], self.masks["rejected"]]).long()
        mask = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask], 1)  # the prompt
        return {"input_ids": mask, "attention_mask": mask, "completion_mask": mask, **more}


def trainer(**settings):
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **settings,
    )


def dpo_trainer(responses, loss_types, weights=(1.0,), *, beta, smoothing=0.0, tau=0.05):
    """The mean loss of `DPOTrainer`."""
    stub = trainer(
        loss_types=loss_types,
        loss_weights=weights,
        beta=beta,
        label_smoothing=smoothing,
        args=SimpleNamespace(discopop_tau=tau),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    ref = {f"ref_{r}_logps": responses.ref[r] for r in ("chosen", "rejected")}
    return DPOTrainer._compute_loss(stub, responses.forward, responses.inputs(**ref), False)


PAIRS = [
    (losses.DPO(0.3), ["sigmoid"], {"beta": 0.3}),
    (losses.SPIN(0.3), ["sigmoid"], {"beta": 0.3}),
    (losses.IPO(0.3, average=True), ["ipo"], {"beta": 0.3}),
    (losses.Hinge(0.1), ["hinge"], {"beta": 0.1}),
    (losses.Robust(0.3, 0.2), ["robust"], {"beta": 0.3, "smoothing": 0.2}),
    (losses.EXO(0.3, 0.01), ["exo_pair"], {"beta": 0.3, "smoothing": 0.01}),
    (losses.DiscoPOP(0.05, 0.1), ["discopop"], {"beta": 0.05, "tau": 0.1}),
    (losses.SPPO(5.0), ["sppo_hard"], {"beta": 0.2}),
    (losses.NCA(0.3), ["nca_pair"], {"beta": 0.3}),
    (losses.BCO(0.3), ["bco_pair"], {"beta": 0.3}),
    (losses.APOZero(0.3), ["apo_zero"], {"beta": 0.3}),
    (losses.APODown(0.3), ["apo_down"], {"beta": 0.3}),
]


@pytest.mark.parametrize(("loss", "loss_types", "settings"), PAIRS, ids=lambda x: str(x))
@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_those_of_the_dpo_trainer(loss, loss_types, settings, seed):
    responses = Responses(seed)
    theirs = dpo_trainer(responses, loss_types, **settings)
    value, c = responses.ours(loss)
    torch.testing.assert_close(value.mean(), theirs.detach(), **CLOSE)
    for r, derivative in responses.theirs(theirs).items():
        torch.testing.assert_close(c[r] / ROWS, derivative, **CLOSE)


def test_sft_is_theirs_up_to_the_average_over_the_tokens_of_the_batch():
    responses = Responses()
    theirs = dpo_trainer(responses, ["sft"], beta=0.1)
    logps, n = responses.logps, responses.lengths["chosen"].sum()
    ours = losses.SFT()
    torch.testing.assert_close(ours.value(logps).sum() / n, theirs, **CLOSE)
    derivative = torch.autograd.grad(theirs, responses.tokens["chosen"])[0]
    c = ours.coefficients(logps)["chosen"].detach()[:, None] * responses.masks["chosen"]
    torch.testing.assert_close(c / n, derivative, **CLOSE)


def test_rpo_is_theirs_where_averages_over_rows_and_over_tokens_agree():
    responses = Responses(same_length=True)
    theirs = dpo_trainer(responses, ["sigmoid", "sft"], [1.0, 0.7], beta=0.3)
    value, c = responses.ours(losses.RPO(0.3, 0.7))
    torch.testing.assert_close(value.mean(), theirs.detach(), **CLOSE)
    for r, derivative in responses.theirs(theirs).items():
        torch.testing.assert_close(c[r] / ROWS, derivative, **CLOSE)


@pytest.mark.parametrize("up", [2.0, -2.0])
def test_kto_is_that_of_the_kto_trainer(up):
    responses = Responses()
    # Answers to other prompts likelier or less likely than under the reference: kl > 0 and kl = 0.
    responses.ref["irr_train"] = responses.logps["irr_train"].detach() - up
    stub = trainer(
        calculate_KL=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=0.8,
        undesirable_weight=1.5,
        _compute_kl_logps=lambda model, batch: responses.logps["irr_train"],
    )
    inputs = responses.inputs(
        label=torch.arange(2 * ROWS) < ROWS,
        ref_logps=torch.cat([responses.ref["chosen"], responses.ref["rejected"]]),
        ref_KL_logps=responses.ref["irr_train"],
    )
    theirs = KTOTrainer._compute_loss(stub, responses.forward, inputs, False)
    value, c = responses.ours(losses.KTO(0.3, 0.8, 1.5))
    # Theirs counts the two responses of a pair as two examples.
    torch.testing.assert_close(value.mean() / 2, theirs.detach(), **CLOSE)
    for r, derivative in responses.theirs(theirs).items():
        torch.testing.assert_close(c[r] / (2 * ROWS), derivative, **CLOSE)


def cpo_trainer(loss_type, chosen, rejected, *, beta, smoothing=0.0, gamma=0.0):
    """The loss of each row of `CPOTrainer`, of whatever log-probs it is given."""
    stub = trainer(
        loss_type=loss_type, beta=beta, label_smoothing=smoothing, simpo_gamma=gamma, alpha=0.0
    )
    return CPOTrainer.cpo_loss(stub, chosen, rejected)[0]


def check_rows(responses, loss, theirs):
    value, c = responses.ours(loss)
    torch.testing.assert_close(value, theirs.detach(), **CLOSE)
    for r, derivative in responses.theirs(theirs.sum()).items():
        torch.testing.assert_close(c[r], derivative, **CLOSE)


def test_simpo_is_that_of_the_cpo_trainer():
    responses = Responses()
    means = [responses.logps[r] / responses.lengths[r] for r in ("chosen", "rejected")]
    theirs = cpo_trainer("simpo", *means, beta=2.5, gamma=0.4)
    check_rows(responses, losses.SimPO(2.5, 0.4), theirs)


@pytest.mark.parametrize(
    ("loss", "loss_type", "settings"),
    [
        (losses.DPO(0.3, label_smoothing=0.2), "sigmoid", {"beta": 0.3, "smoothing": 0.2}),
        (losses.IPO(0.1), "ipo", {"beta": 0.1}),
        (losses.Hinge(0.1), "hinge", {"beta": 0.1}),
    ],
)
def test_summed_losses_are_those_of_the_cpo_trainer_on_log_ratios(loss, loss_type, settings):
    responses = Responses()
    deltas = [responses.logps[r] - responses.ref[r] for r in ("chosen", "rejected")]
    check_rows(responses, loss, cpo_trainer(loss_type, *deltas, **settings))


def test_the_hinge_of_slic_is_that_of_the_cpo_trainer():
    responses = Responses()
    theirs = cpo_trainer("hinge", responses.logps["chosen"], responses.logps["rejected"], beta=1.0)
    check_rows(responses, losses.SLiC(delta=1.0, beta=0.0), theirs)


def test_orpo_is_that_of_the_orpo_trainer():
    responses = Responses()
    means = [responses.logps[r] / responses.lengths[r] for r in ("chosen", "rejected")]
    ratio = ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), *means)[0]
    theirs = -means[0] - ratio
    value, c = responses.ours(losses.ORPO(0.3))
    # TRL goes through float32 here.
    torch.testing.assert_close(value, theirs.detach(), rtol=1e-6, atol=1e-6)
    for r, derivative in responses.theirs(theirs.sum()).items():
        torch.testing.assert_close(c[r], derivative, rtol=1e-6, atol=1e-6)


# --- samples --------------------------------------------------------------------------------------


def samples(seed, apart):
    """Token log-probs now, under the model that sampled and the reference, and the rest."""
    some = torch.Generator().manual_seed(seed)
    old = -4 * torch.rand(ROWS, TOKENS, generator=some)
    new = old + apart * (2 * torch.rand(ROWS, TOKENS, generator=some) - 1)
    ref = old + torch.rand(ROWS, TOKENS, generator=some) - 0.5
    lengths = torch.randint(1, TOKENS + 1, (ROWS,), generator=some)
    return new.requires_grad_(), old, ref, lengths, 4 * torch.rand(ROWS, generator=some) - 2


def policy_trainer(kind, data, **settings):
    """The loss of a trainer of samples on these log-probs, all of which make one update."""
    new, old, ref, lengths, advantage = data
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    stub = trainer(
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        importance_sampling_level=settings.pop("level", "token"),
        max_completion_length=20,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        **{"beta": 0.0} | settings,
    )
    stub.accelerator.reduce = lambda x, reduction: x
    stub.accelerator.num_processes = 1
    inputs = {
        **dict.fromkeys(("prompt_ids", "prompt_mask"), mask[:, :1]),
        **dict.fromkeys(("completion_ids", "completion_mask"), mask),
        "advantages": advantage,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "old_logps": (old * mask).sum(1),
        "num_items_in_batch": mask.sum(),
    }
    return kind._compute_loss(stub, None, inputs)


EPS = {"epsilon_low": 0.15, "epsilon_high": 0.25}
TINY = {"epsilon_low": 0.01, "epsilon_high": 0.02}
TRL_MAX = {"epsilon_low": 0.0, "epsilon_high": 1.3}  # the largest weight itself
OF_SAMPLES = [
    ("rloo", RLOOTrainer, EPS, EPS, True),
    ("grpo", GRPOTrainer, EPS, EPS | {"loss_type": "grpo"}, True),
    ("dr_grpo", GRPOTrainer, EPS | {"max_length": 20}, EPS | {"loss_type": "dr_grpo"}, True),
    ("bnpo", GRPOTrainer, EPS, EPS | {"loss_type": "bnpo"}, False),
    ("dapo", GRPOTrainer, EPS, EPS | {"loss_type": "dapo"}, False),
    ("cispo", GRPOTrainer, {"epsilon_high": 0.3}, TRL_MAX | {"loss_type": "cispo"}, False),
    ("gspo", GRPOTrainer, TINY, TINY | {"loss_type": "grpo", "level": "sequence"}, True),
]


AND_KL = [
    (name, kind, hyper | {"beta": 0.3}, settings | {"beta": 0.3}, mean)
    for name, kind, hyper, settings, mean in OF_SAMPLES[1:]  # of RLOO it is in the rewards
]


@pytest.mark.parametrize(("name", "kind", "hyper", "settings", "mean"), OF_SAMPLES + AND_KL)
@pytest.mark.parametrize("seed", range(2))
def test_losses_of_samples_are_those_of_the_trainers(name, kind, hyper, settings, mean, seed):
    new, old, ref, lengths, advantage = data = samples(seed, apart=0.6)
    theirs = policy_trainer(kind, data, **settings)
    derivative = torch.autograd.grad(theirs, new)[0]
    now, before, anchor, n = ({"response": x} for x in (new.detach(), old, ref, lengths))
    loss, more = losses.get(name, **hyper), {"old": before, "advantage": advantage}
    value, c = loss.value(now, anchor, n, **more), loss.coefficients(now, anchor, n, **more)
    torch.testing.assert_close(value.mean() if mean else value.sum(), theirs.detach(), **CLOSE)
    torch.testing.assert_close(c["response"] / (ROWS if mean else 1), derivative, **CLOSE)


def test_advantages_are_theirs():
    # Their methods take these out of whole rounds of sampling: this is what is in them.
    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
    mean, others = rewards.mean(1, keepdim=True), (rewards.sum(1, keepdim=True) - rewards) / 3
    std = nanstd(rewards, dim=1).unsqueeze(1)
    torch.testing.assert_close(losses.advantages(rewards), (rewards - mean) / (std + 1e-4))
    torch.testing.assert_close(losses.advantages(rewards, "rloo"), rewards - others)


@pytest.mark.parametrize(("direction", "beta"), [("forward", 0.0), ("reverse", 1.0)])
def test_distillation_is_that_of_the_distillation_and_the_gkd_trainer(direction, beta):
    some = torch.Generator().manual_seed(0)
    z, t = (2 * torch.randn(ROWS, TOKENS, 7, generator=some) for _ in range(2))
    mask = torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (ROWS, 1), generator=some)
    ours = losses.kl_residual(z, t, direction) * mask.unsqueeze(-1) / mask.sum()
    z.requires_grad_()
    labels = torch.where(mask, 0, -100)
    gkd = GKDTrainer.generalized_jsd_loss(z, t, labels=labels, beta=beta)
    torch.testing.assert_close(ours, torch.autograd.grad(gkd, z)[0], **CLOSE)
    head = torch.eye(7)  # so that the hidden states are the logits
    theirs = _chunked_divergence_loss(z, t, head, head, mask, beta)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(theirs, z)[0], rtol=0, atol=1e-6)
