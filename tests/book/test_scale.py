from concurrent.futures import Executor, Future
from dataclasses import replace

import numpy as np
import pytest

import record_scale
from audit.scale import Moved, Scale, at_margin, at_stop, best_stop, falls, preference_loss
from scale_runs import ARMS, RATES, SMALL, plan

GROUP = np.repeat(["train", "test", "tune"], [40, 30, 20])
TYPES = ["chosen", "rejected"]


def made(*curves, noise=0.0):
    """A run whose y+ and y− move by so much at each probing, on trained and held-out prompts."""
    draw, logp = np.random.default_rng(0), np.zeros((len(curves), len(GROUP), 2))
    for s, (trained, held_out, rejected) in enumerate(curves):
        logp[s, :, 0] = np.where(GROUP == "train", trained, held_out) - 40
        logp[s, :, 1] = rejected - 40
    logp[1:, :, 0] += noise * draw.normal(size=(len(curves) - 1, len(GROUP)))
    steps = 25 * np.arange(len(curves))
    return {"steps": steps, "logp": np.float32(logp), "argmax": np.float32(logp[..., 0])}


@pytest.fixture
def record():
    runs = {
        "dpo a": made((0, 0, 0), (1, 0, -5), (-3, -6, -40), noise=1),
        "dpo b": made((0, 0, 0), (0, 0, -1), (0, 0, -2), noise=1),
        "rpo": made((0, 0, 0), (2, 1, -9), (4, 1, -19)),
        "ipo": made((0, 0, 0), (0, 0, -1), (0, 0, -1)),
        "dpo again": made((0, 0, 0), (0, 0, -900)),
    }
    told = {name: {"arm": name.split()[0], "seed": 0, "role": "whole"} for name in runs}
    told["dpo again"]["role"] = "stop"
    return Scale(TYPES, GROUP, runs, {"runs": told})


def test_falls_by_two_standard_errors_since_the_first_probing_and_since_the_peak(record):
    rows = {(run, group): (first, *moved) for run, group, first, *moved in falls(record)}
    assert {run for run, _ in rows} == {"dpo a", "dpo b"}
    first, whole, since_peak = rows["dpo a", "train"]
    assert (first, whole.verdict, since_peak.verdict) == (-40, "falls", "falls")
    assert whole.mean == pytest.approx(-3, abs=0.5)
    assert whole.error == pytest.approx(1 / 40**0.5, rel=0.3)
    assert since_peak.mean == pytest.approx(-4, abs=0.7)
    assert rows["dpo b", "train"][1].verdict == "neither"


def test_the_stop_is_where_pairs_held_out_for_it_lose_least(record):
    assert record.stop("dpo") == ("dpo a", 2)
    flat = np.zeros((3, 5, 2))
    better = flat.copy()
    better[1, :, 0] = 3
    assert best_stop([flat, better]) == (1, 1)
    assert preference_loss(better)[1] == pytest.approx(np.log1p(np.exp(-0.3)))
    ruined = flat.copy()
    ruined[1, 0] = 4000, 0  # one pair that was right is righter, the others are wrong
    ruined[1, 1:] = -30, 0
    assert preference_loss(ruined)[1] > preference_loss(flat)[0]


def test_arms_are_compared_where_their_margin_is_the_same(record):
    rows = at_margin(record, ["rpo", "dpo", "ipo"], margin=5)
    assert [row[:2] for row in rows] == [("rpo", "rpo"), ("dpo", "dpo a")]  # IPO never has it
    _, _, train, test, against = rows[0]
    assert (train, test, against) == (Moved(1, 0), Moved(0.5, 0), Moved(0, 0))  # halfway to 10
    assert rows[1][4].mean == pytest.approx(rows[1][3].mean - 0.5)


def test_arms_are_compared_where_each_does_best(record):
    ((arm, run, updates, loss, margin, train, test),) = at_stop(record, ["rpo"])
    assert (arm, run, updates) == ("rpo", "rpo", 50)
    assert loss == pytest.approx(np.log1p(np.exp(-2)))
    assert (margin, train, test) == (Moved(20, 0), Moved(4, 0), Moved(1, 0))


def test_a_change_is_written_with_its_error():
    assert str(Moved.of(np.array([-1.0, -3.0]))) == "−2.00 ± 1.00"


def test_the_plan_begins_with_dpo_and_ends_with_what_depends_on_the_sweeps():
    first = list(plan({}, SMALL, "fp32"))
    assert [run.arm for run in first[:4]] == ["start sft", "dpo", "dpo", "dpo"]
    assert len(first) == 3 + len(ARMS) * len(RATES) + 2
    assert len({run.name for run in first}) == len(first)
    one = made((0, 0, 0), (1, 0, -5), (1, 0, -4)) | {"types": np.array(TYPES), "group": GROUP}
    found = dict.fromkeys((run.name for run in first), one)
    later = [run for run in plan(found, SMALL, "fp32") if run not in first]
    assert {run.role for run in later} == {"whole", "stop", "precision"}
    assert [run.settings["seed"] for run in later if run.role == "whole"] == [1, 1]
    assert {run.settings["max_steps"] for run in later if "max_steps" in run.settings} == {25}
    failed = found | {run.name: None for run in first if run.arm == "rpo"}
    later = [run for run in plan(failed, SMALL, "fp32") if run not in first]
    assert {run.arm for run in later if run.role == "stop"} == ARMS.keys() - {"rpo"}


class Here(Executor):
    """Does what it is given at once."""

    def submit(self, function, run, setup):
        done = Future()
        try:
            done.set_result(function(run, setup))
        except ValueError as error:
            done.set_exception(error)
        return done


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_make_a_record_that_an_interruption_does_not_undo(tmp_path, monkeypatch, capsys):
    size = replace(SMALL, spoken=1)
    sft, dpo, *others = (run for run in plan({}, size, "fp32") if run.settings["lr"] != 1e-6)
    policy = next(run for run in others if run.arm == "on-policy")
    wrong = replace(dpo, arm="wrong", settings=dpo.settings | {"batch_size": 0})
    monkeypatch.setattr(record_scale, "plan", lambda *_: iter([dpo, sft, wrong, policy]))
    setup = record_scale.Setup("tiny", "world", size, "cpu", tmp_path / "parts")

    def record(deadline=np.inf):
        progress = record_scale.Progress(setup, tmp_path / "scale", {"size": {"epochs": 1}})
        record_scale.make(progress, Here(), "fp32", workers=1, deadline=deadline)
        return Scale.load(tmp_path / "scale")

    found = record()
    assert set(found.runs) == {sft.name, dpo.name, policy.name}
    assert "batch_size must be" in found.meta["runs"][wrong.name]["failed"]
    assert found.runs[dpo.name]["steps"].tolist() == [0, 1, 2]
    assert found.values(dpo.name, "irr_train", "train").shape == (3, 2)
    assert found.pair(dpo.name, "tune").shape == (3, 4, 2)
    assert found.runs[dpo.name]["said"].shape == (1, 3)
    start, end = found.runs[dpo.name], found.runs[sft.name]
    np.testing.assert_allclose(start["logp"][0], end["logp"][-1], atol=0.13)  # kept to 1/8
    again = record(deadline=0)  # starts none, and takes what is there
    assert set(again.runs) == set(found.runs)
