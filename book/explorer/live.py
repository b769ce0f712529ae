"""The squeeze explorer as ipywidgets. Shows what `explorer.steps` computes, computes nothing."""

import io

import ipywidgets as widgets
from matplotlib.figure import Figure

import figures
from explorer.steps import PRESET_NAMES, PRESETS, SLIDERS, Exploration, Setting, explore

NAMES = {
    "p_y_before": "label y, before",
    "p_y_after": "label y, after",
    "top": "most confident other label",
    "top_before": "its probability, before",
    "top_after": "its probability, after",
    "moved": "mass that moved",
    "share": "share of it to that label",
    "gaining": "other labels that gain",
    "line": "squeeze line, first order",
    "exact_line": "squeeze line, exact",
}
WIDE = {"description_width": "120px"}


class SqueezeExplorer(widgets.VBox):
    """Controls, figure, verdict and numbers.

    Attributes:
        controls: name → the slider or switch.
        readouts: name of `Exploration.numbers` → the label that shows it.
        result: the `Exploration` on show.
    """

    def __init__(self):
        self.controls = {
            "peakiness": _slider(widgets.FloatSlider, "peakiness", "peakiness"),
            "y": _slider(widgets.IntSlider, "y", "label pushed, y"),
            "p_y": _slider(widgets.FloatLogSlider, "log10_p_y", "its probability"),
            "direction": widgets.RadioButtons(
                options=[("negative: push y down", -1), ("positive: push y up", 1)],
                description="sign of the step",
                style=WIDE,
            ),
            "step_size": _slider(widgets.FloatSlider, "step_size", "step size, η′"),
            "steps": _slider(widgets.IntSlider, "steps", "steps"),
            "log": widgets.Checkbox(description="logarithmic axis", indent=False),
        }
        self.readouts = {name: widgets.Label() for name in NAMES}
        self.verdict = widgets.HTML()
        self.figure = widgets.Image(format="svg+xml", layout={"max_width": "720px"})
        presets = []
        for key, setting in PRESETS.items():
            button = widgets.Button(description=PRESET_NAMES[key], layout={"width": "auto"})
            button.on_click(lambda _, setting=setting: self.place(setting))
            presets.append(button)
        numbers = [
            widgets.HBox([widgets.Label(text, layout={"width": "190px"}), self.readouts[name]])
            for name, text in NAMES.items()
        ]
        super().__init__(
            [
                widgets.HBox(presets, layout={"flex_flow": "row wrap"}),
                self.figure,
                widgets.HBox(
                    [widgets.VBox(list(self.controls.values())), widgets.VBox(numbers)],
                    layout={"flex_flow": "row wrap"},
                ),
                self.verdict,
            ]
        )
        self.place(next(iter(PRESETS.values())))
        for control in self.controls.values():
            control.observe(lambda _: self._placing or self.refresh(), names="value")

    def place(self, setting: Setting) -> None:
        """Move every control to a setting."""
        position = vars(setting) | {
            "step_size": abs(setting.lr),
            "direction": -1 if setting.lr < 0 else 1,
            "log": self.controls["log"].value,
        }
        self._placing = True  # one refresh for all, not one for each
        for name, control in self.controls.items():
            control.value = position[name]
        self._placing = False
        self.refresh()

    def refresh(self) -> None:
        """Compute and show what the controls say."""
        at = {name: control.value for name, control in self.controls.items()}
        self.result = explore(
            at["peakiness"], at["y"], at["p_y"], at["direction"] * at["step_size"], at["steps"]
        )
        for name, value in self.result.numbers().items():
            self.readouts[name].value = f"{value:.6g}"
        self.verdict.value = f"<b>{self.result.verdict()}</b>"
        self.figure.value = _draw(self.result, at["log"])


def widget() -> SqueezeExplorer:
    """The explorer for a live notebook: the same controls and numbers, computed by lmdyn."""
    return SqueezeExplorer()


def _slider(kind, name, description):
    low, high, step = vars(SLIDERS[name]).values()
    return kind(
        value=10**low if kind is widgets.FloatLogSlider else low,
        min=low,
        max=high,
        step=step,
        description=description,
        readout_format="d" if kind is widgets.IntSlider else ".3g",
        style=WIDE,
        layout={"width": "360px"},
    )


def _draw(result: Exploration, log: bool) -> bytes:
    figure = Figure(figsize=(7.2, 3.4), layout="none")  # fixed margins: twice as fast
    ax = figure.add_axes((0.1, 0.15, 0.88, 0.74))
    figures.probabilities(
        result.before, result.after, result.y, line=result.exact_line, log=log, ax=ax
    )
    ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=5, fontsize=9, frameon=False)
    svg = io.BytesIO()
    figure.savefig(svg, format="svg")
    return svg.getvalue()
