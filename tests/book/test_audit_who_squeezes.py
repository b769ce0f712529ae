"""Each claim of "Who squeezes whom" holds on numbers that bear it out, and fails on others."""

import numpy as np
import pytest

from audit import who_squeezes as audit
from audit.sft import Change

YES, NO = np.ones((4, 2), dtype=bool), np.zeros((4, 2), dtype=bool)
PLUS, MINUS, MIXED = np.full(3, 1.0), np.full(3, -1.0), np.array([1.0, -1.0, -1.0])
UP, DOWN, FLAT = Change(5.0, 0.9), Change(-5.0, 0.8), Change(0.1, 0.8)


def verdict(row):
    return row[-1]


@pytest.mark.parametrize(
    "numbers, expected",
    [
        ((7e-7, 9e-6, 0.01), "guarantee, holds"),
        ((1e-3, 9e-6, 0.01), "violated"),
        ((7e-7, 1e-2, 0.01), "violated"),
    ],
)
def test_the_split_is_exact(numbers, expected):
    assert verdict(audit.split_is_exact(*numbers)) == expected


def test_it_rises_briefly_then_falls():
    assert verdict(audit.brief_rise(YES)) == "reproduced"
    assert verdict(audit.brief_rise(NO)) == "not reproduced"
    row = audit.brief_rise(np.array([[False, True], [False, False]]))
    assert verdict(row) == "partly" and "epoch 1 in 0 of 2 worlds, in epoch 2 in 1" in row[2]


def test_adapters_agree_by_the_largest_rank():
    row = audit.adapters_agree({1: np.full(3, 0.2), 16: np.full(3, 0.9)})
    assert verdict(row) == "found" and "rank 1: 0.20" in row[2]
    assert verdict(audit.adapters_agree({1: PLUS, 16: np.full(3, 0.4)})) == "not found"
    assert verdict(audit.adapters_agree({16: np.array([0.6, 0.4, 0.7])})) == "partly"


def test_a_step_on_its_own_pair():
    assert verdict(audit.own_pair_lowers(PLUS, MINUS, MINUS, UP)) == "not found"
    assert verdict(audit.own_pair_lowers(PLUS, PLUS, MINUS, UP)) == "partly"
    assert verdict(audit.own_pair_lowers(MINUS, PLUS, PLUS, FLAT)) == "partly"
    assert verdict(audit.own_pair_lowers(MINUS, PLUS, PLUS, DOWN)) == "found"


def test_a_pair_alone():
    assert verdict(audit.alone_lifts(PLUS)) == "found"
    assert verdict(audit.alone_lifts(0 * PLUS)) == "not found"
    assert verdict(audit.alone_lowers(MINUS, 40)) == "found"
    assert verdict(audit.alone_lowers(MIXED, 40)) == "partly"
    assert verdict(audit.alone_lowers(PLUS, 40)) == "not found"


def test_the_others():
    assert verdict(audit.others_lower(MINUS, (DOWN, DOWN))) == "found"
    assert verdict(audit.others_lower(MINUS, (FLAT, DOWN))) == "partly"
    assert verdict(audit.others_lower(MIXED, (DOWN, DOWN))) == "partly"
    assert verdict(audit.others_lower(PLUS, (UP, FLAT))) == "not found"
    assert verdict(audit.so_under_adamw(PLUS, MINUS, (UP, DOWN, DOWN))) == "found"
    assert verdict(audit.so_under_adamw(PLUS, MINUS, (UP, FLAT, DOWN))) == "partly"
    assert verdict(audit.so_under_adamw(PLUS, MINUS, (UP, DOWN, FLAT))) == "partly"
    assert verdict(audit.so_under_adamw(PLUS, MINUS, (FLAT, DOWN, DOWN))) == "partly"
    assert verdict(audit.so_under_adamw(PLUS, MIXED, (UP, DOWN, DOWN))) == "partly"
    assert verdict(audit.so_under_adamw(MINUS, PLUS, (DOWN, UP, UP))) == "not found"


def test_held_out_prompts():
    assert verdict(audit.held_out_falls(YES)) == "found"
    assert verdict(audit.held_out_falls(NO)) == "not found"
    assert verdict(audit.held_out_falls_in_smollm2([DOWN, DOWN], [UP, FLAT])) == "found"
    assert verdict(audit.held_out_falls_in_smollm2([DOWN, FLAT], [UP, UP])) == "partly"
    assert verdict(audit.held_out_falls_in_smollm2([FLAT, UP], [DOWN, DOWN])) == "not found"


def test_the_forecast_ranks():
    high, low = {"trained": 0.4}, {"trained": 0.2}
    assert verdict(audit.forecast_ranks(np.array([0.3, 0.9]), MINUS, high, 1.0)) == "found"
    assert verdict(audit.forecast_ranks(np.array([0.3, 0.9]), MINUS, low, 1.0)) == "partly"
    assert verdict(audit.forecast_ranks(np.array([0.2, 0.9]), MINUS, high, 1.0)) == "partly"
    assert verdict(audit.forecast_ranks(np.array([0.2, 0.1]), PLUS, low, 1.0)) == "not found"


def test_valleys():
    few = np.full(3, 0.15)
    assert verdict(audit.valleys_push(few, np.full(3, 0.7), (0.1, 0.6, 0.8))) == "found"
    assert verdict(audit.valleys_push(few, np.full(3, 0.7), (0.5, 0.9, 0.8))) == "partly"
    assert verdict(audit.valleys_push(few, np.full(3, 0.7), (0.1, 0.4, 0.8))) == "partly"
    assert verdict(audit.valleys_push(few, np.full(3, 0.4), (0.5, 0.9, 0.8))) == "not found"
    assert verdict(audit.valleys_push(3 * few, np.full(3, 0.7), (0.5, 0.9, 0.8))) == "not found"
    assert verdict(audit.longer_sft_deepens(few, 2 * few)) == "reproduced"
    assert verdict(audit.longer_sft_deepens(2 * few, few)) == "not reproduced"
    assert verdict(audit.longer_sft_deepens(few, np.array([0.1, 0.2, 0.2]))) == "partly"


def test_predictions_rank():
    good, bad = [0.9, 0.8, 0.7, 0.6], [0.9, 0.1, 0.2, 0.4]
    tables = [
        {"handed": {"squeeze line": of}, "fall": dict.fromkeys(("first order", "CHES"), of)}
        for of in (good, bad)
    ]
    for table, other, expected in (
        (tables[0], bad, ["found"] * 3 + ["not found"]),
        (tables[1], good, ["not found"] * 3 + ["found"]),
    ):
        table["fall"]["CHES per token"] = other
        assert [verdict(row) for row in audit.all_ranks(table)] == expected
    assert verdict(audit.ranks("it ranks", [0.1, 0.2, 0.3, 0.6])) == "partly"
    assert audit.ranks("it ranks", good)[0] == "it ranks (≥ 0.5)"


def test_leaving_out_the_worst():
    assert verdict(audit.worst_quarter(PLUS, PLUS)) == "found"
    assert verdict(audit.worst_quarter(MIXED, PLUS)) == "partly"
    assert verdict(audit.worst_quarter(MINUS, PLUS)) == "not found"
