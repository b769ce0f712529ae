"""Groups of sampled answers, rewarded, and what a round of them teaches."""

import json
import warnings

import numpy as np
import pytest
import torch
from runs import same_runs, same_weights
from tiny import tiny, tiny_rows

from lmdyn import losses
from lmdyn.lm import finetune, finetune_on_policy, score
from lmdyn.lm.data import as_probes
from lmdyn.lm.tokens import encode

slow = pytest.mark.slow
ROWS = [{"prompt": row["prompt"], "wanted": i} for i, row in enumerate(tiny_rows()[:3])]
SETTINGS = {"rounds": 2, "group_size": 4, "max_new_tokens": 5, "lr": 1e-2, "optimizer": "sgd"}


def is_short(row, answer):
    return len(answer.split()) < 4 - 0.1 * row["wanted"]


def run(loss="grpo", reward=is_short, **options):
    model, tokenizer = tiny("llama")
    return finetune_on_policy(model, tokenizer, ROWS, reward, loss, **SETTINGS | options), model


def kept(folder):
    return [
        [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for file in sorted(folder.glob("samples-*.jsonl"))
    ]


@pytest.mark.parametrize(
    "loss", ["grpo", *(pytest.param(name, marks=slow) for name in ("dapo", "rloo", "gspo"))]
)
def test_a_round_is_an_update_on_what_was_sampled(loss, tmp_path):
    found, model = run(loss, rounds=1, out=tmp_path)
    (samples,) = kept(tmp_path)
    assert [s["row"] for s in samples[::4]] != [0, 1, 2] or len({s["text"] for s in samples}) > 1
    rewards = torch.tensor([float(is_short(ROWS[s["row"]], s["text"])) for s in samples]).double()
    assert rewards.tolist() == [s["reward"] for s in samples] and rewards.std() > 0
    kind = "rloo" if loss in ("reinforce", "rloo") else "grpo"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a group of equal rewards
        expected = losses.advantages(rewards.view(-1, 4), kind).flatten()
    np.testing.assert_allclose([s["advantage"] for s in samples], expected, rtol=1e-12)
    same, tokenizer = tiny("llama")
    keys = ("prompt", "response", "advantage")
    rows = [{key: s[key] for key in keys} for s in samples]
    settings = {"epochs": 1, "batch_size": 12, "lr": 1e-2, "optimizer": "sgd", "seed": 0}
    finetune(same, tokenizer, rows, loss, **settings)
    same_weights(model, same)
    assert found.log["reward"] == pytest.approx(rewards.mean().item())


def test_samples_are_the_tokens_that_the_model_said(tmp_path):
    run(rounds=1, out=tmp_path, lr=1e-9)
    model, tokenizer = tiny("llama")
    (samples,) = kept(tmp_path)
    rows = [{key: s[key] for key in ("prompt", "response")} for s in samples]
    for sample, row in zip(samples, encode(tokenizer, as_probes(rows, ["response"])), strict=True):
        ids = row.responses["response"]
        assert ids == sample["response"]
        assert (ids[-1] == tokenizer.eos_token_id) is sample["ended"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample["text"]
    assert np.isfinite(score(model, tokenizer, as_probes(rows, ["response"])).logp).all()


@slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    options = {"rounds": 4, "optimizer": "adamw", "per_round": 2, "epochs": 2}
    whole, model = run(**options, out=tmp_path / "whole")
    calls = []

    def fails(row, answer):
        calls.append(answer)
        return is_short(row, answer) if len(calls) <= 2 * 8 + 3 else 1 / 0

    fails.__qualname__ = is_short.__qualname__
    with pytest.raises(
        ValueError, match=r"round 2: the reward of rows\[\d\] for .* raised ZeroDiv"
    ):
        run(**options, reward=fails, out=tmp_path / "part")
    assert [len([s for s in of if "reward" in s]) for of in kept(tmp_path / "part")] == [8, 8, 3]
    found, same = run(**options, out=tmp_path / "part", resume=True)
    same_weights(model, same)
    same_runs(found, whole)
    assert kept(tmp_path / "part") == kept(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"rows\.reward \(was 'is_short', now 'test_a_run"):
        run(**options, reward=lambda row, answer: 1.0, out=tmp_path / "part", resume=True)


def test_a_run_that_is_refused_leaves_the_samples_of_another_as_they_are(tmp_path):
    run(rounds=1, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for resume, message in ((False, "holds a run already"), (True, "is a run of another recipe")):
        with pytest.raises(ValueError, match=message):
            run(rounds=1, out=tmp_path, resume=resume, reward=lambda row, answer: len(answer))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@slow
def test_what_is_rewarded_is_said_more_often():
    found, _ = run(rounds=30, group_size=16, lr=3e-3, optimizer="adamw")
    assert found.log["reward"][-5:].mean() > found.log["reward"][:5].mean() + 0.2


def test_numbers_of_numpy_are_numbers(tmp_path):
    options = {"group_size": 4, "per_round": 2, "max_new_tokens": 5, "epochs": 2}
    expected, model = run(**options)
    numbers = {name: np.int64(n) for name, n in options.items()} | {"temperature": np.float32(1)}
    for _ in range(2):  # and once more, with the run that it is
        found, same = run(**numbers, out=tmp_path, resume=True)
        same_runs(found, expected)
        same_weights(same, model)
    run(**options, out=tmp_path, resume=True)


def test_rewards_that_are_all_equal_are_told_of():
    with pytest.warns(UserWarning, match="in no group did rewards differ: nothing was learned"):
        found, model = run(reward=lambda row, answer: 1)
    same_weights(model, tiny("llama")[0])
    assert not found.log["groups_that_differ"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": lambda *_: float("nan")}, r"round 0: the reward of rows\[\d\] for '.*' is nan"),
        ({"reward": lambda *_: "good"}, r"the reward of rows\[\d\] for .* raised ValueError"),
        ({"reward": "dpo"}, "reward must be a function of a row and an answer, got 'dpo'"),
        ({"group_size": 1}, "group_size must be"),
        ({"loss": losses.GRPO(beta=0.1)}, "needs a reference that stays: pass ref"),
        ({"loss": "dpo"}, "reads no advantage: take one that does, or leave reward out"),
    ],
)
def test_what_cannot_be_used_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**{"out": tmp_path} | options)


@slow
def test_the_reference_stays_the_model_that_was_passed():
    ref, _ = tiny("llama")
    loss = losses.GRPO(beta=1.0)
    found, _ = run(loss, ref=ref, rounds=3)
    assert np.isfinite(found.log["loss"]).all()
    away, _ = run(losses.GRPO(beta=1e-9), ref=ref, rounds=3)
    assert not np.allclose(found.log["loss"], away.log["loss"])


@pytest.mark.slow
def test_every_round_learns_by_the_same_settings():
    rows = as_probes(tiny_rows(), ["chosen", "rejected"])

    class Same:  # a source of rows that are never others
        epochs, told, settings = 1, {}, {}

        def __len__(self):
            return len(rows)

        def __call__(self, number):
            return rows

    ref, tokenizer = tiny("llama")
    settings = {"epochs": 2, "lr": 1e-2, "batch_size": 2, "spare_valleys": True, "ref": ref}
    one, two = (tiny("llama")[0] for _ in range(2))
    finetune(one, tokenizer, Same(), "dpo", **settings)
    finetune(two, tokenizer, rows, "dpo", **settings)
    same_weights(one, two)
