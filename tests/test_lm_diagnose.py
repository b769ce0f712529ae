"""What a pair would do, against the pairwise influence and against a measured step."""

import json

import numpy as np
import pytest
import torch
from tiny import tiny, tiny_rows

from lmdyn.lm.diagnose import diagnose
from lmdyn.lm.influence import influence
from lmdyn.lm.score import score
from lmdyn.lm.train import finetune

ROWS = tiny_rows()


@pytest.mark.parametrize(
    ("family", "loss"), [("llama", "dpo"), ("gpt2", "sppo"), ("qwen2", "sppo")]
)
def test_it_is_the_influence_of_each_pair(family, loss):
    model, tokenizer = tiny(family)
    held_out = ROWS[3:]
    found = diagnose(model, tokenizer, ROWS, loss, held_out=held_out)
    options = {"types": ["chosen"], "by_response": True}
    own = influence(model, tokenizer, ROWS, ROWS, loss, **options)[..., 0]
    others = influence(model, tokenizer, ROWS, held_out, loss, **options)[..., 0].mean(2)
    parts = (found.own_pull, found.own_push, found.held_out_pull, found.held_out_push)
    expected = (own[:, 0].diagonal(), own[:, 1].diagonal(), *others.T)
    np.testing.assert_allclose(parts, expected, rtol=1e-9, atol=1e-12)
    scores = score(model, tokenizer, ROWS)
    at = scores.types.index("rejected")
    np.testing.assert_allclose(found.squeeze, scores.squeeze[:, at], rtol=1e-9)


def test_a_small_step_does_what_was_told():
    model, tokenizer = tiny("llama")
    told = diagnose(model, tokenizer, ROWS[:2], held_out=ROWS[2:4])
    lr = 1e-6
    for i, row in enumerate(ROWS[:2]):
        stepped, _ = tiny("llama")
        before = score(stepped, tokenizer, [row, *ROWS[2:4]]).logp[:, 0]
        settings = {"epochs": 1, "lr": lr, "batch_size": 1, "optimizer": "sgd", "clip": None}
        finetune(stepped, tokenizer, [row], "dpo", **settings)
        change = score(stepped, tokenizer, [row, *ROWS[2:4]]).logp[:, 0] - before
        np.testing.assert_allclose(change[0], lr * told.own[i], rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(change[1:].mean(), lr * told.held_out[i], rtol=1e-3, atol=1e-9)


def test_another_reference_counts():
    model, tokenizer = tiny("llama")
    ref, _ = tiny("llama", initializer_range=0.1)
    few = ROWS[:2]
    assert not np.allclose(
        diagnose(model, tokenizer, few, ref=ref).own, diagnose(model, tokenizer, few).own
    )
    wrong, _ = tiny("llama", vocab_size=500)
    with pytest.raises(ValueError, match="ref knows 500 tokens"):
        diagnose(model, tokenizer, ROWS, ref=wrong)


def test_the_table_and_the_file_are_ranked(tmp_path):
    model, tokenizer = tiny("gpt2")
    found = diagnose(model, tokenizer, ROWS)
    found.save(tmp_path / "pairs.jsonl")
    text = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == found.rows()
    assert sorted(row["row"] for row in rows) == list(range(len(ROWS)))
    total = [row["held_out_pull"] + row["held_out_push"] for row in rows]
    assert total == sorted(total)
    for row in rows:
        i = row["row"]
        assert row["prompt"] == ROWS[i]["prompt"]
        holds = {"own": found.own[i] < 0, "held_out": found.held_out[i] < 0}
        holds["valley"] = found.valley[i] > 0.5
        assert row["flags"] == [name for name in holds if holds[name]] == list(found.flags[i])
    assert len(found.table(2).splitlines()) == 3
    assert repr(found).startswith("Diagnosis(5 pairs, ")


def test_the_model_is_left_as_it_was():
    model, tokenizer = tiny("qwen2")
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.train()
    diagnose(model, tokenizer, ROWS[:2])
    assert model.training
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None


def test_bad_input_is_named():
    model, tokenizer = tiny("llama")
    with pytest.raises(ValueError, match="does not read both chosen and rejected"):
        diagnose(model, tokenizer, ROWS, "sft")
    with pytest.raises(ValueError, match=r"rows\[1\] has no 'rejected'"):
        diagnose(model, tokenizer, [ROWS[0], {"prompt": "a", "chosen": "no"}])
    with pytest.raises(ValueError, match="the same tokens"):
        diagnose(model, tokenizer, [ROWS[0] | {"rejected": ROWS[0]["chosen"]}])
