"""Each claim of "What DPO does" holds on numbers where it should, and fails on others."""

import json
from pathlib import Path

import numpy as np
import pytest

import record_dpo
from audit import dpo
from audit.scale import Moved
from lessons import dpo as lesson

YES, NO = [True, True], [False, False]
FALLS, STAYS = Moved(-3, 1), Moved(-0.5, 1)

CASES = [
    (dpo.step_is_a_difference, (1e-7,), (1e-3,)),
    (
        dpo.chosen_rises_then_falls,
        (YES, [-3, -1], YES, [FALLS]),
        (NO, [1, 2], NO, [STAYS]),
    ),
    (dpo.near_falls, (YES, YES), (NO, NO)),
    (dpo.far_falls, (YES, YES), (NO, NO)),
    (dpo.held_out_falls, ([-2, -1], [(-2, 0.5)]), ([1, 2], [(-0.5, 0.5)])),
    (dpo.argmax_rises, (YES, [1, 2], YES), (NO, [-1, -2], NO)),
    (dpo.argmax_rises_all_the_way, (YES, YES), (NO, NO)),
    (dpo.argmax_rises_faster, (YES, YES, [0.9], 0.5), (NO, NO, [0.1], 0.5)),
    (dpo.longer_sft_is_worse, (YES, YES, YES), (NO, NO, NO)),
    (dpo.on_policy_does_not_squeeze, (YES, [0, 0], [-4, 0], YES), (NO, [-4, 0], [0, 0], NO)),
    (dpo.own_token_lies_on_the_line, (1e-15, [0.1], [5]), (0.1, [0.1], [5])),
    (dpo.valleys_tell_off_policy, ([0.1, 0.1], [0.2, 0.3]), ([0.11, 0.12], [0.12, 0.13])),
    (dpo.own_pair_lifts, ([1, 2], [1, 0.9]), ([-1, -2], [0.1, 0])),
    (dpo.account_adds_up, (1e-12, 10), (1e-3, 10)),
    (
        dpo.line_tells_who_gains,
        ([[0.8, 0.2], [0.9, 0.3]], [[0.6, 0.7], [0.6, 0.7]]),
        ([[0.8, 0.6], [0.9, 0.7]], [[0.6, 0.7], [0.6, 0.7]]),
    ),
    (
        dpo.goes_to_the_rival,
        ([[0.1, 0.2]], [[0.3, 0.4]]),
        ([[0.2, 0.1]], [[0.4, 0.3]]),
    ),
]


@pytest.mark.parametrize("claim, good, bad", CASES, ids=[claim.__name__ for claim, *_ in CASES])
def test_a_claim_can_hold_and_can_fail(claim, good, bad):
    assert claim(*good)[-1] in {"found", "reproduced", "guarantee, holds"}
    assert claim(*bad)[-1] in {"not found", "not reproduced", "violated"}


def test_what_one_model_shows_alone_is_partly():
    assert dpo.near_falls(YES, NO)[-1] == dpo.near_falls(NO, YES)[-1] == "partly"
    assert dpo.chosen_rises_then_falls(NO, [-3, -1], NO, [FALLS, STAYS])[-1] == "partly"
    assert dpo.held_out_falls([-2, -1], [(-0.5, 0.5)])[-1] == "partly"


def test_only_the_paper_is_reproduced():
    for claim, good, _ in CASES:
        _, paper, _, verdict = claim(*good)
        assert (verdict == "reproduced") <= bool(paper)


def test_does_chosen_fall_has_one_rule_for_all_lines():
    steps = np.arange(3.0)[:, None]
    noise = np.random.default_rng(0).normal(size=20)
    falling, rising = -3 * steps + 0.1 * steps * noise, 3 * steps + 0.1 * steps * noise
    lines = [dpo.Watched("tiny, 48", 4, 1e-4, [rising] * 3, [falling] * 3)]
    lines.append(dpo.Watched("SmolLM2, 300", 4, 3e-6, [rising], [falling]))
    bell, vague = np.array([[0.0], [5], [3]]), 9 * steps * (noise - noise.mean()) - 0.3 * steps
    lines.append(dpo.Watched("bells", 4, 3e-6, [bell + 0.1 * steps * noise], [vague]))
    lines.append(dpo.Watched("below", 4, 3e-6, [bell + vague], [bell - 2 * steps + vague / 50]))
    table = dpo.does_chosen_fall(lines)
    assert [row[0] for row in table.rows] == [
        "tiny, 48<br><small>4 epochs at 0.0001, 3 seeds</small>",
        "SmolLM2, 300<br><small>4 epochs at 3e-06, 1 seed</small>",
        "bells<br><small>4 epochs at 3e-06, 1 seed</small>",
        "below<br><small>4 epochs at 3e-06, 1 seed</small>",
    ]
    assert [cell.split(":")[0] for row in table.rows for cell in row[1:]] == [
        *("no fall", "**falls**") * 2,
        *("**turns**", "not sure"),
        *("not sure", "**falls**"),
    ]


def test_numbers_are_told_from_the_smallest_to_the_largest():
    assert dpo.spread([0.31, -2]) == "-2.0 to +0.3"
    assert dpo.spread([0.25, 0.25], 2, False) == "0.25"
    assert dpo.count([[True, False], [True, True]]) == "3 of 4"


def test_the_record_is_of_the_runs_that_the_chapter_describes():
    recorded = Path(record_dpo.HERE) / "recorded" / "dpo-world"
    meta = json.loads(recorded.with_suffix(".json").read_text(encoding="utf-8"))
    assert meta["settings"] == json.loads(json.dumps(record_dpo.RECIPE))
    assert [*lesson.TOLD] == meta["types"] and [*lesson.SHOWN] == meta["shown"]
    worlds = dict(np.load(recorded.with_suffix(".npz")))
    assert {len(of) for of in worlds.values()} == {len(meta["seeds"])} == {lesson.SEEDS}
    updates = lesson.EPOCHS * lesson.PER_EPOCH
    assert worlds["steps"][0].tolist() == list(range(0, updates + 1, lesson.PER_EPOCH // 2))
    np.testing.assert_allclose(worlds["gained"].sum(-1), 0, atol=1e-12)
