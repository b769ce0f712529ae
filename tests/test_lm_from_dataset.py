"""Every format that TRL's trainers take, as probes."""

import numpy as np
import pytest
from tiny import WORDS, tiny, tiny_tokenizer

from lmdyn.lm.data import Format, ProbeSet
from lmdyn.lm.generate import generate
from lmdyn.lm.score import score

PAIRS = [
    {"prompt": "where is it", "chosen": " it is there", "rejected": " no"},
    {"prompt": "who is he", "chosen": " he is one of them", "rejected": " he was"},
    {"prompt": "what did she find", "chosen": " she did find water", "rejected": " what"},
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def say(role, text):
    return {"role": role, "content": text.strip()}


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


def test_an_implicit_prompt_is_what_both_begin_with():
    rows = [
        {"chosen": "where is it now it is there", "rejected": "where is it now it was not"},
        {"chosen": "who is he he can see", "rejected": "who is he he could"},
    ]
    probes = ProbeSet.from_dataset(rows, types=["chosen", "rejected"])
    assert [row["prompt"] for row in probes] == ["where is it now it ", "who is he he "]
    assert [row["rejected"] for row in probes] == ["was not", "could"]


@pytest.mark.parametrize("kind", ["pairs", "completion", "messages", "implicit"])
def test_conversations_are_written_by_the_template(tokenizer, kind):
    def row(pair):
        ask = [say("user", pair["prompt"])]
        good, bad = ([say("assistant", pair[name])] for name in ("chosen", "rejected"))
        return {
            "pairs": {"prompt": ask, "chosen": good, "rejected": bad},
            "completion": {"prompt": ask, "completion": good},
            "messages": {"messages": ask + good},
            "implicit": {"chosen": ask + good, "rejected": ask + bad},
        }[kind]

    probes = ProbeSet.from_dataset(map(row, PAIRS), tokenizer)
    for found, pair in zip(probes, PAIRS, strict=True):
        assert found["prompt"] == f"<user> {pair['prompt']} <eos>\n<assistant> "
        assert found["chosen"].strip() == pair["chosen"].strip()
        if kind in ("pairs", "implicit"):
            assert found["rejected"].strip() == pair["rejected"].strip()


def test_rows_are_spread_over_the_dataset_or_the_first_of_a_stream():
    rows = [{"prompt": f"p{i}", "completion": f"answer {i}"} for i in range(100)]
    found = ProbeSet.from_dataset(rows, limit=5)
    assert [row["prompt"] for row in found] == ["p0", "p24", "p49", "p74", "p99"]
    assert len(ProbeSet.from_dataset(iter(rows), limit=7)) == 7
    assert len(ProbeSet.from_dataset(rows[:3], limit=7)) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "all"}], r"dataset\[0\] is in no format that can be probed: it has text"),
        ([{"prompt": "a"}], "and needs prompt with chosen or completion"),
        ([{"prompt": "a", "chosen": " "}], "the prompt or the chosen response is empty"),
        ([{"prompt": "a", "chosen": [say("assistant", "b")]}], "but its prompt is text"),
        ([{"chosen": "a b", "rejected": "c d"}], r"dataset\[0\] has no prompt"),
        (["text"], r"dataset\[0\] must be a dict, got str"),
        ([], "no row to probe"),
    ],
)
def test_what_cannot_be_read_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_dataset(rows)


