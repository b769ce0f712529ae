"""The squeeze explorer as HTML: JavaScript computes the same as `explorer.steps`."""

import math

from explorer.fragment import Page, fragment
from explorer.steps import N_LABELS, PRESETS, SLIDERS


def page() -> Page:
    """The step on one label as one self-contained fragment of HTML.

    Example:
        >>> page()
        The squeeze explorer: open this notebook where HTML outputs are shown.
    """
    sliders = {name: slider._asdict() for name, slider in SLIDERS.items()}
    presets = []
    for name, setting in PRESETS.items():
        position = {k: v for k, v in vars(setting).items() if k not in ("p_y", "lr")}
        position["log10_p_y"] = round(math.log10(setting.p_y), 2)
        position |= {"step_size": abs(setting.lr), "direction": 1 if setting.lr > 0 else -1}
        presets.append({"key": name, "name": name, "position": position})
    config = {"n_labels": N_LABELS, "sliders": sliders, "presets": presets}
    return fragment("label", "The squeeze explorer", ("y", "Label pushed, y"), config)
