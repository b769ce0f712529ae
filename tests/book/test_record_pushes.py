import numpy as np
import pytest
import torch

import record_pushes
from lmdyn import lm


@pytest.mark.slow
def test_parts_add_up_and_held_out_prompts_have_no_pair_of_their_own(monkeypatch, capsys):
    monkeypatch.setattr(record_pushes, "LR", 1e-4)
    model, tokenizer = lm.load("tiny", "cpu")
    rows = lm.load_probes("world", ["chosen", "rejected"])
    pairs, watched = rows[:6], rows[[0, 1, 8]].only("chosen")
    found = record_pushes.measured(model, tokenizer, pairs, watched)
    assert "after: own" in capsys.readouterr().out
    texts = [tokenizer(row["rejected"], add_special_tokens=False).input_ids for row in pairs]
    for when in ("before", "after"):
        own, whole = found[f"{when}, own"], found[f"{when}, all"]
        assert not own[:, 2].any() and own[0, :2].min() > 0 and whole[:, 2].any()
        # Each rejected answer ends with EOS.
        assert found[f"{when}, count"][1:].sum() == sum(len(ids) + 1 for ids in texts)
    assert not np.allclose(found["before, chosen"], found["after, chosen"])

    # AdamW's next step on all pairs does what the shares and the momentum say.
    model, tokenizer = lm.load("tiny", "cpu")
    ref = record_pushes.log_probs(model, tokenizer, pairs)
    adamw = record_pushes.tune(model, tokenizer, pairs, ref)
    sorted_out = lm.pushes(model, tokenizer, pairs, watched, "dpo", ref=ref, progress=False)
    for own, by_library in ((True, sorted_out.own), (False, sorted_out.pairs.sum(0))):
        mine = found["after, own" if own else "after, all"]
        both = np.stack([mine[0], mine[1:].sum(0)])
        np.testing.assert_allclose(both, by_library[..., 0], rtol=1e-3, atol=1e-3)
    start = record_pushes.log_probs(model, tokenizer, watched)["chosen"]
    np.testing.assert_allclose(start, found["after, chosen"], rtol=1e-5)
    old = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    step = lm.sgd_direction(model, tokenizer, pairs, "dpo", lr=1 / len(pairs), ref=ref)
    for name, weight in model.named_parameters():
        weight.grad = -step[name]
    adamw.step()
    with torch.no_grad():
        move = {name: weight - old[name] for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters():
            weight.copy_(old[name])
    change = lm.predict_change(model, tokenizer, watched, move, progress=False).logp[:, 0]
    told = found["adamw"].sum(0) + found["momentum"]
    np.testing.assert_allclose(told, change, rtol=1e-3, atol=1e-5)
