"""What a run recorded: in memory, in its files, in parts, and in a table."""

import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import same_runs
from tiny import tiny, tiny_rows

from lmdyn.lm.data import as_probes
from lmdyn.lm.score import STATS, score
from lmdyn.lm.trajectory import Recorder, Trajectory


def recorded(probings=4, meta=None):
    """A run on ROWS, the second of which has no rejected."""
    random, shape = np.random.default_rng(0), (probings, 3, 2)
    stats = {stat: random.normal(size=shape).astype(np.float32) for stat in STATS}
    n_tokens = np.float32(random.integers(1, 9, shape[1:]))
    for values in (*stats.values(), n_tokens):
        values[..., 1, 1] = np.nan
    updates = 2 * np.arange(probings)
    return Trajectory(
        steps=updates,
        examples_seen=4 * updates,
        types=("chosen", "rejected"),
        vocab_size=7,
        n_tokens=n_tokens,
        split=np.array(["train", "train", "test"]),
        log={name: np.float32(random.normal(size=updates[-1] + 2)) for name in ("loss", "lr")},
        meta={"seed": 1} if meta is None else meta,
        **stats,
    )


def with_chosen(curve):
    """A trajectory of one prompt whose chosen has these log-probs."""
    logp = np.array(curve, dtype=np.float32)[:, None, None]
    steps = np.arange(len(curve))
    one = np.ones((1, 1), dtype=np.float32)
    shape = {name: np.zeros_like(logp) for name in STATS}
    arrays = shape | {"logp": logp, "vocab_size": 7, "n_tokens": one, "split": np.array([""])}
    return Trajectory(steps=steps, examples_seen=4 * steps, types=("chosen",), **arrays)


def test_what_is_recorded_is_what_was_scored_and_can_go_on_from_an_earlier_moment(tmp_path):
    model, tokenizer = tiny("llama", torch.float32)
    probes = as_probes(tiny_rows())
    recorder = Recorder(probes)

    def go_on(step):
        recorder.probe(model, tokenizer, step, 4 * step)
        for loss in (9.5 - step, 9 - step):
            recorder.update(loss=loss, lr=0.1)

    for step in (0, 2, 4):
        go_on(step)
    whole = recorder.trajectory({"seed": 1})
    assert whole.steps.tolist() == [0, 2, 4]
    assert whole.examples_seen.tolist() == [0, 8, 16]
    assert whole.types == probes.types
    assert whole.log["loss"].tolist() == [9.5, 9, 7.5, 7, 5.5, 5]
    assert whole.updates == 6
    scores = score(model, tokenizer, probes)
    for stat in STATS:
        expected = np.float32([getattr(scores, stat)] * 3)
        np.testing.assert_array_equal(getattr(whole, stat), expected)
    np.testing.assert_array_equal(whole.n_tokens, np.float32(scores.n_tokens))
    whole.save(tmp_path / "run")
    recorder = Recorder(probes)
    recorder.restore(Trajectory.load(tmp_path / "run"), step=2)
    cut = recorder.trajectory(whole.meta)
    assert cut.steps.tolist() == [0, 2]
    assert cut.log["loss"].tolist() == [9.5, 9]
    for loss in (7.5, 7):
        recorder.update(loss=loss, lr=0.1)
    go_on(4)
    same_runs(recorder.trajectory(whole.meta), whole)


def test_loading_gives_back_every_bit(tmp_path):
    trajectory = recorded()
    trajectory.save(tmp_path / "run-1.5b")  # a name with a dot in it
    assert {path.name for path in tmp_path.iterdir()} == {"run-1.5b.npz", "run-1.5b.json"}
    same_runs(Trajectory.load(tmp_path / "run-1.5b"), trajectory)
    same_runs(Trajectory.load(f"{tmp_path}/run-1.5b.npz"), trajectory)


def test_a_run_without_probes_is_saved_too(tmp_path):
    recorder = Recorder()
    recorder.update(loss=1.5)
    trajectory = recorder.trajectory({})
    assert trajectory.logp.shape == (0, 0, 0)
    trajectory.save(tmp_path / "run")
    same_runs(Trajectory.load(tmp_path / "run"), trajectory)
    assert trajectory.summary() == "1 updates, no probes"


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    recorded(meta={"date": "1"}).save(tmp_path / "a")
    recorded(meta={"date": "2"}).save(tmp_path / "b")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:  # no time of writing among them
        assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("fails", [".npz", ".json"])
