"""Probe sets: reading, validating, narrowing."""

import json
import re

import datasets
import pytest
from tiny import tiny_rows

from lmdyn.lm import TYPES, load_probes
from lmdyn.lm.data import as_probes


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
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "p", "chosen": "c"}}\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(message)):
        load_probes(path)


def test_jsonl_loads_with_blank_lines_and_any_unicode(tmp_path):
    row = {"prompt": "Grüße \u2028 und mehr", "chosen": "ja", "rejected": None}
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{json.dumps(row, ensure_ascii=False)}\n\n", encoding="utf-8")
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
