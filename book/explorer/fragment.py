"""An explorer as HTML: one self-contained fragment, which needs no kernel and no network.

All but one slider lives in a shadow tree, so that neither styles nor ids meet those of the page
around it, and any number of explorers can share a page. The slider stands in the page, where what
looks for controls finds it. Numbers carry their full double precision in ``data-value`` attributes.
"""

import json
import zlib
from pathlib import Path


class Page:
    """A fragment of HTML that a notebook shows as it is."""

    def __init__(self, title: str, html: str):
        self._title, self._html = title, html

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return f"{self._title}: open this notebook where HTML outputs are shown."


def fragment(kind: str, title: str, slider: tuple[str, str], config: dict) -> Page:
    """The page of ``kind.html`` and ``kind.js``.

    Args:
        kind: label, zoo or tokens.
        title: what it is called where it cannot be shown.
        slider: name and label of the slider that stands in the page.
        config: what the script is given.
    """
    text = json.dumps(config, ensure_ascii=False, separators=(",", ":"))
    key = f"{kind}-{zlib.crc32(text.encode()):08x}"  # the script starts its own, and no other
    tree = json.dumps(f"<style>{_asset('card.css')}</style>{_asset(f'{kind}.html')}")
    given = ", ".join(part.replace("</", "<\\/") for part in (f'"{key}"', text, tree))
    name, label = slider
    return Page(
        title,
        f"<style>{_asset('theme.css')}</style>\n"
        f'<div class="lmdyn-explorer" data-explorer="{key}"><p>{title} needs JavaScript.</p>'
        f'<input slot="slider" type="range" name="{name}" aria-label="{label}" disabled></div>\n'
        f"<script>\n({_asset('kit.js')})({given}, {_asset(f'{kind}.js')});\n</script>",
    )


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8").strip()
