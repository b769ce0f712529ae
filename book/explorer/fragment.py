"""The squeeze explorer as HTML: JavaScript computes the same as `explorer.steps`."""

import json
import math
from pathlib import Path

from explorer.steps import N_LABELS, PRESET_NAMES, PRESETS, SLIDERS, Setting


class Page:
    """A fragment of HTML that a notebook shows as it is."""

    def __init__(self, html: str):
        self._html = html

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return "The squeeze explorer: open this notebook where HTML outputs are shown."


def page() -> Page:
    """The explorer as one self-contained fragment of HTML, with no kernel and no network.

    Everything lives in a shadow tree, so that neither styles nor ids meet those of the page
    around it, and any number of explorers can share a page. The numbers on the page carry their
    full double precision in ``data-value`` attributes.

    Returns:
        An object that a notebook displays.

    Example:
        >>> page()
        The squeeze explorer: open this notebook where HTML outputs are shown.
    """
    config = {
        "n_labels": N_LABELS,
        "sliders": {name: vars(slider) for name, slider in SLIDERS.items()},
        "presets": [
            {"key": key, "name": PRESET_NAMES[key], "position": _position(setting)}
            for key, setting in PRESETS.items()
        ],
    }
    tree = f"<style>{_asset('page.css')}</style>{_asset('page.html')}"
    return Page(
        f"<style>{_asset('theme.css')}</style>\n"
        '<div class="lmdyn-explorer"><p>The squeeze explorer needs JavaScript. In a live notebook, '
        "<code>explorer.widget()</code> does without.</p></div>\n"
        f"<script>\n({_asset('page.js')})({_script(config)}, {_script(tree)});\n</script>"
    )


def _position(setting: Setting) -> dict[str, float]:
    """Where the controls stand for this setting."""
    return {
        "peakiness": setting.peakiness,
        "y": setting.y,
        "log10_p_y": round(math.log10(setting.p_y), 2),
        "step_size": abs(setting.lr),
        "direction": int(math.copysign(1, setting.lr)),
        "steps": setting.steps,
    }


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8").strip()


def _script(value) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/")