def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch, fails):
    recorded(3).save(tmp_path / "run")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.replace

    def full_disk(source, target):
        if str(target).endswith(fails):
            raise OSError("no space left")
        real(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        recorded(4, {"seed": 2}).save(tmp_path / "run")
    now = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(now) == set(old)
    assert now[f"run{fails}"] == old[f"run{fails}"]


def test_parts_that_go_on_from_each_other_join_into_one():
    whole = recorded(7)
    cuts = [(0, 3), (2, 5), (4, 7)]  # probings of each part
    parts = [
        replace(
            whole,
            steps=whole.steps[a:b] - whole.steps[a],
            examples_seen=whole.examples_seen[a:b] - whole.examples_seen[a],
            log={name: values[2 * a : 2 * b - 2] for name, values in whole.log.items()},
            **{name: getattr(whole, name)[a:b] for name in STATS},
        )
        for a, b in cuts
    ]
    joined = Trajectory.join(parts)
    assert joined.meta == {"seed": 1, "seconds": 0.0, "joined": [4, 8]}
    log = {name: values[:12] for name, values in whole.log.items()}
    same_runs(replace(joined, meta=whole.meta), replace(whole, log=log))
    assert Trajectory.join(parts[:1]) is parts[0]
    bare = Trajectory.join([replace(part, log={}) for part in parts])  # as a callback leaves them
    np.testing.assert_array_equal(bare.steps, whole.steps)
    assert bare.meta["joined"] == [4, 8]
    with pytest.raises(ValueError, match=r"parts\[1\] does not go on from parts\[0\]"):
        Trajectory.join([parts[0], parts[2]])
    with pytest.raises(ValueError, match="nothing to join"):
        Trajectory.join([])


def test_joined_parts_of_other_losses_have_all_that_either_has_logged():
    one = recorded(2)
    sft = replace(one, **{name: getattr(one, name)[[-1, -1]] for name in STATS})
    dpo = replace(sft, log=sft.log | {"logp_rejected": sft.log["lr"]})
    lacks, has = np.full(4, np.nan, np.float32), sft.log["lr"]
    for parts, expected in (([sft, dpo], (lacks, has)), ([dpo, sft], (has, lacks))):
        log = Trajectory.join(parts).log
        np.testing.assert_array_equal(log["logp_rejected"], np.concatenate(expected))
        assert log["loss"].tolist() == [*one.log["loss"]] * 2


def test_means_are_over_the_prompts_that_have_the_type():
    trajectory = recorded()
    logp = trajectory.logp.astype(np.float64)
    np.testing.assert_allclose(trajectory.mean("chosen"), logp[:, :, 0].mean(1))
    np.testing.assert_allclose(trajectory.mean("rejected"), logp[:, [0, 2], 1].mean(1))
    np.testing.assert_allclose(trajectory.mean("chosen", split="train"), logp[:, :2, 0].mean(1))
    np.testing.assert_allclose(trajectory.mean("rejected", split="test"), logp[:, 2, 1])
    entropy = trajectory.entropy[:, [0, 2], 1].mean(1)
    np.testing.assert_allclose(trajectory.mean("rejected", stat="entropy"), entropy)


def test_norms_follow_from_the_statistics():
    run = recorded()
    prob_sq, label_prob = (np.float64(x) for x in (run.prob_sq, run.label_prob))
    np.testing.assert_allclose(run.jacobian_norm_sq, 7 * prob_sq + 7 - 2)
    np.testing.assert_allclose(run.residual_norm_sq, prob_sq - 2 * label_prob + 1)
    mean = run.residual_norm_sq[:, :, 0].mean(1)
    np.testing.assert_allclose(run.mean("chosen", "residual_norm_sq"), mean)


def test_the_argmax_runs_along_chosen():
    means = recorded().mean()
    assert list(means) == ["chosen", "rejected", "argmax"]
    np.testing.assert_allclose(means["argmax"], recorded().argmax_logp[:, :, 0].mean(1))
    np.testing.assert_array_equal(means["argmax"], recorded().mean("argmax"))
    assert list(recorded().mean(stat="entropy")) == ["chosen", "rejected"]


def test_a_type_that_no_prompt_of_the_split_has_is_left_out_of_tables():
    alone = replace(recorded(), split=np.array(["test", "train", "test"]))
    assert np.isnan(alone.mean("rejected", split="train")).all()
    assert list(alone.mean(split="train")) == ["chosen", "argmax"]
    head, *lines = alone.summary(split="train").split("\n")
    assert head.endswith(" examples; none has rejected")
    assert [line.split()[0] for line in lines] == ["type", "chosen", "argmax"]
    assert "none has" not in alone.summary() and "\nrejected" in alone.summary()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "choosen"}, "unknown response type 'choosen': did you mean 'chosen'"),
        ({"stat": "entropi"}, "unknown statistic 'entropi': did you mean 'entropy'"),
        ({"split": "tset"}, "unknown split of these prompts 'tset': did you mean 'test'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        recorded().mean(**arguments)


@pytest.mark.parametrize(
    ("curve", "turn"),
    [
        ([-9, -5, -7], "peak -5.00 at 4"),
        ([-9, -12, -7], "trough -12.00 at 4"),
        ([-9, -8, -7], ""),
        ([-9, -6, -10, -7], "peak -6.00 at 4"),  # 1 above the ends, and 1 below them: the peak
        ([-9, -6, -12, -7], "trough -12.00 at 8"),
        ([-9], ""),
    ],
)
def test_summary_tells_how_each_type_went(curve, turn):
    head, _, chosen, argmax = with_chosen(curve).summary().split("\n")
    examples = 4 * (len(curve) - 1)
    assert head == f"mean log-prob (nats) of 1 prompts after 0 → {examples} examples"
    first, last = curve[0], curve[-1]
    line = f"{'chosen':<20}{first:>10.2f}{last:>10.2f}{last - first:>+10.2f}   {turn}"
    assert chosen == line.rstrip()
    assert argmax.split() == ["argmax", "0.00", "0.00", "+0.00"]


def test_loading_what_is_no_trajectory_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run.npz"):
        Trajectory.load(tmp_path / "run")
    recorded().save(tmp_path / "run")
    (tmp_path / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"run.json"):
        Trajectory.load(tmp_path / "run")
    np.savez(tmp_path / "run.npz", x=np.ones(2))
    with pytest.raises(ValueError, match=r"or run.json cannot be read: .*steps"):
        Trajectory.load(tmp_path / "run")


def test_a_file_that_runs_code_when_loaded_is_refused(tmp_path):
    replace(recorded(), steps=np.array([print, None])).save(tmp_path / "run")  # pickled
    with pytest.raises(ValueError, match="allow_pickle=False"):
        Trajectory.load(tmp_path / "run")
