"""Each claim of "What helps" holds on numbers where it should, and fails on others."""

import numpy as np
import pytest

from audit import helps
from audit.scale import Moved, Paired, Scale
from lessons import helps as lesson

HIGH, LOW = np.array([1.0, 2.0]), np.array([-3.0, -2.0])
MORE, SAME, LESS = Paired(2, 1, 3), Paired(0.1, -1, 1), Paired(-2, -3, -1)
SLIGHT = np.random.default_rng(0).normal(0, 1, 100)  # its mean is near zero
CLOSE = ("chosen_gptsemantic", "rejected", "reject_gptsemantic")


def types(values):
    return dict.fromkeys(CLOSE, values)


def against_dpo(chosen, argmax):
    return {"chosen": (Moved(-9, 0.5), *chosen), "argmax": (Moved(8, 0.5), *argmax)}


CASES = [
    (
        helps.extend_falls_less,
        (HIGH, LOW, [(-5, -8)], (HIGH, LOW), [(1, 2)]),
        (LOW, HIGH, [(-8, -5)], (HIGH, LOW), [(1, 2)]),
    ),
    (helps.extend_ends_likelier, (HIGH, LOW), (LOW, HIGH)),
    (helps.extend_keeps_more, (HIGH, HIGH, [4], MORE), (LOW, LOW, [-1], SAME)),
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
    (
        helps.on_policy_does_not_squeeze,
        (HIGH, LOW, HIGH, HIGH, against_dpo((Moved(0.1, 0.2), MORE), (Moved(-0.3, 0.2), LESS))),
        (LOW, HIGH, HIGH, HIGH, against_dpo((Moved(-4, 0.2), SAME), (Moved(3, 0.2), SAME))),
    ),
    (
        helps.gains_more_where_it_stops,
        ({"extend": np.stack([SLIGHT + 1, SLIGHT])},),
        ({"extend": np.stack([SLIGHT, SLIGHT + 1])},),
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
    assert helps.extend_falls_less(HIGH, LOW, [(-8, -5)], (LOW, HIGH), [])[-1] == "partly"
    assert helps.extend_keeps_more(HIGH, HIGH, [4], SAME)[-1] == "partly"
    assert helps.both_answers_help(HIGH, LOW, [1], MORE)[-1] == "partly"
    assert helps.sparing_keeps_more(HIGH, HIGH, SAME)[-1] == "partly"


def test_what_rises_anyway_cannot_fall_less():
    claim = helps.extend_falls_less(HIGH, LOW, [(8, 5), (8, -5)], (LOW, HIGH), [(1, 2), (1, 2)])
    assert "in 1 of these 2 DPO lifts $y^+$" in claim[2] and claim[-1] == "partly"
    assert helps.extend_falls_less(HIGH + 2, HIGH, [(8, 5)], (LOW, HIGH), [])[-1] != "reproduced"


def test_one_in_six_must_be_further_from_zero():
    differences = SLIGHT - SLIGHT.mean() + 0.23  # 2.3 standard errors or so
    alone, one, six = (
        Paired.of(differences),
        helps.for_all(differences, 1),
        helps.for_all(differences, 6),
    )
    assert one == pytest.approx(alone, abs=0.01)
    assert alone.verdict == "more" and six.verdict == "no difference"
    assert six.high - six.low > 1.2 * (one.high - one.low)
    arms = {"extend": differences} | {f"arm {i}": SLIGHT for i in range(5)}
    claim = helps.gains_more_where_it_stops({a: np.stack([of, of]) for a, of in arms.items()})
    assert claim[-1] == "not found" and "extend, alone: +0.2 (+0.0 to" in claim[2]


def test_signs_leave_ties_aside():
    assert helps.signs(np.array([1.0, 2.0, -1.0, 0.0])) == (2, 1)


@pytest.fixture
def scale():
    """DPO, and an arm whose held-out margin is half its trained one, at 3 probings of 6 prompts."""
    group = np.array(["train"] * 2 + ["test"] * 2 + ["tune"] * 2)
    rises = np.array([0.0, 10.0, 20.0])[:, None] * np.array([1, 1, 0.5, 0.5, 1, 1])
    logp = np.stack([rises, 0 * rises], -1) + np.arange(6)[:, None]
    said = [np.array([[0.0, 10, 1], [0.2, 20, 1]]), np.array([[0.1, 30, 1], [0.1, 20, 0]])]
    told = {"arm": "dpo", "seed": 0, "role": "whole", "lr": 1e-6, "start": "sft"}
    run = {"steps": np.arange(3), "logp": logp, "argmax": rises, "said": said[1]}
    runs = {"sft": {"said": said[0]}, "dpo": run, "rpo": run | {"logp": logp[..., ::-1] / 10}}
    meta = {"runs": {"sft": told | {"role": "start"}, "dpo": told, "rpo": told | {"arm": "rpo"}}}
    return Scale(["chosen", "rejected"], group, runs, meta)


def test_the_held_out_margin_is_read_where_the_trained_one_is_at_a_level(scale):
    assert lesson.held_margin(scale, "dpo", 10) == pytest.approx([5, 5])
    assert lesson.held_margin(scale, "dpo", 15) == pytest.approx([7.5, 7.5])
    with pytest.raises(ValueError, match="'dpo' does not reach a margin of 30 nats"):
        lesson.held_margin(scale, "dpo", 30)


def test_arms_are_set_beside_dpo_where_each_does_best(scale):
    beyond = lesson.beyond_at_stop(scale, ["rpo"])  # DPO at its end, the other at its first probing
    assert beyond["rpo"] == pytest.approx(np.array([[-10.5, -10.5], [-10, -10]]))


def test_what_is_written_is_compared_prompt_by_prompt(scale):
    told = lesson.written(scale, "dpo")
    assert [told[what][:2] for what in ("repeats", "words", "ended")] == [
        pytest.approx(of) for of in ((0.1, 0.1), (15, 25), (1, 0.5))
    ]
    assert told["words"][2] == pytest.approx((10, 10)) and told["ended"][2].verdict == "neither"


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
