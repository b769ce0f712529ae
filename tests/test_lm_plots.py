"""Each figure shows the numbers it was given, and every response type has a look of its own."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lmdyn.lm import TYPES, plots
from lmdyn.plots import COLORS


@pytest.fixture
def ax():
    figure, ax = plt.subplots(figsize=(6.4, 4))
    yield ax
    figure.canvas.draw()
    plt.close(figure)


def test_every_type_has_a_name_a_colour_of_its_family_and_its_own_line():
    assert [*TYPES, "argmax"] == list(plots.NAMES)
    looks = [plots._style(name) for name in plots.NAMES]
    assert len({(color, style) for color, style, _ in looks}) == len(looks)
    assert len({label for _, _, label in looks}) == len(looks)


def test_responses_draw_a_line_or_the_mean_of_runs(ax):
    plots.responses([0, 1], {"chosen": [-3, -1], "rejected": [[-2, -4], [-4, -6]]}, ax=ax)
    mean = next(line for line in ax.lines if line.get_label() == "rejected $y^-$")
    assert mean.get_ydata().tolist() == [-3, -5]
    assert mean.get_color() == COLORS["rejected"]
    assert len(ax.lines) == 2 + 2  # and each run


def test_names_at_the_end_do_not_overlap(ax):
    plots.responses([0, 1], {name: [-9, -1 - 1e-3 * i] for i, name in enumerate(TYPES)}, ax=ax)
    ax.figure.canvas.draw()
    boxes = sorted(text.get_window_extent().intervaly.tolist() for text in ax.texts)
    assert len(boxes) == len(TYPES)
    middles = [sum(box) / 2 for box in boxes]
    assert np.diff(middles).min() > 8
    assert ax.get_window_extent().y0 <= boxes[0][0]


@pytest.mark.parametrize(("values", "lowest"), [([[1.0, -2.0]], -2), ([[1.0, 3.0]], 1)])
def test_table_shows_values_and_names(ax, values, lowest):
    plots.table(values, ["a"], ["b", "c"], "nats", "{:+.0f}", ax=ax)
    (image,) = ax.images
    assert image.get_array().tolist() == values
    assert image.norm.vmin == lowest
    assert [text.get_text() for text in ax.texts] == [f"{v:+.0f}" for v in values[0]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["b", "c"]


def test_table_leaves_missing_numbers_blank(ax):
    plots.table([[1.0, np.nan]], ["a"], ["b", "c"], "nats", "{:.0f}", ax=ax)
    assert [text.get_text() for text in ax.texts] == ["1"]


def test_tables_can_share_their_colours(ax):
    plots.table([[1.0, -2.0]], ["a"], ["b", "c"], "nats", top=5, ax=ax)
    (image,) = ax.images
    assert (image.norm.vmin, image.norm.vmax) == (-5, 5)


def test_by_type_shows_the_mean_and_the_middle_half_of_the_prompts(ax):
    values = {"chosen": [1.0, 2.0, 3.0, np.nan, 6.0], "random_nonhum": [0.0]}
    plots.by_type(values, "nats", ax=ax)
    assert [line.get_xdata().tolist() for line in ax.lines] == [[3.0], [0.0]]
    assert ax.lines[0].get_color() == COLORS["chosen"]
    (bar,) = ax.collections[0].get_segments()
    assert bar[:, 0].tolist() == [1.75, 3.75]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["chosen $y^+$", "random words"]
    assert ax.yaxis_inverted()  # the first type on top


def test_who_sees_whom_shows_the_mask_and_names_its_parts(ax):
    sees = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
    plots.who_sees_whom(sees, [0, 1, 2], ["prompt", "a", "b"], ax=ax)
    (image,) = ax.images
    assert (np.isfinite(image.get_array().filled(np.nan)) == sees).all()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["prompt", "a", "b"]
    assert len(ax.lines) == 4  # two edges, across and down


def test_next_tokens_puts_each_label_above_the_place_that_predicts_it(ax):
    plots.next_tokens(["why", "?", "so", "be"], n_prompt=2, at=1, ax=ax)
    above = {text.get_text(): text.get_position()[0] for text in ax.texts if text.get_va() != "top"}
    assert above == {"so": 1, "be": 2}  # nothing of the prompt
    fan = [line for line in ax.lines if line.get_zorder() == 1]
    assert [line.get_xdata().tolist() for line in fan] == [[0, 1], [1, 1]]  # all it has read


def test_token_bars_stand_side_by_side(ax):
    values = {"chosen": [-1.0, -2.0], "chosen_gptformat": [-3.0, -4.0]}
    plots.token_bars(values, ["a", "b"], "nats", ax=ax)
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == [-1, -2, -3, -4]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["a", "b"]


def test_clouds_show_every_dot_of_each_group(ax):
    plots.clouds({"own": ([1, 2], [3, 4]), "other": ([5], [6])}, ax=ax)
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 3], [2, 4]], [[5, 6]]]
    assert len({(line.get_marker(), line.get_color()) for line in ax.lines}) == 2


def test_shares_stack_up_from_zero(ax):
    bars = {"before": {"true": 0.25, "false": 0.75}, "after": {"true": 0.5, "false": 0.5}}
    plots.shares(bars, ["chosen", "rejected"], ax=ax)
    true, false = ax.containers
    assert [(bar.get_x(), bar.get_width()) for bar in true] == [(0, 0.25), (0, 0.5)]
    assert [(bar.get_x(), bar.get_width()) for bar in false] == [(0.25, 0.75), (0.5, 0.5)]
    assert true.get_label() == "true"
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["before", "after"]
    assert ax.yaxis_inverted()  # the first bar on top


def test_tradeoff_fills_the_frontier_and_sends_a_ray_to_each_run(ax):
    points = {"a": ([1.0, 3.0], [0.0, 4.0]), "b": ([0.0, 0.0], [1.0, 1.0])}
    plots.tradeoff(points, frontier=["a"], ax=ax)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[2, 2]], [[0, 1]]]
    assert [dot.get_markerfacecolor() for dot in dots] == [COLORS["chosen"], "white"]
    rays = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() != "o"]
    assert rays[:2] == [[[2, 2], [1, 0]], [[2, 2], [3, 4]]] and len(rays) == 4


def test_tradeoff_writes_no_name_over_another(ax):
    near = {f"a long name {i}": ([1.0], [1 + 0.01 * i]) for i in range(5)} | {"far": ([9.0], [2.0])}
    plots.tradeoff(near, ax=ax)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert [text.get_text() for text in ax.texts] == list(near)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_mass_draws_a_bar_for_each_part_of_each_group_and_a_dot_for_each_run(ax):
    groups = {
        "valley": {"label": [-1.0, -3.0], "rest": [1.0, 3.0]},
        "hill": {"label": 2, "rest": -2},
    }
    plots.mass(groups, ["rejected", "random"], ax=ax)
    label, rest = ax.containers
    assert [bar.get_width() for bar in label] == [-2, 2] and [b.get_width() for b in rest] == [
        2,
        -2,
    ]
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "."]
    assert dots == [[-1, -3], [1, 3]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["valley", "hill"]
    assert ax.yaxis_inverted()  # the first group on top


def test_rates_stand_side_by_side_with_their_intervals(ax):
    series = {("a", "chosen"): [(0.5, 0.2, 0.7), (0, 0, 0.3)], ("b", "rejected"): [(1, 0.6, 1)] * 2}
    plots.rates([8, 16], series, ax=ax)
    (a, _, (bars,)), (b, _, _) = ax.containers
    np.testing.assert_allclose(a.get_ydata(), [0.5, 0])
    np.testing.assert_allclose([y for _, y in bars.get_segments()[0]], [0.2, 0.7])
    assert (np.abs(a.get_xdata() - [0, 1]) < 0.2).all() and (a.get_xdata() < b.get_xdata()).all()
    assert a.get_color() == COLORS["chosen"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["8", "16"]
