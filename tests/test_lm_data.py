"""Probe sets: reading, validating, narrowing."""

import json
import re

import datasets
import pytest
from tiny import tiny_rows

from lmdyn.lm import TYPES, ProbeSet, load_probes
from lmdyn.lm.data import as_probes


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_types_are_the_paper_s_in_order():
    assert list(TYPES) == [
        "chosen",
        "chosen_initial",
        "chosen_selfr",
        "chosen_gptsemantic",
        "chosen_gptformat",
        "rejected",
        "reject_gptsemantic",
        "reject_gptformat",
        "irr_train",
        "irr_test",
        "irr_hum",
        "random_permute",
        "random_nonhum",
    ]


# ---- tokens


def test_prompt_and_response_are_tokenised_apart_and_eos_is_appended():
    tokenizer = byte_tokenizer()
    row = {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " Hello.", "rejected": " No"}
    (tokens,) = encode(tokenizer, as_probes([row]))
    assert tokenizer.decode(tokens.prompt) == row["prompt"]
    assert tokenizer.decode(tokens.responses["chosen"]) == " Hello.<eos>"
    assert tokens.responses["chosen"][-1] == tokenizer.eos_token_id
    assert len(tokens.prompt) == len(row["prompt"])
    assert list(tokens.responses) == ["chosen", "rejected"]
    assert tokens.truncated == ()


@pytest.mark.parametrize(("keeps", "kept"), [("end", "b" * 256), ("start", "a" * 256)])
def test_a_long_prompt_keeps_its_end_or_its_start(keeps, kept):
    row = {"prompt": "a" * 300 + "b" * 300, "chosen": "c" * 100}
    (tokens,) = encode(byte_tokenizer(), as_probes([row], format=Format(prompt_keeps=keeps)))
    assert byte_tokenizer().decode(tokens.prompt) == kept
    assert len(tokens.responses["chosen"]) == 101


def test_a_prompt_is_cut_only_where_its_longest_response_does_not_fit():
    tokenizer = byte_tokenizer()
    row = {"prompt": "p" * 400, "chosen": "c" * 111}
    (tokens,) = encode(tokenizer, as_probes([row]))
    assert len(tokens.prompt) == 400  # 400 + 111 + EOS = 512
    (tokens,) = encode(tokenizer, as_probes([row | {"rejected": "r" * 112}]))
    assert len(tokens.prompt) == 256
    assert len(tokens.responses["chosen"]) == 112


def test_then_the_response_is_cut_counted_and_reported():
    rows = [
        {"prompt": "p" * 300, "chosen": "c" * 300, "rejected": "r"},
        {"prompt": "p", "chosen": "c"},
    ]
    with pytest.warns(UserWarning, match=r"1 of 3 responses were cut.*max_length=512"):
        tokens, other = encode(byte_tokenizer(), as_probes(rows))
    assert len(tokens.prompt) + len(tokens.responses["chosen"]) == 512
    assert byte_tokenizer().eos_token_id not in tokens.responses["chosen"]
    assert tokens.truncated == ("chosen",) and other.truncated == ()


def test_all_responses_begin_as_chosen_does_unless_told_otherwise():
    tokenizer = byte_tokenizer()
    rows = [{"prompt": "Q:", "chosen": " yes", "rejected": "no", "irr_hum": "\n so"}]

    def decoded(probes):
        responses = encode(tokenizer, probes)[0].responses.values()
        return [tokenizer.decode(r[:-1]) for r in responses]

    assert decoded(as_probes(rows)) == [" yes", " no", " so"]
    assert decoded(as_probes(rows, format=Format(as_written=True))) == [" yes", "no", "\n so"]
    rows[0]["chosen"] = "yes"
    assert decoded(as_probes(rows)) == ["yes", "no", "so"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "hi", "chosen": "a <eos> b"}, "rows[1]: 'chosen' contains the EOS token"),
        ({"prompt": "hi", "chosen": "a", "rejected": "<eos>"}, "'rejected' contains the EOS"),
    ],
)
def test_eos_inside_a_response_is_refused(row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        encode(byte_tokenizer(), as_probes([{"prompt": "a", "chosen": "b"}, row]))


def test_eos_inside_a_prompt_is_a_chat_turn():
    (tokens,) = encode(byte_tokenizer(), as_probes([{"prompt": "hi<eos>you", "chosen": "b"}]))
    assert byte_tokenizer().eos_token_id in tokens.prompt


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        encode(tokenizer, as_probes(tiny_rows()))


def test_formats_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match="smaller than max_length"):
        Format(max_length=256)
    with pytest.raises(ValueError, match="prompt_keeps"):
        Format(prompt_keeps="middle")


