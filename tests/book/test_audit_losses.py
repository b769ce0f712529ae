"""Each claim of the chapter on losses can fail; the zoo's table says what losses and TRL have."""

import importlib
import inspect
from dataclasses import fields

import matplotlib
import pytest
import torch
import trl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import zoo
from audit import ClaimTable
from audit import losses as claims
from figures import losses as drawing
from lessons import losses as toy
from lmdyn import losses

ENDS = {"dpo": [None, None], "ipo": [5.0, 5.0], "hinge": [10.0, 10.0], "sppo": [10.0, 10.0]}
FADES, RESTS, GROWS = [3.0, 1.0, 1e-9], [3.0, 1.0, 0.5], [1.0, 2.0, 3.0]
C, OUTSIDE = {"a": [0.0, 1.0], "free": [1.0, 1.0]}, {"a": [True, False], "free": [True, False]}
NORMS = {"GRPO": 0.5, "DAPO": 1.0}

CASES = [  # claim, arguments, verdict
    (claims.two_numbers, (22, 1e-16, 1e-8), "guarantee, holds"),
    (claims.two_numbers, (22, 1e-11, 1e-8), "violated"),
    (claims.two_numbers, (22, 1e-16, 1e-5), "violated"),
    (claims.number_a_token, (11, 1e-16), "guarantee, holds"),
    (claims.number_a_token, (11, 1e-9), "violated"),
    (claims.same_step, (1e-14,), "guarantee, holds"),
    (claims.same_step, (1e-9,), "violated"),
    (claims.mirrored, (7, 0.0), "guarantee, holds"),
    (claims.mirrored, (7, 1e-11), "violated"),
    (claims.one_curve, (1e-15,), "guarantee, holds"),
    (claims.one_curve, (1e-9,), "violated"),
    (claims.weaker, ({"a": FADES, "b": RESTS},), "reproduced"),
    (claims.weaker, ({"a": FADES, "b": GROWS},), "partly"),
    (claims.weaker, ({"a": GROWS},), "not reproduced"),
    (claims.stops, (FADES, ENDS), "guarantee, holds"),
    (claims.stops, ([1.0, 0.0], ENDS), "violated"),
    (claims.stops, (FADES, ENDS | {"hinge": [10.0, None]}), "violated"),
    (claims.stops, (FADES, ENDS | {"dpo": [None, 99.0]}), "violated"),
    (claims.ipo_directions, (True, True, 5.0), "reproduced"),
    (claims.ipo_directions, (True, False, 5.0), "partly"),
    (claims.ipo_directions, (False, False, 5.0), "not reproduced"),
    (claims.ipo_residual, ([1.0, 2.0], [1.0, 2.0]), "reproduced"),
    (claims.ipo_residual, ([0.6, 2.0], [10.0, 2.0]), "not reproduced"),
    (claims.sppo_lifts, ([10.0, 10.0], True), "reproduced"),
    (claims.sppo_lifts, ([10.0, -10.0], True), "partly"),
    (claims.sppo_lifts, ([10.0, -10.0], False), "not reproduced"),
    (claims.rises_by_the_leak, (1e-3, -1e-3, 1.0), "guarantee, holds"),
    (claims.rises_by_the_leak, (1e-3, 1e-3, 1.0), "violated"),
    (claims.rises_by_the_leak, (1e-3, -1e-3, 0.9), "violated"),
    (claims.brief_rise, (16, 16, 100, [0.1, 0.3]), "found"),
    (claims.brief_rise, (99, 16, 100, [0.1, 0.3]), "partly"),
    (claims.brief_rise, (0, 16, 100, [0.1, 1.3]), "not found"),
    (claims.clipped, (C, OUTSIDE, ("free",)), "guarantee, holds"),
    (claims.clipped, (C, OUTSIDE, ()), "violated"),
    (claims.clipped, (C | {"a": [1e-30, 1.0]}, OUTSIDE, ("free",)), "violated"),
    (claims.clipped, (C | {"a": [0.0, 0.0]}, OUTSIDE, ("free",)), "violated"),
    (claims.clipped, (C | {"free": [0.0, 1.0]}, OUTSIDE, ("free",)), "violated"),
    (claims.zero_loss, (1e-17, [-0.2, 0.1], [1.0, 1.0]), "guarantee, holds"),
    (claims.zero_loss, (1e-3, [-0.2, 0.1], [1.0, 1.0]), "violated"),
    (claims.zero_loss, (1e-17, [0.0, 0.0], [1.0, 1.0]), "violated"),
    (claims.zero_loss, (1e-17, [-0.2, 0.1], [1.0, 1.1]), "violated"),
    (claims.zero_loss_teaches, ([0.1, 0.2], [-0.1]), "found"),
    (claims.zero_loss_teaches, ([0.1, 0.2], [0.1]), "partly"),
    (claims.zero_loss_teaches, ([-0.1], [0.1]), "not found"),
    (claims.norms, (NORMS,), "guarantee, holds"),
    (claims.norms, (NORMS | {"GRPO": 1.0},), "violated"),
    (claims.norms, (NORMS | {"DAPO": 0.5},), "violated"),
    (claims.unlearns, ([1.0, 1.0], [1.0, 1e-3]), "guarantee, holds"),
    (claims.unlearns, ([1.0, 0.9], [1.0, 1e-3]), "violated"),
    (claims.unlearns, ([1.0, 1.0], [1.0, 0.5]), "violated"),
    (claims.unlearns, ([1.0, 1.0], [2.0, 1e-3]), "violated"),
    (claims.vectors, ({"entropy": 1e-16},), "guarantee, holds"),
    (claims.vectors, ({"entropy": 1e-9},), "violated"),
    (claims.sum_over_labels, (1e-16,), "guarantee, holds"),
    (claims.sum_over_labels, (1e-9,), "violated"),
    (claims.no_multiples, ({"a": 25.0, "b": 29.0},), "found"),
    (claims.no_multiples, ({"a": 25.0, "b": 1.0},), "partly"),
    (claims.no_multiples, ({"a": 1.0},), "not found"),
]


