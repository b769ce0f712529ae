"""What a model can do is tried on the rows and weights at hand; what cannot be right is refused."""

import copy
import warnings

import brute
import numpy as np
import pytest
import torch
from tiny import first, tiny, tiny_rows
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers import AutoModelForSequenceClassification as Classifier

from lmdyn.lm import influence, measure_change, predict_change, score, sgd_direction, token_mass
from lmdyn.lm.data import as_probes
from lmdyn.lm.tokens import Encoded, encode
from lmdyn.lm.train import finetune
from lmdyn.lm.ways import LogProbs, token_values, ways

ROWS = tiny_rows()
LONG = [{"prompt": f"{'what is it ' * 3}in", "chosen": " they use water", "rejected": " no one"}]
MORE = ("irr_train", "irr_test", "irr_hum", "random_permute")
LONG[0] |= dict.fromkeys(MORE, " she can see him now and then some more people")
SHAPE = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
pytestmark = pytest.mark.filterwarnings("ignore:.*reads a response beside others otherwise")


def build(kind, auto=AutoModelForCausalLM, **options):
    """A tiny random model in float64; with noise, so that no weight is at its initial value."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, "pad_token_id": 0, **options})
    model = auto.from_config(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


@torch.no_grad()
def assert_right(model, rows=ROWS, atol=1e-5):
    """`score` gives what each sequence gives alone."""
    probes, (_, tokenizer) = as_probes(rows), tiny("llama")
    found = score(model, tokenizer, probes).logp
    for i, row in enumerate(encode(tokenizer, probes)):
        for name, ids in row.responses.items():
            expected = float(brute.log_prob(model, row.prompt, ids))
            assert found[i, probes.types.index(name)] == pytest.approx(expected, abs=atol)


def encoded(rows=ROWS):
    return encode(tiny("llama")[1], as_probes(rows))


NEO = {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4}
NEO |= {"window_size": 16, "max_position_embeddings": 64}
GEMMA = {"head_dim": 8, "sliding_window": 8, "intermediate_size": 48, "num_key_value_heads": 2}
CHUNKED = {"attention_chunk_size": 8, "intermediate_size": 48, "intermediate_size_mlp": 48}
CHUNKED |= {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}
LOCAL = {
    "gpt_neo": NEO,
    "gemma3_text": GEMMA,
    "llama4_text": CHUNKED,
}


@pytest.mark.parametrize("kind", first(*LOCAL))
def test_a_window_is_seen_on_the_longest_packed_row(kind):
    """Each sequence is within the window, or not; the packed row is beyond it."""
    model = build(kind, **LOCAL[kind])
    with warnings.catch_warnings(action="ignore"):
        assert_right(model, LONG)
    with pytest.warns(UserWarning, match="prompts are not shared"):
        assert not ways(model, encoded(LONG)).shared


def test_the_same_text_split_at_two_places_is_two_things_to_compare():
    model, _ = tiny("llama")
    rows = [Encoded([5, 6], {"chosen": [7]}), Encoded([5], {"chosen": [6, 7]})]
    with warnings.catch_warnings(action="error"):
        found = ways(model, rows)
    assert found.shared and found.tokens > 1


def test_a_packed_row_may_be_longer_than_the_context():
    model = build("gpt_neo", **NEO | {"window_size": 64, "max_position_embeddings": 24})
    assert_right(model, LONG)


def test_the_longest_sequence_need_not_be_in_the_longest_row():
    """A given mask replaces the window, which matters beyond it, wherever that is packed."""
    many = dict.fromkeys((*MORE, "chosen", "rejected"), " no one who can see")
    rows = [
        {"prompt": "what", **many},
        {"prompt": "is it " * 6, "chosen": " no", "rejected": " it"},
    ]
    model = build("mistral", sliding_window=10, num_key_value_heads=2, intermediate_size=48)
    assert_right(model, rows)


def test_a_short_sequence_beside_a_long_one():
    """Beyond its first context, LongRoPE takes other factors for all that is in the batch."""
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
    longrope |= {"long_factor": [9.0] * 4, "original_max_position_embeddings": 10}
    options = {"max_position_embeddings": 64, "num_key_value_heads": 2, "intermediate_size": 48}
    model = build("phi3", rope_parameters=longrope, **options)
    assert_right(model, ROWS)


@pytest.mark.parametrize("kind", first("mamba", "rwkv"))
@pytest.mark.slow
def test_a_verdict_is_not_kept_beyond_its_weights(kind):
    """At a head of zeros all forms agree; once it has learned, a recurrent state does not."""
    model = build(kind, tie_word_embeddings=False)
    head, weights = model.get_output_embeddings(), copy.deepcopy(model.state_dict())
    nn.init.zeros_(head.weight)
    assert_right(model)
    assert not ways(model, encoded()).shared
    model.load_state_dict(weights)
    assert_right(model)


class Gated(nn.Module):
    """A memory of the row behind a gate that is shut at first."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.gate = inner, nn.Parameter(torch.zeros(32, dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) + self.gate * x.cumsum(1)


