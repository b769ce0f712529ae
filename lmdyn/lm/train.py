"""One training loop for every loss, which records what the paper watches."""

import math
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from lmdyn import losses
from lmdyn.checks import check_different, check_same_vocabulary, trainable
from lmdyn.lm.checkpoint import RunFolder, fingerprint, fingerprint_model, fingerprint_probes
from lmdyn.lm.data import ProbeSet, Rows, as_probes, read_by
from lmdyn.lm.forward import evaluating
from lmdyn.lm.processes import as_forward, is_sharded, place, together, whole
from lmdyn.lm.records import environment
from lmdyn.lm.settings import OPTIMIZERS, Plan
from lmdyn.lm.tokens import encode
from lmdyn.lm.trajectory import Recorder, Trajectory
from lmdyn.lm.ways import LogProbs, ways


def finetune(
    model: nn.Module,
    tokenizer,
    rows: Rows,
    loss: str | losses.Loss = "sft",
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    probes: Rows | None = None,
    ref: nn.Module | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    **settings,
) -> Trajectory:
    """Finetune a model in place, and record how every probed response moves on the way.

    An update is a step on the mean over its rows of ``loss``, a function of each response's
    log-prob, *summed* over tokens, or of each token's; of a loss `of_batch`, on the sum over a
    batch. The model as it comes counts as the one that sampled (rows as in `sgd_direction`). The
    paper's code has ``optimizer="rmsprop"``, ``lr=5e-7``, ``warmup=150``, ``batch_size=4``,
    ``clip=10``. On a CPU the same call gives the same trajectory, bit for bit; several processes
    (``accelerate launch``) get that of one, up to rounding. They share out the rows and the probes,
    or, with ``--use_fsdp``, the rows and the weights.

    Args:
        model: a Hugging Face causal language model with its ``tokenizer``; its weights change.
        rows: what to learn, a `ProbeSet` or dicts with ``prompt``, ``chosen``, ….
        loss: a loss of `lmdyn.losses`, or its name.
        epochs, lr, batch_size, settings: see `lmdyn.lm.settings.Settings`.
        probes: rows to score before the first update, every ``probe_every``, and at the end.
        ref: the reference model of a loss that needs one; the model as it comes, if not given.
        out: a folder that keeps recipe, trajectory and last checkpoint, of adapters these alone.
        resume: go on with the run in ``out``, from the same arguments and model that it began with.
        progress: show a bar with the loss and log π(y+); by default on a terminal only.

    Raises:
        ValueError: settings, rows, a ``ref`` or a folder that do not fit.
        FloatingPointError: a loss, a gradient or a weight is not finite.
    """
    loss = losses.get(loss)
    rows, probes = (x if x is None or callable(x) else as_probes(x) for x in (rows, probes))
    plan = Plan.of(len(rows), epochs=epochs, lr=lr, batch_size=batch_size, **settings)
    plan = _checked(model, loss, plan, rows, probes, ref, out, resume)
    learner = _Learner(model, tokenizer, rows, loss, plan)
    recorder, meta, start = Recorder(probes), _meta(learner, probes, ref), 0
    folder = out and RunFolder(out, meta["settings"], resume)
    learner.read_reference(ref)
    if folder and (start := folder.begin()):
        meta = folder.restore(model, learner.optimizer, recorder)
        if start == plan.updates:
            return recorder.trajectory(meta)
        meta["resumed"] = [*meta["resumed"], start]
    began = time.perf_counter() - meta["seconds"]

    def save(update: int, optimizer=None) -> None:
        meta["seconds"] = time.perf_counter() - began
        if folder:
            folder.save(update, model, tokenizer, optimizer, recorder.trajectory(meta))

    hide = learner.rank > 0 or (None if progress is None else not progress)
    bar = tqdm(total=plan.updates, initial=start, unit="update", disable=hide)
    cuda = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.random.fork_rng(cuda), bar, ExitStack() as at_the_end:
        at_the_end.callback(model.zero_grad)
        for update in range(start, plan.updates):
            learner.renew(tokenizer, update, ref)
            learner.probe(recorder, tokenizer, update)
            found, norm = learner.gradient(update)
            if update > start and plan.is_saved(update):  # the weights have given finite losses
                save(update, learner.optimizer)
            learner.step(update)
            recorder.update(**found, lr=plan.lr_at(update), grad_norm=norm)
            bar.set_postfix(found, refresh=False)
            bar.update()
        learner.probe(recorder, tokenizer, plan.updates)
    learner.check()
    save(plan.updates)
    return recorder.trajectory(meta)


