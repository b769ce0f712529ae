"""What is broken among the links of built pages is found, and nothing else."""

import pytest

from links import broken

HEAD = '<!doctype html><a href="#part">here</a><h2 id="part">Part</h2><a href="#">top</a>'


@pytest.fixture
def site(tmp_path):
    """Two pages and a picture, which is also where the public address leads to."""
    root = tmp_path / "html"
    (root / "book").mkdir(parents=True)
    (root / "a picture.png").write_bytes(b"")
    (root / "index.html").write_text('<a href="book/one.html#part">one</a>')

    def check(link):
        page = f"{HEAD}<img src='../a%20picture.png'>{link}"
        (root / "book" / "one.html").write_text(page)
        return broken(
            root, {"https://pages.example/": root, "https://host.example/blob/": tmp_path}
        )

    return check


@pytest.mark.parametrize(
    "link",
    [
        '<a href="../index.html">',
        '<a href="one.html#part">',
        '<a href="one.html?highlight=a#part">',
        '<a href="https://elsewhere.example/paper#part">',
        '<a href="mailto:someone@elsewhere.example">',
        '<img src="data:image/png;base64,AAAA">',
        '<a href="https://pages.example/book/one.html">',
        '<a href="https://host.example/blob/html/index.html">',
        "<code>&lt;a href='nowhere.html'&gt;</code>",
    ],
)
def test_what_leads_somewhere_passes(site, link):
    assert site(link) == []


@pytest.mark.parametrize(
    ("link", "what"),
    [
        ('<a href="two.html">', "is not there"),
        ('<img src="two.svg">', "is not there"),
        ('<script src="two.js"></script>', "is not there"),
        ('<a href="../..">', "is not there"),
        ('<a href="#Part">', "has no such anchor"),
        ('<a href="../index.html#part">', "has no such anchor"),
        ('<a href="http://elsewhere.example">', "is no whole https address"),
        ('<a href="https://elsewhere">', "is no whole https address"),
        ('<a href="https://else where.example">', "is no whole https address"),
        ('<a href="javascript:alert(1)">', "is no whole https address"),
        ('<a href="https://pages.example/two.html">', "is not there"),
        ('<a href="https://host.example/blob/two.py">', "is not there"),
    ],
)
def test_what_leads_nowhere_is_named(site, link, what):
    (line,) = site(link)
    assert line.startswith("book/one.html: ") and line.endswith(what)


def test_a_folder_without_pages_is_no_book(tmp_path):
    assert broken(tmp_path, {}) == [f"{tmp_path.resolve()} has no pages"]
