import sys
from concurrent.futures import Executor, Future
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest

import record_scale
from audit.scale import (
    Moved,
    Paired,
    Scale,
    at_margin,
    at_stop,
    at_update,
    best_stop,
    falls,
    kept_where_gained,
    margins,
    preference_loss,
    since_start_and_peak,
    verdicts,
)
from scale_runs import ARMS, RATES, SMALL, plan

META = dict.fromkeys(("command", "date", "hardware", "versions"), "")
META |= {"model": "tiny", "rows": "a hash", "size": asdict(SMALL)}
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
    told = {n: {"arm": n.split()[0], "seed": 0, "role": "whole", "lr": 1e-6} for n in runs}
    told["dpo b"]["lr"] = 3e-6
    told["dpo again"]["role"] = "stop"
    return Scale(TYPES, GROUP, runs, {"runs": told, "rows": "a hash"})


def test_falls_by_two_standard_errors_since_the_first_probing_and_since_the_peak(record):
    rows = {
        (run, group): (first, *moved)
        for run, group, first, *moved in falls(record, record.sweep("dpo"))
    }
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
    assert (train, test, against) == (Moved(1, 0), Moved(0.5, 0), Paired(0, 0, 0))  # halfway to 10
    assert rows[1][4].mean == pytest.approx(rows[1][3].mean - 0.5)


def test_runs_of_two_records_are_compared_at_an_update_on_the_prompts_of_both(record):
    keep = np.r_[0:10, 40:90]  # ten of the forty prompts that are trained on
    few = {
        name: {key: of if key == "steps" else of[:, keep] for key, of in run.items()}
        for name, run in record.runs.items()
    }
    runs = [(record, "rpo"), (Scale(TYPES, GROUP[keep], few, record.meta), "dpo a")]
    first, second, beyond = at_update(runs, 50, "chosen", "train")
    own = few["dpo a"]["logp"][:, :10, 0]
    assert (first.mean, first.error) == (4, 0)
    assert second.mean == pytest.approx((own[2] - own[0]).mean())
    assert beyond.mean == pytest.approx(second.mean - 4) and beyond.verdict == "less"
    assert at_update(runs, 25, "rejected", "test")[2].mean == 4
    with pytest.raises(ValueError, match="not in list"):
        at_update(runs, 30, "chosen", "train")  # not probed there
    other = replace(runs[1][0], meta=record.meta | {"rows": "others"})
    with pytest.raises(ValueError, match="different rows"):
        at_update([runs[0], (other, "dpo a")], 50, "chosen", "train")


def test_a_run_is_compared_where_another_had_gained_as_much(record):
    rpo, ipo = (record, "rpo"), (record, "ipo")
    plain = record.values("dpo a", "chosen", "test")
    found = kept_where_gained(rpo, (record, "dpo a"), 50)  # a margin of 23, on the way from 6 to 37
    h = margins(record.pair("dpo a", "train")).mean(1)
    share = (23 - h[1]) / (h[2] - h[1])
    assert found.mean == pytest.approx(1 - np.interp(share, [0, 1], (plain - plain[0]).mean(1)[1:]))
    assert kept_where_gained(ipo, rpo, 50).mean == pytest.approx(
        -1 / 11
    )  # of the way to RPO's first
    assert kept_where_gained(rpo, rpo, 25).mean == 0
    with pytest.raises(ValueError, match=r"'ipo' never has the margin of 11\.0 nats of 'rpo'"):
        kept_where_gained(rpo, ipo, 25)


def test_arms_are_compared_at_one_learning_rate(record):
    rows = at_margin(record, ["dpo"], margin=1, group="train", lr=3e-6)
    assert [row[:2] for row in rows] == [("dpo", "dpo b")]
    with pytest.raises(ValueError, match="no run of 'rpo' at the learning rate 3e-06"):
        at_margin(record, ["dpo", "rpo"], margin=1, lr=3e-6)