@pytest.mark.parametrize(("claim", "given", "verdict"), CASES)
def test_a_claim_holds_or_fails_by_its_numbers(claim, given, verdict):
    row = claim(*given)
    assert row[-1] == verdict
    assert repr(ClaimTable([row])) == f"{row[0]}: {verdict}"


def test_every_claim_is_tried_where_it_fails():
    written = {
        of for name, of in vars(claims).items() if getattr(of, "__module__", "") == claims.__name__
    }
    failing = {
        claim for claim, _, verdict in CASES if verdict.startswith(("violated", "not", "partly"))
    }
    assert failing == {claim for claim in written if inspect.isfunction(claim)}


def test_what_only_weakens_to_a_constant_is_named():
    assert "(b only down to a constant)" in claims.weaker({"a": FADES, "b": RESTS})[2]


def test_how_the_table_names_what_trl_has():
    assert zoo.ZOO["rpo"].trl == "DPO: `sigmoid`, `sft`"
    assert zoo.ZOO["dapo"].trl == "GRPO: `dapo`, `epsilon_high` = 0.28"
    assert (zoo.ZOO["rloo"].trl, zoo.ZOO["ga"].trl) == ("RLOO", "–")
    assert zoo.rows()[-1][2] == "Distillation: `beta` = 1.0"


def test_the_zoo_holds_every_loss():
    assert zoo.ZOO.keys() == set(losses.names()) == zoo.every().keys()
    pairs, samples = zoo.of_pairs(), zoo.of_samples()
    assert pairs.keys() | samples.keys() == zoo.ZOO.keys() - {"sft_per_token"}
    assert not pairs.keys() & samples.keys()
    assert len(zoo.rows()) == len(zoo.ZOO) + len(zoo.VECTORS)


def unknown_to_trl(entry):
    """What TRL has not: the class, its fields, and names that its trainer never compares with."""
    places = [trl, *(importlib.import_module(f"trl.experimental.{x}") for x in ("cpo", "orpo"))]
    config = next((found for x in places if (found := getattr(x, entry.config, None))), None)
    if config is None:
        return [entry.config]
    known = {field.name for field in fields(config)}
    missing = [key for key, _ in entry.settings if key not in known]
    trainer = importlib.import_module(config.__module__.replace("_config", "_trainer"))
    source = inspect.getsource(trainer)
    for _, value in entry.settings:
        names = value if isinstance(value, list) else [value]
        missing += [x for x in names if isinstance(x, str) and f'"{x}"' not in source]
    return missing


@pytest.mark.parametrize("entry", [*zoo.ZOO.values(), *zoo.VECTORS], ids=lambda entry: entry.label)
@pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning")
def test_trl_has_what_the_table_says(entry):
    assert not entry.config or unknown_to_trl(entry) == []


@pytest.mark.parametrize(
    "config, settings",
    [
        ("NoConfig", ()),
        ("DPOConfig", (("kind_of_loss", "sigmoid"),)),
        ("DPOConfig", (("loss_type", "sigmoidal"),)),
        ("DPOConfig", (("loss_type", ["sigmoid", "sftt"]),)),
    ],
)
@pytest.mark.filterwarnings("ignore::trl.import_utils.TRLExperimentalWarning")
def test_a_name_that_trl_has_not_is_found(config, settings):
    assert unknown_to_trl(zoo.Entry("x", "", config, settings)) != []