def test_a_template_is_needed_and_must_go_on_where_it_stopped(tokenizer):
    rows = [{"messages": [say("user", "a"), say("assistant", "b")]}]
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {% endif", "<think> {% endif")
    with pytest.raises(ValueError, match="writes the prompt otherwise once 'chosen' follows"):
        ProbeSet.from_dataset(rows, tokenizer)
    tokenizer.chat_template = None
    for given in (tokenizer, None):
        with pytest.raises(ValueError, match="pass a tokenizer with a chat_template"):
            ProbeSet.from_dataset(rows, given)


# --- the model's own answers -----------------------------------------------------------------

# Greedy, the tiny models end some of these themselves.
ENDING = {"llama": ["a", "may", "the"], "gpt_neox": ["from", "have", "the"], "qwen2": ["to", "the"]}
ASKED = [{"prompt": word, "chosen": "no"} for word in WORDS[:16]]


def own(probes):
    return {i: row["chosen_initial"] for i, row in enumerate(probes) if "chosen_initial" in row}


@pytest.mark.parametrize("family", ENDING)
def test_a_greedy_answer_of_its_own_is_the_likeliest_token_all_along(family):
    model, tokenizer = tiny(family)
    rows = [{"prompt": word, "chosen": "no"} for word in ENDING[family]]
    options = {"model": model.train(), "max_new_tokens": 40, "temperature": 0}
    with pytest.warns(UserWarning, match="1 did not end within 40 tokens"):
        probes = ProbeSet.from_dataset(rows, tokenizer, **options)
    assert model.training
    assert probes.types[:2] == ("chosen", "chosen_initial")
    assert list(own(probes)) == list(range(len(rows) - 1))
    found = score(model, tokenizer, probes.only("chosen_initial"))
    assert np.isnan(found.logp[-1, 0])
    # EOS included: it is the likeliest token there too, so the model has ended the answer itself.
    np.testing.assert_allclose(found.logp[:-1], found.argmax_logp[:-1], rtol=1e-12)


def test_its_samples_are_those_of_generate_where_the_template_hands_over(tokenizer):
    model, _ = tiny("llama")
    rows = [{"messages": [say("user", row["prompt"]), say("assistant", "no")]} for row in ASKED]
    prompts = [f"<user> {row['prompt']} <eos>\n<assistant> " for row in ASKED]
    texts, ended = generate(model, tokenizer, prompts, 40, sample=True, seed=5, return_ended=True)
    settings = {"tokenizer": tokenizer, "model": model, "max_new_tokens": 40}
    with pytest.warns(UserWarning, match=f"{ended.count(False)} did not end within 40 tokens"):
        probes = ProbeSet.from_dataset(rows, seed=5, **settings)
    assert own(probes) == {i: text for i, text in enumerate(texts) if ended[i]}
    assert [row["prompt"] for row in probes] == prompts
    with pytest.warns(UserWarning, match="rows go without"):
        assert own(ProbeSet.from_dataset(rows, seed=6, **settings)) != own(probes)


def test_answers_that_were_cut_off_or_are_empty_are_left_out_and_counted(monkeypatch):
    said = ["yes", "and so on and", "", "no"], [True, False, True, True]
    monkeypatch.setattr("lmdyn.lm.generate.generate", lambda *a, **k: said)
    model, tokenizer = tiny("llama")
    why = r"2 of 4 rows go without .*1 did not end within 64 tokens, 1 said nothing\): change max"
    with pytest.warns(UserWarning, match=why):
        probes = ProbeSet.from_dataset(ASKED[:4], tokenizer, model=model)
    assert own(probes) == {0: "yes", 3: "no"}


def test_an_answer_that_is_there_stays_and_none_is_made_that_nobody_wants(monkeypatch):
    monkeypatch.setattr("lmdyn.lm.generate.generate", None)  # nobody is asked
    model, tokenizer = tiny("llama")
    rows = [{**row, "chosen_initial": "yes"} for row in PAIRS]
    assert set(own(ProbeSet.from_dataset(rows, tokenizer, model=model)).values()) == {"yes"}
    types = ("chosen", "rejected")
    assert ProbeSet.from_dataset(PAIRS, tokenizer, types=types, model=model).types == types


@pytest.mark.parametrize(("longest", "n"), [(257, 107), (100, 79)])
def test_a_prompt_that_leaves_no_room_for_an_answer_goes_without(monkeypatch, longest, n):
    asked = []
    monkeypatch.setattr(
        "lmdyn.lm.generate.generate",
        lambda model, tokenizer, prompts, *a, **k: asked.append(prompts) or (["yes"], [True]),
    )
    model, tokenizer = tiny("gpt2")  # reads 128 tokens
    rows = [{"prompt": "the " * length, "chosen": "no"} for length in (n, n + 1)]
    settings = {"max_new_tokens": 20, "format": Format(max_length=longest, max_prompt=50)}
    with pytest.warns(UserWarning, match="1 had a prompt that leaves no room for 20"):
        probes = ProbeSet.from_dataset(rows, tokenizer, model=model, **settings)
    assert asked == [[rows[0]["prompt"]]] and own(probes) == {0: "yes"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 1}, r"3 of 3 rows .*3 did not end within 1 tokens.*leave model"),
        ({"max_new_tokens": 128}, r"3 of 3 rows .*3 had a prompt that leaves no room for 128"),
        ({"tokenizer": None}, "pass the tokenizer too"),
        ({"temperature": -1}, "temperature must be a finite number of at least 0, got -1"),
    ],
)
def test_a_model_that_cannot_answer_is_named(wrong, message):
    model, tokenizer = tiny("gpt2")
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_dataset(PAIRS, **{"tokenizer": tokenizer, "model": model} | wrong)
