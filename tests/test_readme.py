import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from lmdyn import lm

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_its_prediction_holds(capsys):
    code, *_ = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.splitlines()) <= 10
    torch.manual_seed(0)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    step = names["step"]
    # The remainder is of second order: small beside the change itself.
    assert (step.predicted - step.measured).norm() < 0.05 * step.measured.norm()
    assert capsys.readouterr().out.endswith("torch.Size([3, 1, 5, 5])\n")


@pytest.mark.slow
def test_the_language_model_example_runs(capsys):
    _, code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    change, who, run = names["change"], names["who"], names["run"]
    # The step was predicted by forward mode, the influence from the layers: the same thing.
    np.testing.assert_allclose(1e-4 * who[0], change.logp, rtol=1e-3, atol=1e-6)
    assert run.mean("chosen")[-1] > run.mean("chosen")[0]
    assert "chosen" in capsys.readouterr().out


@pytest.mark.slow
def test_the_callback_runs_in_a_trainer_of_trl(tmp_path):
    import trl
    from datasets import Dataset

    *_, code = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.splitlines()) == 6
    model, tokenizer = lm.load("tiny")
    keys = ("prompt", "chosen", "rejected")
    pairs = [{key: f" {row[key]}" for key in keys} for row in lm.load_probes("world", limit=8)]
    data = Dataset.from_list(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own
        args = trl.DPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            precompute_ref_log_probs=True,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
        )
        names = {"eval_dataset": data, "tokenizer": tokenizer, "lm": lm}
        names["trainer"] = trl.DPOTrainer(
            model, args=args, train_dataset=data, processing_class=tokenizer
        )
        exec(compile(code, "README.md", "exec"), names)
    log = names["trainer"].state.log_history
    assert [e["step"] for e in log if "lmdyn/chosen" in e] == [0, 2]


def test_the_plain_commands_are_those_of_the_makefile():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    makefile = makefile.replace("$(IN_ORDER)", "book")  # its chapters, the longest first
    for command in ("jupyter-book build", "pytest"):
        lines = re.findall(rf"^{command} .*$", README, re.M)
        assert lines
        for line in lines:
            assert line in makefile, f"the Makefile does not run: {line}"


def test_every_file_it_links_to_exists():
    inside = "https://github.com/lmdyn/lmdyn/blob/main/"  # where PyPI shows it, no other link leads
    assert not re.findall(r"\]\((?!http)([^)]+)\)", README)
    links = re.findall(rf"\]\({inside}([^)]+)\)", README)
    assert len(links) >= 6
    for link in links:
        assert (Path(__file__).parent.parent / link.partition("#")[0]).exists(), link