# ---- probe sets


def test_probe_sets_slice_split_and_narrow():
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(4)]
    rows[3]["split"] = "test"
    probes = as_probes(rows)
    assert probes.types == ("chosen", "rejected") and len(probes) == 4
    assert [row["prompt"] for row in probes[1:3]] == ["1", "2"]
    assert [row["prompt"] for row in probes[[3, 0]]] == ["3", "0"]
    assert probes[0]["prompt"] == "0"
    assert [len(probes.split(name)) for name in ("train", "test")] == [3, 1]
    assert probes.only("rejected").types == ("rejected",)
    assert repr(probes) == "ProbeSet(4 prompts, 2 types: chosen, rejected)"


def test_sources_are_limited_and_split():
    for source, n in (("sample", (48, 16, 64)), ("world", (48, 24, 72))):
        assert isinstance(load_probes(source, limit=5), ProbeSet)
        assert len(load_probes(source, limit=5)) == 5
        assert tuple(len(load_probes(source, split=name)) for name in ("train", "test", None)) == n


def test_a_type_of_one_s_own_is_read_where_it_is_named():
    rows = [{"prompt": "p", "chosen": "c", "poem": "d", "score": 3}]
    assert as_probes(rows, ["chosen", "poem"]).rows[0]["poem"] == "d"
    with pytest.raises(ValueError, match="unknown response type 'poem'"):
        as_probes(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "chosen": ', "rows.jsonl, line 2 is not JSON"),
        ('{"chosen": "c"}', "rows.jsonl, line 2 has no 'prompt'"),
        ('{"prompt": "p", "rejected": "c"}', "rows.jsonl, line 2 has no 'chosen'"),
        ('{"prompt": "p", "chosen": " "}', "rows.jsonl, line 2: 'chosen' is empty"),
        ('{"prompt": "p", "chosen": "c", "rejected": ""}', "line 2: 'rejected' is empty"),
        ('{"prompt": "p", "chosen": ["c"]}', "line 2: 'chosen' must be text, got list"),
        ('{"prompt": "p", "chosen": "c", "choosen": "c"}', "did you mean 'chosen'?"),
        ('{"prompt": "p", "chosen": "c", "split": "dev"}', "split must be 'train' or 'test'"),
        ('["p", "c"]', "line 2 must be a dict"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "rows.jsonl", '{"prompt": "p", "chosen": "c"}', line)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_probes(path)


def test_jsonl_loads_with_blank_lines_and_any_unicode(tmp_path):
    row = {"prompt": "Grüße \u2028 und mehr", "chosen": "ja", "rejected": None}
    path = write(tmp_path / "rows.jsonl", "", json.dumps(row, ensure_ascii=False), "")
    assert load_probes(path).rows == ({"prompt": row["prompt"], "chosen": "ja"},)


def test_empty_responses_can_be_dropped_but_never_chosen():
    row = {"prompt": "p", "chosen": "c", "rejected": ""}
    assert "rejected" not in as_probes([row], drop_empty=True)[0]
    with pytest.raises(ValueError, match="'chosen' is empty"):
        as_probes([row | {"chosen": ""}], drop_empty=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_probes("smple"), "did you mean 'sample'?"),
        (lambda: load_probes("sample", ["chossen"]), "did you mean 'chosen'?"),
        (lambda: load_probes("sample", "chosen"), "a list of one or more different names, got 'ch"),
        (lambda: load_probes("sample", []), "a list of one or more different names, got []"),
        (lambda: load_probes("sample", ["chosen", "chosen"]), "different names, got ['chosen', "),
        (lambda: load_probes("sample", split="dev"), "split must be"),
        (lambda: load_probes("sample", limit=0), "sample has no row"),
        (lambda: as_probes([]), "there is no row"),
        (lambda: as_probes({"prompt": "p", "chosen": "c"}), "rows[0] must be a dict"),
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
