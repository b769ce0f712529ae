"""Each claim of the chapter on sentences holds with numbers that support it, and can fail."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from audit import ClaimTable, sentence
from figures.sentence import fork_tree, signs

TABLE = np.array([[3.0, -1.0], [-1.0, 2.0]])
UP, DOWN = np.full(8, 2.0), np.full(8, -2.0)
MIXED = np.array([2.0, -2.0] * 4)
SLOPES = {"SGD": 2.0, "AdamW": 2.02}
GUARANTEES = [
    (sentence.causal, (0.0, 0.1), (1e-9, 0.1)),
    (sentence.causal, (0.0, 0.1), (0.0, 0.0)),
    (sentence.chain, (1e-9,), (1e-3,)),
    (sentence.blocks, (1e-7,), (1e-2,)),
    (sentence.equation, (1e-6, SLOPES), (1e-2, SLOPES)),
    (sentence.equation, (1e-6, SLOPES), (1e-6, SLOPES | {"SGD": 1.5})),
    (sentence.symmetric, (TABLE,), (np.triu(TABLE),)),
    (sentence.symmetric, (TABLE,), (-TABLE,)),
    (sentence.later_tokens_push, (TABLE, TABLE.T), (TABLE, TABLE + 1)),
]
GOOD = {1e-5: (0.9999, 0.01), 1e-6: (1.0, 0.003)}
FINDINGS = [
    (sentence.kernel_reads, (5.6, 25), (0.9, 25), "not found"),
    (sentence.word_lifts_itself, (2 * UP, UP), (UP, 2 * UP), "partly"),
    (sentence.word_lifts_itself, (2 * UP, UP), (2 * DOWN, DOWN), "not found"),
    (sentence.rivals_fall, (DOWN,), (UP,), "not found"),
    (sentence.rivals_fall, (DOWN,), (MIXED - 1,), "partly"),
    (sentence.line_tells, (MIXED, MIXED), (UP, MIXED), "not found"),
    (sentence.others_fall, (DOWN,), (UP,), "not found"),
    (sentence.false_answer_rises, (UP, DOWN), (UP, MIXED), "partly"),
    (sentence.false_answer_rises, (UP, DOWN), (DOWN, UP), "not found"),
    (sentence.toy_predicted, (0.9996, 0.03), (0.9996, 0.06), "partly"),
    (sentence.toy_predicted, (0.9996, 0.03), (0.99, 0.06), "not found"),
    (sentence.smollm_predicted, (GOOD,), (GOOD | {1e-6: (1.0, 0.007)},), "partly"),
]


@pytest.mark.parametrize("claim, good, bad", GUARANTEES)
def test_a_guarantee_holds_or_is_violated(claim, good, bad):
    assert claim(*good)[-1] == "guarantee, holds"
    assert claim(*bad)[-1] == "violated"


@pytest.mark.parametrize("claim, good, bad, verdict", FINDINGS)
def test_a_finding_can_fail(claim, good, bad, verdict):
    assert claim(*good)[-1] == "found"
    assert claim(*bad)[-1] == verdict


def test_the_rows_make_a_table():
    rows = [claim(*good) for claim, good, *_ in [*GUARANTEES, *FINDINGS]]
    assert len(ClaimTable(rows).claims) == len(rows)


@pytest.fixture
def ax():
    figure, ax = plt.subplots(figsize=(7.2, 3))
    yield ax
    figure.canvas.draw()
    plt.close(figure)


def test_fork_tree_names_each_token_and_what_it_gains(ax):
    branches = {"true": ["c", "d"], "false": ["e", "d"]}
    changes = {"true": [0.01, 3, 2], "false": [0.01, -1, 2]}
    fork_tree("prompt", ["a"], branches, changes, ("same", "fork", "other"), ax=ax)
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert {"prompt", "a", "c", "d", "e", "true", "false", "0", "+3.0", "−1.0"} <= set(heights)
    assert heights["e"] < heights["a"] < heights["c"]
    dots = {line.get_color(): line for line in ax.lines if line.get_marker() == "o"}
    assert len(dots) == 3  # rises, falls, stays
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_signs_are_told_by_triangles(ax):
    signs([1, -1], [5, -6], ax=ax)
    markers = {line.get_marker(): line.get_xydata().tolist() for line in ax.lines[:2]}
    assert markers == {"^": [[1, 5]], "v": [[-1, -6]]}
