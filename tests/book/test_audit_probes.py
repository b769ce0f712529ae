"""Each claim of the chapter on probes holds with numbers that support it, and can fail."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest

from audit import ClaimTable, probes
from figures.probes import shared_traits
from lmdyn.plots import NAMES

SCORES = np.array([[-3.0, -4.0], [-5.0, -6.0]])
RANDOM = ["random_nonhum", "random_permute"]
GUARANTEES = [
    (probes.promises_kept, (np.array([True, True]),), (np.array([True, False]),)),
    (probes.one_pass, (SCORES, SCORES + 1e-12), (SCORES, SCORES + 1e-6)),
    (probes.norms_from_scores, ((3.0, 1.0), (3.0, 1.0)), ((3.0, 1.0), (3.0, 1.1))),
    (probes.lbk_is_a_bound, (np.array([0.1, 0.9]),), (np.array([0.1, 1.1]),)),
]
CLAIMS = [
    (probes.sure_and_surprised, (-0.9, 0.9, RANDOM), (-0.9, 0.9, ["chosen", *RANDOM[:1]])),
    (probes.sure_and_surprised, (-0.9, 0.9, RANDOM), (0.1, 0.1, RANDOM)),
    (
        probes.words_shared,
        ({"chosen_gptsemantic": 0.2, "chosen_gptformat": 0.5}, 64),
        ({"chosen_gptsemantic": 0.3, "chosen_gptformat": 0.5}, 64),
    ),
    (probes.missing_space, (np.array([5.0, 2.0]),), (np.array([5.0, 0.5]),)),
    (probes.argmax_of_the_last, (-57.0, -4.0), (-5.0, -4.0)),
    (probes.twins_react_weaker, (0.2, 0.5), (0.8, 0.2)),
    (probes.twins_react_weaker, (0.2, 0.5), (-0.1, 0.2)),
    (probes.answers_leak, (np.array([0.8, 0.7]), np.array([0.1, 0.2])), (np.ones(2), np.ones(2))),
    (
        probes.own_words_fall,
        ({"chosen_initial": 0.9, "chosen_selfr": 0.8},),
        ({"chosen_initial": 0.9, "chosen_selfr": 0.6},),
    ),
    (probes.lbk_follows_kernel, ((0.8, 0.9, 0.8),), ((0.8, 0.9, 0.6),)),
    (probes.lbk_has_no_sign, (0.8, 0.9), (0.5, 0.9)),
    (probes.sign_delta_is_influence, (0.999,), (0.98,)),
]


@pytest.mark.parametrize("claim, good, bad", GUARANTEES)
def test_a_guarantee_holds_or_is_violated(claim, good, bad):
    assert claim(*good)[-1] == "guarantee, holds"
    assert claim(*bad)[-1] == "violated"


@pytest.mark.parametrize("claim, good, bad", CLAIMS)
def test_a_claim_can_fail(claim, good, bad):
    assert claim(*good)[-1] in ("found", "reproduced")
    assert claim(*bad)[-1] in ("partly", "not found", "not reproduced")


def test_what_the_paper_does_not_claim_is_found_not_reproduced():
    for claim, good, _ in CLAIMS:
        _, paper, _, verdict = claim(*good)
        assert paper or verdict == "found"


def test_the_rows_make_a_table():
    rows = [claim(*good) for claim, good, *_ in [*GUARANTEES, *CLAIMS]]
    assert len(ClaimTable(rows).claims) == len(rows)


def test_shared_traits_fill_the_dots_of_a_type():
    figure, ax = plt.subplots()
    shared_traits({"chosen": ["form"], "random_nonhum": []}, ["meaning", "form"], ax=ax)
    large = [line.get_xydata().tolist() for line in ax.lines if line.get_markersize() > 5]
    assert large == [[[1, 0]], []]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == [NAMES["chosen"][1], NAMES["random_nonhum"][1]]
    with pytest.raises(ValueError, match="words"):
        shared_traits({"chosen": ["words"]}, ["form"], ax=ax)
    figure.canvas.draw()
    plt.close(figure)
