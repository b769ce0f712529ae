"""Each figure shows the numbers it was given, on the Axes it was given."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lmdyn import plots

BEFORE, AFTER = np.array([0.6, 0.3, 0.1]), np.array([0.7, 0.25, 0.05])


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # what cannot be drawn fails here
    plt.close(figure)


def line(ax, label):
    return next(found for found in ax.lines if found.get_label() == label)


@pytest.mark.parametrize("log", [False, True])
def test_probabilities(ax, log):
    assert plots.probabilities(BEFORE, AFTER, 2, line=0.36, log=log, ax=ax) is ax
    assert line(ax, "after: gains").get_xydata().tolist() == [[0, 0.7]]
    assert line(ax, "after: falls").get_xydata().tolist() == [[1, 0.25], [2, 0.05]]
    assert line(ax, "label $y$ of the step").get_xydata().tolist() == [[2, 0.05]]
    assert line(ax, "squeeze line").get_ydata() == [0.36, 0.36]
    low, high = ax.get_ylim()
    assert low < 0.05 and 0.7 < high


def test_probabilities_draws_many_labels_as_pixels(ax):
    probs = np.full(1000, 1e-3)
    plots.probabilities(probs, probs, 0, ax=ax)
    assert line(ax, "after: falls").get_rasterized()


def test_gain_by_probability(ax):
    plots.gain_by_probability(BEFORE, np.log(AFTER / BEFORE), 2, line=0.36, log=True, ax=ax)
    assert line(ax, "gains").get_xdata().tolist() == [0.6]
    assert line(ax, "falls").get_xdata().tolist() == [0.3]
    assert line(ax, "label $y$").get_xdata().tolist() == [0.1]


def test_share_map(ax):
    share = np.linspace(0, 1, 12).reshape(3, 4)
    plots.share_map(np.logspace(-3, -1, 4), np.arange(3.0), share, (share - 0.5,), ax=ax)
    np.testing.assert_allclose(np.ravel(ax.collections[0].get_array()), share.ravel())


def test_curves_and_runs(ax):
    plots.curves([0, 1], {"first": [1, 2], ("second", "rejected"): [3, 4]}, ax=ax)
    assert line(ax, "first").get_ydata().tolist() == [1, 2]
    assert line(ax, "second").get_color() == plots.COLORS["rejected"]
    plots.runs([0, 1], {("mean", "chosen"): [[1, 2], [3, 6]]}, ax=ax)
    assert line(ax, "mean").get_ydata().tolist() == [2, 4]


def test_every_family_has_a_colour_and_a_style():
    assert plots.COLORS.keys() == plots.LINESTYLES.keys()
    looks = [(plots.COLORS[f], plots.LINESTYLES[f]) for f in plots.COLORS]
    assert len(set(looks)) == len(looks)


def test_simplex(ax):
    plots.simplex_contours(np.eye(3), [1, 2, 3], "value", ax=ax)
    plots.simplex(("a", "b", "c"), ax=ax)
    plots.simplex_arrows([1, 0, 0], [-1, 0, 1], label="move", ax=ax)
    assert [text.get_text() for text in ax.texts[:3]] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.texts[3].xy, [0.5, np.sqrt(0.75)])  # the tip: the top corner


def test_remainder(ax):
    lr = np.array([1e-3, 1e-2])
    plots.remainder(lr, {"model": lr**2, "other": lr}, {"model": lr**2}, ax=ax)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert len(ax.lines) == 3


def test_images():
    axes = plots.images(np.zeros((2, 1, 4, 4)), ["a", "b"])
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert axes[0].images[0].get_array().shape == (4, 4)
    plt.close(axes[0].figure)


def test_label_changes(ax):
    plots.label_changes([0.2, -0.1], [0.1, -0.2], [[0.1, -0.2], [0.3, 0.0]], ax=ax)
    assert [bar.get_height() for bar in ax.patches] == [0.2, -0.1]
    assert line(ax, "predicted").get_ydata().tolist() == [0.1, -0.2]


def test_scatters_with_a_diagonal(ax):
    plots.predicted_measured([1, 2], [1.1, 2.2], ax=ax)
    assert ax.lines[0].get_ydata().tolist() == [1.1, 2.2]
    plots.agreement({"integral": ([1, 2], [3, 4])}, ax=ax)
    assert line(ax, "integral").get_ydata().tolist() == [3, 4]


def test_class_matrix(ax):
    plots.class_matrix(np.eye(3), "row", "column", "value", vmax=0.5, ax=ax)
    assert ax.images[0].get_array().tolist() == np.eye(3).tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column", "row")


def test_ranking_keeps_names_apart(ax):
    values = [[0, 0, 1], [1, 1.001, 2]]
    plots.ranking([0, 1], values, ["a", "b", "c"], {"a": "chosen"}, ax=ax)
    heights = sorted(text.xy[1] for text in ax.texts)
    assert min(np.diff(heights)) >= 0.05 * 2


def test_without_axes_a_figure_is_made():
    ax = plots.curves([0], {"one": [1]})
    assert ax.figure is not None
    plt.close(ax.figure)


def test_style_outside_a_notebook():
    with matplotlib.rc_context():
        plots.use_style()
        assert plt.rcParams["figure.facecolor"] == "white"


def test_pushes(ax):
    push = np.array([[-0.2, 0.3, 0.001], [0, 0, -0.4]])
    assert plots.pushes([BEFORE, AFTER], push, [1, 2], ax=ax) is ax
    arrows = [(text.xy, text.arrow_patch.get_edgecolor()) for text in ax.texts]
    tips = [tip for tip, _ in arrows]
    # The second context begins after a gap; arrows too short to be seen are left out.
    np.testing.assert_allclose(tips, [(0, 0.6 - 0.2), (1, 0.3 + 0.3), (6, 0.05 - 0.4)])
    colors = [matplotlib.colors.to_rgba(c) for c in (plots.LOSS, plots.GAIN, plots.LOSS)]
    assert [color for _, color in arrows] == colors
    assert [text.get_text() for text in ax.get_xticklabels()] == ["$x^+$", "$x^-$"]
    assert ax.get_ylim()[0] < -0.35  # the arrow that points below the axis is in view


def test_push_field(ax):
    x, y = np.linspace(-1, 1, 7), np.linspace(-2, 2, 14)
    push = np.stack(np.broadcast_arrays(0.5 - x, np.full((14, 1), -1.0)))
    assert plots.push_field(x, y, push, path=[[0, 0], [0.25, -1]], ax=ax) is ax
    (arrows,) = [c for c in ax.collections if hasattr(c, "U")]
    np.testing.assert_allclose(arrows.X[:7], x)
    assert np.sign(arrows.U).reshape(7, 7)[0].tolist() == [1] * 5 + [-1] * 2
    assert (np.asarray(arrows.V) < 0).all()
    lines = [c for c in ax.collections if c.get_facecolor().size == 0]
    (at,) = [c.get_paths()[0].vertices for c in lines]  # only the first push changes its sign
    np.testing.assert_allclose(at[:, 0], 0.5)
    assert [found.get_xydata().tolist() for found in ax.lines] == [
        [[0, 0], [0.25, -1]],
        [[0.25, -1]],
    ]


def test_push_field_marks_where_both_rest(ax):
    x = y = np.linspace(-1, 1, 9)
    push = np.stack([(x < 0) * np.ones((9, 1)), (x < 0) * -np.ones((9, 1))])
    plots.push_field(x, y, push, ax=ax)
    resting = [
        path
        for c in ax.collections
        if not hasattr(c, "U")
        for path in c.get_paths()
        if len(path.vertices)
    ]
    (region,) = resting
    assert region.contains_point((0.5, 0.5)) and not region.contains_point((-0.5, 0.5))