@pytest.mark.slow
def test_a_gate_that_is_shut_proves_nothing():
    model, tokenizer = tiny("llama")
    mlp = model.model.layers[0]
    mlp.mlp = Gated(mlp.mlp)
    assert not ways(model, encoded()).shared
    step = sgd_direction(model, tokenizer, ROWS[:1], lr=1e-5)
    assert step["model.layers.0.mlp.gate"].any()
    predicted, measured = (
        f(model, tokenizer, ROWS, step) for f in (predict_change, measure_change)
    )
    scale = np.nanmax(abs(measured.logp))
    np.testing.assert_allclose(predicted.logp, measured.logp, rtol=0, atol=2e-2 * scale)
    finetune(model, tokenizer, ROWS[:2], epochs=2, lr=1e-2, batch_size=1, probes=ROWS[:1])
    assert_right(model)


AHEAD = {
    "bert": {"intermediate_size": 48},
    "electra": {"intermediate_size": 48, "embedding_size": 32},
    "roberta": {"intermediate_size": 48},
}


@pytest.mark.parametrize("kind", first(*AHEAD))
def test_models_that_look_ahead_are_refused(kind):
    model, tokenizer = build(kind, **AHEAD[kind]), tiny("llama")[1]
    for call in (score, lambda *of: influence(*of, ROWS), sgd_direction):
        with pytest.raises(
            ValueError, match=r"looks ahead: its logits .* depend on those after it"
        ):
            call(model, tokenizer, ROWS)
    assert_right(build(kind, **AHEAD[kind], is_decoder=True))


class InBlocks(nn.Module):
    """Sees the whole block of four tokens that a token is in."""

    def forward(self, x):
        padded = nn.functional.pad(x, (0, 0, 0, -x.shape[1] % 4))
        blocks = padded.unflatten(1, (-1, 4)).mean(2, keepdim=True).expand(-1, -1, 4, -1)
        return x + blocks.flatten(1, 2)[:, : x.shape[1]]


def odd(kind):
    """A Llama whose first layer does something else."""
    model, tokenizer = tiny("llama")
    parts = {
        "blocks": InBlocks(),
        "random": nn.Module(),
        "shifted": nn.Module(),
        "mixed": nn.Module(),
        "counts": nn.Module(),
    }
    part = parts[kind]
    if kind == "random":
        part.forward = lambda x: x + torch.randn_like(x)
    if kind == "counts":
        part.forward = lambda x: x * (1 + 0.1 * x.shape[1])
    if kind == "shifted":  # as if the labels were shifted already
        part.forward = lambda x: nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
    if kind == "mixed":
        part.forward = lambda x: x + x.mean((0, 1)) * (len(x) > 1)
    model.model.norm = nn.Sequential(model.model.norm, part)
    return model, tokenizer


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("blocks", "looks ahead"),
        ("counts", "depend on those after it or on their number"),
        ("random", "is random"),
        ("shifted", "at a token ignore it"),
    ],
)
def test_what_gives_no_probability_of_a_text_is_refused(kind, message):
    with pytest.raises(ValueError, match=f"LlamaForCausalLM .*{message}"):
        score(*odd(kind), ROWS)


