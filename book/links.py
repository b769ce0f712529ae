"""Check the links of the built pages: `python book/links.py [FOLDER]` (``_build/html`` by default).

Whatever a page links to or shows must be there, each anchor included, and so must the files of the
repository that it names. Other addresses are not fetched; they only must be whole.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import address

ALLOWED = {"https", "mailto", "data"}


class Page(HTMLParser):
    """The anchors of a page and the addresses in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links = {"", "top"}, set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.anchors |= {named[key] for key in ("id", "name") if named.get(key)}
        self.links |= {named[key] for key in ("href", "src", "poster") if named.get(key)}


def wrong(link: str, page: Path, pages: dict[Path, Page], root: Path, known: dict) -> str:
    """What is wrong with a link of a page; empty if nothing is."""
    for prefix, folder in known.items():  # public addresses of what lies here
        if link.startswith(prefix):
            target = folder / unquote(urlsplit(link.removeprefix(prefix)).path)
            return "" if target.exists() else f"{target} is not there"
    at = urlsplit(link)
    if at.scheme:
        whole = at.scheme in ALLOWED and (at.scheme != "https" or "." in at.netloc)
        return "" if whole and " " not in link else "is no whole https address"
    target = (page.parent / unquote(at.path)).resolve() if at.path else page
    if not target.is_file() or root not in target.parents:
        return "is not there"
    found = target not in pages or unquote(at.fragment) in pages[target].anchors
    return "" if found else "has no such anchor"


def broken(root: Path, known: dict) -> list[str]:
    """A line for each broken link below a folder; ``known``: public address → folder."""
    root = root.resolve()
    found = (path for path in sorted(root.rglob("*.html")) if path.parent.name != "_static")
    pages = {path: Page(path) for path in found}  # in _static lie templates
    if not pages:
        return [f"{root} has no pages"]
    links = [(path, link) for path, page in pages.items() for link in sorted(page.links)]
    told = ((path, link, wrong(link, path, pages, root, known)) for path, link in links)
    return [f"{path.relative_to(root)}: {link} {what}" for path, link, what in told if what]


if __name__ == "__main__":
    root, owner = Path(*sys.argv[1:2] or ["_build/html"]), address.address()
    colab = owner.replace("https://github.com", "https://colab.research.google.com/github")
    files = {f"{url}/blob/main/": address.ROOT for url in (owner, colab)}
    lines = broken(root, {address.pages() + "/": root, **files})
    sys.exit("\n".join(lines) or print("every link of the pages leads somewhere"))
