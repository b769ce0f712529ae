"""When a squeeze or fading answers are called, on made-up curves and on noise."""

import re

import numpy as np
import pytest

from lmdyn.lm.squeeze import fades, is_sure, squeeze

STEPS = [0, 10, 20, 30]
SHORT = np.full((32, 2), 10)  # tokens of chosen and of rejected


def curves(*means, noise=1.0, prompts=32, seed=0):
    """(S, N) around these means; the prompts differ far more from each other than they move."""
    random = np.random.default_rng(seed)
    own = -50 + 20 * random.normal(size=prompts)
    return own + np.array(means)[:, None] + noise * random.normal(size=(len(means), prompts))


def test_both_fall_while_the_argmax_rises():
    read = curves(0, 2, 0, -6), curves(0, -5, -15, -40), curves(0, 2, 4, 8)
    alert = squeeze(STEPS, *read, SHORT * [1, 2])
    assert (alert.step, alert.since) == (30, 10)
    moved = [alert.chosen, alert.rejected, alert.argmax]
    np.testing.assert_allclose(moved, [-0.8, -1.75, 0.6], atol=0.1)
    assert "squeeze at step 30: since step 10" in str(alert)
    assert f"have changed by {alert.chosen:+.3f} nats a token and" in alert.account
    gained = f"the likeliest tokens along chosen have gained {alert.argmax:+.3f}. "
    assert f"rejected ones by {alert.rejected:+.3f}, while {gained}" in alert.account


def test_each_prompt_counts_by_its_own_tokens():
    first, tokens = np.zeros(32), np.linspace((5, 80), (50, 8), 32)
    falls, rises = np.stack([first, -tokens[:, 0]]), np.stack([first, 0.5 * tokens[:, 0]])
    alert = squeeze([0, 1], falls, np.stack([first, -2 * tokens[:, 1]]), rises, tokens)
    assert (alert.chosen, alert.rejected, alert.argmax) == pytest.approx((-1, -2, 0.5))


def test_longer_answers_that_lose_as_much_a_token_give_the_same_alert():
    read = np.stack([curves(0, 2, 0, -6), curves(0, -5, -15, -40), curves(0, 2, 4, 8)])
    alert = squeeze(STEPS, *read, SHORT)
    assert squeeze(STEPS, *2 * read, 2 * SHORT) == alert is not None
    near = np.stack([curves(0, fall, noise=0.01) for fall in (-0.25, -0.25, 0.25)])
    assert squeeze([0, 1], *near, SHORT) and squeeze([0, 1], *2 * near, 2 * SHORT)
    near = np.stack([curves(0, fall, noise=0.01) for fall in (-0.15, -0.25, 0.25)])
    assert not squeeze([0, 1], *near, SHORT) and not squeeze([0, 1], *2 * near, 2 * SHORT)


def test_a_quarter_of_a_nat_is_an_alert_in_a_short_answer_and_none_in_a_long_one():
    read = [curves(0, fall, noise=0.01) for fall in (-0.25, -0.25, 0.25)]
    assert squeeze([0, 1], *read, SHORT) is not None
    assert squeeze([0, 1], *read, 50 * SHORT) is None
    assert squeeze([0, 1], *read, SHORT * [1, 50]) is not None  # rejected has only to fall
    with pytest.raises(TypeError):
        squeeze([0, 1], *read)  # sums over responses of any length


def test_no_part_of_the_pattern_is_enough_alone():
    falls, rises = curves(0, -2, -4, -6), curves(0, 2, 4, 6)
    assert squeeze(STEPS, rises, falls, rises, SHORT) is None
    assert squeeze(STEPS, falls, rises, rises, SHORT) is None
    assert squeeze(STEPS, falls, falls, falls, SHORT) is None
    assert squeeze(STEPS, falls, falls, rises, SHORT) is not None


def test_what_was_learned_and_is_lost_again_is_no_squeeze():
    both = curves(0, 4, 3, 1), curves(0, 2, 0, -2), curves(0, -3, -2, 2)  # SFT that overfits
    assert squeeze(STEPS, *both, SHORT) is None
    both = curves(0, 4, 3, -1), *both[1:]
    assert squeeze(STEPS, *both, SHORT).since == 10


def test_noise_is_no_alert():
    flat = [0, 0, 0, 0]
    called = [
        squeeze(STEPS, *(curves(*flat, seed=3 * i + k) for k in range(3)), SHORT) is not None
        for i in range(300)
    ]
    assert np.mean(called) < 0.01


