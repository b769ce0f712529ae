"""Probes out of every format that TRL's trainers take, against these trainers' own tokens."""

import json
import warnings
from itertools import product

import numpy as np
import pytest
from datasets import Dataset
from tiny import WORDS, tiny
from traits import TEMPLATES, tokenizer_with
from transformers import LlamaConfig, LlamaForCausalLM
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)

from lmdyn.lm.data import Format, ProbeSet, as_probes
from lmdyn.lm.generate import generate
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode, prompts_of

PAIRS = [
    {"prompt": "where is it", "chosen": " it is there", "rejected": " no"},
    {"prompt": "who is he", "chosen": " he is one of them", "rejected": " he was"},
    {"prompt": "what did she find", "chosen": " she did find water", "rejected": " what"},
]


def say(role, text, **more):
    return {"role": role, "content": text.strip(), **more}


# --- the oracle ------------------------------------------------------------------------------

ASKED = ["what color is the sky? ", "where is the sun?\n", "who let the dogs out?"]
GOOD = ["it is blue.", " in the sky", "nobody knows."]
BAD = ["it is the cat.\n", " in Rome!", "a dog"]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
THREE = range(3)


def ask(i):
    return [say("user", ASKED[i])]


def answer(texts, i):
    return [say("assistant", texts[i])]


def used_a_tool(i):
    return [say("assistant", "", tool_calls=[CALL]), say("tool", "21"), *answer(GOOD, i)]


def pair(i):
    return {"prompt": ask(i), "chosen": answer(GOOD, i), "rejected": answer(BAD, i)}


TEXTS = list(zip(ASKED, GOOD, BAD, strict=True))
KWARGS = {"enable_thinking": False}
FORMATS = {
    "preference": (DPOTrainer, [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in TEXTS]),
    "implicit": (DPOTrainer, [{"chosen": q + a, "rejected": q + b} for q, a, b in TEXTS]),
    "completion": (SFTTrainer, [{"prompt": q, "completion": a} for q, a, _ in TEXTS]),
    "text": (SFTTrainer, [{"text": q + a} for q, a, _ in TEXTS]),
    "unpaired": (
        KTOTrainer,
        [{"prompt": q, "completion": a, "label": q != ASKED[1]} for q, a, _ in TEXTS],
    ),
    "preference turns": (DPOTrainer, [pair(i) for i in THREE]),
    "implicit turns": (
        DPOTrainer,
        [{"chosen": ask(i) + answer(GOOD, i), "rejected": ask(i) + answer(BAD, i)} for i in THREE],
    ),
    "completion turns": (
        SFTTrainer,
        [{"prompt": ask(i), "completion": answer(GOOD, i)} for i in THREE],
    ),
    "tool turns": (SFTTrainer, [{"prompt": ask(i), "completion": used_a_tool(i)} for i in THREE]),
    "messages": (
        SFTTrainer,
        [{"messages": [*ask(i), *answer(BAD, i), *ask(0), *answer(GOOD, i)]} for i in THREE],
    ),
    "from and value": (
        SFTTrainer,
        [
            {"conversations": [{"from": t["role"], "value": t["content"]} for t in turns]}
            for turns in [ask(i) + answer(GOOD, i) for i in THREE]
        ],
    ),
    "unpaired turns": (
        KTOTrainer,
        [{"prompt": ask(i), "completion": answer(GOOD, i), "label": i == 1} for i in THREE],
    ),
    "tools": (
        DPOTrainer,
        [pair(i) | {"tools": json.dumps([TOOL]), "chat_template_kwargs": KWARGS} for i in THREE],
    ),
}
CONFIGS = {DPOTrainer: DPOConfig, SFTTrainer: SFTConfig, KTOTrainer: KTOConfig}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that a trainer can load a reference of."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, num_hidden_layers=1, **shape))
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def trained(trainer, dataset, tokenizer, model, folder):
    """(prompt, response …) of each row, as the trainer's own data set has them."""
    options = {"report_to": [], "use_cpu": True, "per_device_train_batch_size": 2}
    config = CONFIGS[trainer](output_dir=str(folder), max_length=None, **options)
    made = trainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    for row in made.train_dataset:
        if trainer is SFTTrainer:  # what it learns of a text, or of a completion
            first = max(1, next(i for i, label in enumerate(row["labels"]) if label != -100))
            yield row["input_ids"][:first], row["input_ids"][first:]
        else:
            names = [name for name in row if name.endswith("_ids") and "KL" not in name]
            yield tuple(row[name] for name in sorted(names, key=lambda n: n != "prompt_ids"))


