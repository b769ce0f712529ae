import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows, tiny_tokenizer
from transformers import AutoModelForCausalLM, MambaConfig, RecurrentGemmaConfig, RwkvConfig

from lmdyn.lm.generate import generate, repeated

PROMPTS = [row["prompt"] for row in tiny_rows()]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_token_by_token_whatever_the_batch(family):
    model, tokenizer = tiny(family)
    answers = generate(model, tokenizer, PROMPTS, 6)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        new = []
        while len(new) < 6 and tokenizer.eos_token_id not in new:
            with torch.no_grad():
                new.append(model(ids).logits[0, -1].argmax().item())
            ids = torch.cat([ids, torch.tensor([new[-1:]])], 1)
        assert answer == tokenizer.decode(new, skip_special_tokens=True)
    assert generate(model, tokenizer, PROMPTS, 6, batch_size=1) == answers


SMALL = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 3, "bos_token_id": None}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "lru_width": 16}
RECURRENT = {
    "rwkv": RwkvConfig(**SMALL),
    "recurrent_gemma": RecurrentGemmaConfig(**SMALL, **HEADS, intermediate_size=32),
    "mamba": MambaConfig(**SMALL, state_size=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", RECURRENT)
def test_greedy_does_not_depend_on_the_batch_where_padding_is_read(family):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(RECURRENT[family]).eval()
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    prompts = [prompt for prompt in PROMPTS if " " in prompt]
    prompts.append(prompts[0].replace("they", "we"))
    alone = [generate(model, tiny_tokenizer(), [prompt], 6)[0] for prompt in prompts]
    assert generate(model, tiny_tokenizer(), prompts, 6) == alone and len(set(alone)) > 2


def test_the_model_s_own_settings_of_generation_count_for_nothing():
    model, tokenizer = tiny("llama")

    def said():
        options = ({}, {"sample": True}, {"sample": True, "temperature": 0.0})
        return [generate(model, tokenizer, PROMPTS, 6, **o) for o in options]

    plain = said()
    own = model.generation_config
    own.update(top_p=0.01, repetition_penalty=5.0, min_length=40, forced_eos_token_id=5)
    assert said() == plain and plain[2] == plain[0] != plain[1]
    assert model.generation_config is own


def test_samples_follow_their_seed_and_leave_the_rest_alone():
    model, tokenizer = tiny("llama")
    model.train()
    state = torch.random.get_rng_state()
    one, again, other = (
        generate(model, tokenizer, PROMPTS, 8, sample=True, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert model.training and torch.equal(state, torch.random.get_rng_state())


@pytest.mark.slow
def test_samples_have_the_model_s_frequencies():
    model, tokenizer = tiny("gpt2")
    prompt = PROMPTS[0]
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        probs = model(ids).logits[0, -1].softmax(-1)
    best = tokenizer.decode(probs.argmax())
    n = 2000
    drawn = generate(model, tokenizer, [prompt] * n, 1, sample=True, batch_size=n)
    spread = (probs.max() * (1 - probs.max()) / n).sqrt()
    assert abs(drawn.count(best) / n - probs.max()) < 4 * spread


@pytest.mark.parametrize(("prompts", "error"), [("hi", "list"), (["a", ""], r"prompts\[1\]")])
def test_bad_prompts_are_named(prompts, error):
    with pytest.raises(ValueError, match=error):
        generate(*tiny("llama"), prompts)


def test_a_model_may_end_with_other_tokens_than_the_tokenizers_eos():
    model, tokenizer = tiny("llama")
    whole = generate(model, tokenizer, PROMPTS, 6)
    end = whole[0].split()[2]
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(end)
    texts, ids, ended = generate(model, tokenizer, PROMPTS, 6, return_ids=True)
    said = [f"{text} {end}" if ends else text for text, ends in zip(texts, ended, strict=True)]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [*map(str.strip, said)]
    given = tokenizer(PROMPTS)["input_ids"]
    assert generate(model, tokenizer, given, 6) == texts
    assert texts == [text.partition(end)[0].strip() for text in whole]
    assert ended == [end in text for text in whole] and {*ended} == {True, False}


def test_repeated_counts_ngrams_seen_before():
    assert repeated(["a b c d"], 2) == 0
    assert repeated(["a b a b a b"], 2) == pytest.approx(3 / 5)
    assert repeated(["a b", "a b"], 2) == 0  # in one's own text only
    assert repeated(["a"], 3) == 0
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        repeated(["a b"], 0)
