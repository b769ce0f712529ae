"""One page about a run: what happened to the responses, and what to do.

The page and its words are in ``page.html.j2``; the code here fills it.
"""

import json
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from lmdyn.lm.diagnose import FLAGS
from lmdyn.lm.files import replacing
from lmdyn.lm.generate import repeated
from lmdyn.lm.report import figures
from lmdyn.lm.report.models import look_at_models
from lmdyn.lm.report.runs import Run, find_runs, is_noise, judge
from lmdyn.lm.trajectory import Trajectory

TITLES = {None: "", "train": "train prompts", "test": "held-out prompts"}
LOGGED = {"loss": "loss", "lr": "learning rate", "learning_rate": "learning rate"}
LOGGED |= {"grad_norm": "gradient norm"}


def report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    model: str | Path | None = None,
    rows: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Write one self-contained HTML page about a run.

    It opens with a verdict in plain words: what happened to the chosen and the rejected responses
    and to the likeliest tokens, whether that is a squeeze, since when, and what to do. Below are
    the curves, the probabilities along the tokens, the log and the settings.

    Args:
        folder: what ``finetune(out=…)`` or `finetune_on_policy` wrote, the ``output_dir`` of a
            trainer that had a `ProbeCallback`, or a folder of such folders, the stages of a run.
        out: the page; report.html in the folder if not given.
        model: the model that the run began with, as `load` takes it: with ``rows``, the page
            tells where single tokens' probability went, what the model answers before and after,
            and which pairs push good answers down (see `diagnose`). A checkpoint that is an
            adapter (LoRA) is merged into it, or into the model that the adapter itself names.
        rows: the rows for that, as `load_probes` takes them; alone, for the last checkpoint.
        device: of the models.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a file of the run, or rows, that cannot be read; a model without rows; rows
            without a model, where the run left no checkpoint.
        ImportError: for an adapter, peft is not installed.

    Example:
        >>> report("runs/dpo", model="tiny", rows="pairs.jsonl")  # doctest: +SKIP
    """
    folder = Path(folder)
    runs = find_runs(folder)
    models = look_at_models(runs, model, rows, device)
    recipe = folder / "recipe.yaml"
    page = _template().render(
        title=folder.resolve().name,
        runs=[_view(run) for run in runs],
        models=models,
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None,
        flags=FLAGS,
        logged=LOGGED,
    )
    out = folder / "report.html" if out is None else Path(out)
    with replacing(out) as temporary:
        # A prompt can hold half a surrogate pair, which no file can.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return out


def _view(run: Run) -> dict:
    """What the page shows of a run: itself, the verdict on it, its figures."""
    trajectory, verdict, n = run.trajectory, judge(run.trajectory), len(run.trajectory.steps)
    shown = np.unique(np.linspace(0, n - 1, min(n, figures.MOST)).round().astype(int))
    along = {name: _along(trajectory, r) for r, name in enumerate(trajectory.types)}
    changes, probabilities = {}, {}
    if n > 1:
        for split in list(verdict["moved"])[-2:]:
            means = trajectory.mean(split=split).items()
            known = {name: y[shown] - y[0] for name, y in means if np.isfinite(y).all()}
            changes[TITLES[split]] = known
        for name in [name for name in ("chosen", "rejected") if name in along]:
            probabilities[name] = {key: y[shown] for key, y in along[name].items()}
    seen = verdict["alerts"]
    marks = [seen[-1].since, seen[0].step] if seen else []
    logged = {LOGGED[key]: curve for key, curve in run.log.items() if key in LOGGED}
    return {
        "run": run,
        "verdict": verdict,
        "along": along,
        "log_probs": figures.log_probs(trajectory.steps[shown], changes, marks),
        "probabilities": figures.probabilities(trajectory.steps[shown], probabilities),
        "log": figures.log(logged),
        "each": round(max((len(y) for _, y in logged.values()), default=0) / figures.MOST),
    }


def _along(trajectory: Trajectory, r: int) -> dict[str, np.ndarray]:
    """Of the tokens of a type, (S,) means over the prompts; NaN where no prompt has it."""
    squeeze = trajectory.squeeze[..., r]
    found = {  # of the likeliest token the sum of logs is recorded, hence geometric means
        "label": np.exp(trajectory.logp[..., r] / trajectory.n_tokens[:, r]),
        "likeliest": np.exp(trajectory.argmax_logp[..., r] / trajectory.n_tokens[:, r]),
        "valley": np.where(np.isnan(squeeze), np.nan, squeeze > 0),
    }
    known = {key: np.ma.masked_invalid(of.astype(np.float64)) for key, of in found.items()}
    return {key: of.mean(1).filled(np.nan) for key, of in known.items()}


def _template() -> Template:
    here = FileSystemLoader(Path(__file__).parent)
    clean = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=here, autoescape=True, undefined=StrictUndefined, **clean)
    environment.tests["noise"] = is_noise
    environment.filters["number"] = _number
    environment.filters["ends"] = lambda y, form: " → ".join(_number(y[i], form) for i in (0, -1))
    environment.filters["plain"] = _plain
    environment.filters["repeated"] = repeated
    return environment.get_template("page.html.j2")


def _number(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value, form).replace("-", "−")


def _plain(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
