"""Each claim of chapter 1 can hold and can fail; its figures show what they are given."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from audit import ClaimTable, one_step
from figures.one_step import by_hand, equation

HOLDS = {
    "slopes": {"a": 2.001, "b": 1.99},
    "by_hand": 4e-16,
    "kernel": 0.0,
    "norm": 4e-16,
    "diagonal": (1e-16, 0.78),
    "uniform": (50, 1 / 50),
}


def test_the_claims_hold_on_good_numbers():
    verdicts = [row[-1] for row in one_step.rows(**HOLDS)]
    assert verdicts == 4 * ["guarantee, holds"] + 2 * ["a slip, corrected"]
    assert "| ✓ a slip, corrected |" in ClaimTable(one_step.rows(**HOLDS))._repr_markdown_()


@pytest.mark.parametrize(
    "place, change, verdict",
    [
        (0, {"slopes": {"a": 2.0, "b": 1.2}}, "violated"),
        (1, {"by_hand": 1e-6}, "violated"),
        (2, {"kernel": 1e-6}, "violated"),
        (3, {"norm": 1e-6}, "violated"),
        (4, {"diagonal": (1e-16, 1e-5)}, "not a slip"),
        (4, {"diagonal": (1e-3, 0.78)}, "not a slip"),
        (5, {"uniform": (50, 50**-0.5)}, "not a slip"),
        (5, {"uniform": (50, 0.03)}, "not a slip"),
    ],
)
def test_each_claim_can_fail(place, change, verdict):
    good, bad = one_step.rows(**HOLDS), one_step.rows(**HOLDS | change)
    assert bad[place][-1] == verdict
    assert [row[-1] for row in bad[:place]] == [row[-1] for row in good[:place]]
    assert bad[place + 1 :] == good[place + 1 :]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_picture_of_the_equation_draws_the_three_terms_on_one_scale():
    terms = np.array([[-0.5, 0.5], [-0.2, 0.3], [-0.1, 0.4]])
    ax = equation(*terms, y=1)
    heights = np.array([[bar.get_height() for bar in bars] for bars in ax.containers])
    np.testing.assert_allclose(heights / heights[0, 1], terms / terms[0, 1])
    rings = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
    ends = [bars[1].get_y() + bars[1].get_height() for bars in ax.containers]
    np.testing.assert_allclose(rings, ends)


def test_one_step_by_hand_shows_probabilities_push_and_promise():
    before, push, promise, after = [0.75, 0.25], [-0.25, 0.25], [0.6, 0.4], [0.65, 0.35]
    axes = by_hand(["a", "b"], before, push, promise, after)
    widths = [[bar.get_width() for bar in ax.patches] for ax in axes]
    assert widths == [before, push, after]
    (diamonds,) = (line for line in axes[2].lines if line.get_marker() == "D")
    assert diamonds.get_xdata().tolist() == promise
    assert [text.get_text() for text in axes[1].texts] == ["−0.250", "+0.250"]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["a", "b"]
