"""Each claim of chapter 4 can hold and can fail."""

import matplotlib
import pytest
import torch
from matplotlib.colors import to_rgba

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from audit import squeeze_line as audit
from figures.squeeze_line import waterline
from lessons import squeeze_line as trials
from lmdyn import plots

HOLDS = "guarantee, holds"
SHAPES = trials.Shapes(10, 0, 8, 0, if_common=1.0, if_rare=0.47)
CLAIM_4 = {"fall harder": 0, "third label": 0, "larger share": 0, "larger factor": 3}
CLAIM_5 = {"y falls more": 0, "fewer gain": 0, "turned": 2}


def verdicts(rows):
    return [row[-1] for row in ([rows] if isinstance(rows, tuple) else rows)]


@pytest.mark.parametrize(
    "rows, expected",
    [
        (audit.lemma(1e-14), [HOLDS]),
        (audit.lemma(1e-3), ["violated"]),
        (audit.claims_1_to_3(5, -1e-11, 1e-6, 1e-15), [HOLDS] * 3),
        (audit.claims_1_to_3(5, 0.0, -1e-6, 1e-3), ["violated"] * 3),
        (audit.shapes(0.0, True, SHAPES), [HOLDS, "partly", HOLDS]),
        (audit.shapes(0.0, True, SHAPES._replace(if_rare=0.9)), [HOLDS, "reproduced", HOLDS]),
        (
            audit.shapes(0.0, False, SHAPES._replace(flat_failures=1)),
            ["violated", "not reproduced", HOLDS],
        ),
        (
            audit.shapes(0.1, True, SHAPES._replace(peaky_failures=1)),
            ["violated", "partly", "violated"],
        ),
        (audit.claim_4(CLAIM_4, 9), [HOLDS, "partly"]),
        (audit.claim_4(CLAIM_4 | {"larger factor": 9}, 9), [HOLDS, "reproduced"]),
        (audit.claim_4(CLAIM_4 | {"third label": 1}, 9), ["violated", "partly"]),
        (audit.claim_4(CLAIM_4 | {"larger share": 1}, 9), [HOLDS, "not reproduced"]),
        (audit.claim_5(CLAIM_5, 9), ["partly"]),
        (audit.claim_5(CLAIM_5 | {"turned": 0}, 9), ["reproduced"]),
        (audit.claim_5(CLAIM_5 | {"fewer gain": 1}, 9), ["not reproduced"]),
        (audit.line(0, 100), [HOLDS]),
        (audit.line(1, 100), ["violated"]),
        (audit.regimes([0], [*range(1, 50)], [0], 50), ["reproduced"] * 2),
        (audit.regimes([0, 1], [*range(1, 50)], [1], 50), ["not reproduced"] * 2),
        (audit.regimes([0], [1, 2], [0], 50), ["not reproduced", "reproduced"]),
        (audit.collision(1 / 50, 50), ["a slip, corrected"]),
        (audit.collision(50**-0.5, 50), ["not a slip"]),
        (audit.collapse(9, 0.9999), [HOLDS]),
        (audit.collapse(9, 0.9), ["violated"]),
        (audit.chosen(1e-6, 2.0, -1.7), ["found"]),
        (audit.chosen(-1e-6, 2.0, -1.7), ["not found"]),
        (audit.chosen(1e-6, 2.0, 0.1), ["not found"]),
        (audit.optimizers({"SGD": True, "Adam": False}, {"SGD": True, "Adam": True}), ["partly"]),
        (audit.optimizers({"SGD": True}, {"SGD": True}), ["found"]),
        (audit.optimizers({"SGD": True}, {"SGD": False}), ["not found"]),
    ],
)
def test_a_claim_follows_its_numbers(rows, expected):
    assert verdicts(rows) == expected


@pytest.fixture
def cases():
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield [trials.draw(n_labels, per_concentration=20) for n_labels in (3, 10)]
    torch.set_default_dtype(before)


def test_the_trials_find_what_is_proved_and_the_exceptions_to_the_rest(cases):
    assert max(trials.lemma(cases)) < 1e-9
    fared = trials.line(cases)
    assert (fared.wrong, fared.facts) == (0, True) and fared.labels > 2000
    claim_4, claim_5 = trials.claim_4(cases), trials.claim_5(cases)
    assert sum(claim_4.values()) == claim_4["larger factor"] < 280
    assert sum(claim_5.values()) == claim_5["turned"] > 0


def test_the_trials_notice_a_wrong_step(cases, monkeypatch):
    learn = trials.softmax_step
    monkeypatch.setattr(trials, "softmax_step", lambda p, y, lr: learn(p, y, -lr))
    worst_y, worst_rival, slope_error = trials.claims_1_to_3(cases)
    assert worst_y > 0 > worst_rival and slope_error > 1e-3
    assert trials.line(cases).wrong > 0 and max(trials.lemma(cases)) > 1e-3
    assert sum(trials.claim_5(cases).values()) > trials.claim_5(cases)["turned"]


def test_a_squeeze_is_few_that_gain_and_a_typical_bystander_that_falls():
    change = torch.full((50,), -0.3)
    change[0] = 0.5
    assert trials.squeezed(change, y=30)
    assert not trials.squeezed(change.abs(), y=30)
    assert not trials.squeezed(change / 100, y=30)


def test_land_above_the_water_gains():
    fig, ax = plt.subplots()
    assert waterline([0.6, 0.3, 0.1], 2, 0.36, ax=ax) is ax
    arrows = [(text.xyann, text.xy, text.arrow_patch.get_edgecolor()) for text in ax.texts]
    gain, loss = map(to_rgba, (plots.GAIN, plots.LOSS))
    assert arrows == [((0, 0.36), (0, 0.6), gain), ((1, 0.36), (1, 0.3), loss)]
    assert ax.get_xticklabels()[2].get_text() == "$y$"
    fig.canvas.draw()
    plt.close(fig)
