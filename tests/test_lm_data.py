"""Probe sets: reading, validating, narrowing."""

import json
import re
from datetime import datetime

import datasets
import numpy as np
import pandas
import pytest
from tiny import tiny, tiny_rows
from traits import tokenizer_with

from lmdyn.lm import TYPES, load_probes
from lmdyn.lm.data import Format, ProbeSet, as_probes, with_all
from lmdyn.lm.generate import generate
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode, prompts_of
from lmdyn.lm.train import finetune


def say(role, text):
    return {"role": role, "content": text}


def test_types_are_the_paper_s_in_order():
    assert " ".join(TYPES) == (
        "chosen chosen_initial chosen_selfr chosen_gptsemantic chosen_gptformat "
        "rejected reject_gptsemantic reject_gptformat "
        "irr_train irr_test irr_hum random_permute random_nonhum"
    )
    assert as_probes(tiny_rows()).types == ("chosen", "rejected", "irr_train", "random_permute")
    assert as_probes(tiny_rows(), ["rejected", "chosen"]).types == ("rejected", "chosen")


def test_probe_sets_slice_split_and_narrow():
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(4)]
    rows[3]["split"] = "test"
    probes = as_probes(rows)
    assert [row["prompt"] for row in probes[1:3]] == ["1", "2"]
    assert [row["prompt"] for row in probes[[3, 0]]] == ["3", "0"] and probes[0] == rows[0]
    assert [len(probes.split(name)) for name in ("train", "test")] == [3, 1]
    assert probes.only("rejected").types == ("rejected",)
    assert repr(probes) == "ProbeSet(4 prompts, 2 types: chosen, rejected)"


@pytest.mark.parametrize(("source", "n"), [("sample", (48, 16, 64)), ("world", (48, 24, 72))])
def test_sources_are_limited_and_split(source, n):
    assert len(load_probes(source, limit=5)) == 5
    assert tuple(len(load_probes(source, split=name)) for name in ("train", "test", None)) == n


def test_a_type_of_one_s_own_is_read_where_it_is_named():
    rows = [{"prompt": "p", "chosen": "c", "poem": "d", "score": 3}]
    assert as_probes(rows, ["chosen", "poem"])[0]["poem"] == "d"
    assert as_probes(rows).types == ("chosen",)  # other columns are passed over


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "chosen": ', "rows.jsonl, line 2 is not JSON"),
        ('{"chosen": "c"}', "rows.jsonl, line 2: no prompt: it has chosen, and needs prompt,"),
        ('{"prompt": null, "rejected": "c"}', "rows.jsonl, line 2: no prompt: it has rejected"),
        ('{"prompt": "p"}', "rows.jsonl, line 2: it has a prompt and no response, such as '"),
        ('{"prompt": "p", "chosen": " "}', "rows.jsonl, line 2: it has a prompt and no response"),
        ('{"prompt": "p", "chosen": ["c"]}', "line 2: 'chosen' must be a text, or turns with role"),
        (
            '{"prompt": "p", "chosen": []}',
            "'chosen' must be a text, or turns with role and content, got []",
        ),
        (
            '{"prompt": "p", "chosen": 3}',
            "'chosen' must be a text, or turns with role and content, got 3",
        ),
        ('{"prompt": "p", "chosen": [{"content": "c"}]}', "a turn of 'chosen' has no role"),
        ('{"prompt": "p", "chosen": "c", "choosen": "c"}', "did you mean 'chosen'?"),
        ('{"prompt": "p", "completion": "c", "label": "bad"}', "label must be true or false"),
        (
            '{"prompt": "p", "completion": "c", "label": null}',
            "must be true or false, got None",
        ),
        (
            '{"prompt": "p", "completion": "c", "label": NaN}',
            "must be true or false, got nan",
        ),
        ('{"chosen": "ab", "rejected": "cd"}', "line 2: no prompt, and chosen and rejected do not"),
        ('{"chosen": "ab", "rejected": "abc"}', "chosen and rejected do not part after one"),
        ('{"chosen": "ab", "rejected": [{"role": "user"}]}', "both be texts or both conversations"),
        ('{"prompt": "p", "chosen": "\\ud800"}', "'chosen' holds half a surrogate pair"),
        ('{"prompt": "p", "chosen": "c", "split": "dev"}', "split must be 'train' or 'test'"),
        ("3", "line 2: it must be a dict such as {'prompt': …}, got 3"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "p", "chosen": "c"}}\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(message)):
        load_probes(path)


