"""Each claim on the callback and its alert, with numbers where it holds and where it does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import figures.probe
from audit import probe
from audit.scale import Scale
from lessons import probe as lesson
from lmdyn import lm
from lmdyn.lm.data import as_probes

BOOK = Path(__file__).parent.parent.parent / "book"
YES, PART, NO = "found", "partly", "not found"
HIT, MISS = [3, 6, 9, 9, 12], [None] * 5


def verdicts(claim, *cases):
    return [claim(case)[-1] for case in cases]


def test_logs_are_scores():
    same, other = [(1.0, 1.0)], [(1.0, 1.0), (1.0, 1.1)]
    assert verdicts(probe.logs_are_scores, same, other) == ["guarantee, holds", "violated"]


def test_the_pattern_of_off_policy_dpo():
    cases = ({"training": HIT}, {"training": HIT, "held-out": MISS}, {"held-out": MISS})
    assert verdicts(probe.off_policy, *cases) == ["reproduced", "partly", "not reproduced"]


@pytest.mark.parametrize("claim", [probe.silent_in_sft, probe.silent_without_pattern])
def test_silence(claim):
    cases = ({"a": MISS}, {"a": MISS, "b": [*MISS, 3]}, {"b": [*MISS, 3]})
    assert verdicts(claim, *cases) == [YES, PART, NO]
    assert claim(cases[1])[2] == "a prompts 0 of 5 (0% to 43%); b prompts 1 of 6 (3% to 56%)"


def test_catches_and_more_prompts():
    most, few = [*HIT[:4], None], [*HIT[:3], None, None]
    cases = ({"a": most}, {"a": most, "b": few}, {"b": few})
    assert verdicts(probe.catches, *cases) == [YES, PART, NO]
    up, down = (0.5, 0.5, 0.8), (0.5, 0.4, 0.8)
    assert verdicts(probe.more_prompts, {"a": up}, {"a": up, "b": down}) == [YES, PART]
    assert verdicts(probe.more_prompts, {"a": down}) == [NO]


def run(alert, moved, change, way="way"):
    before, after = (np.arange(100) < share * 100 for share in (0.5, 0.5 + change))
    return lesson.Written(way, alert, moved, before.astype(float), after.astype(float))


def test_what_runs_write():
    right = [run(3, -9, -0.2), run(None, 0, -0.01)] * 9  # one answer of a hundred is not sure
    wrong = [run(3, -9, 0.2), run(None, 0, -0.1)] * 9
    cases = ({"a": right}, {"a": right, "b": wrong}, {"b": wrong})
    assert verdicts(probe.writes_worse, *cases) == [YES, PART, NO]
    told = "a: fewer in 9 of 9 (70% to 100%) with an alert, 0 of 9 (0% to 30%) without"
    assert probe.writes_worse(cases[0])[2] == told
    few = {"a": right[:2]}  # one run of each kind tells nothing
    assert verdicts(probe.writes_worse, few) == [NO]
    assert verdicts(probe.nats_tell, *cases) == [YES, PART, NO]
    others = [run(3, -1, -0.1), run(3, -2, 0.0), run(None, -3, -0.05)]
    *_, here, verdict = probe.nats_tell({"a": [*others, *[run(3, -9, -0.4, "dpo")] * 3]})
    assert (here, verdict) == ("a 0.81 (the alert 0.42); without DPO -0.50 (the alert 0.00)", PART)


def test_the_cures():
    falls = {"dpo": -3.8, "extend": -0.1, "rpo": -1.5, "dropped": -3.5}
    margins = {"dpo": 10.4, "extend": 0.6}
    *_, here, verdict = probe.extend_weakens(falls, margins, (6, 12))
    assert verdict == "reproduced" and "-0.1 nats (margin +0.6) against -3.8" in here
    assert probe.extend_weakens(falls, margins, (6, 6))[-1] == "partly"
    assert probe.extend_weakens(falls | {"extend": -4}, margins, (6, 3))[-1] == "not reproduced"
    never = {"dpo": 3, "extend": np.inf}
    assert verdicts(probe.real_model, never, {"dpo": 3, "extend": 3}) == [YES, PART]
    assert verdicts(probe.real_model, {"dpo": np.inf, "extend": np.inf}) == [NO]
    assert "extend: none" in probe.real_model(never)[2]
    live, real = {"dpo": 18, "dropped": 24, "rpo": np.inf}, {"dpo": 3, "dropped": 6}
    same = dict.fromkeys(live, 18)
    assert probe.later(live, real)[-1] == YES
    assert probe.later(same, real)[-1] == PART and probe.later(same, same)[-1] == NO
    spread = np.linspace(-1, 1, 9)
    held = {"dpo": 0 * spread - 4, "dropped": spread - 3, "rpo": spread - 2}
    *_, here, verdict = probe.falls_less(held, held)
    assert verdict == YES and "dropped +1.0 (+0.6 to +1.4), rpo +2.0" in here
    unsure = held | {"dropped": spread - 3.9}  # less on average, but not surely
    assert probe.falls_less(unsure, held)[-1] == PART
    same = dict.fromkeys(held, spread)
    assert probe.falls_less(same, same)[-1] == NO


def test_budget():
    assert [probe.within_budget(of, 0.06, 0.05)[-1] for of in (0.048, 0.051)] == [YES, NO]


def test_pattern_and_first_alert():
    steps, noise = [0, 3, 6], np.random.default_rng(0).normal(0, 0.01, (3, 9, 3))
    falling = noise + np.array([[0, 0, 0], [-0.3, -1, 0.2], [-0.8, -2, 0.4]])[:, None]
    tokens = np.full((9, 2), 10.0)
    assert lesson.pattern(steps, falling) == 6
    firsts = [lesson.first_alert(steps, falling, k * tokens) for k in (1, 2, 10)]
    assert [alert and alert.step for alert in firsts] == [3, 6, None]
    rising = falling * (1, 1, -1)
    assert lesson.pattern(steps, rising) is None
    assert lesson.first_alert(steps, rising, tokens) is None


def test_token_counts_are_those_of_the_rows():
    pairs = lesson.trl_pairs(3, 2, seed=0)
    rows = as_probes(pairs)
    assert [row["chosen"][0] for row in rows] == [" "] * 5 and len(pairs) == 5
    scores = lm.score(*lm.load("tiny", device="cpu"), rows, progress=False)
    np.testing.assert_array_equal(lesson.tokens_of(rows), scores.n_tokens)


def test_prompts_of_smollm2_are_those_of_the_record_with_their_lengths(monkeypatch):
    monkeypatch.chdir(BOOK)
    with np.load("recorded/alert-smollm2.npz") as file:
        begun = file["dpo logp"][0]
    assert lesson.tokens_on_smollm2(begun).shape == begun.shape == (12, 2)
    with pytest.raises(ValueError, match="other prompts"):
        lesson.tokens_on_smollm2(begun[::-1])


def test_what_a_run_has_at_its_first_alert():
    steps, noise = np.array([0, 25, 50]), np.random.default_rng(0).normal(0, 0.01, (3, 20, 1))
    logp = noise + np.array([[0, 0], [-1, -3], [-4, -5]])[:, None]
    argmax, group = logp[..., 0] * -0.5, np.repeat(["test", "tune"], 10)
    runs = {"dpo": {"steps": steps, "logp": logp, "argmax": argmax}}
    runs["sft"] = {"steps": steps, "logp": -logp, "argmax": argmax}  # both rise
    logp = logp[..., ::-1]  # the chosen one falls further
    runs["rpo"] = {"steps": steps, "logp": logp, "argmax": argmax}
    told = {run: {"role": "whole"} for run in runs} | {"start": {"role": "start"}}
    lengths = np.full((20, 2), 10.0)
    record = Scale(["chosen", "rejected"], group, runs, {"runs": told}, lengths)
    found, wrong = lesson.stopped_at_alert(record)
    assert (found.run, found.alert) == ("dpo", 25)
    np.testing.assert_allclose(found.kept, (-1, -4), atol=0.02)
    np.testing.assert_allclose(found.margin, (2, 1), atol=0.02)
    np.testing.assert_allclose(found.loss, np.log1p(np.exp([-0.2, -0.1])), atol=0.01)
    assert found.least == found.loss[0] and found.best == 25
    assert wrong.best == 0 and wrong.least == pytest.approx(np.log(2)) and wrong.loss[0] > 0.75
    assert lesson.first_alerts(record) == {"dpo": 25, "sft": None, "rpo": 25}
    longer = [replace(record, n_tokens=k * lengths) for k in (10, 30)]
    assert [lesson.first_alerts(of)["dpo"] for of in longer] == [50, None]
    bounds = [lesson.first_alerts(longer[1], bound)["dpo"] for bound in (0.5, 2, 5)]
    assert bounds == [25, 50, None]


def test_rates_have_wilsons_interval():
    rate = lesson.Rate.of([3, None, None, None])
    assert str(rate) == "1 of 4 (5% to 70%)" and rate.share == 0.25


def test_figures():
    ax = figures.probe.written([run(3, -9, -0.2), run(None, 0, 0.1)], "chosen")
    _, heard, silent = ax.lines
    np.testing.assert_allclose(heard.get_xydata(), [[-9, -0.2]])
    np.testing.assert_allclose(silent.get_xydata(), [[0, 0.1]])
    assert silent.get_markerfacecolor() == "white"
    figures.probe.alert_line(None, ax)
    assert len(ax.lines) == 3
    figures.probe.alert_line(6, ax)
    assert ax.lines[-1].get_xdata() == [6, 6]


def test_right_answers_that_fade():
    def runs(fires, harm):
        return [{"fires": f, "deepest": 1.0 if f else 0.1, "harm": harm} for f in fires]

    most, few = [True] * 4 + [False], [True] + [False] * 4
    assert verdicts(probe.fades_catches, runs(most, True), runs(few, True)) == [YES, NO]
    assert verdicts(probe.fades_is_harm, runs(few, False), runs(most, False)) == [YES, NO]
    assert probe.fades_rate(runs(most, True), True, 0.5).hits == 4
    assert probe.fades_rate(runs(most, True), True, 1.0).hits == 0
