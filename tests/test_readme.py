import re
from pathlib import Path

import numpy as np
import torch

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_its_prediction_holds(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.splitlines()) <= 10
    torch.manual_seed(0)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    step = names["step"]
    # The remainder is of second order: small beside the change itself.
    assert (step.predicted - step.measured).norm() < 0.05 * step.measured.norm()
    assert capsys.readouterr().out.endswith("torch.Size([3, 1, 5, 5])\n")


def test_the_language_model_example_runs(capsys):
    _, code = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    change, who, run = names["change"], names["who"], names["run"]
    # The step was predicted by forward mode, the influence from the layers: the same thing.
    np.testing.assert_allclose(1e-4 * who[0], change.logp, rtol=1e-3, atol=1e-6)
    assert run.mean("chosen")[-1] > run.mean("chosen")[0]
    assert "chosen" in capsys.readouterr().out


def test_the_plain_commands_are_those_of_the_makefile():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for command in ("jupyter-book build", "pytest"):
        (line,) = re.findall(rf"^{command} .*$", README, re.M)
        assert line in makefile, f"the Makefile does not run: {line}"


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(links) >= 6
    for link in links:
        assert (Path(__file__).parent.parent / link).exists(), link
