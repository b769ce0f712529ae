"""When a squeeze is called, on made-up curves and on noise."""

import numpy as np

from lmdyn.lm.squeeze import squeeze

STEPS = [0, 10, 20, 30]


def curves(*means, noise=1.0, prompts=32, seed=0):
    """(S, N) around these means; the prompts differ far more from each other than they move."""
    random = np.random.default_rng(seed)
    own = -50 + 20 * random.normal(size=prompts)
    return own + np.array(means)[:, None] + noise * random.normal(size=(len(means), prompts))


def test_both_fall_while_the_argmax_rises():
    alert = squeeze(STEPS, curves(0, 2, 0, -6), curves(0, -5, -15, -40), curves(0, 2, 4, 8))
    assert (alert.step, alert.since) == (30, 10)
    np.testing.assert_allclose([alert.chosen, alert.rejected, alert.argmax], [-8, -35, 6], atol=1)
    assert "squeeze at step 30: since step 10" in str(alert)


def test_no_part_of_the_pattern_is_enough_alone():
    falls, rises = curves(0, -2, -4, -6), curves(0, 2, 4, 6)
    assert squeeze(STEPS, rises, falls, rises) is None
    assert squeeze(STEPS, falls, rises, rises) is None
    assert squeeze(STEPS, falls, falls, falls) is None
    assert squeeze(STEPS, falls, falls, rises) is not None


def test_what_was_learned_and_is_lost_again_is_no_squeeze():
    both = curves(0, 4, 3, 1), curves(0, 2, 0, -2), curves(0, -3, -2, 2)  # SFT that overfits
    assert squeeze(STEPS, *both) is None
    both = curves(0, 4, 3, -1), *both[1:]
    assert squeeze(STEPS, *both).since == 10


def test_noise_is_no_alert():
    flat = [0, 0, 0, 0]
    called = [
        squeeze(STEPS, *(curves(*flat, seed=3 * i + k) for k in range(3))) is not None
        for i in range(300)
    ]
    assert np.mean(called) < 0.01


def test_too_little_is_no_alert():
    falls, rises = curves(0, -9), curves(0, 9)
    assert squeeze([0, 1], falls, falls, rises) is not None
    assert squeeze([0], falls[:1], falls[:1], rises[:1]) is None
    assert squeeze([0, 1], falls[:, :1], falls[:, :1], rises[:, :1]) is None
    falls, rises = curves(0, -0.2, noise=0.01), curves(0, 0.2, noise=0.01)
    assert squeeze([0, 1], falls, falls, rises) is None
    assert squeeze([0, 1], 2 * falls, 2 * falls, rises) is not None


def test_prompts_that_were_left_out_once_do_not_count():
    falls, rises = curves(0, -9), curves(0, 9)
    falls[1, ::2] = np.nan
    alert = squeeze([0, 1], falls, falls, rises)
    whole = squeeze([0, 1], falls[:, 1::2], falls[:, 1::2], rises[:, 1::2])
    assert alert == whole