@pytest.mark.parametrize(
    ("trait", "form"),
    [
        pytest.param(*both, marks=[] if both[0] == "bos" else [pytest.mark.slow])
        for both in product(TEMPLATES, FORMATS)
    ],
)
@pytest.mark.filterwarnings("ignore")  # that tokens merge, which TRL says too
def test_tokens_are_those_of_the_trainer(trait, form, small, tmp_path):
    (trainer, rows), tokenizer = FORMATS[form], tokenizer_with(trait)
    dataset = Dataset.from_list(rows)
    types = ["chosen", "rejected"] if trainer is not SFTTrainer else ["chosen"]
    probes = ProbeSet.from_dataset(dataset, tokenizer, types=types)
    found = encode(tokenizer, probes)
    expected = list(trained(trainer, dataset, tokenizer, small, tmp_path))
    for row, ours, theirs in zip(rows, found, expected, strict=True):
        if form in ("messages", "from and value"):  # of which TRL learns the prompt too
            theirs = theirs[0] + theirs[1], ours.prompt
            assert ours.prompt + ours.responses["chosen"] == theirs[0]
            continue
        assert (ours.prompt, *ours.responses.values()) == theirs and not ours.own
        name = "chosen" if row.get("label", True) else "rejected"
        assert name in ours.responses and (len(ours.responses) == 2) == (trainer is DPOTrainer)
    for plain in encode(tokenizer, as_probes(rows, types)), encode(tokenizer, as_probes(probes)):
        assert plain == found


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_prompts_alone_are_those_of_grpo(turns, small, tmp_path):
    tokenizer = tokenizer_with("think")
    prompts = [ask(i) for i in THREE] if turns else ASKED
    config = GRPOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, num_generations=2)
    config.per_device_train_batch_size = 2
    made = GRPOTrainer(
        model=small,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
    )
    expected = made._tokenize_prompts(prompts)[0]
    assert prompts_of(tokenizer, [{"prompt": p} for p in prompts], Format()) == expected


def test_a_score_depends_on_no_other_type_and_truncation_is_the_trainers():
    tokenizer = tokenizer_with("plain")
    row = {"prompt": "the cat sat ", "chosen": "on the mat.", "rejected": "here " * 40}
    row |= {"irr_train": "\u0301 merges", "random_nonhum": "x"}
    for form in (Format(), Format(max_length=30), Format("paper", max_length=40, max_prompt=4)):
        with warnings.catch_warnings(action="ignore"):
            (whole,) = encode(tokenizer, as_probes([row], format=form))
            for name in list(row)[1:]:
                (alone,) = encode(tokenizer, as_probes([row], [name], form))
                prompt = whole.own.get(name, whole.prompt)
                assert (alone.prompt, alone.responses[name]) == (prompt, whole.responses[name])
    pair = {"prompt": "the cat sat", "chosen": " on the mat.", "rejected": " here" * 40}
    with pytest.warns(UserWarning, match=r"1 of 2 responses were cut: .* max_length=40 tokens"):
        (cut,) = encode(tokenizer, as_probes([pair], format=Format(max_length=40)))
    (whole,) = encode(tokenizer, as_probes([pair]))
    assert cut.prompt == whole.prompt and cut.responses["chosen"] == whole.responses["chosen"]
    assert cut.prompt + cut.responses["rejected"] == (cut.prompt + whole.responses["rejected"])[:40]


def test_a_prompt_that_merges_with_a_response_is_told():
    tokenizer = tokenizer_with("plain")
    with pytest.warns(UserWarning, match="in 1 of 2 rows a response changes the last tokens"):
        rows = [{"prompt": "where is the sk", "chosen": "y"}, {"prompt": "the", "chosen": " sky"}]
        first, _ = encode(tokenizer, as_probes(rows))
    assert first.merged
    assert tokenizer.decode(first.prompt + first.responses["chosen"]) == "where is the sky<|end|>"