def test_jsonl_loads_with_blank_lines_and_any_unicode(tmp_path):
    row = {"prompt": "Grüße \u2028 und mehr", "chosen": "ja", "rejected": None}
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(row, ensure_ascii=False)}\n\n", encoding="utf-8")
    assert load_probes(path).rows == ({"prompt": row["prompt"], "chosen": "ja"},)


def test_a_prompt_of_white_space_is_one_and_no_other_is_made_up():
    row = {"prompt": "\n", "chosen": "the first word is", "rejected": "the first time"}
    assert dict(as_probes([row])[0]) == row


def test_argmax_is_no_name_of_a_type():
    with pytest.raises(ValueError, match="'argmax' is the likeliest tokens along chosen"):
        as_probes([{"prompt": "p", "chosen": "c", "argmax": "a"}], ["chosen", "argmax"])


def test_turns_may_hold_what_json_cannot(tmp_path):
    model, tokenizer = tiny("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    turn = {"role": "user", "content": "where", "at": datetime(2024, 1, 1)}
    pair = {"prompt": [turn], "chosen": [{"role": "assistant", "content": "here"}]}
    settings = {"lr": 1e-3, "epochs": 1, "batch_size": 1, "progress": False}
    run = finetune(model, tokenizer, [pair], probes=[pair], out=tmp_path / "run", **settings)
    assert len(run.steps) == 2


def test_what_is_blank_is_missing_and_stops_only_who_reads_it():
    probes = as_probes([{"prompt": "p", "chosen": "c", "rejected": " "}])
    assert probes.types == ("chosen",) and "rejected" not in probes[0]
    with pytest.raises(ValueError, match=r"rows\[0\] has no 'rejected', which dpo reads"):
        with_all(probes, ["chosen", "rejected"], "dpo")


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + json.dumps(PAIR) + "\n",
        json.dumps([PAIR]),
        "\ufeff[\n  " + json.dumps(PAIR) + "\n]",
        json.dumps({"chosen": "p c", "rejected": "p r"}),
    ],
)
def test_files_come_as_lines_or_an_array_with_or_without_a_mark(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    (row,) = load_probes(path)
    assert {name: value.strip() for name, value in row.items()} == PAIR


@pytest.mark.parametrize("text", ["[1, 2", '[{"prompt": "p"}]', "[3]"])
def test_an_array_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"rows\.json(, row 0)?( is not JSON|: it has a|: |: it must be)"
    ):
        load_probes(tmp_path / "rows.json")


def test_rows_come_from_whatever_holds_some():
    rows = [PAIR, {"prompt": "q", "chosen": "c"}]
    table = pandas.DataFrame(rows)  # what lacks is NaN there
    for held in (rows, iter(rows), table, datasets.Dataset.from_list(rows)):
        assert as_probes(held).rows == tuple(rows)
    parts = {"train_prefs": datasets.Dataset.from_list(rows), "test": rows[:1]}
    splits = as_probes(datasets.DatasetDict({"train_prefs": parts["train_prefs"]}) | parts)
    assert [row["split"] for row in splits] == ["train", "train", "test"]
    table["chosen"] = [np.array([say("assistant", "c")])] * 2
    table["prompt"] = [np.array([say("user", "p")])] * 2
    table["rejected"] = None
    assert as_probes(table)[0] == {"prompt": [say("user", "p")], "chosen": [say("assistant", "c")]}


