"""The squeeze explorer as HTML: JavaScript computes the same as `explorer.steps`."""

import math

from explorer.fragment import Page, fragment
from explorer.steps import N_LABELS, PRESETS, SLIDERS, Setting


def page() -> Page:
    """The step on one label as one self-contained fragment of HTML.

    Example:
        >>> page()
        The squeeze explorer: open this notebook where HTML outputs are shown.
    """
    sliders = {name: slider._asdict() for name, slider in SLIDERS.items()}
    presets = [{"key": name, "name": name, "position": _position(x)} for name, x in PRESETS.items()]
    config = {"n_labels": N_LABELS, "sliders": sliders, "presets": presets}
    return fragment("label", "The squeeze explorer", ("y", "Label pushed, y"), config)


def _position(setting: Setting) -> dict[str, float]:
    """Where the controls stand for this setting."""
    return {
        "peakiness": setting.peakiness,
        "y": setting.y,
        "log10_p_y": round(math.log10(setting.p_y), 2),
        "step_size": abs(setting.lr),
        "direction": 1 if setting.lr > 0 else -1,
        "steps": setting.steps,
    }
