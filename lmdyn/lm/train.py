"""One training loop for every loss, which records what the paper watches."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from lmdyn import losses
from lmdyn.checks import check_count
from lmdyn.lm._checkpoint import RunFolder, fingerprint, fingerprint_model
from lmdyn.lm._guards import (
    check_different,
    check_finite,
    check_same_vocabulary,
    check_weights,
)
from lmdyn.lm._sharded import as_forward, is_asked_for, is_sharded, shard, whole
from lmdyn.lm.data import ProbeSet, as_probes, with_all
from lmdyn.lm.environment import environment
from lmdyn.lm.forward import evaluating
from lmdyn.lm.log_probs import LogProbs
from lmdyn.lm.processes import together
from lmdyn.lm.score import score
from lmdyn.lm.settings import OPTIMIZERS, Plan
from lmdyn.lm.tokens import encode
from lmdyn.lm.trajectory import STATS, Recorder, Trajectory


def finetune(
    model: nn.Module,
    tokenizer,
    rows: ProbeSet | Iterable[Mapping[str, str]],
    loss: str | losses.Loss = "sft",
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    response: str = "chosen",
    ref: nn.Module | None = None,
    spare_valleys: bool = False,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    accumulate: int = 1,
    clip: float | None = 1.0,
    warmup: int = 0,
    max_steps: int | None = None,
    mixed_precision: str = "no",
    seed: int = 0,
    probes: ProbeSet | Iterable[Mapping[str, str]] | None = None,
    probe_every: int | None = None,
    out: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Trajectory:
    """Finetune a model in place, and record how every probed response moves on the way.

    An update is a step on the mean over its rows of ``loss``, a function of each response's
    summed log-prob: for "sft" the mean over rows of −log π(y|x), a *sum* over tokens, as in the
    paper's code. ``batch_size`` rows pass through the model at once (in several processes:
    together), and ``accumulate`` such batches make an update. Every epoch has a fresh order; its
    last update may have fewer rows. On a CPU the same call gives the same trajectory, bit for
    bit. The paper's setting is ``optimizer="rmsprop"``, ``lr=5e-7``, ``warmup=150``,
    ``batch_size=4``, ``clip=10``.

    Several processes (``accelerate launch``) all call this with the same arguments, and all get
    the trajectory of one, up to rounding; the first one writes. They share out the rows and the
    probes, or, with ``--use_fsdp``, the rows and the weights, which stay so afterwards.

    Args:
        model: a Hugging Face causal language model; its weights change.
        tokenizer: its tokenizer.
        rows: what to learn, a `ProbeSet` or dicts with ``prompt``, ``chosen``, ….
        loss: a name that `lmdyn.losses.get` knows, or a `lmdyn.losses.Loss`.
        epochs: passes over the rows.
        lr: learning rate, after the warm-up.
        batch_size: rows in a forward pass.
        response: the key of the rows that takes the place of the loss's ``chosen``.
        ref: the reference model of a loss that needs one; the model as it comes, if not given.
            Its log-probs of the rows are computed once, before the first update.
        spare_valleys: let no gradient through the tokens of ``rejected`` that lie in a valley at
            that moment, π_y < ‖π‖²: those whose negative gradient would squeeze mass into a few
            other tokens (see `lmdyn.squeeze_line`). The value of the loss stays as it is.
        optimizer: "adamw", "sgd" or "rmsprop", with PyTorch's defaults for all that is not here.
        weight_decay: of the optimizer; decoupled for "adamw", added to the gradient for the rest.
        accumulate: batches in an update.
        clip: scale the gradient down to this norm; None for no clipping.
        warmup: updates over which the learning rate grows linearly.
        max_steps: stop after so many updates, if the epochs have more.
        mixed_precision: "no", or "bf16" to compute in bfloat16 with the weights as they are.
            Weights that are in half precision themselves lose most of a small update.
        seed: of the order of the rows, and of dropout.
        probes: what to score before the first update, every ``probe_every`` updates, and at the
            end: a `ProbeSet` or dicts.
        probe_every: updates between two probings; an epoch if not given.
        out: a folder that keeps the recipe, the trajectory and the last checkpoint.
        save_every: updates between two checkpoints; ``probe_every`` if not given.
        resume: go on with the run in ``out`` after its last checkpoint, given the same arguments
            and the model that it began with: the trajectory is that of a run never interrupted.
            A finished run gives its trajectory, and the model its weights.
        progress: show a bar with the loss and log π(y+); by default on a terminal only.

    Returns:
        The `Trajectory`; also in ``out``, as trajectory.npz and .json.

    Raises:
        ValueError: settings out of range, unknown names (with the nearest one), rows without a
            response that the loss reads or with equal ones, a reference model of another
            vocabulary, a folder that holds a run already or one of another recipe.
        FloatingPointError: a loss, a gradient or a log-prob is NaN or infinite. It names the
            update and its rows; the last good checkpoint stays.

    Example:
        >>> from lmdyn.lm import load, load_probes
        >>> model, tokenizer = load("tiny")
        >>> rows = load_probes("world", limit=8)
        >>> settings = {"epochs": 1, "lr": 1e-4, "batch_size": 4, "probes": rows}
        >>> run = finetune(model, tokenizer, rows, "dpo", **settings)
        >>> run
        Trajectory(2 probings of 8 prompts × 13 types, 2 updates)
        >>> change = run.mean("rejected")[-1] - run.mean("rejected")[0]  # nats
    """
    try:
        from accelerate import PartialState
    except ImportError:
        raise ImportError("finetune needs the package accelerate: pip install accelerate") from None
    loss = losses.get(loss) if isinstance(loss, str) else loss
    keys = {name: response if name == "chosen" else name for name in loss.responses}
    rows = with_all(as_probes(rows), tuple(keys.values()), str(loss))
    probes = None if probes is None else as_probes(probes)
    plan = Plan(
        n_rows=len(rows),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        optimizer=optimizer,
        weight_decay=weight_decay,
        accumulate=accumulate,
        clip=clip,
        warmup=warmup,
        max_steps=max_steps,
        mixed_precision=mixed_precision,
        seed=seed,
        probe_every=probe_every,
    )
    if probes is None and probe_every is not None:
        raise ValueError("probe_every without probes: pass probes too")
    if out is None and (resume or save_every is not None):
        raise ValueError(f"{'resume' if resume else 'save_every'} needs a folder: pass out")
    if ref is not None and not loss.needs_ref:
        raise ValueError(f"{loss} needs no reference model: leave ref out")
    if ref is not None:
        check_same_vocabulary(model, ref)
    if spare_valleys and "rejected" not in keys:
        raise ValueError(f"{loss} reads no rejected response: leave spare_valleys out")
    check_count("save_every", save_every, 1, optional=True)
    save_every = save_every or probe_every or plan.per_epoch
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no weight of the model requires a gradient: there is nothing to learn")

    processes = PartialState()
    rank, world = processes.process_index, processes.num_processes
    if world > 1 and is_asked_for():
        shard(model, processes.device)
    elif world > 1:
        model.to(processes.device)
    weights = [p for p in model.parameters() if p.requires_grad]
    # Who shares out the weights passes through them in step, so all do all the probing.
    share = (0, 1) if is_sharded(model) else (rank, world)
    encoded = encode(tokenizer, rows)
    check_different(encoded, keys, loss)
    spare = ["rejected"] if spare_valleys else []
    log_probs = LogProbs(model, encoded, keys, mixed_precision == "bf16", spare)
    settings = {
        "loss": repr(loss),
        "response": response,
        "spare_valleys": spare_valleys,
        **asdict(plan),
        "rows": fingerprint([[e.prompt, e.responses] for e in encoded]),
        "probes": probes and fingerprint([list(probes), probes.types, asdict(probes.format)]),
        "model": fingerprint_model(model),
        "ref": ref and fingerprint_model(ref),
    }
    size = sum(p.numel() for p in model.parameters())
    meta = {
        "settings": settings,
        "model": f"{type(model).__name__.removeprefix('FSDP')}, {size} parameters, {model.dtype}",
        "truncated": sum(len(e.truncated) for e in encoded),
        **environment(model.device),
        "resumed": [],
        "seconds": 0.0,
    }
    reference = {}
    if loss.needs_ref:
        reader = log_probs if ref is None else LogProbs(ref, encoded, keys, log_probs.bf16)
        with evaluating(reader):
            reference = reader.all(batch_size, *(share if ref is None else (rank, world)))
    step = OPTIMIZERS[optimizer](weights, lr=lr, weight_decay=weight_decay)
    recorder = Recorder(probes)
    folder = None if out is None else RunFolder(out, settings, resume, rank == 0)
    processes.wait_for_everyone()  # until each process has read what the first writes over
    if folder is not None:
        folder.begin()
    start = 0 if folder is None else folder.update
    if start:
        meta = folder.restore(model, step, recorder)
        if start == plan.updates:
            return recorder.trajectory(meta)
        meta["resumed"] = [*meta["resumed"], start]
    parallel = log_probs
    if world > 1 and not is_sharded(model):
        parallel = DistributedDataParallel(log_probs)

    began, spent = time.perf_counter(), meta["seconds"]
    names = [f"logp_{key}" for key in keys.values()]
    hidden = True if rank else None if progress is None else not progress
    bar = tqdm(
        total=plan.updates,
        initial=start,
        desc=type(loss).__name__,
        unit="update",
        delay=0 if progress else 2,
        disable=hidden,
    )
    with _borrowed(model), bar:
        for update in range(start, plan.updates + 1):
            if probes is not None and plan.is_probed(update) and not recorder.probed(update):
                scores = _score(model, tokenizer, probes, update, *share)
                recorder.probe(update, plan.examples(update), scores)
            if update == plan.updates:
                break

            torch.manual_seed(plan.randomness(update, rank))
            model.train()
            batches = plan.batches(update)
            found = _gradient(parallel, batches, loss, reference, log_probs.lengths, rank, world)
            norm = whole(clip_grad_norm_(weights, plan.clip or math.inf)).item()
            check_finite(update, plan.rows(update), found[0].tolist(), norm)
            # The weights that the last update left have now given finite losses: worth keeping.
            if folder and update > start and update % save_every == 0:
                meta["seconds"] = spent + time.perf_counter() - began
                folder.save(update, model, tokenizer, step, recorder.trajectory(meta))

            for group in step.param_groups:
                group["lr"] = plan.lr_at(update)
            step.step()
            step.zero_grad()
            mean_loss, *logps = found.mean(1).tolist()
            log = dict(zip(names, logps, strict=True))
            recorder.update(loss=mean_loss, lr=plan.lr_at(update), grad_norm=norm, **log)
            bar.set_postfix({"loss": mean_loss, **log}, refresh=False)
            bar.update()
    check_weights(weights, plan.updates, plan.rows(plan.updates - 1))
    meta["seconds"] = spent + time.perf_counter() - began
    if folder:
        folder.save(update, model, tokenizer, None, recorder.trajectory(meta))
    return recorder.trajectory(meta)


def _gradient(log_probs, batches, loss, reference, lengths, rank: int, world: int) -> Tensor:
    """Add up the gradient of the mean loss over the rows of an update.

    Returns:
        (1 + R, rows): the loss of each row, and the log-prob of each response that it reads.
    """
    total, seen, found = sum(len(rows) for rows in batches), 0, None
    for rows in batches:
        mine = rows[rank::world]
        some = mine or rows[:1]  # a process without a row takes part with weight 0
        is_last = seen + len(rows) == total  # when processes share their gradients
        apart = getattr(log_probs, "no_sync", nullcontext)  # FSDP has no room to wait
        with nullcontext() if is_last else apart():
            logps = log_probs(some)
            ref = {name: values[some] for name, values in reference.items()}
            values = loss.value(logps, ref, {name: n[some] for name, n in lengths.items()})
            # Gradients are averaged over processes, the loss over all rows.
            (values.sum() * (world * bool(mine) / total)).backward()
        if found is None:
            found = values.new_zeros(1 + len(logps), total)
        if mine:
            columns = slice(seen + rank, seen + len(rows), world)
            found[:, columns] = torch.stack([values, *logps.values()]).detach()
        seen += len(rows)
    if world > 1:
        torch.distributed.all_reduce(found)
    return found


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    """Leave no gradient in the model, and its mode and torch's random state as they were."""
    cuda = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(cuda):
        model.zero_grad()
        try:
            yield
        finally:
            model.zero_grad()


def _score(model, tokenizer, probes: ProbeSet, update: int, rank: int, n: int):
    """The probes' statistics, (N, R) each: n processes share them out, and all get all."""

    def find(rows: np.ndarray) -> dict[str, np.ndarray]:
        some = probes[rows.tolist()]
        scores = as_forward(model, score, model, tokenizer, some, progress=False)
        found = {name: getattr(scores, name) for name in (*STATS, "n_tokens")}
        return found | {"vocab_size": np.full(len(rows), float(scores.vocab_size))}

    try:
        found = together(np.arange(len(probes)), find, len(probes), rank, n)
    except ValueError as error:
        if update == 0:
            raise
        # They were fit to be scored before the first update.
        raise FloatingPointError(f"after update {update}: {error}; lower lr") from None
    return SimpleNamespace(**found | {"vocab_size": int(found["vocab_size"][0])})