def test_probe_sets_are_indexed_as_arrays_are():
    probes = as_probes([{"prompt": str(i), "chosen": "a"} for i in range(4)])

    def prompts(which):
        return [int(row["prompt"]) for row in probes[which]]

    for mask in ([False, False, True, True], np.array([0, 0, 1, 1], dtype=bool)):
        assert prompts(mask) == [2, 3]
    assert prompts(np.array([3, 0])) == prompts((3, 0)) == [3, 0] and prompts([]) == []
    assert probes[np.int64(1)]["prompt"] == "1" and probes[-1]["prompt"] == "3"
    with pytest.raises(ValueError, match="a mask must be 4 booleans"):
        probes[[True, False]]
    for wrong in ("chosen", 1.5, [0.5]):
        with pytest.raises((TypeError, ValueError)):
            probes[wrong]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_probes("smple"), "did you mean 'sample'?"),
        (lambda: load_probes("sample", ["chossen"]), "did you mean 'chosen'?"),
        (lambda: load_probes("sample", "chosen"), "a list of one or more different names, got 'ch"),
        (lambda: load_probes("sample", []), "a list of one or more different names, got []"),
        (lambda: load_probes("sample", ["chosen", "chosen"]), "different names, got ['chosen', "),
        (lambda: load_probes("sample", split="dev"), "unknown split 'dev': There is train, test"),
        (lambda: load_probes("sample", limit=0), "limit must be an integer of at least 1"),
        (lambda: as_probes([]), "there is no row"),
        (lambda: as_probes({"prompt": "p", "chosen": "c"}), "must be a list of rows, or splits of"),
        (lambda: as_probes("rows.jsonl"), "the data must be a list of rows, got str"),
        (lambda: as_probes(3), "the data must be a list of rows, got int"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_paper_s_files_come_through_datasets_from_the_pinned_commit(monkeypatch):
    asked = {}

    def load_dataset(kind, data_files):
        asked.update(data_files)
        row = {"prompt": "p", "chosen": "c", "chosen_initial": ""}
        return {"train": [row], "test": [row]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    probes = load_probes("hh")
    assert [row["split"] for row in probes] == ["train", "test"]
    assert "chosen_initial" not in probes[0] and probes.format.prompt_keeps == "end"
    assert all("08e3bd25cb7debcf263244046a697e355715bbd9" in url for url in asked.values())
    assert load_probes("ultrafeedback").format.prompt_keeps == "start"
    monkeypatch.setattr(datasets, "load_dataset", None)  # as good as offline
    with pytest.raises(ConnectionError, match=r"'hh' could not be fetched.*'sample'"):
        load_probes("hh")


# --- answers of the model itself, sorted by a reward ----------------------------------------------

ASKED = [{"prompt": row["prompt"], "limit": 3 + i} for i, row in enumerate(tiny_rows())]
SAMPLED = {"group_size": 6, "max_new_tokens": 5, "seed": 2}


def is_short(row, answer):
    """It reads a column that is no part of a probe."""
    return len(answer.split()) < row["limit"]


@pytest.fixture(scope="module")
def llama():
    model, tokenizer = tiny("llama")
    model.generation_config.eos_token_id = [1, *range(20, 40)]  # so that some answers end
    return model, tokenizer


def sorted_by(reward, llama, rows=ASKED, **options):
    model, tokenizer = llama
    return ProbeSet.from_dataset(rows, tokenizer, model=model, reward=reward, **SAMPLED | options)


def test_the_first_answers_of_each_kind_are_kept_as_tokens(llama):
    probes = sorted_by(is_short, llama)
    assert probes.types == ("chosen_initial", "correct", "wrong")
    prompts = prompts_of(llama[1], ASKED, Format())
    how = {"sample": True, "seed": 2, "return_ids": True}
    asked = [ids for ids in prompts for _ in range(6)]
    texts, said, ended = generate(*llama, asked, 5, **how)
    assert {*ended} == {True, False}
    for i, (row, encoded) in enumerate(zip(probes, encode(llama[1], probes), strict=True)):
        own = range(6 * i, 6 * i + 6)
        right = [is_short(ASKED[i], texts[k]) for k in own]
        expected = {"chosen_initial": said[own[0]]}
        expected |= {"correct": said[own[right.index(True)]]} if any(right) else {}
        expected |= {"wrong": said[own[right.index(False)]]} if not all(right) else {}
        assert {name: row[name] for name in probes.types if name in row} == expected
        assert encoded.responses == expected and encoded.prompt == prompts[i]
        for ids in expected.values():
            ends = ended[6 * i + said[6 * i : 6 * i + 6].index(ids)]
            last = ids[-1] in llama[0].generation_config.eos_token_id
            assert last if ends else len(ids) == 5


def test_the_same_seed_gives_the_same_answers(llama):
    one, same, other = (sorted_by(is_short, llama, seed=seed) for seed in (2, 2, 3))
    assert one.rows == same.rows and one.rows != other.rows


def test_a_prompt_may_have_answers_of_one_kind_alone(llama):
    probes = sorted_by(lambda row, answer: row["limit"] == 3, llama)
    assert [("correct" in row, "wrong" in row) for row in probes] == [
        (i == 0, i > 0) for i in range(5)
    ]
    assert np.isnan(score(*llama, probes).logp).tolist() == [
        [False, i > 0, i == 0] for i in range(5)
    ]
    assert sorted_by(lambda *_: True, llama).types == ("chosen_initial", "correct")
    assert sorted_by(lambda *_: 0.5, llama).types == ("chosen_initial", "wrong")


def test_types_that_are_asked_for_are_the_ones(llama):
    probes = sorted_by(is_short, llama, types=["correct", "wrong"])
    assert probes.types == ("correct", "wrong")
    assert [row["correct"] for row in probes if "correct" in row] == [
        row["correct"] for row in sorted_by(is_short, llama) if "correct" in row
    ]
    rows = [row | {"chosen": " no"} for row in ASKED]  # what is there stays
    probes = sorted_by(is_short, llama, rows, types=["chosen", "correct"])
    assert probes.types == ("chosen", "correct") and probes[0]["chosen"] == " no"


def test_conversations_without_an_answer_are_asked_as_the_template_has_it():
    model, tokenizer = tiny("llama", vocab_size=400)[0], tokenizer_with("turn end")
    rows = [{"prompt": [say("user", row["prompt"])], "limit": 9} for row in tiny_rows()]
    probes = sorted_by(lambda row, answer: len(answer) % 2, (model, tokenizer), rows)
    asked = prompts_of(tokenizer, rows, Format())
    assert probes.types == ("chosen_initial", "correct", "wrong")
    for row, encoded, prompt in zip(probes, encode(tokenizer, probes), asked, strict=True):
        assert encoded.prompt == prompt and not encoded.own
        assert encoded.responses["chosen_initial"] == row["chosen_initial"]


def raises(row, answer):
    return 1.0 if row["limit"] < 5 else 1 / 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward": raises}, r"^the reward of dataset\[2\] for '.*' raised ZeroDivisionError: div"),
        ({"reward": raises, "limit": 2}, r"^the reward of dataset\[4\] for"),
        (
            {"reward": lambda *_: float("nan")},
            r"the reward of dataset\[0\] for '.*' is nan: give a",
        ),
        ({"reward": lambda *_: None}, r"the reward of dataset\[0\] for '.*' raised TypeError"),
        ({"reward": "dpo"}, "a reward is a function of a row and an answer"),
        ({"model": None}, "a reward is a function of a row and an answer: pass model, too"),
        ({"tokenizer": None}, "tokenizer must be one of transformers"),
        ({"group_size": 0}, "group_size must be an integer of at least 1"),
    ],
)
def test_a_reward_that_cannot_be_used_is_named(options, message, llama):
    given = {"model": llama[0], "tokenizer": llama[1], "reward": is_short} | SAMPLED | options
    with pytest.raises(ValueError, match=message):
        ProbeSet.from_dataset([row | {"chosen": " no"} for row in ASKED], **given)
