import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_its_prediction_holds(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(code.splitlines()) <= 10
    torch.manual_seed(0)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    step = names["step"]
    # The remainder is of second order: small beside the change itself.
    assert (step.predicted - step.measured).norm() < 0.05 * step.measured.norm()
    assert capsys.readouterr().out.endswith("torch.Size([3, 1, 5, 5])\n")


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
