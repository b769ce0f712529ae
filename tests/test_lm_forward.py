"""Hidden states, logits and log-probs of batches, against the model's own of single sequences."""

from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from tiny import FAMILIES, tiny, tiny_rows

from lmdyn.lm.batches import pack
from lmdyn.lm.data import as_probes
from lmdyn.lm.diagnose import diagnose
from lmdyn.lm.forward import body, full_logits, hidden, token_logps, undisturbed
from lmdyn.lm.influence import influence
from lmdyn.lm.predict import sgd_direction
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune
from lmdyn.lm.ways import LogProbs, token_values, ways


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
    found = ways(model, rows)
    assert found.shared and found.told and found.head is model.get_output_embeddings()
    readers = (
        lambda batch: found.head(hidden(model, batch)),
        lambda batch: found.head(hidden(model, batch, tell_positions=True)),
        lambda batch: full_logits(model, batch),
    )
    for options in ({"shared": True}, {"shared": True, "tokens": 40}, {"shared": False}):
        for read in readers:
            close(by_response(rows, read, **options), expected, 1e-12)
    model.set_attn_implementation("eager")  # its softmax is in float32
    assert ways(model, rows).shared
    close(by_response(rows, lambda b: full_logits(model, b)), expected, 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_pass_through_shared_batches(family):
    model, tokenizer = tiny(family)

    def gradients(shared):
        (batch,) = pack(encoded(tokenizer)[:3], shared=shared)
        logps = token_logps(model.get_output_embeddings()(hidden(model, batch)), batch)
        return torch.autograd.grad(logps.sum(), list(model.parameters()))

    for x, y in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


def test_half_precision_logits_give_log_probs_in_float32():
    model, tokenizer = tiny("llama", torch.bfloat16)
    (batch,) = pack(encoded(tokenizer))
    logits = full_logits(model, batch)
    found, exact = token_logps(logits, batch), token_logps(logits.double(), batch)
    assert logits.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


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
    found, (batch,) = ways(adapted, encoded(tokenizer)), pack(encoded(tokenizer))
    torch.testing.assert_close(found.head(hidden(adapted, batch)), full_logits(adapted, batch))


@pytest.mark.parametrize(
    "kind", [TypeError, ValueError, RuntimeError, AssertionError, torch.OutOfMemoryError]
)
def test_a_model_that_refuses_the_mask_takes_plain_batches(kind):
    model, tokenizer = tiny("llama", torch.float32)
    forward = model.model.forward

    def refuse(input_ids, attention_mask=None, **options):
        if attention_mask is not None and attention_mask.ndim != 2:
            raise kind("attention_mask must be (B, L)")
        return forward(input_ids, attention_mask, **options)

    model.model.forward = refuse
    if kind is not torch.OutOfMemoryError:
        with pytest.warns(UserWarning, match="prompts are not shared"):
            assert not ways(model, encoded(tokenizer)).shared
        return
    with pytest.raises(kind):
        ways(model, encoded(tokenizer))
    model.model.forward = forward  # there is room again: that says nothing about the model
    assert ways(model, encoded(tokenizer)).shared


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_rows_are_those_of_score(family):
    model, tokenizer = tiny(family)
    keys = {"up": "chosen", "down": "rejected"}
    scores, log_probs = (
        score(model, tokenizer, tiny_rows()),
        LogProbs(model, encoded(tokenizer), keys),
    )
    some, every = log_probs([3, 0, 4]), log_probs.all(range(5), 2)
    for name, key in keys.items():
        logp, n = (x[:, scores.types.index(key)] for x in (scores.logp, scores.n_tokens))
        np.testing.assert_allclose(some[name].detach(), logp[[3, 0, 4]])
        np.testing.assert_allclose(every[name], logp)
        assert log_probs.lengths[name].tolist() == n.tolist()
        assert some[name].requires_grad


def test_offloaded_weights_are_refused_in_words():
    model, tokenizer = tiny("llama")
    cpu_offload(model.model.layers[0], torch.device("cpu"))  # its weights are there in a pass alone
    learning = partial(finetune, epochs=1, lr=1e-3, batch_size=2)
    for call in (score, learning, influence_of_itself, diagnose, sgd_direction):
        with pytest.raises(ValueError, match="some weights are offloaded: load the model whole"):
            call(model, tokenizer, tiny_rows())


@pytest.fixture
def matmuls():
    """The settings of float32 products, which are as they were afterwards."""
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch before 2.9 has one setting")
    places = torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "none"
    yield places
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


def precisions(places):
    return [place.fp32_precision for place in places]


def test_tf32_by_the_present_api_is_off_inside_and_on_again_afterwards(matmuls):
    (model, _), (_, cuda, mkldnn), inside = tiny("llama"), matmuls, ["none", "ieee", "ieee"]
    cuda.fp32_precision, mkldnn.fp32_precision = "tf32", "bf16"
    with undisturbed(model):
        assert precisions(matmuls) == inside
    assert precisions(matmuls) == ["none", "tf32", "bf16"]


def test_a_setting_for_all_backends_still_reaches_the_products(matmuls):
    model, _ = tiny("llama")
    with undisturbed(model):
        assert precisions(matmuls)[1:] == ["ieee", "ieee"]
    assert precisions(matmuls) == ["none"] * 3
    torch.backends.fp32_precision = "tf32"  # as TrainingArguments(tf32=True) does
    with undisturbed(model):
        assert precisions(matmuls)[1:] == ["ieee", "ieee"]
    assert precisions(matmuls) == ["tf32"] * 3
    torch.backends.fp32_precision = "ieee"
    assert precisions(matmuls) == ["ieee"] * 3


def test_the_older_call_is_as_it_was(matmuls):
    model, _ = tiny("llama")
    torch.set_float32_matmul_precision("medium")
    with undisturbed(model):
        assert precisions(matmuls)[1:] == ["ieee", "ieee"]
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")


def influence_of_itself(model, tokenizer, rows):
    return influence(model, tokenizer, rows, rows)
