"""The commands, called as a shell calls them."""

import json
import subprocess
import sys

import pytest

from lmdyn._cli import main

PAIRS = [
    {"prompt": "question : where is the spoon ?", "chosen": "it is here", "rejected": "no"},
    {"prompt": "question : where is the fox ?", "chosen": "the fox is here", "rejected": "away"},
]


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    return str(file)


def test_diagnose_prints_a_table_and_writes_a_file(pairs, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    assert main(["diagnose", pairs, "--model", "tiny", "--out", str(out), "--show", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["row", "own", "y+", "held-out", "valley", "flags", "·", "prompt"]
    assert printed[-1].startswith("Diagnosis(2 pairs") and len(printed) == 3
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {row["prompt"] for row in rows} == {row["prompt"] for row in PAIRS}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diagnose", "nowhere.jsonl", "--model", "tiny"], "there is no such file"),
        (["diagnose", "world", "--model", "tiny", "--loss", "dop"], "did you mean 'dpop'?"),
        (
            ["diagnose", "world", "--model", "tiny", "--limit", "2", "--loss", "sft"],
            "loss of pairs",
        ),
    ],
)
def test_what_is_wrong_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert error.startswith(f"lmdyn {arguments[0]}: ")


def test_it_is_a_module_to_run():
    done = subprocess.run(
        [sys.executable, "-m", "lmdyn", "--help"], capture_output=True, text=True, check=True
    )
    assert "diagnose" in done.stdout