@pytest.mark.filterwarnings("ignore:in 1 of 1 rows a response changes")
@pytest.mark.parametrize("n", range(1, 8))
def test_new_tokens_with_the_same_row_of_the_embedding_are_no_reason_to_refuse(n):
    model, tokenizer = tiny("llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>", "<c>", "<d>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[-4:] = table[:-4].mean(0)
    rows = [{"prompt": "the " * n + "<a> of", "chosen": "is it the first"}]
    assert np.isfinite(score(model, tokenizer, rows).logp).all()


def test_a_model_that_mixes_the_examples_of_a_batch_is_read_one_by_one():
    model, tokenizer = odd("mixed")
    with pytest.warns(UserWarning, match="each is read alone"):
        found = score(model, tokenizer, ROWS)
    plain = tiny("llama")[0]
    np.testing.assert_allclose(found.logp, score(plain, tokenizer, ROWS).logp)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "kind", first("PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig")
)
def test_virtual_tokens_come_before_the_text(kind):
    import peft

    torch.manual_seed(0)
    model, tokenizer = tiny("llama")
    adapter = getattr(peft, kind)(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, adapter).double().eval()
    probes = as_probes(ROWS)
    found = score(model, tokenizer, probes).logp
    for i, row in enumerate(encode(tokenizer, probes)):
        for name, ids in row.responses.items():
            logits = model(input_ids=torch.tensor([row.prompt + ids])).logits[0, -len(ids) - 1 : -1]
            logp = logits.detach().log_softmax(-1)[range(len(ids)), ids].sum()
            at = i, probes.types.index(name)
            assert found[at] == pytest.approx(float(logp), abs=1e-5)
    with pytest.raises(ValueError, match="neither predicted nor finetuned"):
        sgd_direction(model, tokenizer, ROWS)


def ruled_out(way):
    """A model that gives the last four labels probability zero, and one that lacks them."""
    model, tokenizer = tiny("llama", vocab_size=104, tie_word_embeddings=False)
    without = copy.deepcopy(model)
    weight = without.lm_head.weight[:-4].clone()
    without.lm_head = nn.Linear(32, 100, bias=False, dtype=torch.float64)
    without.lm_head.weight.data = weight
    if way == "hook":
        gone = torch.arange(104) > 99
        model.lm_head.register_forward_hook(lambda _, x, y: y.masked_fill(gone, -torch.inf))
    else:
        bias = torch.zeros(104, dtype=torch.float64)
        bias[100:] = -torch.inf
        model.lm_head.bias = nn.Parameter(bias, requires_grad=False)
    return model, without, tokenizer


