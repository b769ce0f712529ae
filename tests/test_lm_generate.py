import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows

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


def test_samples_follow_their_seed_and_leave_the_rest_alone():
    model, tokenizer = tiny("llama")
    model.train()
    state = torch.random.get_rng_state()
    one, again, other = (
        generate(model, tokenizer, PROMPTS, 8, sample=True, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert model.training and torch.equal(state, torch.random.get_rng_state())


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


def test_answers_that_end_on_their_own_are_told_from_those_cut_off(monkeypatch):
    model, tokenizer = tiny("llama")
    end, a, b = (tokenizer.convert_tokens_to_ids(token) for token in ("<eos>", "the", "of"))
    new = [[a, b, a, b], [a, b, a, end], [a, end, end, end], [end] * 4]
    monkeypatch.setattr(model, "generate", lambda ids, **_: torch.cat([ids, torch.tensor(new)], 1))
    texts, ended = generate(model, tokenizer, PROMPTS[:4], 4, return_ended=True)
    assert texts == ["the of the of", "the of the", "the", ""]
    assert ended == [False, True, True, True]


def test_a_model_may_end_with_other_tokens_than_the_tokenizers_eos():
    model, tokenizer = tiny("llama")
    prompts = PROMPTS[:4]
    texts = generate(model, tokenizer, prompts, 6)
    first = tokenizer(texts[0], add_special_tokens=False)["input_ids"][1]
    model.generation_config.eos_token_id = [first]
    shorter, ended = generate(model, tokenizer, prompts, 6, return_ended=True)
    assert ended[0] and shorter[0] == texts[0].split()[0]
    assert all(long.startswith(short) for long, short in zip(texts, shorter, strict=True))


def test_repeated_counts_ngrams_seen_before():
    assert repeated(["a b c d"], 2) == 0
    assert repeated(["a b a b a b"], 2) == pytest.approx(3 / 5)
    assert repeated(["a b", "a b"], 2) == 0  # in one's own text only
    assert repeated(["a"], 3) == 0
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        repeated(["a b"], 0)
