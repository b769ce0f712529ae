"""The page "Import it": its examples run, from top to bottom, and print what is written there."""

import re
from pathlib import Path

import pytest
from pages import check

import lmdyn
from lmdyn import lm
from lmdyn.__main__ import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "book" / "import_it.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^### `(.*)`$", TEXT, re.M)


@pytest.mark.slow
def test_every_example_prints_what_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the folders of the runs
    check("import_it.md", 30)


def test_there_are_ten_calls_each_with_an_example_that_makes_it():
    assert len(CALLS) == 10
    sections = re.split(r"^### .*$", TEXT, flags=re.M)[1:]
    for call, section in zip(CALLS, sections, strict=True):
        blocks = re.findall(r"```python\n(.*?)```", section, re.S)
        assert f"{call.removeprefix('lmdyn.')}(" in blocks[-1]
        assert all(2 <= len(re.findall(r"^(?:>>>|\.\.\.) ", b, re.M)) <= 10 for b in blocks)
        found = {"lm": lm, "lmdyn": lmdyn}[call.split(".")[0]]
        for name in call.split(".")[1:]:
            assert name in getattr(found, "__all__", dir(found))
            found = getattr(found, name)
        told = re.findall(r"^- \*(.*?)\* ", section, re.M)
        assert told in (["Use it", what, "Explained in"] for what in ("Returns", "Logs"))


def test_the_table_leads_to_each_call_and_every_link_to_a_page():
    assert re.findall(r"^\| .* \| \[`(.*)`\]", TEXT, re.M) == CALLS
    targets = re.findall(r"^\((.*)\)=\n### ", TEXT, re.M)
    assert re.findall(r"^\|.*\]\(#(.*?)\) \|$", TEXT, re.M) == targets
    assert set(re.findall(r"\]\(#(.*?)\)", TEXT)) == set(targets)
    for page in re.findall(r"\]\(([^#)]*)\)", TEXT):
        assert (ROOT / "book" / page).is_file(), page


@pytest.mark.parametrize("command", re.findall(r"^python -m lmdyn (\S+)", TEXT, re.M))
def test_every_command_is_there(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0 and capsys.readouterr().out.startswith("usage:")
