import math
from dataclasses import FrozenInstanceError, dataclass, fields
from itertools import product

import numpy as np
import pytest
import torch
from closed_forms import closed_form

from lmdyn import lm, losses
from zoo import table

# Every loss that sees sequences alone as it comes, and those with a switch the other way round.
OF_SAMPLES = [name for name in losses.names() if losses.get(name).needs_advantage]
SPECS = [(name, {}) for name in losses.names() if name not in OF_SAMPLES]
SPECS += [
    ("dpo", {"label_smoothing": 0.2}),
    ("ipo", {"average": True}),
    ("slic", {"target": "chosen_initial"}),
    ("kto", {"desirable": 0.5, "undesirable": 2.0}),
]
EVERY = pytest.mark.parametrize(
    "loss", [losses.get(name, **hyper) for name, hyper in SPECS], ids=repr
)
NAMES = pytest.mark.parametrize("name", losses.names())


def log_probs(loss, rows=7, seed=0, scale=40):
    """Random sequence log-probs under the model and the reference, and lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return {
            r: -scale * torch.rand(rows, dtype=torch.float64, generator=generator)
            for r in loss.responses
        }

    lengths = {r: torch.randint(1, 30, (rows,), generator=generator) for r in loss.responses}
    return draw(), draw(), lengths


def pair(chosen, rejected, dtype=torch.float64):
    """Log-probs whose Δ+ and Δ− are these, with a reference of zero, and lengths."""
    logps = {
        "chosen": torch.as_tensor(chosen, dtype=dtype).reshape(-1),
        "rejected": torch.as_tensor(rejected, dtype=dtype).reshape(-1),
    }
    ref = {r: torch.zeros_like(x) for r, x in logps.items()}
    return logps, ref, {r: torch.full(x.shape, 4) for r, x in logps.items()}


@EVERY
def test_coefficients_are_those_of_the_closed_form(loss):
    for seed in range(10):
        some, rows = np.random.default_rng(seed), 4 + 20 * seed
        shape = (2, len(loss.responses), rows)
        # Far, near, and whole numbers, at which the losses have their kinks.
        drawn = [some.uniform(-2e4, 0, shape), some.uniform(-50, 0, shape)]
        drawn += [some.integers(-12, 1, shape), np.zeros(shape)]
        which = some.choice(4, shape, p=[0.2, 0.4, 0.35, 0.05])
        of_model, of_ref = torch.from_numpy(np.choose(which, drawn))
        n = torch.from_numpy(some.integers(1, 500, shape[1:]))
        given = [dict(zip(loss.responses, x, strict=True)) for x in (of_model, of_ref, n)]
        found, expected = loss.coefficients(*given), closed_form(loss, *given)
        assert list(found) == list(loss.responses)
        for response, c in found.items():
            torch.testing.assert_close(c, expected[response].double(), rtol=1e-10, atol=1e-10)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_of_ten_thousand_nats_stay_finite(loss, dtype):
    far = [-2e4, -1e4, -30.0, -1e-3]
    grid = torch.cartesian_prod(*[torch.tensor(far, dtype=dtype)] * len(loss.responses))
    logps = dict(zip(loss.responses, grid.reshape(-1, len(loss.responses)).T, strict=True))
    ref = {r: torch.full_like(x, -1e4) for r, x in logps.items()}
    lengths = {r: torch.full(x.shape, 3) for r, x in logps.items()}
    value = loss.value(logps, ref, lengths)
    assert value.dtype == dtype and value.isfinite().all()
    for c in loss.coefficients(logps, ref, lengths).values():
        assert c.dtype == dtype and c.isfinite().all()


@EVERY
def test_each_row_has_a_loss_of_its_own(loss):
    logps, ref, lengths = log_probs(loss)
    if isinstance(loss, losses.KTO):  # a row's Δ away from the mean: all the same
        logps["irr_train"] = ref["irr_train"] + 3
    whole = loss.value(logps, ref, lengths)
    assert whole.shape == (7,)
    third = [{r: x[2:3] for r, x in part.items()} for part in (logps, ref, lengths)]
    torch.testing.assert_close(loss.value(*third), whole[2:3], rtol=0, atol=0)
    for response, c in loss.coefficients(logps, ref, lengths).items():
        alone = loss.coefficients(*third)[response]
        torch.testing.assert_close(alone, c[2:3], rtol=0, atol=0)


@EVERY
def test_residual_is_the_gradient_of_the_loss_with_respect_to_the_logits(loss):
    # Two rows, five words, sequences of their own length: from logits to the loss and back, by
    # autograd and by G.
    generator = torch.Generator().manual_seed(1)
    logits, labels, masks, logps = {}, {}, {}, {}
    for r in loss.responses:
        z = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator).requires_grad_()
        y = torch.randint(5, (2, 4), generator=generator)
        mask = torch.arange(4) < torch.randint(1, 5, (2, 1), generator=generator)
        logits[r], labels[r], masks[r] = z, y, mask
        logps[r] = (z.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1) * mask).sum(1)
    _, ref, _ = log_probs(loss, rows=2, scale=8)
    lengths = {r: mask.sum(1) for r, mask in masks.items()}
    value = loss.value(logps, ref, lengths).sum()
    expected = torch.autograd.grad(value, list(logits.values()), materialize_grads=True)
    c = loss.coefficients(logps, ref, lengths)
    for r, g in zip(loss.responses, expected, strict=True):
        probs = logits[r].detach().softmax(-1)
        ours = losses.residual(probs, labels[r], c[r].detach().unsqueeze(1) * masks[r])
        torch.testing.assert_close(ours, g, rtol=1e-10, atol=1e-10)


def test_sft_pulls_the_label_up_with_strength_one():
    sft = losses.get("sft")
    logps = {"chosen": torch.tensor([-2.0, -30.0])}
    torch.testing.assert_close(sft.value(logps), torch.tensor([2.0, 30.0]))
    torch.testing.assert_close(sft.coefficients(logps)["chosen"], torch.tensor([-1.0, -1.0]))
    assert (sft.responses, sft.needs_ref) == (("chosen",), False)


@EVERY
def test_a_sequence_may_be_given_token_by_token(loss):
    logps, ref, lengths = log_probs(loss)
    generator = torch.Generator().manual_seed(2)
    padded, real = {}, {r: torch.arange(30) < n[:, None] for r, n in lengths.items()}
    for r, x in logps.items():  # padding may hold anything
        parts = torch.rand(7, 30, dtype=torch.float64, generator=generator) * real[r]
        padded[r] = torch.where(real[r], parts * (x / parts.sum(1))[:, None], math.nan)
    torch.testing.assert_close(loss.value(padded, ref, lengths), loss.value(logps, ref, lengths))
    whole, by_token = (loss.coefficients(x, ref, lengths) for x in (logps, padded))
    for r, c in whole.items():
        torch.testing.assert_close(by_token[r], torch.where(real[r], c[:, None], 0))
    with pytest.raises(ValueError, match=r"needs lengths\['\w+'\]: pass lengths"):
        loss.value(padded, ref)


def test_unlearning_never_stops_or_fades_below_the_reference():
    ga, npo, y = losses.get("ga"), losses.get("npo", beta=0.5), torch.tensor([-4.0, -2.0, 0.0])
    ref = {"response": torch.full((3,), -2.0)}
    assert ga.coefficients({"response": y})["response"].tolist() == [1.0, 1.0, 1.0]
    c = npo.coefficients({"response": y}, ref)["response"]
    torch.testing.assert_close(c, 2 * torch.tensor([-1.0, 0.0, 1.0]).sigmoid())
    near = losses.get("npo", beta=1e-6).coefficients({"response": y}, ref)["response"]
    torch.testing.assert_close(near, torch.ones(3))  # the limit is gradient ascent


def test_dpo_knows_the_value_of_a_margin():
    # −log σ(0.5 · 2) by hand, with log π_ref of its own on both sides.
    logps = {"chosen": torch.tensor([-3.0]), "rejected": torch.tensor([-9.0])}
    ref = {"chosen": torch.tensor([-4.0]), "rejected": torch.tensor([-8.0])}
    dpo = losses.get("dpo", beta=0.5)
    torch.testing.assert_close(dpo.value(logps, ref), torch.tensor([0.3132617]))
    torch.testing.assert_close(dpo.coefficients(logps, ref)["chosen"], torch.tensor([-0.1344707]))


@pytest.mark.parametrize("name", ["dpo", "spin", "ipo", "hinge", "robust", "exo", "discopop"])
def test_losses_of_the_margin_pull_and_push_alike(name):
    loss = losses.get(name)
    logps, ref, lengths = log_probs(loss)
    c = loss.coefficients(logps, ref, lengths)
    torch.testing.assert_close(c["chosen"] + c["rejected"], torch.zeros(7, dtype=torch.float64))
    # One nat more of each, and nothing changes.
    shifted = {r: x + 1 for r, x in logps.items()}
    value = loss.value(logps, ref, lengths)
    torch.testing.assert_close(loss.value(shifted, ref, lengths), value)


def test_smoothed_dpo_stops_where_the_odds_are_those_of_the_noise():
    dpo = losses.get("dpo", beta=0.5, label_smoothing=0.2)
    stop = 2 * torch.tensor(4.0).log()  # σ(−β · 2 log 4) = 1/5
    c = dpo.coefficients(*pair([stop - 1, stop, stop + 1], [0, 0, 0]))["chosen"]
    assert c[0] < 0 < c[2] and abs(c[1]) < 1e-7


def test_ipo_pulls_the_margin_to_half_of_one_over_beta():
    c = losses.get("ipo", beta=0.25).coefficients(*pair([1, 2, 3], [0, 0, 0]))["chosen"]
    torch.testing.assert_close(c, torch.tensor([-2, 0, 2], dtype=torch.float64))


def test_hinge_rests_beyond_its_margin():
    hinge = losses.get("hinge", beta=0.5)
    given = pair([1, 2, 3], [0, 0, 0])
    torch.testing.assert_close(hinge.value(*given), torch.tensor([0.5, 0, 0], dtype=torch.float64))
    c = hinge.coefficients(*given)["chosen"]
    torch.testing.assert_close(c, torch.tensor([-0.5, 0, 0], dtype=torch.float64))


def test_sppo_stops_half_of_eta_above_and_below_the_reference():
    sppo = losses.get("sppo", eta=6.0)
    c = sppo.coefficients(*pair([2, 3, 4], [-2, -3, -4]))
    expected = torch.tensor([-2, 0, 2], dtype=torch.float64)
    torch.testing.assert_close(c["chosen"], expected)
    torch.testing.assert_close(c["rejected"], -expected)


@pytest.mark.parametrize(
    "loss",
    [
        losses.SPIN(0.3),
        losses.RPO(0.3, weight=0.0),
        losses.DPOP(0.3, penalty=0.0),
        losses.Robust(0.3, label_smoothing=0.0),
        losses.CWDPO(0.3, floor=-1e6),
    ],
    ids=repr,
)
def test_dpo_with_nothing_added_is_dpo(loss):
    dpo = losses.DPO(0.3)
    given = log_probs(dpo)
    torch.testing.assert_close(loss.value(*given), dpo.value(*given), rtol=1e-14, atol=0)
    for r, c in dpo.coefficients(*given).items():
        torch.testing.assert_close(loss.coefficients(*given)[r], c, rtol=1e-14, atol=0)


def test_slic_rests_beyond_its_margin_and_holds_on_to_its_target():
    slic = losses.SLiC(delta=2.0, beta=0.5)
    given = pair([1, 2, 3], [0, 0, 0])
    c = slic.coefficients(*given)
    # At the kink, where the subgradient is anything between, it rests.
    torch.testing.assert_close(c["chosen"], torch.tensor([-1.5, -0.5, -0.5]).double())
    torch.testing.assert_close(c["rejected"], torch.tensor([1.0, 0.0, 0.0]).double())
    torch.testing.assert_close(slic.value(*given), torch.tensor([0.5, -1.0, -1.5]).double())


def test_slic_may_hold_on_to_another_response():
    slic = losses.SLiC(delta=2.0, beta=0.5, target="chosen_initial")
    logps = pair(5, 0)[0] | {"chosen_initial": torch.tensor([-7.0]).double()}
    assert slic.responses == ("chosen", "rejected", "chosen_initial")
    torch.testing.assert_close(slic.value(logps), torch.tensor([3.5]).double())
    assert {r: c.item() for r, c in slic.coefficients(logps).items()} == {
        "chosen": 0.0,
        "rejected": 0.0,
        "chosen_initial": -0.5,
    }


def test_exo_stops_at_the_log_odds_of_its_label():
    exo = losses.EXO(beta=0.5, label_smoothing=0.2)
    stop = 2 * math.log(4)
    c = exo.coefficients(*pair([stop - 1, stop, stop + 1], [0, 0, 0]))["chosen"]
    assert c[0] < 0 < c[2] and abs(c[1]) < 1e-15
    assert abs(exo.value(*pair(stop, 0)).item()) < 1e-15


def test_robust_never_stops():
    c = losses.Robust(beta=1.0, label_smoothing=0.1).coefficients(*pair(1e4, 0))
    torch.testing.assert_close(c["chosen"], torch.tensor([-0.1 / 0.8]).double())


def test_discopop_pushes_back_around_a_margin_of_zero():
    c = losses.DiscoPOP().coefficients(*pair([-20, 0, 20], [0, 0, 0]))["chosen"]
    assert c[0] < 0 < c[1] and c[2] < 0


def test_nca_draws_y_plus_to_two_thirds_and_pushes_y_minus_for_ever():
    nca = losses.NCA(beta=0.5)
    stop = 2 * math.log(2)
    c = nca.coefficients(*pair([stop - 1, stop, stop + 1], [-40, 0, 40]))
    assert c["chosen"][0] < 0 < c["chosen"][2] and abs(c["chosen"][1]) < 1e-15
    assert (c["rejected"] > 0).all()


def test_apo_zero_lifts_and_lowers_and_apo_down_only_lowers():
    at = pair([0, 0.5, 30], [0, -0.5, -30])
    zero, down = losses.APOZero().coefficients(*at), losses.APODown().coefficients(*at)
    assert (zero["chosen"] < 0).all() and (zero["rejected"] > 0).all()
    assert down["chosen"][0] == 0 and (down["chosen"][1:] > 0).all()
    assert (down["rejected"] > 0).all()


def test_kto_measures_from_the_mean_of_the_answers_to_other_prompts():
    logps, ref, _ = pair([4, 4], [4, 4])
    kto = losses.KTO(beta=0.5, desirable=3.0)
    for irr, kl in (([3.0, 5.0], 4.0), ([-3.0, -5.0], 0.0)):
        given = (
            logps | {"irr_train": torch.tensor(irr).double()},
            ref | {"irr_train": torch.zeros(2).double()},
        )
        up = 1 / (1 + math.exp(-0.5 * (4 - kl)))
        expected = torch.full((2,), 3 * (1 - up) + up).double()
        torch.testing.assert_close(kto.value(*given), expected)
        assert not kto.coefficients(*given)["irr_train"].any()


def test_kto_says_what_the_response_is_that_it_lacks():
    logps, ref, _ = pair(0, 0)
    with pytest.raises(ValueError, match=r"logps\['irr_train'\] \(the chosen answer to another"):
        losses.KTO().value(logps, ref)


def test_cal_dpo_is_sppo_with_a_push_of_dpo():
    dpo, cal = losses.DPO(1.0), losses.CalDPO(0.25)
    given = log_probs(dpo)
    expected = losses.SPPO(4.0).value(*given) + dpo.value(*given)
    torch.testing.assert_close(cal.value(*given), expected)


def test_cw_dpo_cools_the_push_on_what_is_unlikely():
    # Four tokens each: on average −1, −3 (the floor) and −9 nats.
    logps, ref, lengths = pair([0, 0, 0], [-4, -12, -36])
    cw = losses.CWDPO(beta=0.3, floor=-3.0, tau=2.0)
    c = cw.coefficients(logps, ref, lengths)
    expected = torch.tensor([1.0, 0.0, -3.0]).sigmoid().double()
    torch.testing.assert_close(-c["rejected"] / c["chosen"], expected)
    # −log σ(β(Δ+ − wΔ−)), at the floor: −log σ(0.3 · ½ · 12).
    torch.testing.assert_close(cw.value(logps, ref, lengths)[1].item(), math.log1p(math.exp(-1.8)))


def test_gate_dpo_shuts_on_what_is_unlikely_and_leaves_the_value():
    # Four tokens each, whose geometric means are 1, the threshold and next to nothing.
    logps, ref, lengths = pair([0, 0, 0], [0, 4 * math.log(0.1), -36])
    gate, dpo = losses.GateDPO(0.3, alpha=30.0, tau=0.1), losses.DPO(0.3)
    c = gate.coefficients(logps, ref, lengths)
    expected = torch.tensor([27.0, 0.0, 30 * (math.exp(-9) - 0.1)]).sigmoid().double()
    torch.testing.assert_close(-c["rejected"] / c["chosen"], expected)
    torch.testing.assert_close(c["chosen"], dpo.coefficients(logps, ref, lengths)["chosen"])
    torch.testing.assert_close(
        gate.value(logps, ref, lengths), dpo.value(logps, ref), rtol=0, atol=0
    )


def test_cw_sft_pushes_y_minus_gently_and_down_to_its_floor_alone():
    # Four tokens each: the floor is at −12 nats.
    given = pair([-2, -2, -2], [-8, -12, -40])
    cw = losses.get("cw_sft", weight=0.25, floor=-3.0)
    torch.testing.assert_close(cw.value(*given), torch.tensor([3.0, 2.0, 2.0]).double())
    c = cw.coefficients(*given)
    torch.testing.assert_close(c["chosen"], -torch.ones(3).double())
    torch.testing.assert_close(c["rejected"], torch.tensor([0.25, 0.0, 0.0]).double())
    alone = losses.SFT().value(given[0])
    torch.testing.assert_close(losses.CWSFT(weight=0.0).value(*given), alone)
    assert not cw.needs_ref


def test_orpo_weighs_the_odds():
    # Four tokens each, of probability ¾ and ⅓: odds 3 and ½.
    given = pair(4 * math.log(3 / 4), 4 * math.log(1 / 3))
    orpo = losses.ORPO(weight=0.2)
    expected = math.log(4 / 3) + 0.2 * math.log(1 + 1 / 6)
    torch.testing.assert_close(orpo.value(*given).item(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_stays_finite_for_a_certain_response(dtype):
    orpo = losses.ORPO()
    given = pair([0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], dtype)
    assert orpo.value(*given).isfinite().all()
    assert all(c.isfinite().all() for c in orpo.coefficients(*given).values())


def test_simpo_moves_the_longer_response_less():
    simpo = losses.SimPO(beta=2.0, gamma=1.0)
    logps, _, _ = pair(-4, -10)
    lengths = {"chosen": torch.tensor([4]), "rejected": torch.tensor([5])}
    # −log σ(2(−1 + 2) − 1)
    value = simpo.value(logps, lengths=lengths).item()
    torch.testing.assert_close(value, math.log1p(math.exp(-1)))
    c = simpo.coefficients(logps, lengths=lengths)
    torch.testing.assert_close(-c["chosen"] / c["rejected"], torch.tensor([1.25]).double())


def test_dpop_holds_on_to_y_plus_only_below_the_reference():
    dpop = losses.get("dpop", beta=1.0, penalty=2.0)
    c = dpop.coefficients(*pair([-1, 1], [0, 0]))
    torch.testing.assert_close(-c["chosen"] / c["rejected"], torch.tensor([3.0, 1.0]).double())
    # −log σ(−1 − 2 · 1) and −log σ(1)
    expected = torch.tensor([math.log1p(math.exp(3)), math.log1p(math.exp(-1))]).double()
    torch.testing.assert_close(dpop.value(*pair([-1, 1], [0, 0])), expected)


@NAMES
def test_a_loss_is_known_by_its_hyperparameters(name):
    loss = losses.get(name)
    assert losses.get(name, **{f.name: f.default for f in fields(loss)}) == loss
    assert "=" in repr(loss) or not fields(loss)
    assert getattr(losses, type(loss).__name__) is type(loss)
    assert f"| `{name}` | " in table()


@pytest.mark.slow
def test_a_loss_is_known_everywhere_by_being_defined():
    rows = lm.load_probes("world", types=["chosen", "rejected"], limit=4)
    model, tokenizer = lm.load("tiny")

    class Ratio(losses.Loss, name="ratio"):
        """log π(y−) − log π(y+): the log of their ratio."""

        responses = ("chosen", "rejected")

        def _value(self, given):
            return given.logps["rejected"] - given.logps["chosen"]

    try:
        assert "ratio" in losses.names() and losses.get("ratio") == losses.Ratio() == Ratio()
        row = "| `ratio` | log π(y−) − log π(y+) | the log of their ratio. | chosen, rejected |  |"
        assert row in table()
        c = Ratio().coefficients({"chosen": torch.zeros(2), "rejected": torch.zeros(2)})
        assert (c["chosen"].tolist(), c["rejected"].tolist()) == ([-1.0, -1.0], [1.0, 1.0])
        run = lm.finetune(model, tokenizer, rows, "ratio", epochs=1, lr=1e-4, batch_size=2)
        assert run.log["loss"][0] > run.log["loss"][-1]
    finally:
        losses.REGISTRY.pop("ratio")


@pytest.mark.parametrize("decorated", [False, True])
def test_a_loss_is_frozen_and_gives_one_number_a_row(decorated):
    class Sum(losses.Loss):
        weight: float = 2.0

        def _value(self, given):
            return self.weight * given.logps["chosen"].sum()

    loss = (dataclass(frozen=True)(Sum) if decorated else Sum)(3.0)
    assert repr(loss).endswith("Sum(weight=3.0)") and loss == Sum(3.0) and hash(loss)
    with pytest.raises(FrozenInstanceError):
        loss.weight = 1.0
    both = {"chosen": torch.zeros(2), "rejected": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"Sum\._value gives \(\), not \(2,\): one number a row"):
        loss.value(both)


def test_the_name_of_a_loss_that_there_is_cannot_be_taken():
    with pytest.raises(ValueError, match="there is a loss 'dpo' already, DPO"):
        type("Other", (losses.Loss,), {}, name="dpo")


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown loss 'stf': did you mean 'sft'\?"):
        losses.get("stf")


def test_an_unknown_hyperparameter_names_its_loss():
    with pytest.raises(ValueError, match="unknown hyperparameter of sft 'beta'"):
        losses.get("sft", beta=0.1)


def test_a_loss_keeps_its_hyperparameters():
    with pytest.raises(ValueError, match=r"DPO\(beta=0.1, .*\) has its hyperparameters: pass"):
        losses.get(losses.DPO(), beta=0.5)


def test_a_hyperparameter_may_be_a_number_of_numpy_and_no_truth():
    assert losses.DPO(np.float32(0.5)) == losses.DPO(0.5)
    with pytest.raises(ValueError, match=r"DPO: beta must be a number in .*, got True"):
        losses.DPO(True)


RANGED = [
    (name, f.name, *f.metadata["range"])
    for name in losses.names()
    for f in fields(losses.get(name))
    if "range" in f.metadata
]


@pytest.mark.parametrize(("name", "hyper", "low", "high", "ends"), RANGED)
def test_a_hyperparameter_out_of_range_is_refused(name, hyper, low, high, ends):
    bad = [float("nan"), float("inf"), float("-inf"), "0.1", None]
    bad += [low - 1, high + 1]
    bad += [end for end, mark in zip((low, high), ends, strict=True) if mark in "()"]
    for value in bad:
        with pytest.raises(ValueError, match=rf"^\w+: {hyper} must be a number in [\[(]"):
            losses.get(name, **{hyper: value})
    for value in [end for end, mark in zip((low, high), ends, strict=True) if mark in "[]"]:
        losses.get(name, **{hyper: value})


def test_the_refusal_says_the_range():
    with pytest.raises(ValueError, match=r"^DPO: label_smoothing must be .* in \[0, 0.5\), got 1$"):
        losses.DPO(label_smoothing=1)


@EVERY
def test_what_is_missing_is_named(loss):
    logps, ref, lengths = log_probs(loss)
    name = type(loss).__name__
    given = {"logps": logps, "ref": ref, "lengths": lengths}
    needed = {"logps": True, "ref": loss.needs_ref, "lengths": loss.needs_lengths}
    for call, what, response in product((loss.value, loss.coefficients), given, loss.responses):
        less = {r: x for r, x in given[what].items() if r != response}
        for lacks in [less, {}] if what == "logps" else [less, {}, None]:
            if not needed[what]:
                call(**given | {what: lacks})
                continue
            there = {r: (7,) for r in lacks or {}} or "none"
            missing = response if lacks else loss.responses[0]
            told = f"{name} needs {what}['{missing}']", f"; there is {there}"
            with pytest.raises(ValueError, match=f": pass {what}, response name → ") as refused:
                call(**given | {what: lacks})
            error = str(refused.value)
            assert error.startswith(told[0]) and error.endswith(told[1])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "dpo",
            {"ref": {"rejected": torch.zeros(1)}},
            r"needs ref\['rejected'\].*→ \(2,\) .*: \(1,\)",
        ),
        ("dpo", {"logps": {"chosen": torch.zeros(2, 1, 1)}}, r"→ \(2,\) log-probs; .*: \(2, 1, 1"),
        ("dpo", {"ref": {"chosen": torch.zeros(2, 3)}}, r"ref\['chosen'\].*→ \(2,\) log-probs"),
        ("dpo", {"logps": {"chosen": torch.zeros(2, 3)}}, "no more than there are log-probs"),
        ("rpo", {"lengths": {"rejected": torch.tensor([3, 0])}}, "numbers of tokens, 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(name, wrong, message):
    given = dict(zip(("logps", "ref", "lengths"), pair([0, 0], [0, 0]), strict=True))
    for call in (losses.get(name).value, losses.get(name).coefficients):
        with pytest.raises(ValueError, match=message):
            call(**given | {what: given[what] | x for what, x in wrong.items()})


def test_residual_has_the_sign_of_the_paper():
    probs = torch.tensor([0.5, 0.3, 0.2])
    pulled = losses.residual(probs, 1, -1.0)  # learning label 1: π − e_1
    torch.testing.assert_close(pulled, torch.tensor([0.5, -0.7, 0.2]))
    torch.testing.assert_close(losses.residual(probs, 1, 2.0), -2 * pulled)


@pytest.mark.parametrize(
    ("labels", "coefficient", "message"),
    [
        (3, 1.0, "label 3 is out of range"),
        (0, [1.0, 2.0, 3.0], r"do not fit: probs .*coefficient \(3,\)"),
    ],
)
def test_residual_refuses_what_does_not_fit(labels, coefficient, message):
    with pytest.raises(ValueError, match=message):
        losses.residual(torch.full((2, 3), 1 / 3), labels, torch.tensor(coefficient))


def test_residual_refuses_logits():
    with pytest.raises(ValueError, match="pass logits"):
        losses.residual(torch.tensor([1.0, 2.0]), 0, 1.0)
