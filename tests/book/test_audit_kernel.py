"""Each claim of chapter 3 can hold and can fail."""

import pytest
import torch

from audit import kernel as audit
from lessons import kernel as lesson

STABLE = {"kernel": 0.96, "similarity": 0.95, "influence": 0.94, "own label": 0.93}
FALLS, GROWS, LAZY = [[2.0, 3.0, 0.6, 0.2]], [[2.0, 3.0, 0.6, 0.7]], [[2.0, 3.0, 0.6, 0.05]]
RANKS = {(4, 9): [1, 2], (5, 8): [15, 6], (6, 7): [38, 31], (2, 5): [45, 32]}
GOOD, BAD = [[0.99, 0.95]], [[0.97, 0.7]]


def verdicts(rows):
    return [row[-1] for row in ([rows] if isinstance(rows, tuple) else rows)]


@pytest.mark.parametrize(
    "rows, expected",
    [
        (audit.proxy(0.8, [0.9, 0.8]), ["guarantee, holds", "reproduced"]),
        (audit.proxy(1.1, [0.9, 0.6]), ["violated", "not reproduced"]),
        (audit.settling(FALLS), ["reproduced"]),
        (audit.settling(GROWS), ["not reproduced"]),
        (audit.order(STABLE), ["reproduced"]),
        (audit.order(STABLE | {"similarity": 0.5}), ["partly"]),
        (audit.order(STABLE | {"similarity": 0.5, "kernel": 0.5}), ["not reproduced"]),
        (audit.classes(RANKS), ["reproduced", "reproduced"]),
        (audit.classes(RANKS | {(5, 8): [16, 6], (2, 5): [30, 40]}), ["partly", "partly"]),
        (audit.classes({pair: [20, 20] for pair in RANKS}), ["not reproduced", "not reproduced"]),
        (audit.mutual(True), ["guarantee, holds"]),
        (audit.mutual(False), ["violated"]),
        (audit.asymmetry([3.0], [[0.5, 0.3, 0.2]]), ["reproduced"]),
        (audit.asymmetry([3.0], [[0.8, 0.18, 0.02]]), ["partly"]),
        (audit.asymmetry([1.0], [[0.05, 0.0, 0.05]]), ["not reproduced"]),
        (audit.integral(GOOD, GOOD), ["reproduced"]),
        (audit.integral(GOOD, BAD), ["partly"]),
        (audit.integral([[0.8, 0.7]], [[0.8, 0.7]]), ["not reproduced"]),
        (audit.standing([2.0], FALLS, STABLE), ["reproduced"]),
        (audit.standing([2.0], FALLS, STABLE | {"own label": 0.8}), ["partly"]),
        (audit.standing([1.0], LAZY, STABLE | {"own label": 0.8}), ["not reproduced"]),
    ],
)
def test_a_claim_follows_its_numbers(rows, expected):
    assert verdicts(rows) == expected


def test_spread_tells_one_number_if_both_ends_read_alike():
    assert audit.spread([0.101, 0.104]) == "0.10"
    assert audit.spread([0.1, 0.25], 1) == "0.1 to 0.2"


def test_an_order_that_stays_has_rank_correlation_one_whatever_the_diagonal():
    table = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    scaled = table.exp().fill_diagonal_(99)
    assert lesson.spearman(table, scaled) == pytest.approx(1)
    assert lesson.spearman(table, -table) == pytest.approx(-1)


def test_a_kernel_that_doubles_changes_by_its_size():
    kernel = torch.rand(1, 3, 3, 4, 4)
    assert lesson.adaptation(torch.cat([kernel, 2 * kernel])).tolist() == pytest.approx([1.0])


def test_similarity_of_an_image_with_itself_is_one():
    jacobian = torch.randn(5, 10, 30, generator=torch.Generator().manual_seed(0))
    norm = torch.linalg.matrix_norm(torch.einsum("oip,ujp->ouij", jacobian, jacobian))
    similar = lesson.similarity(norm)
    torch.testing.assert_close(similar.diagonal(), torch.ones(5))
    assert (similar <= 1 + 1e-5).all()
