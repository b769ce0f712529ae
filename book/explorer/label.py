"""The squeeze explorer as HTML: JavaScript computes the same as `explorer.steps`."""

import math

from explorer.fragment import Page, fragment
from explorer.steps import N_LABELS, PRESET_NAMES, PRESETS, SLIDERS, Setting


def page() -> Page:
    """The step on one label as one self-contained fragment of HTML.

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
    return fragment("label", "The squeeze explorer", ("y", "Label pushed, y"), config)


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
