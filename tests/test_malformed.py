"""Malformed inputs out of a generator: each is read, or refused by a line that says where."""

import json
import random
import re
import shutil

import numpy as np
import pandas
import pytest
import torch
from tiny import tiny
from traits import tokenizer_with

from lmdyn.__main__ import main
from lmdyn.lm import Format, ProbeSet, finetune, load_probes, score

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def turn(content, role="assistant", **more):
    return {"role": role, "content": content, **more}


ASK, SAY = [turn("where is it?", "user")], [turn("it is there")]
GOOD = [
    {"prompt": "where is it?", "chosen": " it is there", "rejected": " no"},
    {"prompt": ASK, "chosen": SAY, "rejected": [turn("no")]},
    {"chosen": "where is it? yes", "rejected": "where is it? no"},
    {"chosen": ASK + SAY, "rejected": [*ASK, turn("no")]},
    {"prompt": "where is it?", "completion": " it is there", "label": True},
    {"messages": ASK + SAY},
    {"text": "it is there"},
    {"prompt": [5, 6, 7], "chosen": [8, 9], "rejected": [9]},
]
KEYS = ["prompt", "chosen", "rejected", "completion", "label", "messages", "text", "tools"]
KEYS += ["chat_template_kwargs", "split", "conversations", "choosen", 3, ("a", "b"), None]
JSON = [None, float("nan"), "", " \n", 3, -1, True, 2.5, [], {}, [[]], [None], ["x"], [3.5], [-1]]
JSON += [[10**30], [399, 400], [True], {"role": "user"}, [{"role": 3}], [turn(None)], [turn(["x"])]]
JSON += [[{"content": "x"}], [turn(3)], "\ud800", [turn("\ud800")], "<|end|>", "x" * 9999, "[1]"]
JSON += [[turn("x", "user")], [turn("x", "system")], [turn({}, tool_calls=3)], {"enable": {}}]
JSON += ["e\u0301\u200d\x00\ufffe", [turn("")], [turn("a"), None], "{", [turn("a"), "b"], ASK[0]]
OTHER = [object(), b"bytes", np.array(3), np.zeros((2, 2)), torch.zeros(2), {1}, len, range(3)]
OTHER += [pandas.NA, pandas.Timestamp(0), np.array([None]), (turn("x"),), 1j, type, iter("ab")]


@pytest.fixture(scope="module")
def model():
    return tiny("llama", torch.float32, vocab_size=400, max_position_embeddings=64)[0]


def tokenizers():
    found = {name: tokenizer_with(name) for name in ("plain", "bos", "no system", "tools")}
    for name, template in {
        "no template": None,
        "undefined": "{{ messages[0].content + 3 }}",
        "no language": "{% for %}",
        "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "nothing": "",
    }.items():
        found[name] = tokenizer_with("plain")
        found[name].chat_template = template
    found["no eos"] = tokenizer_with("plain")
    found["no eos"].eos_token = None
    return found | {"none": None, "text": "gpt2", "class": type(found["plain"])}


def refusal(call):
    """What is told where the call refuses; None where it does not; other errors pass."""
    try:
        call()
    except (ValueError, FloatingPointError) as error:
        return str(error)
    return None


def mutated(draw):
    """Two rows, of which the second has something else at one of its keys, or one key less."""
    row = dict(draw.choice(GOOD))
    key = draw.choice([*row] * 2 + KEYS)
    if draw.random() < 0.1:
        row.pop(key, None)
    else:
        row[key] = draw.choice(JSON + OTHER)
    return [GOOD[0] if isinstance(row.get("prompt"), str) else dict(draw.choice(GOOD)), row]


@pytest.mark.parametrize("seed", range(200, 300))
def test_rows(seed, model):
    draw, named = random.Random(seed), tokenizers()
    rows = mutated(draw) if draw.random() < 0.95 else draw.choice(JSON + OTHER)
    tokenizer = named[draw.choice(["plain"] * 5 + [*named])]
    settings = {"epochs": 1, "lr": 1e-3, "batch_size": 2, "max_steps": 1}
    calls = [
        lambda: ProbeSet.from_dataset(rows, tokenizer),
        lambda: ProbeSet.from_dataset(rows, tokenizer, model=model, max_new_tokens=4),
        lambda: score(model, tokenizer, rows, stats=False),
        lambda: finetune(model, tokenizer, rows, draw.choice(["sft", "dpo"]), **settings),
    ]
    for call in calls:
        if told := refusal(call):
            assert re.search(
                r"rows?\[\d\]|dataset\[\d\]|tokenizer|rows|dataset|EOS|no row", told
            ), told
            assert "\n" not in told and len(told) < 600, told


