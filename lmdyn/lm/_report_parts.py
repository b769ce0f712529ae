"""The parts of a report that need a run's record alone."""

import json

import numpy as np

from lmdyn.lm import _report_figures as figures
from lmdyn.lm._report_page import Drawing, Part, Table
from lmdyn.lm._report_runs import Run
from lmdyn.lm._report_words import Verdict
from lmdyn.lm.trajectory import Trajectory

MAIN_LOG = {"loss": "loss", "lr": "learning rate", "learning_rate": "learning rate"}
MAIN_LOG |= {"grad_norm": "gradient norm"}


def parts_of(run: Run, judged: Verdict, points: int) -> list[Part]:
    """All of them; a curve has at most so many points."""
    probed = [_curves(run, judged, points), _mass(run, points)] if run.trajectory.steps.size else []
    return [*probed, _log(run, points), _settings(run)]


def _curves(run: Run, judged: Verdict, points: int) -> Part:
    trajectory = run.trajectory
    both = {"train", "test"} <= set(trajectory.split)
    splits = ["train", "test"] if both else [None]
    curves = Part("Log-probabilities")
    if run.left_out:
        curves.content.append(
            f"{run.left_out} prompts were not probed every time, to stay within the probes' "
            "budget: this page is about the others."
        )
    if "joined" in trajectory.meta:
        began = ", ".join(map(str, trajectory.meta["joined"]))
        curves.content.append(f"Later rounds, with pairs sampled anew, began at updates {began}.")
    if len(trajectory.steps) > 1:
        marks = [judged.alerts[-1].since, judged.alerts[0].step] if judged.alerts else []
        ends = ", ".join(
            f"{name} {_number(curve[-1] - curve[0], '+.2f')}"
            for name, curve in trajectory.mean().items()
        )
        caption = (
            "Change of the mean log-prob of each response type since the first probing"
            + (", on train prompts and on held-out ones. " if both else ". ")
            + ("Dotted: since when, and where the squeeze was first seen." if marks else "")
        )
        alt = (
            f"Line plot over {trajectory.steps[-1]} updates, change of log-prob in nats at the "
            f"end, all prompts: {ends}."
        )
        drawn = figures.log_probs(trajectory, splits, marks, points)
        curves.content.append(Drawing(*drawn, alt, caption.strip()))
    curves.content += [_summary(trajectory, split) for split in dict.fromkeys([None, *splits])]
    return curves


def _summary(trajectory: Trajectory, split: str | None) -> Table:
    """`Trajectory.summary`, as a table."""
    of = {None: "", "train": ", train", "test": ", held-out"}[split]
    rows = [
        (
            name,
            *(_number(x, ".2f") for x in (curve[0], curve[-1])),
            _number(curve[-1] - curve[0], "+.2f"),
            trajectory._turn(curve).replace("-", "−"),
        )
        for name, curve in trajectory.mean(split=split).items()
    ]
    header = trajectory.summary(split).splitlines()[0]
    return Table(f"{header}{of}", ("type", "first", "last", "change", "turn"), rows)