@pytest.mark.parametrize("way", first("bias", "hook"))
@pytest.mark.slow
def test_a_logit_of_minus_infinity_is_probability_zero(way):
    model, without, tokenizer = ruled_out(way)
    one, other = (score(m, tokenizer, ROWS) for m in (model, without))
    for stat in ("logp", "entropy", "prob_sq", "argmax_logp", "squeeze", "residual_norm"):
        np.testing.assert_allclose(getattr(one, stat), getattr(other, stat), err_msg=stat)
    masses = [token_mass(m, tokenizer, ROWS) for m in (model, without)]
    np.testing.assert_allclose(*(m.rest_prob for m in masses))
    products = [influence(m, tokenizer, ROWS[:1], ROWS) for m in (model, without)]
    np.testing.assert_allclose(*products, rtol=1e-9)
    step = sgd_direction(without, tokenizer, ROWS[:1], lr=1e-4)
    step["lm_head.weight"] = nn.functional.pad(step["lm_head.weight"], (0, 0, 0, 4), value=1.0)
    for change in (predict_change, measure_change):
        found = change(model, tokenizer, ROWS, step, vocab=True)
        less = step | {"lm_head.weight": step["lm_head.weight"][:-4]}
        np.testing.assert_allclose(found.logp, change(without, tokenizer, ROWS, less).logp, 1e-8)
        assert not found.vocab[0]["chosen"][:, 100:].any()
    keys = {"up": "chosen"}
    logps = [LogProbs(m, encoded(), keys)([0, 1])["up"] for m in (model, without)]
    torch.testing.assert_close(*logps)


def test_a_label_that_is_ruled_out():
    model, _, tokenizer = ruled_out("hook")
    rows = [Encoded([5, 6], {"chosen": [7, 102], "rejected": [7]})]

    def read(logits, batch, part):
        return logits.log_softmax(-1).gather(-1, batch.target[part].unsqueeze(-1))

    found = dict(token_values(model, rows, read))
    assert found[0, "chosen"][1] == -np.inf and np.isfinite(found[0, "chosen"][0])
    model.lm_head.register_forward_hook(lambda _, x, y: y * torch.nan)
    with pytest.raises(ValueError, match="not finite for rows"):
        score(model, tokenizer, ROWS)


@pytest.mark.parametrize("where", first("head", "tower", "layer"))
@pytest.mark.slow
def test_weights_that_a_text_does_not_reach_have_no_gradient(where):
    model, tokenizer = tiny("llama")
    expected = influence(model, tokenizer, ROWS[:2], ROWS)
    logps = score(model, tokenizer, ROWS[:2]).logp
    odd = nn.Linear(32, 1, dtype=torch.float64)
    owner = {"head": model, "tower": model.model, "layer": model.model.layers[0].mlp}[where]
    owner.unused = nn.Sequential(odd, nn.Embedding(3, 4, dtype=torch.float64))
    np.testing.assert_allclose(influence(model, tokenizer, ROWS[:2], ROWS), expected)
    step = sgd_direction(model, tokenizer, ROWS[:1], lr=1e-3)
    assert step and not any("unused" in name and move.any() for name, move in step.items())
    assert np.isfinite(predict_change(model, tokenizer, ROWS[:1], step).logp[0, 0])
    before = odd.weight.clone()
    finetune(model, tokenizer, ROWS[:2], epochs=1, lr=1e-2, batch_size=2, optimizer="sgd")
    assert torch.equal(odd.weight, before)
    assert not np.allclose(score(model, tokenizer, ROWS[:2]).logp, logps, equal_nan=True)


MOE = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16},
}


@pytest.mark.parametrize("kind", first(*MOE))
def test_experts_are_predicted_one_by_one_and_left_as_they_were(kind):
    model, tokenizer = build(kind, **MOE[kind], num_key_value_heads=2).float(), tiny("llama")[1]
    model.set_experts_implementation("grouped_mm")
    torch.manual_seed(1)
    step = {name: 1e-4 * torch.randn_like(p) for name, p in model.named_parameters()}
    predicted = predict_change(model, tokenizer, ROWS[:2], step).logp
    assert model.config._experts_implementation == "grouped_mm"
    measured = measure_change(model, tokenizer, ROWS[:2], step).logp
    scale = np.nanmax(abs(measured))
    np.testing.assert_allclose(predicted, measured, rtol=0, atol=0.05 * scale)


