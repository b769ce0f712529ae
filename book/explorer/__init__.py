"""The squeeze explorer: where does the mass go when one label is pushed?

One family of distributions and one set of numbers for what the paper calls the squeezing effect,
shown in two ways: `page` where no kernel runs, `widget` in a live notebook.
"""

from explorer.fragment import page
from explorer.live import widget
from explorer.steps import (
    N_LABELS,
    PRESET_NAMES,
    PRESETS,
    SLIDERS,
    Exploration,
    Setting,
    Slider,
    distribution,
    explore,
)

__all__ = [
    "N_LABELS",
    "PRESETS",
    "PRESET_NAMES",
    "SLIDERS",
    "Exploration",
    "Setting",
    "Slider",
    "distribution",
    "explore",
    "page",
    "widget",
]
