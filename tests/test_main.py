"""The commands, called as a shell calls them."""

import json
import runpy
import sys
from inspect import signature
from pathlib import Path

import pytest
import torch
from tiny import tiny
from traits import tokenizer_with

from lmdyn import lm
from lmdyn.__main__ import main
from lmdyn.lm import load, recipes, report

PAIRS = [
    {"prompt": "question : where is the spoon ?", "chosen": " it is here", "rejected": " no"},
    {"prompt": "question : where is it ?", "chosen": " the fox is here", "rejected": " away"},
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


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """The folder of an adapter, of a model that reads conversations, which it names."""
    folder, tokenizer = tmp_path_factory.mktemp("chat"), tokenizer_with("bos")
    model, _ = tiny("llama", torch.float32, vocab_size=400)
    for thing in (model, tokenizer):
        thing.save_pretrained(folder / "base")
    model = load(folder / "base", "cpu")[0]
    import peft  # takes seconds

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(model, config).save_pretrained(folder / "lora")
    return str(folder / "lora")


def turns(*texts):
    roles = ["user", "assistant"]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft
@pytest.mark.parametrize("how", ["turns", "implicit", "array", "text and turns"])
@pytest.mark.slow
def test_diagnose_reads_what_trainers_do_and_adapters(how, chat, tmp_path, capsys):
    file, asked = tmp_path / "pairs.json", ["where is it? ", "who is it? "]
    rows = [{"chosen": turns(q, "it is there"), "rejected": turns(q, "no.")} for q in asked]
    if how == "implicit":
        rows = [{"chosen": q + "it is there", "rejected": q + "no."} for q in asked]
    if how == "text and turns":  # as UltraFeedback has it
        rows = [{"prompt": q, **row} for q, row in zip(asked, rows, strict=True)]
    text = json.dumps(rows) if how == "array" else "\n".join(map(json.dumps, rows))
    file.write_text("\ufeff" + text, encoding="utf-8")
    assert main(["diagnose", str(file), "--model", chat, "--device", "cpu"]) == 0
    table, base = capsys.readouterr().out, str(Path(chat).parent / "base")
    assert ("user: where is it?" if how != "implicit" else "· where is it?") in table
    short = ["--max-length", "5", "--base", base]
    assert main(["diagnose", str(file), "--model", chat, "--device", "cpu", *short]) == 1
    error = capsys.readouterr().err
    assert "pairs.json" not in error and "rows[0]: 'chosen': max_length=5 leaves nothing" in error


def test_report_tells_where_the_page_is(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(lm, "report", lambda **options: calls.append(options) or "page.html")
    assert main("report runs/a --out page.html --rows b.jsonl --model tiny".split()) == 0
    assert capsys.readouterr().out == "page.html\n"
    options = {"out": "page.html", "rows": "b.jsonl", "model": "tiny", "device": "auto"}
    assert calls == [{"folder": "runs/a", **options}]
    signature(report).bind(**calls[0])


QUICK = ["run", "tiny-sft", "--set", "stages.0.max_steps=1", "--set", "probes.limit=1"]


@pytest.mark.slow
def test_run_trains_tells_and_goes_on(pairs, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [*QUICK, "--rows", pairs, "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("0-sft: SFT()\nmean log-prob (nats) of 1 prompts")
    assert (out / "0-sft" / "trajectory.npz").is_file()
    assert main(arguments) == 1
    assert "holds a run already: pass resume=True (--resume)" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert capsys.readouterr().out == printed


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "tiny-dpo", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    for part in ("0-sft", "1-dpo", "48 updates of 4 rows", "memory    about 0.", "time      about"):
        assert part in plan
    assert not list(tmp_path.iterdir())


def test_recipes_are_listed_with_a_line_each(capsys, monkeypatch):
    names = [name for name in recipes.catalogue() if name.startswith("tiny")]
    monkeypatch.setattr(recipes, "catalogue", lambda: names)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names and "tiny-dpo" in names
    assert all(len(line.split()) > 3 for line in lines)


WRONG = {
    "run tiny-dpp": "unknown recipe 'tiny-dpp': did you mean 'tiny-dpo'?",
    "run tiny-dpo --set stages.0.lr=fast": "stages.0.lr: Value 'fast' of type 'str' could not be",
    "run tiny-dpo --rows nowhere.jsonl --out {tmp}": "there is no such file",
    "run tiny-dpo --set model=no/where --out {tmp}/file/run": "Not a directory: '",
    "diagnose nowhere.jsonl --model tiny": "there is no such file",
    "report nowhere": "no run in nowhere",
    "diagnose world --model tiny --loss dop": "did you mean 'dpop'?",
    "diagnose world --model tiny --limit 2 --loss sft": "loss of pairs",
}


@pytest.mark.parametrize("command", WRONG)
def test_what_is_wrong_is_one_line(command, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(command.replace("{tmp}", str(tmp_path)).split()) == 1
    error = capsys.readouterr().err
    assert WRONG[command] in error and error.count("\n") == 1
    assert error.startswith(f"lmdyn {command.split()[0]}: ")


def test_it_is_a_module_to_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lmdyn", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(main.__code__.co_filename, run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("usage: lmdyn ")
    assert "diagnose" in printed and "report" in printed
