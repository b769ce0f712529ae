"""One page about a run: what happened to the responses, and what to do."""

from pathlib import Path

from lmdyn.lm._report_model import look_at_models
from lmdyn.lm._report_page import Listing, Part, Section, render
from lmdyn.lm._report_parts import parts_of
from lmdyn.lm._report_runs import Run, find_runs
from lmdyn.lm._report_words import verdict
from lmdyn.lm.files import replacing

POINTS = 240  # of a curve, over all runs on the page: more makes it large and shows no more
NO_MODELS = (
    "Where single tokens' probability went, what the model says before and after, and which pairs "
    "push good answers down are not here: they take the weights and the rows. Give "
    "--rows FILE.jsonl for the last checkpoint, and --model NAME, the model that the run began "
    "with, to have it before the run as well: python -m lmdyn report DIR --model NAME --rows FILE."
)


def report(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    model: str | None = None,
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
        rows: the rows for that, as `load_probes` takes them. With rows alone, it is about the
            last checkpoint.
        device: of the models.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
        ValueError: a file of the run, or rows, that cannot be read; a model without rows; rows
            without a model, where the run left no checkpoint.
        ImportError: matplotlib is not installed, or, for an adapter, peft.

    Example:
        >>> report("runs/dpo", model="tiny", rows="pairs.jsonl")  # doctest: +SKIP
    """
    folder = Path(folder)
    runs = find_runs(folder)
    models = look_at_models(runs, model, rows, device) or [Part("Not looked at", [NO_MODELS])]
    points = max(20, POINTS // len(runs))
    sections = []
    for run in runs:
        judged = verdict(run.trajectory)
        sections.append(Section(run.name or "Verdict", parts_of(run, judged, points), judged))
    sections.append(Section("The model before and after", models))
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        text = recipe.read_text(encoding="utf-8", errors="replace")
        sections.append(Section("Recipe", [Part(recipe.name, [Listing(text)])]))
    page = render(f"Report: {folder.resolve().name}", _about(runs), sections)
    out = folder / "report.html" if out is None else Path(out)
    with replacing(out) as temporary:
        # A prompt can hold half a surrogate pair, which no file can.
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    return out


def _about(runs: list[Run]) -> str:
    meta = runs[-1].trajectory.meta
    settings = meta.get("settings", {})
    said = [
        f"{len(runs)} stages" if len(runs) > 1 else "",
        meta.get("model", ""),
        settings.get("loss", meta.get("trainer", "")),
        meta.get("hardware", ""),
        meta.get("date", ""),
    ]
    return " · ".join(str(thing) for thing in said if thing)