def test_what_was_generated_has_the_whole_prompt_and_stays_as_it_is():
    tokenizer, said = tokenizer_with("plain"), [50, 60, 70]  # cut: none of these ends it
    row = {"prompt": "where is the sk", "chosen": "y", "rejected": said, "irr_train": " no"}
    asked = tokenizer(row["prompt"])["input_ids"]
    with pytest.warns(UserWarning, match="in 1 of 1 rows a response changes the last tokens"):
        (found,) = encode(tokenizer, as_probes([row]))
    assert found.responses["rejected"] == said and found.prompt == asked
    assert asked[: len(found.own["chosen"])] == found.own["chosen"] and {*found.own} == {"chosen"}


def test_a_text_beside_conversations_is_not_read_twice():
    turns = ask(0) + answer(GOOD, 0), ask(0) + answer(BAD, 0)
    pairs = {"chosen": turns[0], "rejected": turns[1]}  # as UltraFeedback, and UltraChat, have it
    for row in (pairs | {"prompt": ASKED[0], "messages": turns[0]}, pairs):
        assert as_probes([row])[0] == pair(0)
    row = {"prompt": ASKED[0], "prompt_id": "7", "messages": turns[0]}
    assert as_probes([row])[0] == {"prompt": ask(0), "chosen": answer(GOOD, 0)}


@pytest.mark.parametrize(
    ("row", "trait", "message"),
    [
        ({"messages": ask(0)}, "plain", "the last turn of 'chosen' is the user's"),
        (pair(0) | {"chosen": ask(0)}, "plain", "the last turn of 'chosen' is the user's"),
        ({"messages": [say("system", "be kind"), *ask(0), *answer(GOOD, 0)]}, "no system", "no sy"),
        ({"prompt": ASKED[0], "completion": answer(GOOD, 0)}, "plain", "the prompt is a text, 'ch"),
        ({"prompt": "a", "chosen": "b"}, "no eos", "no EOS token"),
        ({"messages": ask(0) + answer(GOOD, 0)}, "no template", "needs a tokenizer with a chat_te"),
        (pair(0) | {"tools": "{"}, "tools", "Expecting property name"),
        ({"prompt": "a", "chosen": [1, 2], "rejected": []}, "plain", "must be a text, or turns"),
    ],
)
def test_what_is_no_training_data_is_refused_by_number(row, trait, message):
    tokenizer = tokenizer_with(trait if trait in TEMPLATES else "plain")
    tokenizer.eos_token = None if trait == "no eos" else tokenizer.eos_token
    tokenizer.chat_template = None if trait == "no template" else tokenizer.chat_template
    good = {"prompt": ASKED[0], "completion": GOOD[0]}
    expected = rf"dataset\[1\]: .*{message}" if trait != "no eos" else message
    with pytest.raises(ValueError, match=expected):
        ProbeSet.from_dataset([good, row], tokenizer)


# --- what is added -----------------------------------------------------------------------------


def test_pairs_of_text_pass_as_they_are_and_get_cheap_types():
    probes = ProbeSet.from_dataset(PAIRS)
    assert probes.types == ("chosen", "rejected", "irr_train", "random_permute", "random_nonhum")
    words = {word for row in PAIRS for word in row["chosen"].split()}
    for row, pair in zip(probes, PAIRS, strict=True):
        assert {key: row[key] for key in pair} == pair
        assert row["irr_train"] in {other["chosen"] for other in PAIRS if other is not pair}
        assert sorted(row["random_permute"].split()) == sorted(pair["chosen"].split())
        assert len(row["random_nonhum"].split()) == len(pair["chosen"].split())
        assert set(row["random_nonhum"].split()) <= words
    assert ProbeSet.from_dataset(PAIRS).rows == probes.rows
    assert ProbeSet.from_dataset(PAIRS, seed=1).rows != probes.rows
    types = ("chosen", "rejected")
    assert ProbeSet.from_dataset(PAIRS, types=types).types == types


def test_words_are_those_of_a_turn_and_never_of_its_template():
    probes = ProbeSet.from_dataset([pair(i) for i in THREE], tokenizer_with("plain"))
    words = {word for text in GOOD for word in text.split()}
    for row, text in zip(probes, GOOD, strict=True):
        ((shuffled,), (random,)) = row["random_permute"], row["random_nonhum"]
        assert shuffled["role"] == random["role"] == "assistant"
        assert sorted(shuffled["content"].split()) == sorted(text.split())
        assert set(random["content"].split()) <= words