def test_wrong_kinds_of_objects_are_told_in_one_sentence():
    llama, tokenizer = tiny("llama")
    small = {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8}
    wrong = [
        (nn.DataParallel(llama), "DataParallel wraps the model: pass its .module"),
        (nn.Linear(3, 3), "must be a causal language model of transformers, got Linear"),
        ("gpt2", "must be a causal language model of transformers, got str"),
        (llama.model, "LlamaModel gives no logits of a text .*logits"),
        (build("llama", AutoModel, intermediate_size=48), "LlamaModel gives no logits"),
        (build("gpt2", Classifier), "GPT2ForSequenceClassification gives no logits of a text"),
    ]
    from transformers import T5Config, T5ForConditionalGeneration

    wrong += [(T5ForConditionalGeneration(T5Config(vocab_size=100, **small)), "has an encoder")]
    for model, message in wrong:
        for call in (score, sgd_direction, lambda *of: influence(*of, ROWS), token_mass):
            with pytest.raises(ValueError, match=message) as error:
                call(model, tokenizer, ROWS)
            assert "\n" not in str(error.value)


def test_a_model_whose_body_is_itself_is_read_by_its_logits():
    model, tokenizer = tiny("llama")
    expected = score(model, tokenizer, ROWS).logp
    model.base_model_prefix = "nothing"
    assert model.base_model is model and ways(model, encoded()).head is None
    np.testing.assert_allclose(score(model, tokenizer, ROWS).logp, expected)


def test_a_response_without_others_needs_no_mask_of_pairs(monkeypatch):
    model, _ = tiny("llama")
    rows = [Encoded([5] * 3, {"chosen": [7] * 40}), Encoded([5], {"a": [7, 8], "b": [9]})]
    seen = []
    forward = model.model.forward

    def watched(input_ids, attention_mask, **options):
        seen.append((*input_ids.shape, attention_mask.ndim))
        return forward(input_ids, attention_mask, **options)

    monkeypatch.setattr(model.model, "forward", watched)
    dict(token_values(model, rows, lambda logits, *_: logits[:, :1]))
    assert {ndim for _, length, ndim in seen if length > 30} == {2}
    assert 4 in {ndim for *_, ndim in seen}


def test_a_response_with_a_prompt_of_its_own():
    model, _ = tiny("llama")
    row = Encoded([5, 6, 7], {"a": [8, 9], "b": [10], "c": [11, 12]}, own={"b": [5, 6]})

    def read(logits, batch, part):
        return logits.log_softmax(-1).gather(-1, batch.target[part].unsqueeze(-1))

    found = dict(token_values(model, [row], read))
    for name, ids in row.responses.items():
        expected = brute.log_prob(model, row.own.get(name, row.prompt), ids).detach()
        assert found[0, name].sum() == pytest.approx(float(expected))
    both = LogProbs(model, [row], {"x": "a", "y": "b"}).all([0], 1)
    assert float(both["y"][0]) == pytest.approx(found[0, "b"].sum())


def test_in_half_precision_a_token_may_go_to_other_experts():
    """What follows changes the rounding of the experts' grouped products, not what comes before."""
    model = build("mixtral", **MOE["mixtral"], num_key_value_heads=2).bfloat16()
    exact, (_, tokenizer) = copy.deepcopy(model).float(), tiny("llama")
    found, expected = (score(m, tokenizer, ROWS) for m in (model, exact))
    per_token = (found.logp - expected.logp) / found.n_tokens
    assert np.nanmax(abs(per_token)) < 0.3
    with pytest.raises(ValueError, match="looks ahead"):
        score(build("bert", **AHEAD["bert"]).bfloat16(), tokenizer, ROWS)


def test_tries_hold_nothing_for_a_backward_pass():
    model, tokenizer = tiny("llama")
    found = ways(model, encode(tokenizer, as_probes(ROWS)), as_is=True)
    assert found.done and not any(states.requires_grad for _, states in found.done.values())
    with torch.inference_mode():
        made, _ = tiny("llama")  # whose weights allow no such pass
    np.testing.assert_array_equal(*(score(m, tokenizer, ROWS).logp for m in (model, made)))
