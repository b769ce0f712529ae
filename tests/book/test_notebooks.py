"""The house rules of the book: what every committed notebook must be."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent.parent
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[0].isdigit()]

_spec = importlib.util.spec_from_file_location("address", BOOK / "address.py")
address = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(address)

INSTALL = f"""\
# On Colab: fetch the book and install lmdyn. Colab's own torch is kept.
import importlib.util
import os

if importlib.util.find_spec("lmdyn") is None:
    !git clone {address.address()}
    %pip install -q "./lmdyn[book]"
if os.path.isdir("lmdyn/book"):
    %cd -q lmdyn/book"""

# Paths of one machine, and addresses in its memory.
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|usr|opt|mnt|work|Users)/\S*|\S*site-packages\S*|at 0x[0-9a-f]{6,}"
)


# Each rule takes a notebook and yields one line for everything that breaks it.


def executed_in_order(notebook):
    counts = [cell.execution_count for cell in _code(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: run book/execute.py"


def without_errors(notebook):
    for cell, output in _outputs(notebook):
        if output.output_type == "error":
            yield f"{cell.id} fails: {output.ename}"
        if output.get("name") == "stderr":
            yield f"{cell.id} writes to stderr: {output.text[:80]}"


def with_plain_metadata(notebook):
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    known = {"kernelspec", "language_info", "accelerator", "colab"}  # the last two ask for a GPU
    if more := notebook.metadata.keys() - known:
        yield f"{', '.join(sorted(more))} metadata"
    if notebook.metadata.get("colab", {}).keys() - {"gpuType"}:
        yield "Colab metadata that asks for no GPU"


def free_of_machine_paths(notebook):
    for cell, output in _outputs(notebook):
        texts = [output.get("text", "")]
        texts += [v for kind, v in output.get("data", {}).items() if "png" not in kind]
        if found := MACHINE.search("\n".join(map(str, texts))):
            yield f"{cell.id} shows {found[0]}"


def installs_itself(notebook):
    title, install = notebook.cells[:2]
    if not title.source.startswith("# "):
        yield "the first cell is no title"
    if install.source != INSTALL or install.metadata.get("tags") != ["remove-cell"]:
        yield "the second cell is not the install cell"


def checked_by_tags(notebook):
    for cell in _code(notebook):
        if re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)", cell.source):
            yield f"{cell.id} has a check in a comment"
        if "nbval-check-output" in cell.metadata.get("tags", []) and not cell.outputs:
            yield f"{cell.id} checks an output that is not there"


def with_figures_described(notebook):
    for cell, output in _outputs(notebook):
        if any(kind.startswith("image/") for kind in output.get("data", {})):
            shown = cell.metadata.get("mystnb", {})
            figure, image = shown.get("figure", {}), shown.get("image", {})
            missing = [key for key in ("caption", "name") if not figure.get(key)]
            missing += [] if image.get("alt") else ["alt"]
            if missing:
                yield f"{cell.id} shows a figure without {', '.join(missing)}"


def opening_with_its_question(notebook):
    missing = [
        word
        for word in ("**Question.**", "**Answer.**", "**You need.**", "**Time.**")
        if word not in notebook.cells[0].source
    ]
    if missing:
        yield f"the first cell lacks {', '.join(missing)}"


def closing_with_its_claims(notebook):
    wanted = ["What was claimed, what was found", "Exercises", "Read next"]
    sources = [cell.source if cell.cell_type == "markdown" else "" for cell in notebook.cells]
    headings = re.findall(r"^## (.*)$", "\n".join(sources), re.M)
    if headings[-3:] != wanted:
        yield f"the last headings are {headings[-3:]}"
        return
    start = next(i for i, source in enumerate(sources) if f"## {wanted[0]}" in source)
    closing = new_notebook(cells=notebook.cells[start:])
    if not any(
        "ClaimTable(" in cell.source
        and "| verdict | claim |" in output.get("data", {}).get("text/markdown", "")
        for cell, output in _outputs(closing)
    ):
        yield "no computed ClaimTable in the last part"


def short_between_figures(notebook):
    """A cell of the lesson is at most 15 lines, and a figure comes after at most 30."""
    since = 0
    for cell in _code(notebook):
        if _shown(cell):
            lines = len(cell.source.splitlines())
            since += lines
            if lines > 15:
                yield f"{cell.id} shows {lines} lines of code: at most 15"
            if since > 30:
                yield f"{cell.id} is {since} lines of code from the figure before it: at most 30"
        if any(_pictures(output) for output in cell.outputs):
            since = 0


def folded_in_colab(notebook):
    """What the page folds, Colab folds too, under a title."""
    for cell in _code(notebook):
        if "hide-input" in cell.metadata.get("tags", []):
            if not cell.source.startswith("# @title "):
                yield f"{cell.id} is folded without a title"
            if cell.metadata.get("cellView") != "form":
                yield f"{cell.id} is folded here and not in Colab"


def told_in_sentences(notebook):
    """Numbers are told by `say` and tables, not by prints."""
    for cell, output in _outputs(notebook):
        if output.get("name") == "stdout" and _shown(cell, "remove-output", "hide-output"):
            if len(output.text.splitlines()) > 4:
                yield f"{cell.id} prints {len(output.text.splitlines())} lines"


def folding_solutions(notebook):
    for cell in notebook.cells:
        for block in re.findall(r":::\{solution-start\}.*?\n:::", cell.source, re.S):
            if ":class: dropdown" not in block:
                yield f"{cell.id} shows a solution: add ':class: dropdown'"


def _shown(cell, *other):
    return not {"hide-input", "remove-input", "remove-cell", "hide-cell", *other} & set(
        cell.metadata.get("tags", [])
    )


def _pictures(output):
    kinds = output.get("data", {})
    return any(k.startswith("image/") for k in kinds) or "lmdyn-explorer" in kinds.get(
        "text/html", ""
    )


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _outputs(notebook):
    return [(cell, output) for cell in _code(notebook) for output in cell.outputs]


RULES = [
    executed_in_order,
    without_errors,
    with_plain_metadata,
    free_of_machine_paths,
    installs_itself,
    checked_by_tags,
    with_figures_described,
]
LESSON_RULES = [short_between_figures, folded_in_colab, told_in_sentences, folding_solutions]
CHAPTER_RULES = [*RULES, opening_with_its_question, closing_with_its_claims, *LESSON_RULES]


def broken(notebook, rules):
    return {rule.__name__: lines for rule in rules if (lines := list(rule(notebook)))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    notebook = nbformat.read(path, as_version=4)
    assert broken(notebook, CHAPTER_RULES if path in CHAPTERS else RULES) == {}


def test_the_table_of_contents_names_every_notebook_and_every_page_exists():
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:root|file): (\S+)", toc))
    pages = {f"book/{path.stem}" for path in [*NOTEBOOKS, *BOOK.glob("*.md")]}
    assert named == pages


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_readme_and_landing_page_list_the_chapter(path):
    title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
    landing = nbformat.read(BOOK / "index.ipynb", as_version=4)
    link = f"[{title}]({address.address()}/blob/main/book/{path.name})"
    assert link in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"[{title}]({path.name})" in "\n".join(cell.source for cell in landing.cells)


def test_every_address_is_that_of_pyproject():
    assert address.main(ROOT, check=True) == []


# The rules themselves, on a small notebook that keeps them and on ways to break it.


@pytest.fixture
def chapter():
    figure = {"figure": {"caption": "It falls.", "name": "fig-a"}, "image": {"alt": "A curve."}}
    table = {"text/markdown": "| verdict | claim |"}
    cells = [
        new_markdown_cell(
            "# A title\n\n**Question.** Why?\n\n**Answer.** So.\n\n**You need.** Time.\n\n"
            "**Time.** 1 min."
        ),
        new_code_cell(INSTALL, metadata={"tags": ["remove-cell"]}),
        new_code_cell(
            "print('up')",
            metadata={"tags": ["nbval-check-output"]},
            outputs=[new_output("stream", name="stdout", text="up\n")],
        ),
        new_code_cell(
            "draw()",
            metadata={"mystnb": figure},
            outputs=[new_output("display_data", {"image/svg+xml": "<svg/>"})],
        ),
        new_markdown_cell("## What was claimed, what was found"),
        new_code_cell("ClaimTable(rows)", outputs=[new_output("display_data", table)]),
        new_code_cell("# @title Drawing", metadata={"tags": ["hide-input"], "cellView": "form"}),
        new_markdown_cell("## Exercises\n\n:::{solution-start} a\n:class: dropdown\n:::"),
        new_markdown_cell("## Read next"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for count, cell in enumerate(_code(notebook), 1):
        cell.execution_count = count
    return notebook


def test_a_good_chapter_breaks_no_rule(chapter):
    assert broken(chapter, CHAPTER_RULES) == {}


def _set(path, value):
    """A change that sets one entry, given as the keys that lead to it."""

    def change(notebook):
        *keys, last = path
        for key in keys:
            notebook = notebook[key]
        notebook[last] = value

    return change


@pytest.mark.parametrize(
    "rule, change",
    [
        ("executed_in_order", _set(["cells", 2, "execution_count"], 7)),
        ("executed_in_order", _set(["cells", 3, "execution_count"], None)),
        ("without_errors", _set(["cells", 3, "outputs"], [new_output("error", ename="KeyError")])),
        ("without_errors", _set(["cells", 2, "outputs", 0, "name"], "stderr")),
        ("with_plain_metadata", _set(["metadata", "kernelspec", "name"], "my-env")),
        ("with_plain_metadata", _set(["metadata", "jupytext"], {"formats": "ipynb,py"})),
        ("with_plain_metadata", _set(["metadata", "colab"], {"provenance": []})),
        ("free_of_machine_paths", _set(["cells", 2, "outputs", 0, "text"], "in /home/me/a.py\n")),
        ("free_of_machine_paths", _set(["cells", 2, "outputs", 0, "text"], "<f at 0x7f00aa12>\n")),
        ("free_of_machine_paths", _set(["cells", 3, "outputs", 0, "data", "text/html"], "/tmp/x")),
        (
            "installs_itself",
            _set(["cells", 0, "source"], "**Question.** **Answer.** **You need.** **Time.**"),
        ),
        ("installs_itself", _set(["cells", 1, "source"], "%pip install lmdyn")),
        ("installs_itself", _set(["cells", 1, "metadata", "tags"], [])),
        ("checked_by_tags", _set(["cells", 2, "outputs"], [])),
        ("checked_by_tags", _set(["cells", 3, "source"], "# NBVAL_SKIP\ndraw()")),
        ("with_figures_described", _set(["cells", 3, "metadata", "mystnb", "image", "alt"], "")),
        ("with_figures_described", _set(["cells", 3, "metadata", "mystnb", "figure"], {})),
        ("with_figures_described", _set(["cells", 3, "metadata"], {})),
        ("opening_with_its_question", _set(["cells", 0, "source"], "# A title")),
        ("closing_with_its_claims", _set(["cells", 4, "source"], "## Summary")),
        ("closing_with_its_claims", _set(["cells", 8, "source"], "## Read next\n## More")),
        ("closing_with_its_claims", _set(["cells", 5, "source"], "table")),
        ("closing_with_its_claims", _set(["cells", 5, "outputs"], [])),
        ("short_between_figures", _set(["cells", 2, "source"], "\n".join("x" * 16))),
        ("short_between_figures", _set(["cells", 5, "source"], "ClaimTable(\n" + "x\n" * 15 + ")")),
        ("folded_in_colab", _set(["cells", 6, "source"], "draw()")),
        ("folded_in_colab", _set(["cells", 6, "metadata"], {"tags": ["hide-input"]})),
        ("told_in_sentences", _set(["cells", 2, "outputs", 0, "text"], "up\n" * 5)),
        (
            "folding_solutions",
            _set(["cells", 7, "source"], "## Exercises\n:::{solution-start} a\n:::"),
        ),
    ],
)
def test_each_rule_can_be_broken(chapter, rule, change):
    change(chapter)
    assert list(broken(chapter, CHAPTER_RULES)) == [rule]


@pytest.fixture
def tree(tmp_path):
    """A small copy of the repository, as far as addresses go."""
    (tmp_path / "book").mkdir()
    for path in [ROOT / "pyproject.toml", *address.places(ROOT)]:
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.relative_to(ROOT)).write_text(text, encoding="utf-8")
    return tmp_path


def test_a_new_address_is_copied_everywhere(tree):
    pyproject = tree / "pyproject.toml"
    old = address.address(tree)
    named = 'Repository = "{}"'.format
    text = pyproject.read_text().replace(named(old), named("https://git.example/me/dyn"))
    pyproject.write_text(text)
    names = [path.relative_to(tree).as_posix() for path in address.places(tree)]
    assert [line.split()[0] for line in address.main(tree, check=True)] == names
    assert [line.split()[0] for line in address.main(tree)] == names  # now they are rewritten
    assert address.main(tree, check=True) == []
    short = "/".join(old.split("/")[-2:])
    for path in address.places(tree):
        assert short not in path.read_text(encoding="utf-8")
    config = (tree / "_config.yml").read_text(encoding="utf-8")
    assert "  baseurl: https://me.github.io/dyn # " in config  # and what follows stays
    assert "lmdyn.github.io" not in config


def test_the_pages_may_have_an_address_of_their_own(tree):
    pyproject = tree / "pyproject.toml"
    text = pyproject.read_text().replace(
        "[project.urls]\n", '[project.urls]\nDocumentation = "https://dyn.example"\n'
    )
    pyproject.write_text(text)
    assert address.main(tree)[0].startswith("_config.yml")
    assert "  baseurl: https://dyn.example # " in (tree / "_config.yml").read_text()


def test_a_file_that_lost_its_address_is_named(tree):
    (tree / "CITATION.cff").write_text("title: lmdyn\n")
    assert address.main(tree, check=True) == ["CITATION.cff names no address of the repository"]
