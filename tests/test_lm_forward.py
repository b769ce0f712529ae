"""Hidden states, logits and log-probs of batches, against the model's own of single sequences."""

import weakref

import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows

from lmdyn.lm.batches import pack
from lmdyn.lm.data import as_probes
from lmdyn.lm.forward import (
    batches,
    body,
    can_share,
    evaluating,
    full_logits,
    head,
    head_is_last,
    hidden,
    token_logps,
    token_values,
)
from lmdyn.lm.tokens import encode


def encoded(tokenizer, rows=None):
    return encode(tokenizer, as_probes(rows or tiny_rows()))


def by_response(rows, read, **options):
    """What ``read`` makes of each batch, (M, …), by row and type."""
    return {k: x for batch in pack(rows, **options) for k, x in batch.split(read(batch)).items()}


def close(found, expected, atol):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_all_forms_of_batches_give_what_the_model_gives_each_sequence(family):
    model, tokenizer = tiny(family)
    rows = encoded(tokenizer)
    expected = {}
    for i, row in enumerate(rows):
        for name, ids in row.responses.items():
            logits = model(torch.tensor([row.prompt + ids])).logits[0, len(row.prompt) - 1 : -1]
            expected[i, name] = logits
    assert can_share(model, 20) and head_is_last(model)
    readers = (
        lambda batch: head(model)(hidden(model, batch)),
        lambda batch: head(model)(hidden(model, batch, tell_positions=True)),
        lambda batch: full_logits(model, batch),
    )
    for options in ({"shared": True}, {"shared": True, "tokens": 40}, {"shared": False}):
        for read in readers:
            close(by_response(rows, read, **options), expected, 1e-12)
    logps = {
        key: logits.log_softmax(-1).gather(1, torch.tensor(rows[key[0]].responses[key[1]])[:, None])
        for key, logits in expected.items()
    }
    found = by_response(rows, lambda b: token_logps(full_logits(model, b), b)[:, None])
    close(found, logps, 1e-12)
    model.set_attn_implementation("eager")  # its softmax is in float32
    assert can_share(model, 20)
    close(by_response(rows, lambda b: full_logits(model, b)), expected, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_pass_through_shared_batches(family):
    model, tokenizer = tiny(family)

    def gradients(shared):
        (batch,) = pack(encoded(tokenizer)[:3], shared=shared)
        logps = token_logps(head(model)(hidden(model, batch)), batch)
        return torch.autograd.grad(logps.sum(), list(model.parameters()))

    for x, y in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


def test_half_precision_logits_give_log_probs_in_float32():
    model, tokenizer = tiny("llama", torch.bfloat16)
    (batch,) = batches(model, encoded(tokenizer))
    logits = full_logits(model, batch)
    found = token_logps(logits, batch)
    assert logits.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), token_logps(logits.double(), batch), rtol=0, atol=1e-5
    )


def test_a_pass_keeps_what_is_read_of_each_token():
    """More tokens than a chunk of logits, and each value with its own token."""
    model, tokenizer = tiny("gpt2")
    rows = encoded(tokenizer, tiny_rows() * 3)

    def read(logits, batch, part):
        return torch.stack([logits.logsumexp(-1), batch.target[part]], -1)

    found = dict(token_values(model, rows, read))
    assert len(found) == sum(len(row.responses) for row in rows)
    for (i, name), values in found.items():
        assert values[:, 1].tolist() == rows[i].responses[name]
        assert values[:, 0] == pytest.approx(found[i % 5, name][:, 0], abs=1e-12)
    assert sum(map(len, found.values())) > 128


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_with_an_adapter_is_the_one_that_it_adapts():
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny("llama", torch.float32)
    base = model.model
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert body(adapted) is base
    (batch,) = batches(adapted, encoded(tokenizer))
    torch.testing.assert_close(head(adapted)(hidden(adapted, batch)), full_logits(adapted, batch))


def test_a_model_is_checked_once_and_forgotten():
    model, _ = tiny("llama")
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    can_share(model, 9), head(model)
    can_share(model, 9), head(model)
    assert len(calls) == 3
    known = weakref.ref(model)
    del model
    assert known() is None


def refusing(error):
    """A model that raises ``error`` if it is given a mask of who sees whom."""
    model, tokenizer = tiny("llama", torch.float32)
    forward = model.model.forward

    def refuse(input_ids, attention_mask=None, **options):
        if attention_mask is not None and attention_mask.ndim != 2:
            raise error
        return forward(input_ids, attention_mask, **options)

    model.model.forward = refuse
    return model, tokenizer, forward


@pytest.mark.parametrize("kind", [TypeError, ValueError, RuntimeError, AssertionError])
def test_a_model_that_refuses_the_mask_takes_plain_batches(kind):
    model, tokenizer, _ = refusing(kind("attention_mask must be (B, L)"))
    assert not can_share(model, 20)
    assert not any(batch.shared for batch in batches(model, encoded(tokenizer)))


def test_a_check_without_memory_says_nothing_about_the_model():
    model, _, forward = refusing(torch.OutOfMemoryError("all is taken"))
    with pytest.raises(torch.OutOfMemoryError):
        can_share(model, 20)
    model.model.forward = forward  # there is room again
    assert can_share(model, 20)


def test_eval_mode_is_left_as_it_was_found():
    model, _ = tiny("gpt2", attn_pdrop=0.5)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes
