"""Every format that TRL's trainers take, as probes."""

import pytest
from tiny import tiny_tokenizer

from lmdyn.lm.data import ProbeSet

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
    assert ProbeSet.from_dataset(PAIRS, types=["chosen", "rejected"]).types == (
        "chosen",
        "rejected",
    )


def test_an_implicit_prompt_is_what_both_begin_with():
    rows = [
        {"chosen": "where is it now it is there", "rejected": "where is it now it was not"},
        {"chosen": "who is he he can see", "rejected": "who is he he could"},
    ]
    probes = ProbeSet.from_dataset(rows, types=["chosen", "rejected"])
    assert [row["prompt"] for row in probes] == ["where is it now it ", "who is he he "]
    assert [row["rejected"] for row in probes] == ["was not", "could"]
    with pytest.raises(ValueError, match=r"dataset\[0\] has no prompt"):
        ProbeSet.from_dataset([{"chosen": "a b", "rejected": "c d"}])


@pytest.mark.parametrize("kind", ["pairs", "completion", "messages", "implicit"])
def test_conversations_are_written_by_the_template(tokenizer, kind):
    ask = [[say("user", row["prompt"])] for row in PAIRS]
    good = [[say("assistant", row["chosen"])] for row in PAIRS]
    bad = [[say("assistant", row["rejected"])] for row in PAIRS]
    rows = {
        "pairs": [
            {"prompt": a, "chosen": g, "rejected": b}
            for a, g, b in zip(ask, good, bad, strict=True)
        ],
        "completion": [{"prompt": a, "completion": g} for a, g in zip(ask, good, strict=True)],
        "messages": [{"messages": a + g} for a, g in zip(ask, good, strict=True)],
        "implicit": [
            {"chosen": a + g, "rejected": a + b} for a, g, b in zip(ask, good, bad, strict=True)
        ],
    }[kind]
    probes = ProbeSet.from_dataset(rows, tokenizer)
    for row, pair in zip(probes, PAIRS, strict=True):
        assert row["prompt"] == f"<user> {pair['prompt']} <eos>\n<assistant> "
        assert row["chosen"].strip() == pair["chosen"].strip()
        if kind in ("pairs", "implicit"):
            assert row["rejected"].strip() == pair["rejected"].strip()


def test_rows_are_spread_over_the_dataset_or_the_first_of_a_stream():
    rows = [{"prompt": f"p{i}", "completion": f"answer {i}"} for i in range(100)]
    found = ProbeSet.from_dataset(rows, limit=5)
    assert [row["prompt"] for row in found] == ["p0", "p24", "p49", "p74", "p99"]
    assert len(ProbeSet.from_dataset(iter(rows), limit=7)) == 7
    assert len(ProbeSet.from_dataset(rows[:3], limit=7)) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "all in one"}, r"dataset\[0\] is in no format that can be probed: it has text"),
        ({"prompt": "a"}, "and needs prompt with chosen or completion"),
        ({"prompt": "a", "chosen": " "}, "the prompt or the chosen response is empty"),
        ({"messages": [say("user", "a"), say("assistant", "b")]}, "pass the tokenizer"),
        ("text", r"dataset\[0\] must be a dict, got str"),
    ],
)
def test_what_cannot_be_read_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_dataset([row])


def test_a_template_is_needed_and_must_go_on_where_it_stopped(tokenizer):
    rows = [{"prompt": [say("user", "a")], "chosen": [say("assistant", "b")]}]
    tokenizer.chat_template = TEMPLATE.replace("<assistant> {% endif", "<think> {% endif")
    with pytest.raises(ValueError, match="writes the prompt otherwise once 'chosen' follows"):
        ProbeSet.from_dataset(rows, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        ProbeSet.from_dataset(rows, tokenizer)
    with pytest.raises(ValueError, match="no row to probe"):
        ProbeSet.from_dataset([])