OPTIONS = {
    "types": ["chosen", [], ["chossen"], 3, [3], [["chosen"]], ["chosen"] * 2, ["prompt"], {}],
    "limit": [0, -1, 2.5, "3", True],
    "format": ["paper", 3, {"max_length": 3}],
    "seed": [-1, 0.5, "a"],
    "max_new_tokens": [0, -1, 2.5, "3"],
    "temperature": [-1, "hot", float("nan"), float("inf")],
    "split": ["dev", 3, []],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, model):
    tokenizer = tokenizer_with("plain")
    for value in OPTIONS[name]:
        if name == "split":
            told = [refusal(lambda: load_probes("sample", split=value))]  # noqa: B023
        else:
            options = {"model": model, "max_new_tokens": 4, name: value}
            told = [refusal(lambda: ProbeSet.from_dataset(GOOD[:1], tokenizer, **options))]  # noqa: B023
            if name in ("types", "limit", "format") and value not in (0, {}):
                told.append(refusal(lambda: load_probes("sample", **{name: value})))  # noqa: B023
        for line in told:
            assert line and re.search(name.rstrip("s").replace("_", "."), line), (value, told)
    for wrong in ({"name": "papers"}, {"max_length": 1}, {"max_prompt": 3}, {"prompt_keeps": "en"}):
        assert any(key in refusal(lambda: Format(**wrong)) for key in (*wrong, "format"))  # noqa: B023


FILES = [b"", b" \n", b"null", b"3", b'"text"', b"[", b"[]", b"[3]", b"[[]]", b"{", b"{}", b"\x00"]
FILES += [b"\xff\xfe[\x00]\x00", b"\xef\xbb\xbf", b"[" * 9999, b'{"a":' * 9999, b"NaN", b"[NaN]"]
FILES += [b'{"prompt": "a", "chosen": "\xe4"}', b'[{"prompt": "a"}]', b"1" * 5000, b"\x1f\x8b\x08"]
FILES += [b'{"data": [{"prompt": "a", "chosen": "b"}]}', b"prompt,chosen\na,b\n", b"[{}, {}]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    tokenizer_with("plain").save_pretrained(place)
    return place


COMMANDS = [
    "--limit 0",
    "--limit -1",
    "--limit x",
    "--max-length 1",
    "--max-length -3",
    "--show -1",
]
COMMANDS += [
    "--loss nothing",
    "--loss sft",
    "--device nowhere",
    "--held-out nowhere",
    "--base tiny",
]
COMMANDS += [
    "--model nowhere/at/all",
    "--out {tmp}",
    "--out /dev/null/x",
    "--held-out {bad}",
    "--x",
]
COMMANDS += ["--model {tmp}", "--model ''", "--show 0", "--model {bad}", "--held-out {tmp}"]


@pytest.mark.parametrize("number", range(len(FILES) + len(COMMANDS) + 40))
def test_command_line(number, folder, tmp_path, capsys):
    draw, good, bad = random.Random(number), tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("\n".join(map(json.dumps, GOOD[:1] * 2)), encoding="utf-8")
    bad.write_bytes(FILES[number % len(FILES)])
    if number >= len(FILES) + len(COMMANDS):
        row = dict(draw.choice(GOOD[:7]))
        row[draw.choice([*row] * 2 + KEYS[:-3])] = draw.choice(JSON)
        bad.write_text("\n".join(map(json.dumps, [GOOD[0], row])), encoding="utf-8")
    more = []
    if len(FILES) <= number < len(FILES) + len(COMMANDS):
        command = COMMANDS[number - len(FILES)].replace("{tmp}", str(tmp_path))
        more = command.replace("{bad}", str(bad)).replace("''", "").split(" ")
    rows = str(good if more else bad)
    try:
        code = main(["diagnose", rows, "--model", str(folder), "--device", "cpu", *more])
    except SystemExit as error:  # of argparse, which has told
        code = error.code
    told = capsys.readouterr().err
    assert code == 0 or (code in (1, 2) and "Traceback" not in told)
    if code == 1:
        line = told.splitlines()[-1]
        assert line.startswith("lmdyn diagnose: ") and len(line) < 700
        words = ("bad.jsonl", "rows[", "held_out[", "model", "config.json", "/dev/null", *more[1:])
        assert any(word and word in line.lower() for word in words), line


@pytest.mark.parametrize("content", FILES)
def test_folders_and_recipes(content, folder, tmp_path, capsys):
    commands = [
        f"run {tmp_path}/a.yaml --dry-run",
        f"run tiny-sft --rows {tmp_path}/a.yaml --out {tmp_path}/b",
    ]
    (tmp_path / "a.yaml").write_bytes(content)
    for name in ("trajectory.npz", "trainer_state.json", "recipe.yaml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(content)
        commands.append(f"report {tmp_path / name}")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        copy = shutil.copytree(folder, tmp_path / "models" / name)
        (copy / name).write_bytes(content)
        commands.append(f"diagnose sample --limit 2 --model {copy}")
    for command in commands:
        device = ["--device", "cpu"] if command.startswith("d") else []
        assert main([*command.split(), *device]) in (0, 1)
        told = capsys.readouterr().err
        place = "" if "run" in command else tmp_path.name  # a recipe's key is named, or its file
        assert "Traceback" not in told and (not told or place in told), told
