"""One page about a run: ``page.html.j2`` has its words, the code here fills it."""

from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lmdyn.lm.diagnose import FLAGS
from lmdyn.lm.generate import repeated
from lmdyn.lm.records import replacing
from lmdyn.lm.report import figures
from lmdyn.lm.report.models import look_at_models
from lmdyn.lm.report.runs import find_runs, in_order, is_noise, judge, logged
from lmdyn.lm.trajectory import Trajectory


def report(
    folder: str | Path, out: str | Path | None = None, *, model=None, rows=None, device="auto"
) -> Path:
    """Write one self-contained HTML page about a run, and return its path.

    It opens with a verdict in plain words: whether the run squeezed, since when, and what to do.
    Below are the curves, the probabilities along the tokens, the log and the settings.

    Args:
        folder: what ``finetune(out=…)`` or `finetune_on_policy` wrote, the ``output_dir`` of a
            trainer that had a `ProbeCallback`, or a folder of such folders, the stages of a run.
        out: the page; report.html in the folder if not given.
        model: the model that the run began with, as `load` takes it; an adapter that the run left
            is merged into it, or into the model that the adapter names.
        rows: as `load_probes` takes them. With them the page tells, of ``model`` and of the last
            checkpoint, where single tokens' probability went, what they answer, and which pairs
            push good answers down (see `diagnose`).
        device: of the models.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a file or rows that cannot be read; a model without rows, or rows without any.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    runs = [_view(where.relative_to(folder), *of) for where, *of in find_runs(folder)]
    if not runs:
        raise FileNotFoundError(
            f"no run in {folder}: there is no trajectory.npz, which finetune(out=…) writes with "
            "its first checkpoint, and ProbeCallback into lmdyn in the trainer's output_dir"
        )
    recipe = folder / "recipe.yaml"
    page = _PAGES.get_template("page.html.j2").render(
        title=folder.resolve().name,
        runs=runs,
        models=look_at_models(runs, model, rows, device),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None,
    )
    out = folder / "report.html" if out is None else Path(out)
    with replacing(out) as temporary:
        # A prompt can hold half a surrogate pair, which no file can.
        temporary.write_bytes(page.encode(errors="replace"))
    return out


def _view(where: Path, whole: Trajectory, home: Path) -> dict:
    """What the page shows of a run: its record, and the verdict on it."""
    trajectory, (log, settings) = whole.complete(), logged(whole, home)
    checkpoint = max(home.glob("checkpoint-*[0-9]"), key=in_order, default=None)
    return {
        "name": " ".join(where.parts),
        "trajectory": trajectory,
        "left_out": len(whole.split) - len(trajectory.split),
        "log": log,
        "settings": settings,
        "checkpoint": checkpoint,
        "unfinished": whole.updates and checkpoint and any(checkpoint.glob("optimizer*")),
        "verdict": judge(trajectory),
        "along": _along(trajectory),
    }


def _along(trajectory: Trajectory) -> dict[str, dict[str, np.ndarray]]:
    """Type → what is known of its tokens → (S,) means over the prompts that have it."""
    found = {  # of the likeliest token the sum of logs is recorded, hence geometric means
        "label": np.exp(trajectory.logp / trajectory.n_tokens),
        "likeliest": np.exp(trajectory.argmax_logp / trajectory.n_tokens),
        "valley": np.heaviside(trajectory.squeeze, 0),
    }
    known = np.ma.masked_invalid(np.array([*found.values()], np.float64))  # (3, S, N, R)
    means = known.mean(2).filled(np.nan)
    names = enumerate(trajectory.types)
    return {name: dict(zip(found, means[..., r], strict=True)) for r, name in names}


_PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
_PAGES.undefined, _PAGES.trim_blocks, _PAGES.lstrip_blocks = StrictUndefined, True, True
_PAGES.globals |= {"figures": figures, "flags": FLAGS, "is_noise": is_noise, "repeated": repeated}