def test_a_difference_has_the_interval_of_the_bootstrap():
    differences = np.random.default_rng(1).normal(0.5, 1, 400)
    found = Paired.of(differences)
    assert found.mean == pytest.approx(differences.mean())
    assert found.low < found.mean < found.high
    width = 2 * 1.96 * differences.std() / 20  # of the normal approximation
    assert found.high - found.low == pytest.approx(width, rel=0.05)
    assert [Paired.of(d).verdict for d in (differences, -differences)] == ["more", "less"]
    assert Paired.of(differences - differences.mean()).verdict == "no difference"
    assert str(Paired(-1, -2.04, 0.3)) == "−1.0 (−2.0 to +0.3)"


def test_a_fall_is_counted_from_the_peak_of_each_seed():
    rising, turning = np.array([[0.0, 2], [1, 3], [2, 4]]), np.array([[0.0, 0], [3, 5], [1, 1]])
    start, peak = since_start_and_peak([rising])
    assert (start, peak) == (Moved(2, 0), Moved(0, 0))
    start, peak = since_start_and_peak([turning])
    assert start == Moved(1, 0) and peak.mean == -3 and peak.error == pytest.approx(1)
    start, peak = since_start_and_peak([rising, turning])  # over the prompts
    assert (start.mean, peak.mean) == (1.5, -1.5) and peak.error == pytest.approx(0.5)
    start, peak = since_start_and_peak([rising, turning, turning])  # over the seeds
    assert peak.mean == -2 and peak.error == pytest.approx(1)


def test_arms_are_compared_where_each_does_best(record):
    ((arm, run, updates, loss, margin, train, test, *beside),) = at_stop(record, ["rpo"])
    assert (arm, run, updates) == ("rpo", "rpo", 50)
    assert loss == pytest.approx(np.log1p(np.exp(-2)))
    assert (margin, train, test) == (Moved(20, 0), Moved(4, 0), Moved(1, 0))
    assert beside == [Paired(0, 0, 0)] * 2
    *_, its_margin, its_test = at_stop(record, ["rpo", "ipo"])[1]
    assert (its_margin, its_test) == (Paired(-19, -19, -19), Paired(-1, -1, -1))


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


class Fails(Executor):
    def submit(self, *_):
        done = Future()
        done.set_exception(ValueError("out of memory"))
        return done


