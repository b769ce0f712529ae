"""Each claim of "What helps" holds on numbers where it should, and fails on others."""

import numpy as np
import pytest

from audit import helps
from audit.scale import Paired

HIGH, LOW = np.array([1.0, 2.0]), np.array([-3.0, -2.0])
MORE, SAME, LESS = Paired(2, 1, 3), Paired(0.1, -1, 1), Paired(-2, -3, -1)
CLOSE = ("chosen_gptsemantic", "rejected", "reject_gptsemantic")


def types(values):
    return dict.fromkeys(CLOSE, values)


CASES = [
    (helps.extend_falls_less, (HIGH, LOW, [(8, 5)]), (LOW, HIGH, [(5, 8)])),
    (helps.extend_ends_likelier, (HIGH, LOW), (LOW, HIGH)),
    (helps.extend_keeps_more, (HIGH, HIGH, [4]), (LOW, LOW, [-1])),
    (
        helps.extend_drags_less,
        (types(HIGH), types(LOW), types([(-8, -20)])),
        (types(LOW), types(HIGH), types([(-20, -8)])),
    ),
    (helps.extend_argmax_rises_less, (LOW, HIGH, [(2, 4)]), (HIGH, LOW, [(4, 2)])),
    (
        helps.extend_degrades_less,
        (LOW, HIGH, HIGH, LOW, (76, 7)),
        (HIGH, LOW, LOW, HIGH, (9, 7)),
    ),
    (
        helps.extend_at_a_large_margin,
        (HIGH, LOW, LOW, HIGH, (-0.3, -0.3)),
        (LOW, HIGH, HIGH, LOW, (-0.3, -0.3)),
    ),
    (helps.both_answers_help, (HIGH, HIGH, [1], MORE), (LOW, LOW, [-1], SAME)),
    (helps.smaller_dose_helps, (HIGH, HIGH, [1], MORE), (LOW, LOW, [-1], LESS)),
    (
        helps.pull_keeps_more,
        ({"rpo": (HIGH, HIGH)}, {"rpo": MORE}),
        ({"rpo": (LOW, LOW)}, {"rpo": SAME}),
    ),
    (helps.sparing_keeps_more, (HIGH, HIGH, MORE), (LOW, LOW, SAME)),
    (helps.lower_rate_keeps_more, (HIGH, HIGH), (LOW, LOW)),
    (helps.on_policy_does_not_squeeze, (HIGH, LOW, HIGH, HIGH), (LOW, HIGH, HIGH, HIGH)),
    (
        helps.gains_more_where_it_stops,
        ({"extend": MORE}, {"extend": LESS}),
        ({"extend": SAME}, {"extend": LESS}),
    ),
    (helps.beats_dpo, ({"rpo": (40, 7), "ipo": (56, 10)},), ({"rpo": (7, 40), "ipo": (9, 10)},)),
    (helps.beats_sft, ({"rpo": (40, 7)},), ({"rpo": (11, 28), "extend": (6, 1)},)),
    (helps.made_again, (1e-4, 0.05, 2, 14), (0.2, 0.05, 2, 14)),
]


@pytest.mark.parametrize("claim, good, bad", CASES, ids=[claim.__name__ for claim, *_ in CASES])
def test_a_claim_can_hold_and_can_fail(claim, good, bad):
    assert claim(*good)[-1] in {"found", "reproduced", "guarantee, holds"}
    assert claim(*bad)[-1] in {"not found", "not reproduced", "violated"}


def test_what_one_model_shows_alone_is_partly():
    assert helps.extend_falls_less(HIGH, LOW, [(5, 8)])[-1] == "partly"
    assert helps.both_answers_help(HIGH, LOW, [1], MORE)[-1] == "partly"
    assert helps.sparing_keeps_more(HIGH, HIGH, SAME)[-1] == "partly"


def test_only_the_paper_is_reproduced():
    for claim, good, _ in CASES:
        _, paper, _, verdict = claim(*good)
        assert (verdict == "reproduced") <= bool(paper)


def test_the_sign_test_is_the_binomial_with_a_fair_coin():
    assert helps.sign_test(39, 6) == helps.sign_test(6, 39) < 1e-6
    assert helps.sign_test(6, 0) == pytest.approx(2 / 2**6)
    assert helps.sign_test(5, 5) == helps.sign_test(0, 0) == 1
    assert helps.sign_test(3, 1) == pytest.approx(2 * 5 / 16)


def test_holm_corrects_the_least_the_most_and_keeps_the_order():
    p = helps.holm({"a": 0.03, "b": 0.01, "c": 0.9, "d": 0.04})
    expected = {"b": 0.04, "a": 0.09, "d": 0.09, "c": 0.9}
    assert p == pytest.approx(expected)


def test_one_in_many_does_not_win():
    extend, ties = {"extend": (33, 14)}, {f"arm {i}": (10, 10) for i in range(13)}
    assert helps.winners(extend) == ["extend"]
    assert helps.winners(extend | ties) == []
    claim = helps.beats_sft(extend | ties)
    assert "corrected for 14 arms: none; uncorrected: extend" in claim[2]
    assert claim[-1] == "not found"
