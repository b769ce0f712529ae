"""Each figure shows the numbers it was given, on the Axes it was given."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import figures
from lmdyn import plots

BEFORE, AFTER = np.array([0.6, 0.3, 0.1]), np.array([0.7, 0.25, 0.05])


@pytest.fixture
def ax():
    figure, ax = plt.subplots(figsize=(6.4, 4))
    yield ax
    figure.canvas.draw()  # what cannot be drawn fails here
    plt.close(figure)


def line(ax, label):
    return next(found for found in ax.lines if found.get_label() == label)


@pytest.mark.parametrize("log", [False, True])
def test_probabilities(ax, log):
    assert figures.probabilities(BEFORE, AFTER, 2, line=0.36, log=log, ax=ax) is ax
    assert line(ax, "after: gains").get_xydata().tolist() == [[0, 0.7]]
    assert line(ax, "after: falls").get_xydata().tolist() == [[1, 0.25], [2, 0.05]]
    assert line(ax, "label $y$ of the step").get_xydata().tolist() == [[2, 0.05]]
    assert line(ax, "squeeze line").get_ydata() == [0.36, 0.36]
    low, high = ax.get_ylim()
    assert low < 0.05 and 0.7 < high


def test_probabilities_draws_many_labels_as_pixels(ax):
    probs = np.full(1000, 1e-3)
    figures.probabilities(probs, probs, 0, ax=ax)
    assert line(ax, "after: falls").get_rasterized()


def test_gain_by_probability(ax):
    figures.gain_by_probability(BEFORE, np.log(AFTER / BEFORE), 2, line=0.36, log=True, ax=ax)
    assert line(ax, "gains").get_xdata().tolist() == [0.6]
    assert line(ax, "falls").get_xdata().tolist() == [0.3]
    assert line(ax, "label $y$").get_xdata().tolist() == [0.1]


def test_share_map(ax):
    share = np.linspace(0, 1, 12).reshape(3, 4)
    figures.share_map(np.logspace(-3, -1, 4), np.arange(3.0), share, (share - 0.5,), ax=ax)
    np.testing.assert_allclose(np.ravel(ax.collections[0].get_array()), share.ravel())


def test_simplex(ax):
    figures.simplex_contours(np.eye(3), [1, 2, 3], "value", ax=ax)
    figures.simplex(("a", "b", "c"), ax=ax)
    figures.simplex_arrows([1, 0, 0], [-1, 0, 1], label="move", ax=ax)
    assert [text.get_text() for text in ax.texts[:3]] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.texts[3].xy, [0.5, np.sqrt(0.75)])  # the tip: the top corner


def test_remainder(ax):
    lr = np.array([1e-3, 1e-2])
    figures.remainder(lr, {"model": lr**2, "other": lr}, {"model": lr**2}, ax=ax)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert len(ax.lines) == 3


def test_images():
    axes = figures.images(np.zeros((2, 1, 4, 4)), ["a", "b"])
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert axes[0].images[0].get_array().shape == (4, 4)
    plt.close(axes[0].figure)


def test_label_changes(ax):
    figures.label_changes([0.2, -0.1], [0.1, -0.2], [[0.1, -0.2], [0.3, 0.0]], ax=ax)
    assert [bar.get_height() for bar in ax.patches] == [0.2, -0.1]
    assert line(ax, "predicted").get_ydata().tolist() == [0.1, -0.2]


def test_scatters_with_a_diagonal(ax):
    figures.predicted_measured([1, 2], [1.1, 2.2], ax=ax)
    assert ax.lines[0].get_ydata().tolist() == [1.1, 2.2]
    figures.agreement({"integral": ([1, 2], [3, 4])}, ax=ax)
    assert line(ax, "integral").get_ydata().tolist() == [3, 4]


def test_class_matrix(ax):
    figures.class_matrix(np.eye(3), "row", "column", "value", vmax=0.5, ax=ax)
    assert ax.images[0].get_array().tolist() == np.eye(3).tolist()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column", "row")


def test_ranking_keeps_names_apart(ax):
    values = [[0, 0, 1], [1, 1.001, 2]]
    figures.ranking([0, 1], values, ["a", "b", "c"], {"a": "chosen"}, ax=ax)
    heights = sorted(text.xy[1] for text in ax.texts)
    assert min(np.diff(heights)) >= 0.05 * 2


def test_pushes(ax):
    push = np.array([[-0.2, 0.3, 0.001], [0, 0, -0.4]])
    assert figures.pushes([BEFORE, AFTER], push, [1, 2], ax=ax) is ax
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
    assert figures.push_field(x, y, push, path=[[0, 0], [0.25, -1]], ax=ax) is ax
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
    figures.push_field(x, y, push, ax=ax)
    resting = [
        path
        for c in ax.collections
        if not hasattr(c, "U")
        for path in c.get_paths()
        if len(path.vertices)
    ]
    (region,) = resting
    assert region.contains_point((0.5, 0.5)) and not region.contains_point((-0.5, 0.5))


def test_by_type_shows_the_mean_and_the_middle_half_of_the_prompts(ax):
    values = {"chosen": [1.0, 2.0, 3.0, np.nan, 6.0], "random_nonhum": [0.0]}
    figures.by_type(values, "nats", ax=ax)
    assert [line.get_xdata().tolist() for line in ax.lines] == [[3.0], [0.0]]
    assert ax.lines[0].get_color() == plots.COLORS["chosen"]
    (bar,) = ax.collections[0].get_segments()
    assert bar[:, 0].tolist() == [1.75, 3.75]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["chosen $y^+$", "random words"]
    assert ax.yaxis_inverted()  # the first type on top


def test_who_sees_whom_shows_the_mask_and_names_its_parts(ax):
    sees = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    figures.who_sees_whom(sees, [0, 1, 2], ["prompt", "a", "b"], ax=ax)
    (image,) = ax.images
    assert (np.isfinite(image.get_array().filled(np.nan)) == sees).all()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["prompt", "a", "b"]
    assert len(ax.lines) == 4  # two edges, across and down


def test_next_tokens_puts_each_label_above_the_place_that_predicts_it(ax):
    figures.next_tokens(["why", "?", "so", "be"], n_prompt=2, at=1, ax=ax)
    above = {text.get_text(): text.get_position()[0] for text in ax.texts if text.get_va() != "top"}
    assert above == {"so": 1, "be": 2}  # nothing of the prompt
    fan = [line for line in ax.lines if line.get_zorder() == 1]
    assert [line.get_xdata().tolist() for line in fan] == [[0, 1], [1, 1]]  # all it has read


def test_token_bars_stand_side_by_side(ax):
    values = {"chosen": [-1.0, -2.0], "chosen_gptformat": [-3.0, -4.0]}
    figures.token_bars(values, ["a", "b"], "nats", ax=ax)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [-1, -2, -3, -4]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]


def test_clouds_show_every_dot_of_each_group(ax):
    figures.clouds({"own": ([1, 2], [3, 4]), "other": ([5], [6])}, ax=ax)
    shown = [line for line in ax.lines if len(line.get_xdata())]  # the others name them
    assert [line.get_xydata().tolist() for line in shown] == [[[1, 3], [2, 4]], [[5, 6]]]
    assert len({(line.get_marker(), line.get_color()) for line in ax.lines}) == 2
    assert ax.get_legend_handles_labels()[1] == ["own", "other"]


def test_shares_stack_up_from_zero(ax):
    bars = {"before": {"true": 0.25, "false": 0.75}, "after": {"true": 0.5, "false": 0.5}}
    figures.shares(bars, ["chosen", "rejected"], ax=ax)
    true, false = ax.containers
    assert [(bar.get_x(), bar.get_width()) for bar in true] == [(0, 0.25), (0, 0.5)]
    assert [(bar.get_x(), bar.get_width()) for bar in false] == [(0.25, 0.75), (0.5, 0.5)]
    assert true.get_label() == "true"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["before", "after"]
    assert ax.yaxis_inverted()  # the first bar on top


def test_tradeoff_fills_the_frontier_and_sends_a_ray_to_each_run(ax):
    points = {"a": ([1.0, 3.0], [0.0, 4.0]), "b": ([0.0, 0.0], [1.0, 1.0])}
    figures.tradeoff(points, frontier=["a"], ax=ax)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[2, 2]], [[0, 1]]]
    assert [dot.get_markerfacecolor() for dot in dots] == [plots.COLORS["chosen"], "white"]
    rays = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() != "o"]
    assert rays[:2] == [[[2, 2], [1, 0]], [[2, 2], [3, 4]]] and len(rays) == 4


def test_tradeoff_writes_no_name_over_another(ax):
    near = {f"a long name {i}": ([1.0], [1 + 0.01 * i]) for i in range(5)} | {"far": ([9.0], [2.0])}
    figures.tradeoff(near, ax=ax)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == list(near)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_rates_stand_side_by_side_with_their_intervals(ax):
    series = {("a", "chosen"): [(0.5, 0.2, 0.7), (0, 0, 0.3)], ("b", "rejected"): [(1, 0.6, 1)] * 2}
    figures.rates([8, 16], series, ax=ax)
    (a, _, (bars,)), (b, _, _) = ax.containers
    np.testing.assert_allclose(a.get_ydata(), [0.5, 0])
    np.testing.assert_allclose([y for _, y in bars.get_segments()[0]], [0.2, 0.7])
    assert (np.abs(a.get_xdata() - [0, 1]) < 0.2).all() and (a.get_xdata() < b.get_xdata()).all()
    assert a.get_color() == plots.COLORS["chosen"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["8", "16"]


@pytest.mark.parametrize(("values", "lowest"), [([[1.0, -2.0]], -2), ([[1.0, 3.0]], 1)])
def test_table_shows_values_and_names(ax, values, lowest):
    figures.table(values, ["a"], ["b", "c"], "nats", "{:+.0f}", ax=ax)
    (image,) = ax.images
    assert image.get_array().tolist() == values
    assert image.norm.vmin == lowest
    said = [f"{v:+.0f}".replace("-", "−") for v in values[0]]
    assert [text.get_text() for text in ax.texts] == said
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["b", "c"]


def test_table_leaves_missing_numbers_blank(ax):
    figures.table([[1.0, np.nan]], ["a"], ["b", "c"], "nats", "{:.0f}", ax=ax)
    assert [text.get_text() for text in ax.texts] == ["1"]


def test_tables_can_share_their_colours(ax):
    figures.table([[1.0, -2.0]], ["a"], ["b", "c"], "nats", top=5, ax=ax)
    (image,) = ax.images
    assert (image.norm.vmin, image.norm.vmax) == (-5, 5)


def test_tables_side_by_side_have_one_bar_of_colours():
    figure, axes = plt.subplots(1, 2, sharey=True)
    of = {"one": [[1.0, 2.0]], "other": [[3.0, -4.0]]}
    figures.tables(of, ["a"], ["b", "c"], "nats", "{:+.0f}", 5, axes)
    assert [ax.get_title() for ax in axes] == list(of)
    assert [(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in axes] == [(-5, 5)] * 2
    assert len(figure.axes) == 3 and axes[1].images[0].colorbar.ax is figure.axes[2]
    plt.close(figure)
