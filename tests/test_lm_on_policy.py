"""Pairs that the model makes itself, round by round."""

from types import SimpleNamespace

import numpy as np
import pytest
from runs import same_runs, same_weights, stopped
from tiny import tiny, tiny_rows, tiny_tokenizer

from lmdyn.lm.generate import generate
from lmdyn.lm.on_policy import finetune_on_policy, sample_rejected
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory

ROWS = tiny_rows()
SETTINGS = {"rounds": 2, "lr": 1e-2, "batch_size": 2, "max_new_tokens": 6, "probes": ROWS}


def run(rows=ROWS, **options):
    model, tokenizer = tiny("llama")
    return finetune_on_policy(model, tokenizer, rows, **SETTINGS | options), model


def test_rejected_is_what_the_model_says():
    model, tokenizer = tiny("llama")
    pairs = sample_rejected(model, tokenizer, ROWS, max_new_tokens=6, seed=3)
    prompts = [row["prompt"] for row in ROWS]
    said, ids, ended = generate(model, tokenizer, prompts, 6, sample=True, seed=3, return_ids=True)
    assert len(set(said)) > 1
    for row, pair, answer, tokens in zip(ROWS, pairs, said, ids, strict=True):
        assert pair == row | {"rejected": tokens if answer else row["rejected"]}
    learned = [row.responses["rejected"] for row in encode(tokenizer, pairs)]
    assert [tokenizer.eos_token_id in tokens for tokens in learned] == ended
    again = sample_rejected(model, tokenizer, ROWS, max_new_tokens=6, seed=4)
    assert again.rows != pairs.rows


def test_at_temperature_zero_it_is_the_greedy_answer():
    model, tokenizer = tiny("llama")
    pairs = sample_rejected(model, tokenizer, ROWS, max_new_tokens=6, temperature=0)
    said = generate(model, tokenizer, [row["prompt"] for row in ROWS], 6)
    assert tokenizer.batch_decode([row["rejected"] for row in pairs], True) == said


def test_an_answer_that_makes_no_pair_keeps_the_row_as_it_was_or_drops_it(monkeypatch):
    answers = ["down there", "words", " "], [[3, 1], [4, 1], [1]], [True] * 3
    monkeypatch.setattr("lmdyn.lm.on_policy.generate", lambda *a, **k: answers)
    rows = [ROWS[3], {"prompt": "a", "chosen": " words"}, ROWS[0]]
    pairs = sample_rejected(None, tiny_tokenizer(), rows)
    assert [row["rejected"] for row in pairs] == [ROWS[3]["rejected"], ROWS[0]["rejected"]]
    with pytest.raises(ValueError, match="no sampled answer makes a pair"):
        monkeypatch.setattr(
            "lmdyn.lm.on_policy.generate", lambda *a, **k: [x[1:2] for x in answers]
        )
        sample_rejected(None, tiny_tokenizer(), rows[1:2])
    with pytest.raises(ValueError, match=r"rows\[0\] has no 'chosen', which sample_rejected reads"):
        sample_rejected(None, tiny_tokenizer(), [{"prompt": "a", "rejected": " b"}])


def test_an_answer_equal_to_chosen_tokens_makes_no_pair():
    model, tokenizer = tiny("llama")
    _, ids, _ = generate(model, tokenizer, [row["prompt"] for row in ROWS[:2]], 6, return_ids=True)
    rows = [{**row, "chosen": tokens} for row, tokens in zip(ROWS, ids, strict=False)]
    pairs = sample_rejected(model, tokenizer, rows, max_new_tokens=6, temperature=0)
    assert [row["rejected"] for row in pairs] == [row["rejected"] for row in ROWS[:2]]


@pytest.mark.slow
def test_rounds_are_runs_on_fresh_pairs_against_the_model_of_the_round():
    done, model = run()
    by_hand, tokenizer = tiny("llama")
    settings = {"epochs": 1, "lr": 1e-2, "batch_size": 2}
    for number in range(2):
        draw = int(np.random.default_rng((0, number)).integers(2**31))
        pairs = sample_rejected(by_hand, tokenizer, ROWS, max_new_tokens=6, seed=draw)
        part = finetune(by_hand, tokenizer, pairs, "dpo", seed=draw, **settings)
        np.testing.assert_array_equal(part.log["loss"], done.log["loss"][3 * number :][:3])
    same_weights(model, by_hand)
    assert done.steps.tolist() == [0, 3, 6]
    assert done.meta["joined"] == [3]
    stays, _ = run(ref=tiny("llama")[0])  # a reference can stay
    np.testing.assert_array_equal(stays.log["loss"][:3], done.log["loss"][:3])
    assert stays.log["loss"][3] != done.log["loss"][3]


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_the_pairs_that_it_had(tmp_path, monkeypatch):
    whole, model = run(out=tmp_path / "whole")
    out = tmp_path / "stopped"
    with stopped(at=4), pytest.raises(KeyboardInterrupt):  # in the second round
        run(out=out)
    with monkeypatch.context() as patch:  # both rounds have their pairs
        patch.setattr("lmdyn.lm.on_policy.generate", None)
        resumed, again = run(out=out, resume=True)
    for found in (whole, Trajectory.load(out / "trajectory")):
        same_runs(found, resumed)
    same_weights(model, again)
    with pytest.raises(ValueError, match="holds a run already"):
        run(out=out)


@pytest.mark.parametrize(
    "change", [{"temperature": 2.0}, {"max_new_tokens": 3}, {"rows": [*ROWS[1:], ROWS[0]]}]
)
def test_going_on_with_other_rows_or_samples_is_refused(tmp_path, change):
    run(rounds=1, out=tmp_path)
    run(rounds=1, out=tmp_path, resume=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ValueError, match=r"is a run of another recipe: .*rows \(was"):
        run(rounds=1, out=tmp_path, resume=True, **change)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="rounds must be an integer of at least 1"):
        run(rounds=0)


@pytest.mark.parametrize("reward", [None, lambda row, answer: 1.0], ids=["pairs", "reward"])
def test_several_processes_are_refused(tmp_path, monkeypatch, reward):
    two = SimpleNamespace(num_processes=2)
    monkeypatch.setattr("lmdyn.lm.on_policy.PartialState", lambda: two)
    with pytest.raises(ValueError, match="finetune_on_policy samples in one process: launch one"):
        run(reward=reward, out=tmp_path)
    assert not [*tmp_path.iterdir()]
