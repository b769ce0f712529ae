"""Each claim of chapter 2 can hold and can fail; its lesson and its figures do what they say."""

import copy
import itertools

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import figures.digits
from audit import digits as claims
from lessons import digits as lesson
from lmdyn.digits import LeNet, load

PAIRS = [f"{i}–{j}" for i, j in itertools.combinations(range(10), 2)]


def ranked(*first):
    return [*first, *(pair for pair in PAIRS if pair not in first)]


def of(four, nine, zero):
    return {4: torch.tensor(four), 9: torch.tensor(nine), 0: torch.tensor(zero)}


HOLDS = {
    "fit": (0.999, 0.04, 10.0),
    "nats": of([0.02, 0.02], [0.04, 0.05], [0.01, -0.01]),
    "points": of([1.0, 1.2], [0.4, 0.5], [0.0, -0.01]),
    "dissimilar": 0,
    "ranks": [(1, 1), (1, 1)],
    "peak": (50, 375),
    "pulls": torch.tensor([87.0, -71.0, -17.0]),
    "ranking": ranked("4–9", "5–8", "3–5"),
}


def test_the_claims_hold_on_good_numbers():
    assert [row[-1] for row in claims.rows(**HOLDS)] == ["guarantee, holds", *6 * ["reproduced"]]


@pytest.mark.parametrize(
    "place, change, verdict",
    [
        (0, {"fit": (0.999, 0.04, 5.0)}, "violated"),
        (1, {"nats": HOLDS["nats"] | {9: torch.tensor([-0.04, -0.05])}}, "not reproduced"),
        (1, {"nats": HOLDS["nats"] | {9: torch.tensor([0.2, -0.04, -0.05])}}, "partly"),
        (2, {"nats": HOLDS["nats"] | {0: torch.tensor([0.1, -0.1])}}, "not reproduced"),
        (3, {"nats": HOLDS["nats"] | {0: torch.tensor([0.03, -0.03])}}, "partly"),
        (3, {"points": HOLDS["points"] | {0: torch.tensor([0.7, -0.7])}}, "partly"),
        (4, {"ranks": [(1, 1), (2, 1)]}, "partly"),
        (4, {"ranks": [(3, 1), (2, 2)]}, "not reproduced"),
        (5, {"peak": (375, 375)}, "partly"),
        (5, {"peak": (0, 375), "pulls": torch.tensor([1.0, 1.0, 0.0])}, "not reproduced"),
        (6, {"ranking": ranked("4–9", "7–9", "5–8", "3–5")}, "partly"),
        (6, {"ranking": ranked("4–9", "7–9", "5–8")}, "not reproduced"),
    ],
)
def test_each_claim_can_fail(place, change, verdict):
    assert claims.rows(**HOLDS | change)[place][-1] == verdict


def test_a_change_can_be_small_in_no_unit():
    large = of([0.01], [0.01], [0.5])
    assert claims.hardly_any_change(large, large, 0)[-1] == "not reproduced"


def test_chance_counts_the_orders_in_which_the_three_come_first():
    assert claims.by_chance(ranked("4–9", "5–8", "3–5")) == pytest.approx(1 / 14190)
    assert claims.by_chance(ranked("4–9", "5–8", "0–1", "3–5")) == pytest.approx(4 / 14190)


def test_a_step_in_three_parts_is_the_usual_step():
    torch.manual_seed(0)
    data, whole = load(64, 16, seed=0), LeNet()
    parts, diary = copy.deepcopy(whole), lesson.Diary(load(64, 16).test_x[:4])
    lesson.sgd_step(whole, data.train_x[:32], data.train_y[:32])
    diary.step(parts, data.train_x[:32], data.train_y[:32])
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert len(diary.entries) == 3 and diary.entries[0].shape == (10,)


def test_a_run_is_looked_at_on_the_way_and_settles_at_four_fifths():
    seen = []
    looks = lesson.learn(load(320, 20), 0, lesson.sgd_step, before=seen.append)
    assert [look.updates for look in looks] == [0, 25, 30] and len(seen) == 1
    looks = [look._replace(accuracy=a) for look, a in zip(looks, (0.1, 0.8, 0.9), strict=True)]
    assert lesson.settled(looks) is looks[1]
    mean = (looks[1].mean_prediction + looks[2].mean_prediction) / 2
    torch.testing.assert_close(lesson.matrix_after_settling(looks), mean)


def test_pairs_are_ranked_by_both_entries():
    matrix = torch.eye(10)
    matrix[4, 9] = matrix[9, 4] = 0.2
    matrix[3, 5] = 0.3
    assert lesson.ranked_pairs(matrix)[:2] == ["4–9", "3–5"]


def test_the_median_image_is_in_the_middle():
    class Bright(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], 1)

    x = torch.tensor([5.0, 1.0, 3.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    assert lesson.median_image(Bright(), x, 0).max() == 3


def test_one_update_has_a_chart_for_each_observed_image():
    image, change = np.eye(4)[None], np.array([[0.1, -0.2, 0.0], [0.3, 0.1, -0.1]])
    charts = figures.digits.one_update(image, {"a": image, "b": image}, change, change / 2, "nats")
    plt.gcf().canvas.draw()
    heights = [[bar.get_height() for bar in ax.containers[0]] for ax in charts]
    assert heights == change.tolist()
    assert charts[0].get_ylim() == charts[1].get_ylim()
    assert charts[0].get_ylim()[0] < -0.2 and charts[0].get_ylim()[1] > 0.3
    plt.close("all")
