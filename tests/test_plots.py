"""Each figure shows the numbers it was given, and every response type has a look of its own."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lmdyn import plots
from lmdyn.lm import TYPES


@pytest.fixture
def ax():
    figure, ax = plt.subplots(figsize=(6.4, 4))
    yield ax
    figure.canvas.draw()  # what cannot be drawn fails here
    plt.close(figure)


def test_every_type_has_a_name_a_colour_of_its_family_and_its_own_line():
    assert [*TYPES, "argmax"] == list(plots.NAMES)
    looks = [plots.look(name) for name in plots.NAMES]
    assert len({(color, style) for color, style, _ in looks}) == len(looks)
    assert len({label for _, _, label in looks}) == len(looks)
    assert plots.COLORS.keys() == plots.LINESTYLES.keys()
    assert len({(plots.COLORS[f], plots.LINESTYLES[f]) for f in plots.COLORS}) == len(plots.COLORS)


def test_unknown_types_of_a_figure_differ_from_each_other_and_from_argmax(ax):
    names = ["argmax", "mine", "chosen", "yours", "theirs"]
    plots.responses([0, 1], {name: [1, 2] for name in names}, ax=ax)
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == len(names)
    assert plots.look("mine") == plots.look("mine", names) == (plots.COLORS["argmax"], "--", "mine")


def test_curves_draw_a_line_or_the_mean_of_runs(ax):
    series = {"first": [1, 2], ("second", "rejected"): [3, 4], ("runs", "chosen"): [[1, 2], [3, 6]]}
    plots.curves([0, 1], series, ax=ax)
    first, second, mean, *runs = ax.lines
    assert [curve.get_ydata().tolist() for curve in (first, second)] == [[1, 2], [3, 4]]
    assert second.get_color() == plots.COLORS["rejected"]
    assert mean.get_label() == "runs" and mean.get_ydata().tolist() == [2, 4]
    assert [run.get_ydata().tolist() for run in runs] == [[1, 2], [3, 6]]


def test_responses_draw_a_line_or_the_mean_of_runs(ax):
    plots.responses([0, 1], {"chosen": [-3, -1], "rejected": [[-2, -4], [-4, -6]]}, ax=ax)
    mean = next(line for line in ax.lines if line.get_label() == "rejected $y^-$")
    assert mean.get_ydata().tolist() == [-3, -5]
    assert mean.get_color() == plots.COLORS["rejected"]
    assert len(ax.lines) == 2 + 2  # and each run


def test_names_at_the_end_do_not_overlap(ax):
    plots.responses([0, 1], {name: [-9, -1 - 1e-3 * i] for i, name in enumerate(TYPES)}, ax=ax)
    ax.figure.canvas.draw()
    boxes = sorted(text.get_window_extent().intervaly.tolist() for text in ax.texts)
    assert len(boxes) == len(TYPES)
    middles = [sum(box) / 2 for box in boxes]
    assert np.diff(middles).min() > 8
    assert ax.get_window_extent().y0 <= boxes[0][0]


def test_mass_draws_a_bar_for_each_part_of_each_group_and_a_dot_for_each_run(ax):
    groups = {
        "valley": {"label": [-1.0, -3.0], "rest": [1.0, 3.0]},
        "hill": {"label": 2, "rest": -2},
    }
    plots.mass(groups, ["rejected", "random"], ax=ax)
    label, rest = ax.containers
    assert [bar.get_width() for bar in (*label, *rest)] == [-2, 2, 2, -2]
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots == [[-1, -3], [1, 3]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["valley", "hill"]
    assert ax.yaxis_inverted()  # the first group on top


def test_without_axes_a_figure_is_made():
    ax = plots.curves([0], {"one": [1]})
    assert ax.figure is not None
    plt.close(ax.figure)


def test_style_outside_a_notebook():
    with matplotlib.rc_context():
        plots.use_style()
        assert plt.rcParams["figure.facecolor"] == "white"
