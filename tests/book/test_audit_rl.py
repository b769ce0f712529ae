import numpy as np
import pytest

from audit import rl

ARMS = ("both", "positive only", "negative only", "off-policy negative", "dpo")


def verdicts(rows):
    return [row[-1] for row in rows]


def runs(ends, chosen, entropy=-0.1, peak=1.0, arms=ARMS):
    """Three seeds, three probings: shares go from ½ to ``ends``, log π of y+ by ``chosen``."""
    n = 3
    path = np.linspace(0, 1, 3)
    shape = (len(arms), n, 3, 4, 1)
    logp = np.zeros(shape) + np.array(chosen)[:, None, None, None, None] * path[:, None, None]
    record = {"logp": logp, "argmax_logp": np.zeros(shape) + peak * path[:, None, None]}
    falls = np.broadcast_to(entropy, len(arms))[:, None, None, None, None]
    record["entropy"] = np.zeros(shape) + falls * path[:, None, None]
    true = 0.5 + (np.array(ends) - 0.5)[:, None, None, None] * np.array([0, 1])[:, None]
    record["true"] = np.broadcast_to(true, (len(arms), n, 2, 2))
    record |= {"steps": np.arange(3), "split": np.array(["train"] * 4)}
    record |= {"arms": np.array(arms), "types": np.array(["chosen"]), "seeds": np.arange(n)}
    return rl.Runs(record, {})


AS_FOUND = ([0.9, 0.9, 0.9, 0.0, 0.1], [-0.5, -1.0, -0.2, -20, -9])
OTHERWISE = ([0.2, 0.2, 0.2, 0.9, 0.9], [0.5, 5.0, 3.0, 20, 9])


def test_claims_on_runs_hold_and_fail():
    good, bad = runs(*AS_FOUND), runs(*OTHERWISE, entropy=0.1, peak=-1.0)
    assert verdicts(rl.negatives(good, 2)) == ["found"] * 4
    assert verdicts(rl.negatives(bad, 2)) == ["not found"] * 4
    assert verdicts(rl.grpo(good)) == ["found"] * 5
    assert verdicts(rl.grpo(bad)) == ["not found"] * 5


def test_claims_on_stale_answers_hold_and_fail():
    arms = ("stale negative", "stale, with its ratio")
    assert verdicts(rl.stale(runs([0.0, 0.5], [-9, 0], arms=arms))) == ["found"] * 2
    assert verdicts(rl.stale(runs([0.5, 0.0], [-9, 0], arms=arms))) == ["not found"] * 2


def test_claims_on_settings_hold_and_fail():
    arms = ("both", "constant norm", "eight passes", "eight passes, no clip", "KL")
    good = runs([0.5, 0.9, 0.8, 0.1, 0.5], [-2, 0, -1, -2, 1], [-0.2, 0, 0, 0, 0.1], arms=arms)
    bad = runs([0.5, 0.5, 0.1, 0.8, 0.5], [-2, 0, -2, -1, 3], [-0.2, 0, 0, 0, 0.3], arms=arms)
    for of, first, last in ((good, 0.0, 0.1), (bad, 0.1, 0.0)):
        clipped = np.linspace(first, last, 8) * np.ones((2, 1))
        of.record["clipped"] = np.broadcast_to(clipped.ravel(), (5, 3, 16))
    assert verdicts(rl.settings(good)) == ["found"] * 5
    assert verdicts(rl.settings(bad)) == ["not found"] * 5
    bad.record["clipped"] = np.zeros((5, 3, 16))
    assert verdicts(rl.settings(bad))[1] == "partly"


@pytest.mark.parametrize("holds", [True, False])
def test_claims_on_samples_hold_and_fail(holds):
    some = np.full(3, 0.01)
    mean = {"all samples": some * (0.1 if holds else 9), "wrong samples": some}
    mean |= {"rejected": some * (9 if holds else 1), "too hot": some * (9 if holds else 1)}
    valley = {"wrong samples": np.full(3, 0.2 if holds else 0.8)}
    rows = rl.of_samples(mean, valley, np.full(3, 0.001))
    assert verdicts(rows) == ["found" if holds else "not found"] * 4


@pytest.mark.parametrize("holds", [True, False])
def test_claims_on_steps_hold_and_fail(holds):
    word = "found" if holds else "not found"
    proof = "guarantee, holds" if holds else "violated"
    assert rl.coefficient(1e-9 if holds else 0.1)[-1] == proof
    sign = -1 if holds else 1
    total = {
        name: sign * x * np.ones(3) for name, x in (("both", 2), ("positive", 2), ("negative", 1))
    }
    assert verdicts(rl.entropy_falls(total)) == [word] * 2
    rows = rl.predictions(holds, 0.01 if holds else 0.5, 0.99 if holds else 0.5)
    assert verdicts(rows) == [proof, word, word]


def test_seeds_are_told_one_by_one():
    assert rl.told([0.5, -1]) == "+0.50, -1.00"
    assert rl.moved(np.array([[1.0, 5.0, 3.0]])).tolist() == [2.0]


@pytest.mark.parametrize("holds", [True, False])
def test_claims_on_the_real_model_hold_and_fail(holds):
    word = "found" if holds else "not found"
    noise = np.tile([0.01, -0.01], 15)
    reward = np.linspace(0.2, 0.9, 30) + noise if holds else 0.5 + noise
    answers = np.array([[[0.2, 0], [0.2, 0]], [[0.9, 0], [0.9 if holds else 0.25, 0]]])
    assert verdicts(rl.learns_sums(reward, answers, (64, 32))) == [word] * 2
    sign = 1 if holds else -1
    entropy = np.linspace(2, 1, 30)[:: 1 if holds else -1]
    rows = rl.frozen_answers(sign * (3 + noise), -sign * (3 + noise), entropy)
    assert verdicts(rows) == [word] * 3