def test_arms_can_be_named_and_begin_with_what_they_share_once():
    runs = list(plan({}, SMALL, "fp32", ["dpo", "rpo", "dpo:1"]))
    assert [run.arm for run in runs] == ["start sft", "start sft", "dpo", "rpo", "dpo"]
    assert [run.settings["seed"] for run in runs] == [0, 1, 0, 0, 1]
    assert [run.start for run in runs[2:]] == [runs[0], runs[0], runs[1]]
    assert [run.role for run in runs] == ["unprobed"] * 2 + ["whole"] * 3
    *_, short = plan({}, SMALL, "fp32", ["on-policy"], 3)
    assert short.settings["epochs"] == 3 != short.start.settings["epochs"]
    rates = list(plan({}, SMALL, "fp32", ["rpo:1", "ipo:1"], 1, rates=[1e-5, 1e-6]))[1:]
    assert [(run.arm, run.settings["lr"]) for run in rates] == [
        ("rpo", 1e-5),
        ("ipo", 1e-5),
        ("rpo", 1e-6),
        ("ipo", 1e-6),
    ]
    *_, paper, dpo = plan({}, SMALL, "fp32", ["paper:1", "dpo:1"])
    assert (paper.start, paper.settings["loss"]) == (dpo.start, "dpo")
    assert [paper.settings[key] for key in ("optimizer", "lr", "warmup")] == ["rmsprop", 5e-7, 150]
    assert paper.arm not in {run.arm for run in plan({}, SMALL, "fp32")}
    with pytest.raises(ValueError, match="unknown arm 'dppo': did you mean 'dpo'"):
        list(plan({}, SMALL, "fp32", ["dppo:1"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_runs_make_a_record_that_an_interruption_does_not_undo(tmp_path, capsys):
    size = replace(SMALL, spoken=1)
    sft, dpo, *others = (run for run in plan({}, size, "fp32") if run.settings["lr"] != 1e-6)
    policy = next(run for run in others if run.arm == "on-policy")
    wrong = replace(dpo, arm="wrong", settings=dpo.settings | {"batch_size": 0})
    planned = [dpo, sft, wrong, policy]
    setup = record_scale.Setup("tiny", "world", size, "cpu", tmp_path / "parts")

    def record(deadline=np.inf):
        progress = record_scale.Progress(setup, tmp_path / "scale", META)
        record_scale.make(progress, Here(), lambda _: planned, 1, deadline)
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_record_goes_on_where_no_parts_are_and_trains_only_the_model_anew(tmp_path, capsys):
    size = replace(SMALL, spoken=1)
    sft, dpo, slower, faster = list(plan({}, size, "fp32"))[:4]

    def record(parts, planned, meta, worker):
        setup = record_scale.Setup("tiny", "world", size, "cpu", tmp_path / parts)
        progress = record_scale.Progress(setup, tmp_path / "scale", meta)
        record_scale.make(progress, worker, lambda _: planned, 1, np.inf)
        return Scale.load(tmp_path / "scale"), progress

    first, _ = record("here", [sft, dpo], META, Here())
    later = META | {"date": "later"}
    found, progress = record("elsewhere", [sft, dpo, slower], later, Here())
    dates = {name: run["made"]["date"] for name, run in found.meta["runs"].items()}
    assert dates == {sft.name: "", dpo.name: "", slower.name: "later"}
    for name in first.runs:
        for key, kept in first.runs[name].items():
            np.testing.assert_array_equal(found.runs[name][key], kept)
    parts = {path.name for path in (tmp_path / "elsewhere").glob("*.npz")}
    assert parts == {progress.setup.part_of(run).name for run in (sft, slower)}
    assert progress.setup.model_of(sft).is_dir()
    start = found.runs[sft.name]["logp"][-1]  # the model is the same here, where nothing is random
    np.testing.assert_allclose(found.runs[slower.name]["logp"][0], start, atol=0.13)

    again, progress = record("nowhere", [sft, dpo, faster], later, Fails())
    assert set(again.runs) == set(found.runs) and progress.lost == {sft.name}
    with pytest.raises(AssertionError, match="n_tokens"):
        one = progress.found[dpo.name]
        progress.found[slower.name] = one | {"n_tokens": one["n_tokens"] + 1}
        progress.write()
    for key in ("model", "rows", "size"):
        with pytest.raises(ValueError, match=f"scale.json is a record of another {key}: remove it"):
            record("other", [sft], later | {key: "another"}, Here())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_named_arm_begins_with_is_not_in_the_record(tmp_path, capsys):
    size = replace(SMALL, spoken=1)
    setup = record_scale.Setup("tiny", "world", size, "cpu", tmp_path / "parts", threads=2)
    progress = record_scale.Progress(setup, tmp_path / "arms", META)
    planned = partial(plan, size=size, precision="fp32", arms=["dpo"], epochs=1)
    record_scale.make(progress, Here(), planned, 1, np.inf)
    found = Scale.load(tmp_path / "arms")
    start, arm = found.meta["runs"]
    assert [*found.runs] == [arm] and found.pair(arm, "tune").shape == (3, 4, 2)
    assert found.meta["runs"][arm]["start"] == start

    later = record_scale.Progress(setup, tmp_path / "arms", META | {"date": "later"})
    later.write()
    told = Scale.load(tmp_path / "arms").meta["runs"]
    assert {name: run["made"]["date"] for name, run in told.items()} == {start: "", arm: ""}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command in small, in this process, on the toy world; to be given its other options."""
    monkeypatch.setattr(record_scale.record, "RUNS", tmp_path / "parts")
    monkeypatch.setattr(record_scale, "ProcessPoolExecutor", lambda *_, **__: Here())
    given = ["record_scale", "--rows", "world", "--model", "tiny", "--small", "--device", "cpu"]

    def run(options):
        monkeypatch.setattr(sys, "argv", [*given, "--out", str(tmp_path), *options.split()])
        record_scale.main()

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_rates_are_told_apart_by_pairs_before_and_after_alone(command, tmp_path, capsys):
    rates = "--epochs 1 --rates 0.001 0.002"
    with pytest.raises(SystemExit):
        command(rates)
    assert "--rates needs --arms" in capsys.readouterr().err
    command(f"{rates} --arms rpo on-policy")
    found = Scale.load(tmp_path / "scale-tiny-rates")
    assert found.types == ["chosen", "rejected"]
    assert found.group.tolist() == ["test"] * 4 + ["tune"] * 4
    runs = [found.at_rate(arm, lr) for arm in ("rpo", "on-policy") for lr in (0.001, 0.002)]
    assert set(runs) == set(found.runs)
    for group in ("test", "tune"):
        pairs = [found.pair(run, group) for run in runs]
        for before, after in pairs:
            np.testing.assert_array_equal(before, pairs[0][0])
            assert not np.allclose(before, after)
        assert not np.allclose(pairs[0][1], pairs[1][1])
    assert found.runs[runs[0]]["steps"].tolist() == [0, 2]
    told = found.meta["runs"][runs[0]]["made"]["command"]
    assert told.endswith("--small --arms rpo on-policy --epochs 1 --rates 0.001 0.002")
    assert str(tmp_path) not in (tmp_path / "scale-tiny-rates.json").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_other_rows_may_be_fewer_and_their_verdicts_are_printed(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command("--sizes 6 2 0")
    assert "--sizes without rows to tune on needs --arms" in capsys.readouterr().err
    command("--sizes 6 2 0 --arms dpo --epochs 1")
    found = Scale.load(tmp_path / "scale-tiny-arms")
    assert found.group.tolist() == ["train", "train", "test", "test"]
    (run,) = found.runs
    assert len(found.runs[run]["said"]) == 2
    told = found.meta["runs"][run]["made"]["command"]
    assert told.endswith("--small --arms dpo --epochs 1 --sizes 6 2 0")
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"scale-tiny-arms-small-6-2-0"}
    curve = found.values(run, "chosen", "train")
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines == verdicts(found)
    assert lines[0].startswith(f"{run}, trained: chosen {Moved.of(curve[-1] - curve[0])} nats: ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_on_a_cpu_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    sft, policy = plan({}, replace(SMALL, spoken=1), "fp32", ["on-policy"], epochs=2)
    setups = [
        record_scale.Setup("tiny", "world", replace(SMALL, spoken=1), "cpu", tmp_path / name)
        for name in ("whole", "cut")
    ]
    for setup in setups:
        record_scale.work(sft, setup)
    record_scale.work(policy, setups[0])
    finetune, calls = record_scale.lm.finetune, []

    def killed(*args, **settings):
        calls.append(args)
        if len(calls) == 2:  # the first round has ended, the second has answers
            raise RuntimeError("killed")
        return finetune(*args, **settings)

    monkeypatch.setattr("lmdyn.lm.on_policy.finetune", killed)
    with pytest.raises(RuntimeError, match="killed"):
        record_scale.work(policy, setups[1])
    folder = setups[1].folder_of(policy)
    first = folder / "round-0" / "settings.json"
    assert first.is_file() and not setups[1].part_of(policy).exists()
    record_scale.work(policy, setups[1])
    whole, cut = (np.load(setup.part_of(policy)) for setup in setups)
    for name in set(whole.files) - {"seconds", "recipe"}:
        np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)
    assert not folder.exists()
