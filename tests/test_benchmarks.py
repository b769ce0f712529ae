"""The benchmarks that wait for a GPU, or for peers, in small and without them."""

import importlib.util
import json
import logging
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from lmdyn import entk

FOLDER = Path(__file__).parent.parent / "benchmarks"


def imported(name, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)  # benchmarks import each other
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(monkeypatch):
    return imported("gpu", monkeypatch)


@pytest.fixture
def peers(monkeypatch, tmp_path, capsys):
    """What is printed for some arguments, each method run in this process, by peers of a test."""
    module = imported("peers", monkeypatch)
    for name in ("TQDM_DISABLE", "PYTHONWARNINGS"):  # which it sets for its processes
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(logging, "disable", lambda level: None)
    small = ["--model", "tiny", "--rows", "world", "--updates", "3", "--probes", "4"]
    small += ["--prompts", "1", "--images", "3"]

    def printed(*arguments, installed=(), **made):
        def read(*more):
            return module.options_known().parse_args([*small, *arguments, *more])

        def found_by(method):
            out = str(tmp_path / "found.npz")
            module.run(read("--method", method, "--out", out))
            return dict(np.load(out))

        def version(name):
            if name in module.PINNED and name not in installed:
                raise PackageNotFoundError(name)
            return "0"

        for name, value in {"found_by": found_by, "version": version, **made}.items():
            monkeypatch.setattr(module, name, value)
        module.main(read())
        return capsys.readouterr().out.splitlines()

    return printed


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


def test_peers_that_are_not_installed_are_named_and_the_rest_runs(peers):
    lines = peers()
    ours = [line.split() for line in lines if line.startswith("lmdyn")]
    assert len(ours) == 4 and all(row[-1] == "0.0e+00" for row in ours)
    assert all(float(row[2]) > 0 and row[3] == "1.00" for row in ours)
    told = [line.split(maxsplit=1) for line in lines if "not installed" in line]
    scorers = [
        ["lm-eval", "not installed: pip install lm-eval==0.4.13"],
        ["trl", "not installed: pip install trl==1.16.0"],
    ]
    assert told == [
        ["kronfluence", "not installed: pip install kronfluence==1.0.1"],
        ["bergson", "not installed: pip install bergson==2.5.1"],
        *(scorers * 2),
        ["nngeometry", "not installed: pip install nngeometry==0.4"],
    ]


def test_a_peer_gets_the_tokens_and_the_weights_that_are_compared(peers):
    def brute(model, names, tokens):
        weights = [model.get_submodule(name).weight.requires_grad_() for name in names]

        def gradient(ids, kept):
            logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            loss = -logp[range(-kept, 0), ids[-kept:]].sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

        def method(updates, probes):
            left, right = ([gradient(*row) for row in tokens(rows)] for rows in (updates, probes))
            return (torch.stack(left) @ torch.stack(right).T).numpy()

        return method

    lines = peers("--only", "influence", installed=["bergson"], GRADIENTS={"bergson": brute})
    row = next(line.split() for line in lines if line.startswith("bergson"))
    assert len(row) == 7 and 0 < float(row[-1]) < 1e-4


def test_log_probs_of_trl_are_those_that_are_compared(peers):
    *_, ours, lm_eval, trl = peers("--only", "score", installed=["trl"])
    assert "not installed" in lm_eval and ours.startswith("lmdyn")
    name, _, seconds, ratio, *_, difference = trl.split()
    assert name == "trl" and float(seconds) > 0 and float(ratio) > 0
    assert float(difference) < 1e-6


def test_a_peer_that_disagrees_or_fails_is_told_and_not_timed(peers):
    def other(model):
        return lambda x: 1.01 * entk(model, x).numpy()

    def broken(*_):
        raise RuntimeError("two\nlines")

    def other_later(model):
        return lambda x: (1 if len(x) == 8 else np.nan) * entk(model, x).numpy()

    for made, told in (
        (other, "ValueError: 1.0e-02 of the largest number away, so it is not timed"),
        (other_later, "nan of the largest number away, so its time is not shown"),
    ):
        lines = peers("--only", "entk", "--images", "9", installed=["nngeometry"], nngeometry=made)
        assert lines[-1].split(maxsplit=1) == ["nngeometry", told]
    two = {"installed": ["bergson"], "GRADIENTS": {"bergson": broken}}
    *_, kronfluence, bergson = peers("--only", "influence", **two)
    assert "pip install kronfluence" in kronfluence
    assert bergson.split(maxsplit=1) == ["bergson", "RuntimeError: two lines"]
