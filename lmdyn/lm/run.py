"""Train a model as a recipe says: every stage in its own folder, each from where the last ended.

    recipe.yaml     the recipe in full
    0-sft/          what `finetune` keeps of the first stage: trajectory, last checkpoint
    1-dpo/          of the second

A stage of several rounds has a folder for each, and its trajectory over all of them beside.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from lmdyn.checks import check_different
from lmdyn.lm.data import PAPERS, ProbeSet, as_probes, load_probes, with_all
from lmdyn.lm.files import replacing
from lmdyn.lm.log_probs import LogProbs
from lmdyn.lm.models import load
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.recipe import Data, Probes, Recipe, Stage, read
from lmdyn.lm.tokens import begin_alike, encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory

_ON_POLICY = ("rounds", "max_new_tokens", "temperature")


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Trajectory]:
    """Train as a recipe says.

    In several processes (``accelerate launch -m lmdyn run …``) each takes some rows of every
    update, and some of the probes; the first one writes and tells. Each has the whole model, or,
    with ``accelerate launch --use_fsdp``, a part of every layer's weights, gradients and optimizer
    states: then all score all the probes, in step. Of accelerate's other FSDP settings none is
    read.

    Args:
        recipe: from `lmdyn.lm.recipe.read`.
        out: the folder of the run.
        resume: go on with the run in ``out`` where it stopped; begin if there is none.
        progress: as for `finetune`.
        tell: called with a heading and a summary of each stage, as they come.

    Returns:
        One `Trajectory` a stage.

    Raises:
        ValueError: a folder that holds a run already, or one of another recipe (it names the
            key); rows or settings that a stage refuses, before the first one begins.
        OSError: a folder that cannot be written, before anything is loaded.

    Example:
        >>> import tempfile
        >>> from lmdyn.lm.recipe import read
        >>> quick = read("tiny-sft", ["stages.0.max_steps=1", "probes.limit=2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run(quick, folder)
        [Trajectory(2 probings of 4 prompts × 13 types, 1 updates)]
    """
    state = _processes(recipe)
    device = recipe.device
    if state.num_processes > 1:  # a whole model may not fit where a part of it is to go
        device = "cpu"
    out = Path(out)
    _begin(out, recipe, resume, state)
    rows, probes = load_rows(recipe.data), recipe.probes and load_probe_rows(recipe)
    model, tokenizer = load(recipe.model, device, recipe.dtype)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    check_stages(model, tokenizer, recipe, rows)

    trajectories = []
    for number, stage in enumerate(recipe.stages):
        if tell and state.is_main_process:
            tell(f"{number}-{stage.name}: {stage.get_loss()!r}")
        folder = out / f"{number}-{stage.name}"
        settings = {
            "probes": probes,
            "mixed_precision": recipe.mixed_precision,
            "seed": recipe.seed,
            "out": folder,
            "resume": resume,
            "progress": progress,
        }
        trajectories.append(_train(model, tokenizer, stage, rows, settings))
        if stage.rounds and state.is_main_process:
            trajectories[-1].save(folder / "trajectory")
        if tell and state.is_main_process:
            tell(trajectories[-1].summary())
    return trajectories


def checkpoint_activations(model) -> None:
    """Compute each layer's activations a second time, in the backward pass, and keep its input."""
    name = "activation_checkpointing_enable"  # the other name leaves with transformers 6
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def load_rows(data: Data) -> ProbeSet:
    """The rows to learn; of the paper's files those alone that have both responses.

    One rejected response of the paper's HH is blank. A row of anybody else's that lacks one is
    refused by the stage that reads it.
    """
    rows = load_probes(data.source, split=data.split, limit=data.limit)
    if data.source in PAPERS:
        rows = rows[[i for i, row in enumerate(rows) if "rejected" in row]]
    return _cut(rows, data)


def load_probe_rows(recipe: Recipe) -> ProbeSet:
    """What is scored on the way."""
    wanted: Probes = recipe.probes
    found = load_probes(wanted.source or recipe.data.source, wanted.types, split=wanted.split)
    if wanted.limit is not None:
        parts = [found.split(name).rows[: wanted.limit] for name in ("train", "test")]
        found = ProbeSet(sum(parts, ()), found.types, found.format)
    return _cut(found, recipe.data)


def _cut(rows: ProbeSet, data: Data) -> ProbeSet:
    lengths = {name: getattr(data, name) for name in ("max_length", "max_prompt")}
    given = {name: value for name, value in lengths.items() if value is not None}
    return ProbeSet(rows.rows, rows.types, replace(rows.format, **given))


def stage_rows(stage: Stage, rows: ProbeSet) -> ProbeSet:
    """What a stage learns of the rows, with the responses that it reads."""
    if stage.both:
        return _both(rows)
    if stage.rounds:  # rejected is sampled
        return rows
    keys = [stage.response if name == "chosen" else name for name in stage.get_loss().responses]
    return with_all(rows, keys, stage.loss)


def _both(rows: ProbeSet) -> ProbeSet:
    """Each chosen response, then each rejected one, as ``chosen``: the paper's extend."""
    pairs = with_all(rows, ["chosen", "rejected"], "both")
    chosen = [{"prompt": row["prompt"], "chosen": row["chosen"]} for row in pairs]
    as_written = rows.format.as_written
    rejected = [
        {
            "prompt": row["prompt"],
            "chosen": row["rejected"] if as_written else begin_alike(row, row["rejected"]),
        }
        for row in pairs
    ]
    return as_probes([*chosen, *rejected], ["chosen"], rows.format)


def check_stages(model, tokenizer, recipe: Recipe, rows: ProbeSet) -> None:
    """Refuse what a later stage would refuse, before hours have gone into the first.

    Raises:
        ValueError: a row without a response that a stage reads, or longer than the model's
            context; a pair of equal responses. It names the stage and the row.
    """
    for number, stage in enumerate(recipe.stages):
        if stage.rounds:
            continue  # its pairs are not there yet
        loss = stage.get_loss()
        keys = {name: stage.response if name == "chosen" else name for name in loss.responses}
        try:
            with warnings.catch_warnings(action="ignore"):  # finetune warns of what is cut
                encoded = encode(tokenizer, stage_rows(stage, rows))
            LogProbs(model, encoded, keys)
            check_different(encoded, keys, loss)
        except ValueError as error:
            raise ValueError(f"stages.{number} ({stage.name}): {error}") from None


def _train(model, tokenizer, stage: Stage, rows: ProbeSet, settings: dict) -> Trajectory:
    own = asdict(stage)
    for name in ("name", "loss", "hyper", "both"):
        del own[name]
    sampling = {name: own.pop(name) for name in _ON_POLICY}
    learn, loss = stage_rows(stage, rows), stage.get_loss()
    if stage.rounds is None:
        return finetune(model, tokenizer, learn, loss, **own, **settings)
    return finetune_on_policy(model, tokenizer, learn, loss, **sampling, **own, **settings)


def _processes(recipe: Recipe):
    """Who of how many this process is."""
    from accelerate import PartialState

    state = PartialState(cpu=recipe.device == "cpu")
    if state.num_processes == 1:
        return state
    for number, stage in enumerate(recipe.stages):
        if stage.rounds:
            raise ValueError(
                f"stages.{number} ({stage.name}) has rounds, which sample in one process: launch "
                "one, or leave rounds out"
            )
    return state


def _begin(out: Path, recipe: Recipe, resume: bool, state) -> None:
    """Write recipe.yaml, unless the folder is not this run's."""
    file = out / "recipe.yaml"
    has_begun = any(any(out.glob(f"{stage}/settings.json")) for stage in ("*", "*/round-0"))
    if has_begun and not resume:
        raise ValueError(f"{out} holds a run already: add --resume to go on, or another --out")
    if has_begun and not file.is_file():
        raise ValueError(
            f"{out} holds runs, but no recipe.yaml to go on with: choose another --out"
        )
    if has_begun and (differ := recipe.differences(read(file))):
        raise ValueError(
            f"{out} is a run of another recipe: {', '.join(differ)}; resume with what it "
            "began with, or choose another --out"
        )
    state.wait_for_everyone()  # until each process has read what the first writes over
    if not state.is_main_process:
        return
    try:
        with replacing(file) as temporary:
            temporary.write_text(recipe.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise OSError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
