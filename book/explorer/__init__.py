"""Things to touch: where mass goes, what a loss asks for, which token moves which.

`page` (one label and a softmax; `widget` in a live notebook), `zoo` and `tokens` are fragments of
HTML that need no kernel.
"""

from explorer.label import page
from explorer.live import widget
from explorer.pairs import zoo
from explorer.steps import PRESETS, SLIDERS, Setting, distribution, explore
from explorer.words import tokens

__all__ = ["PRESETS", "SLIDERS", "Setting", "distribution", "explore"]
__all__ += ["page", "tokens", "widget", "zoo"]