def test_a_text_without_spaces_is_taken_apart_into_tokens():
    texts = ["天空是蓝色的因为阳光被散射了", "太阳在天上照耀着大地和海洋哦"]
    rows = [{"prompt": "问", "chosen": text} for text in texts]
    for tokenizer in (tokenizer_with("plain"), None):
        probes = ProbeSet.from_dataset(rows, tokenizer)
        for row, text in zip(probes, texts, strict=True):
            assert row["random_permute"] != text
            assert sorted(row["random_permute"]) == sorted(text)
            assert row["random_nonhum"] not in texts and set(row["random_nonhum"]) <= {
                *"".join(texts)
            }


def test_rows_are_spread_over_the_dataset_or_the_first_of_a_stream():
    rows = [{"prompt": f"p{i}", "completion": f" answer {i}"} for i in range(100)]
    found = ProbeSet.from_dataset(rows, limit=5)
    assert [row["prompt"] for row in found] == ["p0", "p24", "p49", "p74", "p99"]
    assert len(ProbeSet.from_dataset(iter(rows), limit=7)) == 7
    stream = Dataset.from_list(rows).to_iterable_dataset()
    assert [row["prompt"] for row in ProbeSet.from_dataset(stream, limit=2)] == ["p0", "p1"]
    assert len(ProbeSet.from_dataset(rows[:3], limit=7)) == 3
    splits = ProbeSet.from_dataset({"train": rows[:2], "test": Dataset.from_list(rows[2:3])})
    assert [row["split"] for row in splits] == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a"}], r"dataset\[0\]: it has a prompt and no response"),
        ([{"prompt": "a", "chosen": " "}], r"dataset\[0\]: it has a prompt and no response"),
        (["text"], r"dataset\[0\]: it must be a dict"),
        ([], "no row"),
    ],
)
def test_what_cannot_be_read_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_dataset(rows)


# --- the model's own answers -----------------------------------------------------------------

# Greedy, the tiny models end some of these themselves.
ENDING = {"llama": ["a", "may", "the"], "gpt_neox": ["from", "have", "the"], "qwen2": ["to", "the"]}
HI = [{"prompt": word, "chosen": " no"} for word in WORDS[:16]]


def own(probes):
    return {i: row["chosen_initial"] for i, row in enumerate(probes) if "chosen_initial" in row}


@pytest.mark.parametrize("family", ENDING)
def test_a_greedy_answer_of_its_own_is_the_likeliest_token_all_along(family):
    model, tokenizer = tiny(family)
    rows = [{"prompt": word, "chosen": " no"} for word in ENDING[family]]
    options = {"model": model.train(), "max_new_tokens": 40, "temperature": 0}
    with pytest.warns(UserWarning, match="1 did not end within 40 tokens"):
        probes = ProbeSet.from_dataset(rows, tokenizer, **options)
    assert model.training
    assert probes.types[:2] == ("chosen", "chosen_initial")
    assert list(own(probes)) == list(range(len(rows) - 1))
    assert all(ids[-1] == tokenizer.eos_token_id for ids in own(probes).values())
    found = score(model, tokenizer, probes.only("chosen_initial"))
    assert np.isnan(found.logp[-1, 0])
    # EOS included: it is the likeliest token there too, so the model has ended the answer itself.
    np.testing.assert_allclose(found.logp[:-1], found.argmax_logp[:-1], rtol=1e-12)


def test_its_samples_are_tokens_that_end_with_what_ended_them_where_the_template_hands_over():
    (model, _), tokenizer = tiny("llama", vocab_size=400), tokenizer_with("turn end")
    model.generation_config.eos_token_id = [*range(30, 60), 2]  # <|done|> is one of them
    rows = [{"messages": [say("user", row["prompt"]), say("assistant", "no")]} for row in HI[:8]]
    asked = prompts_of(tokenizer, ProbeSet.from_dataset(rows), Format())
    options = {"sample": True, "seed": 5, "return_ids": True}
    _, ids, ended = generate(model, tokenizer, asked, 8, **options)
    assert {*ended} == {True, False} and len({said[-1] for said in ids}) > 2
    for said, ends in zip(ids, ended, strict=True):
        assert len(said) == 8 or ends
        assert [token in model.generation_config.eos_token_id for token in said] == [
            *[False] * (len(said) - 1),
            ends,
        ]
    settings = {"tokenizer": tokenizer, "model": model, "max_new_tokens": 8}
    with pytest.warns(UserWarning, match=f"{ended.count(False)} did not end within 8 tokens"):
        probes = ProbeSet.from_dataset(rows, seed=5, **settings)
    assert own(probes) == {i: said for i, said in enumerate(ids) if ended[i] and len(said) > 1}
    for row, prompt in zip(encode(tokenizer, probes), asked, strict=True):
        if said := row.responses.get("chosen_initial"):
            whole = row.own.get("chosen_initial", row.prompt) + said
            assert whole == prompt + ids[asked.index(prompt)]
    with pytest.warns(UserWarning, match="rows go without"):
        assert own(ProbeSet.from_dataset(rows, seed=6, **settings)) != own(probes)


