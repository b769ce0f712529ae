"""Each claim of "What SFT does" holds on numbers that bear it out, and fails on others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from audit import sft as audit
from audit.sft import Bell, Change
from lessons import sft as lesson

UP, DOWN, FLAT = Change(5.0, 1.0, 0.9), Change(-5.0, 1.0, 0.1), Change(1.0, 1.0, 0.6)
RISING, BENT = np.array([[-3.0, -2, -1]] * 3), np.array([[-3.0, -1, -2]] * 3)
NOISE = np.linspace(-1, 1, 20)


def logp(*means, noise=0.1):
    """Log π of 20 prompts at each probing; the noise of a probing turns round with the next."""
    return np.stack([mean + noise * (-1) ** s * NOISE for s, mean in enumerate(means)])


YES, NO = Bell.of(logp(-9, -5, -7)), Bell.of(logp(-9, -7, -5))


def of(up, other):
    """Split → (trained, held-out answers) of three runs, and the same in both records."""
    world = {split: (np.full(3, up), np.full(3, other)) for split in ("train", "test")}
    found = {"irr_train": Change(up, 0.3), "irr_test": Change(other, 0.3)}
    record = {"train": found, "test": found}
    return world, record, [record] * 2


def verdict(row):
    return row[-1]


def test_a_change_has_an_error_and_leaves_out_what_is_missing():
    change = Change.of([1.0, 3.0, np.nan, -1.0])
    assert (change.mean, change.share) == (1.0, pytest.approx(2 / 3))
    assert change.error == pytest.approx(2 / np.sqrt(3)) and not change.up
    assert str(UP) == "+5.0 ± 1.0" and UP.up and not FLAT.up


def test_a_bell_rises_and_falls_by_more_than_its_noise():
    assert YES.holds and YES.peak == 1 and YES.rise.mean == pytest.approx(4)
    assert not NO.holds and NO.peak == 2  # it does not fall
    assert not Bell.of(logp(-5, -7, -9)).holds  # it does not rise
    assert not Bell.of(logp(-9, -5, -5.1, noise=2)).holds  # the fall could be chance


def test_chosen_rises():
    rising, bent = logp(-3, -2, -1), logp(-3, -1, -2)
    assert verdict(audit.chosen_rises(RISING, UP, BENT[0], [rising] * 2)) == "reproduced"
    assert verdict(audit.chosen_rises(BENT, UP, BENT[0], [rising] * 2)) == "partly"
    assert verdict(audit.chosen_rises(BENT, UP, RISING[0], [rising, bent])) == "not reproduced"


@pytest.mark.parametrize("claim", [audit.rephrases_bell, audit.rejected_bells])
def test_bells(claim):
    every, none = {"a": [YES, YES], "b": [YES, YES]}, {"a": [NO, NO], "b": [NO, NO]}
    some = {"a": [YES, NO], "b": [NO, NO]}
    small, large = {"a": YES, "b": NO}, {"a": [YES, YES], "b": [YES, NO]}  # both seeds, one
    assert verdict(claim(every, {"a": YES, "b": YES}, every)) == "reproduced"
    assert verdict(claim(every, {"a": YES, "b": NO}, every)) == "partly"
    assert verdict(claim(some, {"a": NO, "b": NO}, none)) == "partly"  # one run of eight
    assert verdict(claim(none, {"a": NO, "b": NO}, none)) == "not reproduced"
    told = "1 of 2, 0 of 2 runs; SmolLM2: yes, no; on 300 rows: 2 of 2, 1 of 2 seeds"
    assert told in claim(some, small, large)[2]


def test_the_channel_rises_and_beats_its_control():
    assert verdict(audit.channel_rises(*of(2.0, 1.0))) == "reproduced"
    assert verdict(audit.channel_rises(*of(0.5, 1.0))) == "partly"  # the record's is not clear
    assert verdict(audit.channel_rises(*of(-2.0, 1.0))) == "not reproduced"
    assert verdict(audit.channel_beats_held_out(*of(2.0, 1.0))) == "found"
    assert verdict(audit.channel_beats_held_out(*of(1.0, 2.0))) == "not found"
    world, record, (seed, _) = of(2.0, 1.0)
    large = [seed, {"train": seed["train"], "test": of(-1.0, 1.0)[1]["test"]}]  # one seed differs
    assert verdict(audit.channel_rises(world, record, large)) == "partly"
    assert verdict(audit.channel_beats_held_out(world, record, large)) == "partly"


def test_the_channel_is_said():
    up, level = np.array([[0.1, 0.3]] * 3), np.array([[0.1, 0.12]] * 3)
    assert verdict(audit.channel_is_said(up, level)) == "found"
    assert verdict(audit.channel_is_said(level, up)) == "not found"


def test_nonsense_falls():
    world = {"random_permute": np.full(3, -1.0), "random_nonhum": np.full(3, -2.0)}
    fall, one, rise = ({"a": a, "b": b} for a, b in ((DOWN, DOWN), (DOWN, FLAT), (UP, FLAT)))
    assert verdict(audit.nonsense_falls(world, rise, [fall] * 2)) == "reproduced"
    assert verdict(audit.nonsense_falls(world, fall, [fall, one])) == "partly"
    up = {name: -values for name, values in world.items()}
    assert verdict(audit.nonsense_falls(up, fall, [rise, rise])) == "not reproduced"


def test_twins_are_weaker():
    small, large = np.full(3, 0.5), np.full(3, 2.0)
    weak, strong, across = (FLAT, UP), (UP, FLAT), (FLAT, DOWN)  # across: of the other sign
    assert verdict(audit.twins_weaker(small, large, strong, [weak] * 2)) == "reproduced"
    assert verdict(audit.twins_weaker(large, small, weak, [weak] * 2)) == "partly"
    assert verdict(audit.twins_weaker(large, small, weak, [weak, across])) == "not reproduced"
    assert verdict(audit.twins_weaker(large, small, weak, [weak, strong])) == "not reproduced"


def test_repetition():
    more, less = {"before": 0.1, "after": 0.2}, {"before": 0.2, "after": 0.1}
    assert verdict(audit.more_repetitive(0, more, less)) == "reproduced"
    assert verdict(audit.more_repetitive(0, less, more)) == "not reproduced"


def test_the_sum_of_pulls_is_a_guarantee():
    assert verdict(audit.sum_of_pulls(0.003)) == "guarantee, holds"
    assert verdict(audit.sum_of_pulls(0.2)) == "violated"


def test_the_own_row_turns():
    plus, minus = np.full(3, 2.0), np.full(3, -2.0)
    assert verdict(audit.own_row_turns(plus, minus)) == "found"
    assert verdict(audit.own_row_turns(plus, plus)) == "not found"
    assert verdict(audit.own_row_turns(plus, np.array([-1.0, 1, 1]))) == "partly"


def test_influence_keeps_its_sign():
    first = np.ones((3, 2))
    assert verdict(audit.influence_keeps_its_sign(first, 0.1 * first)) == "reproduced"
    assert verdict(audit.influence_keeps_its_sign(first, first * [1, -1])) == "partly"
    assert verdict(audit.influence_keeps_its_sign(first, -first)) == "not reproduced"


def test_pulls_cancel():
    assert verdict(audit.pulls_cancel(np.full(3, 1.7), np.full(3, 9.0))) == "found"
    assert verdict(audit.pulls_cancel(np.full(3, 9.0), np.full(3, 1.7))) == "not found"


def test_half_way_keeps_the_weights_of_one_moment():
    layer = torch.nn.Linear(1, 1)
    step = torch.optim.SGD(layer.parameters(), lr=1.0)
    seen = []
    with lesson.half_way(layer, 2) as beside:
        for _ in range(3):
            layer(torch.ones(1, 1)).sum().backward()
            step.step()
            seen.append(layer.weight.item())
    assert beside.weight.item() == seen[1] != seen[2]
    step.step()  # nobody looks any more
    assert beside.weight.item() == seen[1]
    with pytest.raises(ValueError, match="fewer than 2 updates"), lesson.half_way(layer, 2):
        step.step()


def test_the_record_at_scale_has_two_seeds_of_sft():
    book = Path(__file__).parent.parent.parent / "book"
    seeds = lesson.at_scale(book / "recorded/scale-smollm2")
    assert len(seeds) == 2
    for of in seeds:
        assert of["train"]["chosen"].shape == (13, 96) and of["test"]["irr_train"].shape == (13, 64)
        assert np.isfinite(of["test"]["rejected"]).all()
    assert not np.array_equal(*(of["train"]["chosen"] for of in seeds))