@pytest.mark.parametrize(
    "name, stop",
    [
        ("dpo", "never; fades"),
        ("robust", "never"),
        ("ipo", "$h$ = 5.0, then reversed"),
        ("hinge", "$h$ = 10.0"),
        ("discopop", "never; fades, reversed near 0"),
        ("rpo", "$y^+$: never<br>$y^-$: never; fades"),
        ("sft", "never"),
        ("apo_down", "$y^+$: pushed down<br>$y^-$: never; fades"),
    ],
)
def test_when_a_loss_of_a_pair_stops(name, stop):
    assert zoo.stop_of_pair(losses.get(name)) == stop


@pytest.mark.parametrize(
    "name, stop",
    [
        ("dapo", r"$\hat A > 0$: $\rho_l > 1.28$<br>$\hat A < 0$: $\rho_l < 0.8$"),
        ("gspo", r"$\hat A > 0$: $s > 1.0004$<br>$\hat A < 0$: $s < 0.9997$"),
        ("rloo", r"$\hat A > 0$: $s > 1.2$<br>$\hat A < 0$: $s < 0.8$"),
        ("cispo", "never"),
        ("ga", "never"),
        ("npo", "never; fades"),
    ],
)
def test_when_a_loss_of_a_sample_stops(name, stop):
    assert zoo.stop_of_sample(losses.get(name)) == stop


def test_pushes_of_a_pair():
    assert zoo.push(losses.get("ipo"), 0.0, 0.0).tolist() == [10.0, -10.0]
    both = zoo.push(losses.get("dpo"), torch.zeros(3), torch.zeros(2, 1))
    assert both.shape == (2, 2, 3)
    torch.testing.assert_close(both[0], torch.full((2, 3), 0.05, dtype=torch.float64))
    assert zoo.push(losses.get("sft"), 0.0, 0.0).tolist() == [1.0, 0.0]
    assert zoo.apart(losses.get("dpo"), 1, 0.0) == 0.05


@pytest.mark.parametrize(("name", "norm"), [("grpo", 24), ("dapo", 24), ("dr_grpo", 512)])
def test_pushes_of_a_sample_stand_alone(name, norm):
    push = zoo.sample_push(losses.get(name), [1.0, 1.1, 2.0], 0.5)
    expected = torch.tensor([0.5, 0.55, 0.0], dtype=torch.float64) / norm
    torch.testing.assert_close(push, expected)


def test_the_toy_turns_where_its_leak_passes_one():
    path, moved = toy.train(losses.get("dpo"), steps=40)
    assert path.shape == (40, 2, 50) and moved.shape == (40, 2)
    torch.testing.assert_close(path.sum(-1), torch.ones(40, 2, dtype=torch.float64))
    assert moved[0].tolist() == [0, 0] and (moved[1:, 1] < 0).all()
    rises = moved[:, 0].diff() > 0
    assert torch.equal(rises, toy.leak(path)[:-1] < 1) and rises.any() and not rises.all()


def test_the_toy_ends_with_the_loss():
    _, moved = toy.train(losses.get("hinge"))
    h = moved[:, 0] - moved[:, 1]
    assert len(h) < 600 and h[-2] < 10 <= h[-1]


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # what cannot be drawn fails here
    plt.close(figure)


def test_the_map_of_the_zoo_has_a_row_a_loss_and_a_limit(ax):
    drawing.zoo_map([0, 1, 2], [[5, 1, 0], [-1, -9, 0.5]], ["a", "b"], groups=[1], ax=ax)
    assert ax.images[0].get_array().tolist() == [[1, 1, 0], [-1, -1, 0.5]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b"]


def test_pushes_that_coincide_stay_visible(ax):
    drawing.steps([0, 1], {("a", "chosen"): [1, 2], ("b", "other"): [1, 2]}, broad="a", ax=ax)
    a, b = (line for line in ax.lines if not line.get_label().startswith("_"))
    assert [*a.get_ydata()] == [*b.get_ydata()] == [1, 2] and a.get_linewidth() > b.get_linewidth()


def test_predictions_and_pushes_on_labels(ax):
    drawing.two_predictions([0.7, 0.3], [0.4, 0.6], ("model", "teacher"), ax=ax)
    assert [bar.get_height() for bar in ax.patches] == [0.7, 0.3]
    drawing.label_pushes({("a", "chosen"): [1, -1], ("b", "other"): [2, -2]}, ax=ax)
    assert [bar.get_height() for bar in ax.patches[2:]] == [1, -1, 2, -2]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2"]