def test_answers_that_were_cut_off_or_are_empty_are_left_out_and_counted(monkeypatch):
    found = (
        ["yes", "and so on and", "", "no"],
        [[3, 1], [4], [1], [5, 1]],
        [True, False, True, True],
    )
    monkeypatch.setattr("lmdyn.lm.generate.generate", lambda *a, **k: found)
    model, tokenizer = tiny("llama")
    why = r"2 of 4 rows go without .*1 did not end within 64 tokens, 1 said nothing\): change max"
    with pytest.warns(UserWarning, match=why):
        probes = ProbeSet.from_dataset(HI[:4], tokenizer, model=model)
    assert own(probes) == {0: [3, 1], 3: [5, 1]}


def test_prompts_alone_are_answered_and_one_that_is_not_stays_without(monkeypatch):
    found = ["yes", "and so"], [[3, 1], [4]], [True, False]
    monkeypatch.setattr("lmdyn.lm.generate.generate", lambda *a, **k: found)
    model, tokenizer = tiny("llama")
    with pytest.warns(UserWarning, match="1 of 2 rows go without"):
        probes = ProbeSet.from_dataset([{"prompt": "the"}, {"prompt": "a"}], tokenizer, model=model)
    assert probes.types == ("chosen_initial",) and own(probes) == {0: [3, 1]}
    scores = score(model, tokenizer, probes)
    assert scores.n_tokens[0] == 2 and np.isnan(scores.logp[1]).all()


def test_an_answer_that_is_there_stays_and_none_is_made_that_nobody_wants(monkeypatch):
    monkeypatch.setattr("lmdyn.lm.generate.generate", None)  # nobody is asked
    model, tokenizer = tiny("llama")
    rows = [{**row, "chosen_initial": " yes"} for row in PAIRS]
    assert set(own(ProbeSet.from_dataset(rows, tokenizer, model=model)).values()) == {" yes"}
    types = ("chosen", "rejected")
    assert ProbeSet.from_dataset(PAIRS, tokenizer, types=types, model=model).types == types


@pytest.mark.parametrize(("longest", "n"), [(None, 108), (100, 80)])
def test_a_prompt_that_leaves_no_room_for_an_answer_goes_without(monkeypatch, longest, n):
    asked = []
    monkeypatch.setattr(
        "lmdyn.lm.generate.generate",
        lambda model, tokenizer, prompts, *a, **k: (
            asked.append(prompts) or (["yes"], [[3, 1]], [True])
        ),
    )
    model, tokenizer = tiny("gpt2")  # reads 128 tokens
    rows = [{"prompt": "the " * length, "chosen": "no"} for length in (n, n + 1)]
    settings = {"max_new_tokens": 20, "format": Format(max_length=longest)}
    with pytest.warns(UserWarning, match="1 had no prompt that leaves room for 20"):
        probes = ProbeSet.from_dataset(rows, tokenizer, model=model, **settings)
    assert [len(ids) for ids in asked[0]] == [n] and own(probes) == {0: [3, 1]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 1}, r"3 of 3 rows .*3 did not end within 1 tokens.*leave model"),
        ({"max_new_tokens": 128}, r"3 of 3 rows .*3 had no prompt that leaves room for 128"),
        ({"tokenizer": None}, "tokenizer must be one of transformers"),
        ({"temperature": -1}, "temperature must be a finite number of at least 0, got -1"),
    ],
)
def test_a_model_that_cannot_answer_is_named(wrong, message):
    model, tokenizer = tiny("gpt2")
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_dataset(PAIRS, **{"tokenizer": tokenizer, "model": model} | wrong)
