"""Train a model as a recipe says: every stage in its own folder, each from where the last ended.

    recipe.yaml     the recipe in full
    0-sft/          what `finetune` keeps of the first stage: trajectory, last checkpoint
    1-dpo/          of the second

A stage of several rounds has a folder for each, and its trajectory over all of them beside.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import disable_fsdp_ram_efficient_loading

from lmdyn.checks import check_different
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.files import replacing
from lmdyn.lm.log_probs import LogProbs
from lmdyn.lm.models import load
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.recipes.reading import read
from lmdyn.lm.recipes.schema import Recipe, Stage
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory


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
    update, and the first one writes and tells; with ``--use_fsdp`` they share out the weights.

    Args:
        recipe: from `read`.
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
        >>> quick = read("tiny-sft", ["stages.0.max_steps=1", "probes.limit=2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run(quick, folder)
        [Trajectory(2 probings of 4 prompts × 13 types, 1 updates)]
    """
    state, out = PartialState(cpu=recipe.device == "cpu"), Path(out)
    is_alone = state.num_processes == 1
    _check_folder(out, recipe, resume)
    rows, probes = recipe.load_rows(), recipe.load_probe_rows()
    if not is_alone:  # a whole model may not fit where a part of it is to go: finetune moves it
        disable_fsdp_ram_efficient_loading()
    model, tokenizer = load(recipe.model, recipe.device if is_alone else "cpu", recipe.dtype)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    _check_stages(model, tokenizer, recipe, rows, is_alone)
    state.wait_for_everyone()  # until each process has read what the first writes over
    if state.is_main_process:
        with replacing(out / "recipe.yaml") as temporary:
            temporary.write_text(recipe.to_yaml(), encoding="utf-8")

    tell = tell if tell and state.is_main_process else lambda text: None
    trajectories = []
    for number, stage in enumerate(recipe.stages):
        tell(f"{number}-{stage.name}: {stage.get_loss()!r}")
        folder = out / f"{number}-{stage.name}"
        options = {"probes": probes, "out": folder, "resume": resume, "progress": progress}
        trajectory = _train(model, tokenizer, stage, rows, options)
        if stage.rounds:
            trajectory.save(folder / "trajectory")
        trajectories.append(trajectory)
        tell(trajectory.summary())
    return trajectories


def _train(model, tokenizer, stage: Stage, rows: ProbeSet, options: dict) -> Trajectory:
    arguments = (model, tokenizer, stage.rows(rows), stage.get_loss())
    options = stage.settings() | options
    if stage.rounds is None:
        return finetune(*arguments, **options)
    sampling = {name: getattr(stage, name) for name in ("rounds", "max_new_tokens", "temperature")}
    return finetune_on_policy(*arguments, **sampling, **options)


def checkpoint_activations(model) -> None:
    """Compute each layer's activations a second time, in the backward pass, and keep its input."""
    name = "activation_checkpointing_enable"  # the other name leaves with transformers 6
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _check_stages(model, tokenizer, recipe: Recipe, rows: ProbeSet, is_alone: bool) -> None:
    """Refuse what a later stage would refuse, before hours have gone into the first."""
    for number, stage in enumerate(recipe.stages):
        try:
            if stage.rounds and not is_alone:
                raise ValueError("rounds sample in one process: launch one, or leave rounds out")
            if stage.rounds:
                continue  # its pairs are not there yet
            with warnings.catch_warnings(action="ignore"):  # finetune warns of what is cut
                encoded = encode(tokenizer, stage.rows(rows))
            LogProbs(model, encoded, stage.keys())
            check_different(encoded, stage.keys(), stage.get_loss())
        except ValueError as error:
            raise ValueError(f"stages.{number} ({stage.name}): {error}") from None


def _check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Refuse a folder that is not this run's, or cannot be written."""
    if (out / "recipe.yaml").is_file():
        if not resume:
            raise ValueError(f"{out} holds a run already: add --resume to go on, or another --out")
        if differ := recipe.differences(read(out / "recipe.yaml")):
            raise ValueError(
                f"{out} is a run of another recipe: {', '.join(differ)}; resume with what it "
                "began with, or choose another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot write to {out}: {error.strerror}; choose another --out"
        raise OSError(message) from None
