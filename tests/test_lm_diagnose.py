"""What a pair would do, against the pairwise influence and against a measured step."""

import copy
import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from tiny import tiny, tiny_rows

from lmdyn import losses
from lmdyn.lm.data import as_probes
from lmdyn.lm.diagnose import ches, diagnose
from lmdyn.lm.influence import influence
from lmdyn.lm.predict import predict_change, sgd_direction, update_direction
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune

ROWS = tiny_rows()
module = sys.modules[diagnose.__module__]  # which the function hides


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


@pytest.mark.slow
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


def test_a_learning_rate_tells_nats_per_update():
    model, tokenizer = tiny("gpt2")
    unit, told = (diagnose(model, tokenizer, ROWS[:3], lr=lr) for lr in (1.0, 1e-3))
    np.testing.assert_allclose(told.own_push, 1e-3 * unit.own_push, rtol=1e-12)
    np.testing.assert_allclose(told.held_out_pull, 1e-3 * unit.held_out_pull, rtol=1e-12)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.slow
def test_an_optimizer_takes_the_step(steps):
    model, tokenizer = tiny("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0)

    def step(rows):
        gradient = sgd_direction(model, tokenizer, rows, "dpo", -1.0)
        for name, weight in model.named_parameters():
            weight.grad = gradient[name].clone()
        optimizer.step()
        model.zero_grad()

    for _ in range(steps):
        step(ROWS[3:4])
    told = diagnose(model, tokenizer, ROWS[:3], held_out=ROWS[2:], optimizer=optimizer)
    shares = influence(model, tokenizer, ROWS[1:2], ROWS, "dpo", optimizer=optimizer)
    np.testing.assert_allclose(told.own[1], shares.rows[0, 1, 0], rtol=1e-9)
    np.testing.assert_allclose(told.held_out[1], shares.rows[0, 2:, 0].mean(), rtol=1e-9)
    before = copy.deepcopy(model)
    step(ROWS[1:2])
    moved = update_direction(before.state_dict(), model.state_dict())
    real = predict_change(before, tokenizer, ROWS[1:2], moved).logp[0, 0]
    np.testing.assert_allclose(told.own[1] + shares.momentum[1, 0], real, rtol=1e-6)


def test_it_reads_only_what_it_uses():
    model, tokenizer = tiny("gpt2")
    rows = [row | {"chosen_initial": " "} for row in ROWS[:2]]
    np.testing.assert_array_equal(
        diagnose(model, tokenizer, rows).own, diagnose(model, tokenizer, ROWS[:2]).own
    )


@pytest.mark.slow
def test_an_interruption_keeps_what_is_done(tmp_path, monkeypatch):
    model, tokenizer = tiny("llama")
    whole, file = diagnose(model, tokenizer, ROWS), tmp_path / "kept.jsonl"
    told, calls = module._Pairs.__call__, []

    def interrupted(self, i):
        calls.append(i)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return told(self, i)

    monkeypatch.setattr(module._Pairs, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        diagnose(model, tokenizer, ROWS, keep=file)
    with file.open("a", encoding="utf-8") as half:
        half.write("[2, [0.1, 0.")
    again = diagnose(model, tokenizer, ROWS, keep=file)
    assert calls == [0, 1, 2, 2, 3, 4]
    for name in ("squeeze", "valley", "own_pull", "held_out_push"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    diagnose(model, tokenizer, ROWS, keep=file)
    assert len(calls) == 6  # nothing was left to do
    with pytest.raises(ValueError, match="keep them in another file"):
        diagnose(model, tokenizer, ROWS, lr=2.0, keep=file)


def test_what_is_kept_is_of_one_state_of_the_optimizer_and_of_the_same_weights(tmp_path):
    model, tokenizer = tiny("llama")
    told = partial(diagnose, model, tokenizer, ROWS[:1], held_out=ROWS[2:3])
    optimizer, trained = (torch.optim.AdamW(model.parameters()) for _ in range(2))
    fresh = told(optimizer=optimizer, keep=tmp_path / "of_optimizer")
    again = told(optimizer=optimizer, keep=tmp_path / "of_optimizer")
    np.testing.assert_array_equal(fresh.own, again.own)
    for weight in model.parameters():
        trained.state[weight] = {
            name: torch.ones_like(weight) for name in ("exp_avg", "exp_avg_sq")
        }
        trained.state[weight]["step"] = torch.tensor(3.0)
    optimizer.load_state_dict(trained.state_dict())
    with pytest.raises(ValueError, match="keep them in another file"):
        told(optimizer=optimizer, keep=tmp_path / "of_optimizer")
    whole = told(keep=tmp_path / "of_all")
    model.model.embed_tokens.requires_grad_(False)
    with pytest.raises(ValueError, match="keep them in another file"):
        told(keep=tmp_path / "of_all")
    assert not np.allclose(told(keep=tmp_path / "of_some").own, whole.own)


def test_what_is_kept_is_of_the_same_tokens(tmp_path):
    model, tokenizer = tiny("llama")
    says = [{"role": "user", "content": "where is it"}]
    pair = {"prompt": says, "chosen": [{"role": "assistant", "content": "here"}]}
    pair["rejected"] = [{"role": "assistant", "content": "there"}]
    told, turn = partial(diagnose, model, tokenizer, [pair]), "{{ m['content'] + ' ' }}"
    tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    first = told(keep=tmp_path / "kept")
    tokenizer.chat_template = f"{{% for m in messages %}}the {turn}{{% endfor %}}"
    with pytest.raises(ValueError, match="keep them in another file"):
        told(keep=tmp_path / "kept")
    assert not np.allclose(told().own, first.own)


def test_a_loss_may_pull_at_a_third_response():
    model, tokenizer = tiny("llama")
    rows = [{**row, "other": " she can see him"} for row in ROWS]
    rows = as_probes(rows, ["chosen", "rejected", "other"])
    loss = losses.get("slic", target="other", beta=5.0)
    found = diagnose(model, tokenizer, rows, loss).own
    for i, own in enumerate(found):
        whole = influence(model, tokenizer, rows[[i]], rows[[i]], loss, types=["chosen"])
        assert own == pytest.approx(whole.item(), rel=1e-4, abs=1e-6)


def test_a_file_that_is_empty_or_cut_is_gone_on_with(tmp_path):
    model, tokenizer = tiny("llama")
    told = partial(diagnose, model, tokenizer, ROWS[:2], keep=tmp_path / "kept")
    (tmp_path / "kept").touch()
    whole = told()
    first, one, two = (tmp_path / "kept").read_text().splitlines()
    for cut in (two[:-1], two[:5]):  # of two brackets one is there, or none
        (tmp_path / "kept").write_text("\n".join([first, one, cut]))
        np.testing.assert_array_equal(told().own, whole.own)
        assert (tmp_path / "kept").read_text().splitlines() == [first, one, two]


def test_a_response_that_the_model_rules_out_is_named():
    model, tokenizer = tiny("llama", tie_word_embeddings=False)
    gone = torch.nn.functional.one_hot(torch.tensor(7), 100)
    bias = torch.zeros(100, dtype=torch.float64).masked_fill(gone.bool(), -torch.inf)
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    row, ruled_out = {"prompt": [5, 6], "chosen": [8], "rejected": [9]}, {"rejected": [9, 7]}
    with pytest.raises(
        ValueError, match=r"^rows\[1\]: log π of 'rejected' is -inf: .*rules it out"
    ):
        diagnose(model, tokenizer, [row, row | ruled_out], held_out=[row])
    with pytest.raises(
        ValueError, match=r"^rows\[1\]: log π of 'rejected' is -inf: .*rules it out"
    ):
        sgd_direction(model, tokenizer, [row, row | ruled_out], "dpo")
    with pytest.raises(ValueError, match=r"^held_out\[1\]: log π of 'chosen' is -inf"):
        diagnose(model, tokenizer, [row], held_out=[row, row | {"chosen": [7]}])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_ches_is_its_definition(family):
    model, tokenizer = tiny(family)
    sums, means = (ches(model, tokenizer, ROWS, normalise) for normalise in (False, True))
    for i, row in enumerate(encode(tokenizer, as_probes(ROWS))):
        plus, minus = (
            model(torch.tensor([row.prompt + row.responses[name]]), output_hidden_states=True)
            .hidden_states[-1][0, len(row.prompt) - 1 : -1]
            .detach()
            for name in ("chosen", "rejected")
        )
        for found, p, m in (
            (sums, plus.sum(0), minus.sum(0)),
            (means, plus.mean(0), minus.mean(0)),
        ):
            np.testing.assert_allclose(found[i], float(p @ m - p @ p), rtol=1e-9)


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
    said = [{"role": "user", "content": "how"}, {"role": "assistant", "content": "so"}]
    for bad in (ROWS[0] | {"chosen": []}, {"prompt": said[:1], "chosen": said[1:]}):
        with pytest.raises(ValueError, match=r"^held_out\[1\]: "):
            diagnose(model, tokenizer, ROWS[:1], held_out=[ROWS[1], bad])
