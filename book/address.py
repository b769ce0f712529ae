"""Copy the public address and the version from pyproject.toml to every file that names them.

`python book/address.py` rewrites them; with ``--check`` it only names the files that differ.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Three forms of an address: whole, of a file inside it, and only owner/name.
BEFORE = r"git\+|git clone |repository-code: |^repository:\n  url: "
WHOLE = re.compile(rf"({BEFORE})(https://[^\s\"\\`]+)", re.M)
INSIDE = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+(?=/(?:blob/main|issues)\b)")
SHORT = re.compile(r"(colab\.research\.google\.com/github/)([\w.-]+/[\w.-]+)")
PAGES = re.compile(r"^(  baseurl: )(\S+)", re.M)  # where the built book is published
VERSION = re.compile(r"^(version: ).*$", re.M)


def project(root: Path = ROOT) -> dict:
    """What pyproject.toml says about the project."""
    with (root / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def address(root: Path = ROOT) -> str:
    """The public address, as pyproject.toml gives it."""
    return project(root)["urls"]["Repository"]


def pages(root: Path = ROOT) -> str:
    """The public address of the built book: GitHub's for the repository, or pyproject.toml's."""
    urls = project(root)["urls"]
    owner, name = urls["Repository"].split("/")[-2:]
    return urls.get("Documentation", f"https://{owner.lower()}.github.io/{name}")


def with_address(text: str, url: str) -> str:
    """The text with every address in it replaced by ``url``.

    Raises:
        ValueError: the text names no address at all.
    """
    text, whole = WHOLE.subn(lambda m: m[1] + url, text)
    text, inside = INSIDE.subn(url, text)
    if not whole + inside:
        raise ValueError("names no address of the repository")
    return SHORT.sub(lambda m: m[1] + "/".join(url.split("/")[-2:]), text)


def places(root: Path = ROOT) -> list[Path]:
    """The files that name the address."""
    named = ["_config.yml", "CITATION.cff", "README.md", "pyproject.toml"]
    return [root / name for name in named] + sorted((root / "book").glob("*.ipynb"))


def main(root: Path = ROOT, check: bool = False) -> list[str]:
    """Rewrite the files, or only check them; returns one line for each that differs."""
    url, differing = address(root), []
    for path in places(root):
        name, old = path.relative_to(root), path.read_text(encoding="utf-8")
        try:
            new = with_address(old, url)
        except ValueError as error:
            differing.append(f"{name} {error}")
            continue
        new = PAGES.sub(lambda m: m[1] + pages(root), new)
        if path.suffix == ".cff":
            new = VERSION.sub(rf"\g<1>{project(root)['version']}", new)
        if new != old:
            differing.append(f"{name} names another address than {url}, or another version")
            if not check:
                path.write_text(new, encoding="utf-8")
    return differing


if __name__ == "__main__":
    check = "--check" in sys.argv[1:]
    lines = main(check=check)
    print("\n".join(lines) or "every address and version is that of pyproject.toml")
    sys.exit(bool(lines) and check)
