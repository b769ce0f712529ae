"""The benchmark that waits for a GPU, in small on a CPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # benchmarks import each other
    spec = importlib.util.spec_from_file_location("gpu", FOLDER / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_all_of_it_runs_in_small(gpu, tmp_path, capsys):
    file = tmp_path / "gpu.json"
    tiny = ["--device", "cpu", "--tiny", "--repeats", "1", "--models", "qwen1.5-0.5b"]
    assert gpu.main([*tiny, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    both = ["float32", "bfloat16"]
    assert [(row["what"], row["dtype"]) for row in found["rows"]] == [
        *(("score", dtype) for dtype in both),
        ("predict_change", "float32"),
        *((f"finetune {loss}", dtype) for loss in ("sft", "dpo") for dtype in both),
    ]
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0 and row["share"] > 0
        assert (row["planned_gb"] is None) != row["what"].startswith("finetune")
    assert list(found["matrix rates"]) == both and found["versions"]["torch"] == torch.__version__
    # All of it rounds, so no difference is zero.
    assert len(found["differences"]["cpu"]) == 4
    assert all(0 < value < gpu.CLOSE for value in found["differences"]["cpu"].values())
    printed = capsys.readouterr().out
    assert found["hardware"] in printed and "agrees with the CPU to 0.001 nats: yes" in printed


def test_shares_follow_from_tokens_and_rate(gpu):
    bench = gpu.Bench(torch.device("cpu"), tiny=True, repeats=1)
    bench.rates = {"float32": 1e9}
    row = bench.finetune("pythia-410m", "sft", "float32")
    model = bench.model("pythia-410m", torch.float32)
    # Of each row 6 tokens of the prompt and 6 of the answer, EOS included, which is not fed.
    fed, predicted = 2 * 11, 2 * 6
    assert row.tokens_per_second == pytest.approx(fed / row.seconds)
    work = 3 * gpu.operations(model, fed, predicted)
    assert row.share == pytest.approx(work / row.seconds / 1e9)


def test_a_device_that_disagrees_is_an_error(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "report", lambda *_: ({}, False))
    assert gpu.main(["--device", "cpu", "--tiny"]) == 1


def test_without_a_gpu_it_says_so_in_a_line(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert gpu.main(["--device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "no GPU here" in lines[0] and "add --tiny" in lines[1]