def _mass(run: Run, points: int) -> Part:
    """Probabilities along the responses, as far as a trajectory has them."""
    trajectory = run.trajectory
    rows, panels = [], {}
    for r, name in enumerate(trajectory.types):
        squeeze = trajectory.squeeze[..., r]
        # Of the likeliest token the sum of logs is recorded, hence a geometric mean over tokens.
        label, top = (
            _over_prompts(np.exp(values[..., r] / trajectory.n_tokens[:, r]))
            for values in (trajectory.logp, trajectory.argmax_logp)
        )
        below = _over_prompts(np.where(np.isnan(squeeze), np.nan, squeeze > 0))
        cells = [(label, ".3f"), (top, ".3f")]
        cells += [(trajectory.mean(name, stat), ".3f") for stat in ("label_prob", "prob_sq")]
        cells += [(trajectory.mean(name, "squeeze"), "+.3f"), (below, ".0%")]
        rows.append((name, *(_ends(curve, form) for curve, form in cells)))
        if name in ("chosen", "rejected"):
            panels[name] = {("the label", name): label, ("the likeliest", "argmax"): top}
    part = Part("Where probability is")
    if panels and len(trajectory.steps) > 1:
        ends = "; ".join(
            f"{name}: " + ", ".join(f"{key} {_ends(y, '.3f')}" for (key, _), y in series.items())
            for name, series in panels.items()
        )
        caption = (
            "Probability of the response's own token, the label, and of the likeliest token there: "
            "geometric mean over tokens, mean over prompts. The gap is what the model would rather "
            "say."
        )
        alt = f"Line plots of probability over updates, first → last. {ends}."
        drawn = figures.masses(trajectory.steps, panels, points)
        part.content.append(Drawing(*drawn, alt, caption))
    for key, text in (
        ("lmdyn/valley", "Share of rejected tokens below the squeeze line"),
        ("lmdyn/argmax_gain", "Gain of the likeliest token along rejected, mean over tokens"),
    ):
        if key in run.log:
            part.content.append(f"{text}: {_ends(run.log[key][1], '.3f')}.")
    part.content.append(
        "π_y is the probability of the response's own token, ‖π‖² the sum of all squared "
        "probabilities there. A response lies in a valley where ‖π‖² − π_y is positive: pushing it "
        "down moves mass to the likeliest tokens."
    )
    head = ("type", "π_y, geometric mean", "likeliest token, geometric mean", "π_y", "‖π‖²")
    head += ("‖π‖² − π_y", "responses in a valley")
    caption = "Mean over the tokens of each response, then over the prompts, first → last"
    part.content.append(Table(caption, head, rows))
    return part


def _log(run: Run, points: int) -> Part:
    part = Part("Log of the training")
    if not run.log:
        part.content.append(
            "None was found: a trainer writes it into its checkpoints (trainer_state.json)."
        )
        return part
    shown = {MAIN_LOG[key]: curve for key, curve in run.log.items() if key in MAIN_LOG}
    if shown:
        ends = "; ".join(f"{name} {_ends(y, '.3g')}" for name, (_, y) in shown.items())
        most = max(len(y) for _, y in shown.values())
        caption = "What the training logged, over updates."
        if most > points:
            caption += f" Each point is a mean over about {round(most / points)} updates."
        alt = f"Line plots, first → last: {ends}."
        part.content.append(Drawing(*figures.log(shown, points), alt, caption))
    rows = [
        (key, str(len(y)), *(_number(v, ".4g") for v in (y[0], y[-1], y.min(), y.max())))
        for key, (_, y) in run.log.items()
    ]
    head = ("quantity", "entries", "first", "last", "least", "most")
    part.content.append(Table("All that was logged", head, rows))
    return part


def _settings(run: Run) -> Part:
    meta = run.trajectory.meta
    part = Part("Settings and surroundings")
    if run.ended is False:
        part.content.append(
            "The run has not come to its end: this is its record up to the last checkpoint."
        )
    told = {**meta.get("settings", {}), **run.trainer}
    if told:
        rows = [(key, _text(value)) for key, value in told.items()]
        part.content.append(Table("Settings", ("setting", "value"), rows, prose=True))
    rest = {key: value for key, value in meta.items() if key != "settings"}
    rest["checkpoint"] = run.checkpoint.name if run.checkpoint else "none in the folder"
    versions = rest.pop("versions", {})
    rest |= {f"version of {name}": value for name, value in versions.items()}
    rows = [(key, _text(value)) for key, value in rest.items()]
    part.content.append(Table("Surroundings", ("what", "value"), rows, prose=True))
    return part


def _over_prompts(values: np.ndarray) -> np.ndarray:
    """(S,) mean over the prompts that have the type; NaN where none has."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(1, dtype=np.float64)
    return np.where(there.any(1), total / np.maximum(there.sum(1), 1), np.nan)


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form).replace("-", "−")


def _ends(values: np.ndarray, form: str) -> str:
    return f"{_number(values[0], form)} → {_number(values[-1], form)}"


def _text(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