def _checked(model, loss: losses.Loss, plan: Plan, rows, probes, ref, out, resume: bool) -> Plan:
    if probes is None and plan.probe_every is not None:
        raise ValueError("probe_every without probes: pass probes too")
    if out is None and (resume or plan.save_every is not None):
        raise ValueError(f"{'resume' if resume else 'save_every'} needs a folder: pass out")
    if callable(rows) and loss.needs_ref and ref is None:
        raise ValueError(f"{loss} needs a reference that stays: pass ref, a copy of the model")
    if ref is not None and not loss.needs_ref:
        raise ValueError(f"{loss} needs no reference model: leave ref out")
    if ref is not None:
        check_same_vocabulary(model, ref)
    if plan.optimizer != "sgd" and torch.float16 in {w.dtype for w in trainable(model).values()}:
        told = f"{plan.optimizer} divides by zero in float16, where its eps is 0"
        raise ValueError(f"{told}: load the model in float32, or in bfloat16")
    if plan.spare_valleys and "rejected" not in loss.responses:
        raise ValueError(f"{loss} reads no rejected response: leave spare_valleys out")
    every = plan.per_epoch * rows.epochs if callable(rows) else plan.save_every
    return replace(plan, save_every=every)  # where a round ends


class _Learner:
    """The model with its loss and its optimizer, in as many processes as there are."""

    def __init__(self, model, tokenizer, rows, loss: losses.Loss, plan: Plan):
        self.model, self.loss, self.plan, self.reference, self.old = model, loss, plan, {}, {}
        self.fresh = rows if callable(rows) else None
        self._read(tokenizer, self.fresh(0) if self.fresh else rows)
        # While the model is whole, unless a run before this one has shared it out.
        found = as_forward(model, ways, model, self.encoded, sys.maxsize)
        process = place(model)
        self.rank, self.world = process.process_index, process.num_processes
        self.weights = [*trainable(model).values()]
        self.parallel = self.log_probs = self._reader(model, found=found)
        self.unsynced = nullcontext
        if self.world > 1 and not is_sharded(model):
            self.parallel = DistributedDataParallel(self.log_probs)
            self.unsynced = self.parallel.no_sync
        kind = OPTIMIZERS[plan.optimizer]
        self.optimizer = kind(self.weights, lr=plan.lr, weight_decay=plan.weight_decay)

    def _read(self, tokenizer, rows: ProbeSet) -> None:
        rows, self.keys, advantage = read_by(self.loss, rows, chosen=self.plan.response)
        self.encoded = encode(tokenizer, rows)
        check_different(self.encoded, self.keys, self.loss)
        self.more = {"advantage": torch.tensor(advantage)} if advantage else {}

    def _reader(self, model, found=None) -> LogProbs:
        how = {"bf16": self.plan.mixed_precision == "bf16", "per_token": self.loss.per_token}
        how["spare"] = ["rejected"] if self.plan.spare_valleys else []
        return LogProbs(model, self.encoded, self.keys, found=found, **how)

    def renew(self, tokenizer, update: int, ref: nn.Module | None) -> None:
        """Take fresh rows where a round begins, the first one aside."""
        epoch, within = divmod(update, self.plan.per_epoch)
        if self.fresh and update and within == 0 and epoch % self.fresh.epochs == 0:
            self._read(tokenizer, self.fresh(epoch // self.fresh.epochs))
            self.parallel = self.log_probs = self._reader(self.model)
            self.read_reference(ref)

    def read_reference(self, ref: nn.Module | None) -> None:
        """Compute the log-probs of all rows under the reference, and under what sampled them."""
        own, n = self.log_probs, self.plan.n_rows

        def read(reader: LogProbs) -> dict[str, torch.Tensor]:
            some = partial(reader.all, batch_size=self.plan.batch_size)
            with evaluating(reader):
                found = together(reader.model, np.arange(n), some, n)
            return {k: torch.from_numpy(x).to(self.model.device) for k, x in found.items()}

        if self.loss.needs_old or (self.loss.needs_ref and ref is None):
            self.reference = read(own)
            self.old = self.reference if self.loss.needs_old else {}
        if ref is not None:
            self.reference = read(self._reader(ref))

    def probe(self, recorder: Recorder, tokenizer, update: int) -> None:
        """Score the probes if it is time."""
        if not self.plan.is_probed(update) or recorder.probed(update):
            return
        try:
            recorder.probe(self.model, tokenizer, update, self.plan.examples(update))
        except ValueError as error:
            if update == 0:
                raise
            raise FloatingPointError(f"after update {update}: {error}; lower lr") from None
        self.log_probs.try_again()

    def gradient(self, update: int) -> tuple[dict[str, float], float]:
        """Leave the clipped gradient of an update in the weights.

        Returns the means over its rows of the loss and of the log-probs, and the norm before.
        """
        draw = np.random.default_rng((self.plan.seed, update, self.rank)).integers(2**63)
        torch.manual_seed(int(draw))  # of dropout
        self.model.train()
        self.model.zero_grad()
        rows, found = self.plan.rows(update), []
        own = slice(self.rank, None, self.world)
        known = self.reference, self.log_probs.lengths, self.old, self.more
        for start in range(0, len(rows), self.plan.batch_size):
            batch = rows[start : start + self.plan.batch_size]
            is_last = start + len(batch) == len(rows)  # when processes share their gradients
            with nullcontext() if is_last else self.unsynced():
                # A process without a row takes part with one that does not count.
                mine = torch.stack([*self.parallel(batch[own] or batch[:1]).values()])
                mine = mine[:, : len(batch[own])]
                logps = mine.new_zeros(len(mine), len(batch), *mine.shape[2:])
                logps[:, own] = mine.detach()
                logps = reduce(logps, "sum")  # of all rows, which a loss may read together
                logps[:, own] = mine
                ref, n, old, more = ({name: x[batch] for name, x in each.items()} for each in known)
                by_name = dict(zip(self.keys, logps, strict=True))
                values = self.loss.value(by_name, ref, n, **more, **({"old": old} if old else {}))
                values = values * (len(batch) if self.loss.of_batch else 1)
                # Gradients are averaged over processes, the loss over all rows.
                (values.sum() * (self.world / len(rows))).backward()
            found.append(torch.vstack([values, logps.sum(2) if logps.ndim > 2 else logps]).detach())
        found = torch.cat(found, 1)
        norm = whole(clip_grad_norm_(self.weights, self.plan.clip or math.inf)).item()
        bad = np.array(rows)[~found[0].isfinite().numpy(force=True)].tolist()
        if bad or not math.isfinite(norm):
            what, named = "loss" if bad else "gradient", [f"rows[{row}]" for row in bad or rows]
            told = f"the {what} of {', '.join(named)} is not finite; lower lr, or mend the rows"
            raise FloatingPointError(f"update {update + 1} is not made: {told}")
        names = ("loss", *(f"logp_{key}" for key in self.keys.values()))
        told = dict(zip(names, found.mean(1).tolist(), strict=True))
        return told | (self.fresh.told if self.fresh else {}), norm

    def check(self) -> None:
        """Refuse weights that the last update has spoilt, in whichever process."""
        if not all(gather_object([bool(weight.isfinite().all()) for weight in self.weights])):
            made = f"update {self.plan.updates} made weights not finite"
            raise FloatingPointError(f"{made}: lower lr")

    def step(self, update: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr_at(update)
        self.optimizer.step()


def _meta(learner: _Learner, probes: ProbeSet | None, ref: nn.Module | None) -> dict:
    model, rows = learner.model, learner.encoded
    given = [[row.prompt, row.responses, *filter(None, [row.own])] for row in rows]
    given += [x.tolist() for x in learner.more.values()]
    settings = {
        "loss": repr(learner.loss),
        **asdict(learner.plan),
        "rows": learner.fresh.settings if learner.fresh else fingerprint(given),
        "probes": fingerprint_probes(probes),
        "model": fingerprint_model(model),
        "ref": ref and fingerprint_model(ref),
    }
    del settings["save_every"]  # the only one that the course of the run does not depend on
    kind, size = type(model).__name__.removeprefix("FSDP"), model.num_parameters()
    return {
        "settings": settings,
        "model": f"{kind}, {size} parameters, {model.dtype}",
        "truncated": sum(len(row.truncated) for row in rows),
        **environment(model.device),
        "resumed": [],
        "seconds": 0.0,
    }