def test_too_little_is_no_alert():
    falls, rises = curves(0, -9), curves(0, 9)
    assert squeeze([0, 1], falls, falls, rises, SHORT) is not None
    assert squeeze([0], falls[:1], falls[:1], rises[:1], SHORT) is None
    assert squeeze([0, 1], falls[:, :1], falls[:, :1], rises[:, :1], SHORT[:1]) is None
    falls, rises = curves(0, -0.15, noise=0.01), curves(0, 0.15, noise=0.01)
    assert squeeze([0, 1], falls, falls, rises, SHORT) is None
    assert squeeze([0, 1], 2 * falls, 2 * falls, rises, SHORT) is not None


def test_prompts_that_were_left_out_once_do_not_count():
    falls, rises = curves(0, -9), curves(0, 9)
    falls[1, ::2] = np.nan
    alert = squeeze([0, 1], falls, falls, rises, SHORT)
    whole = squeeze([0, 1], falls[:, 1::2], falls[:, 1::2], rises[:, 1::2], SHORT[1::2])
    assert alert == whole
    lacks = np.where(np.arange(32)[:, None] % 2 == 0, np.nan, SHORT)  # no response, no tokens
    assert squeeze([0, 1], curves(0, -9), curves(0, -9), rises, lacks) == whole


# --- right answers that fade ----------------------------------------------------------------------


def levels(*means, prompts=32, seed=1):
    """(S, N) entropies around these means, each prompt's on its own scale."""
    random = np.random.default_rng(seed)
    own = random.uniform(0.5, 1.5, prompts)
    return np.array(means)[:, None] * own + 0.01 * random.normal(size=(len(means), prompts))


FULL, GONE = levels(2, 2, 2, 2), levels(2, 2, 1, 0.5)
FALLS, STAYS = curves(0, 2, 0, -35), curves(0, 2, 4, 6)  # of about −50


@pytest.mark.parametrize(
    ("correct", "entropy", "said"),
    [
        (
            FALLS,
            FULL,
            r"^at step 30 right answers have gone from -[45]\d.* to -[89].* nats: few",
        ),
        (STAYS, GONE, r"^at step 30 entropy has gone from [12]\.\d\d to 0\.\d\d: fewer passes"),
        (FALLS, GONE, r"nats and entropy has gone from"),
        (STAYS, FULL, None),
        (curves(0, 4, 3, -15), FULL, None),  # sure, but less than half of what it was
        (curves(0, -90, -90, 2), FULL, None),  # what came back
        (0.01 * curves(0, 0, 0, -20, noise=0.01), FULL, None),
        (0.01 * curves(0, 0, 0, -35, noise=0.01), FULL, r"from -0.5 to -0.[89] nats"),
        (STAYS, levels(2, 2, 2, 1.1), None),
        (STAYS, levels(2, 2, 2, 0.9), "entropy has gone"),
        (STAYS, levels(2, 0.1, 0.1, 2), None),
    ],
)
def test_right_answers_fade_by_their_log_prob_or_their_entropy(correct, entropy, said):
    found = fades(STEPS, correct, entropy)
    assert found is None if said is None else re.search(said, found), found


def test_what_fell_in_a_prompt_or_two_is_no_fading():
    correct, entropy = np.full((2, 32), -10.0), levels(2, 2)
    correct[1, 0] = -500  # the mean falls by 15 nats
    assert fades([0, 1], correct, entropy) is None
    correct[1, :8] = -90
    assert fades([0, 1], correct, entropy) is not None
    entropy[1, :8] = 0.0
    assert fades([0, 1], 0 * correct, entropy) is None  # a quarter of them: not below half


def test_of_one_prompt_no_change_is_sure():
    assert is_sure(np.full((2, 1), 6.0)).tolist() == [False, False]
    assert is_sure(np.full((2, 2), 6.0)).tolist() == [True, True]


def test_prompts_without_a_right_answer_do_not_count_and_one_is_too_few():
    correct, entropy = FALLS.copy(), FULL.copy()
    correct[:, 2:], entropy[:, 2:] = np.nan, np.nan
    assert fades(STEPS, correct, entropy) == fades(STEPS, FALLS[:, :2], FULL[:, :2]) is not None
    entropy[1, 0] = np.nan  # left out once
    assert fades(STEPS, correct, entropy) is None
    assert fades(STEPS, FALLS * np.nan, FULL) is None
    assert fades(STEPS[:1], FALLS[:1], FULL[:1]) is None
    assert fades([], FALLS[:0], FULL[:0]) is None
