"""The label explorer as ipywidgets. Shows what `explorer.steps` computes, computes nothing."""

import io

import ipywidgets as widgets
from matplotlib.figure import Figure

import figures
from explorer.steps import PRESETS, SLIDERS, Exploration, Setting, explore

NAMES = {"p_y_before": "label y, before", "p_y_after": "label y, after"}
NAMES |= {"top": "most confident other label", "top_before": "its probability, before"}
NAMES |= {"top_after": "its probability, after", "moved": "mass that moved"}
NAMES |= {"share": "share of it to that label", "gaining": "other labels that gain"}
NAMES |= {"line": "squeeze line, first order", "exact_line": "squeeze line, exact"}


class SqueezeExplorer(widgets.VBox):
    """Controls, figure, verdict and numbers.

    Attributes:
        controls: name → the slider or switch.
        readouts: name in `Exploration.numbers` → the label that shows it.
        result: the `Exploration` on show.
    """

    def __init__(self):
        signs = [("push y down", -1), ("push y up", 1)]
        self.controls = {
            "direction": widgets.ToggleButtons(options=signs),
            "y": _slider(widgets.IntSlider, "y", "label pushed, y"),
            "steps": _slider(widgets.IntSlider, "steps", "steps"),
            "step_size": _slider(widgets.FloatSlider, "step_size", "step size, η′"),
            "p_y": _slider(widgets.FloatLogSlider, "log10_p_y", "probability of y"),
            "peakiness": _slider(widgets.FloatSlider, "peakiness", "peakiness"),
            "log": widgets.Checkbox(True, description="logarithmic axis", indent=False),
        }
        self.readouts = {name: widgets.Label() for name in NAMES}
        self.verdict = widgets.HTML()
        self.figure = widgets.Image(format="svg+xml", layout={"max_width": "720px"})
        presets = [widgets.Button(description=name, layout={"width": "auto"}) for name in PRESETS]
        for button, setting in zip(presets, PRESETS.values(), strict=True):
            button.on_click(lambda _, setting=setting: self.place(setting))
        numbers = [
            widgets.HBox([widgets.Label(text, layout={"width": "190px"}), self.readouts[name]])
            for name, text in NAMES.items()
        ]
        columns = [widgets.VBox([*self.controls.values()]), widgets.VBox(numbers)]
        wrap = {"flex_flow": "row wrap"}
        above, below = widgets.HBox(presets, layout=wrap), widgets.HBox(columns, layout=wrap)
        super().__init__([above, self.figure, self.verdict, below])
        self.place(next(iter(PRESETS.values())))
        for control in self.controls.values():
            control.observe(lambda _: self._placing or self.refresh(), names="value")

    def place(self, setting: Setting) -> None:
        """Move every control to a setting."""
        direction = -1 if setting.lr < 0 else 1
        position = vars(setting) | {"step_size": abs(setting.lr), "direction": direction}
        self._placing = True  # one refresh for all, not one for each
        for name in self.controls.keys() & position:
            self.controls[name].value = position[name]
        self._placing = False
        self.refresh()

    def refresh(self) -> None:
        """Compute and show what the controls say."""
        at = {name: control.value for name, control in self.controls.items()}
        log, lr = at.pop("log"), at.pop("direction") * at.pop("step_size")
        self.result = explore(lr=lr, **at)
        for name, value in self.result.numbers.items():
            self.readouts[name].value = f"{value:.6g}"
        self.verdict.value = f"<b>{self.result.verdict()}</b>"
        self.figure.value = _draw(self.result, log)


def widget() -> SqueezeExplorer:
    """The explorer for a live notebook: the same controls and numbers, computed by lmdyn."""
    return SqueezeExplorer()


def _slider(kind, name, description):
    low, high, step = SLIDERS[name]
    log, whole = kind is widgets.FloatLogSlider, kind is widgets.IntSlider
    at = {"value": 10**low if log else low, "min": low, "max": high, "step": step}
    look = {"style": {"description_width": "120px"}, "layout": {"width": "360px"}}
    return kind(**at, **look, description=description, readout_format="d" if whole else ".3g")


def _draw(result: Exploration, log: bool) -> bytes:
    figure = Figure(figsize=(7.2, 3.4), layout="none")  # fixed margins: twice as fast
    ax, line = figure.add_axes((0.1, 0.15, 0.88, 0.74)), result.numbers["exact_line"]
    figures.probabilities(result.before, result.after, result.y, line=line, log=log, ax=ax)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=5, fontsize=9, frameon=False)
    svg = io.BytesIO()
    figure.savefig(svg, format="svg")
    return svg.getvalue()
