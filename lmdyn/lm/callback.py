"""The probes of `finetune` inside anyone's Hugging Face trainer."""

import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object

from lmdyn.checks import check_count
from lmdyn.lm.checkpoint import fingerprint_probes
from lmdyn.lm.data import Rows, as_probes
from lmdyn.lm.generate import CORRECT, OWN, generate, repeated
from lmdyn.lm.records import environment
from lmdyn.lm.score import known_mean
from lmdyn.lm.squeeze import Alert, fades, squeeze
from lmdyn.lm.tokens import prompts_of
from lmdyn.lm.trajectory import Recorder, Trajectory

LEAST = 4  # prompts in a probing, whatever the budget


class ProbeCallback(transformers.TrainerCallback):
    """Score probes while a `transformers.Trainer`, or one of TRL's, trains.

    It logs the mean log-prob of each response type as ``lmdyn/<type>`` (nats); ``lmdyn/argmax``,
    of the likeliest tokens along ``chosen``; ``lmdyn/argmax_gain``, the probability that the
    likeliest token has gained since the start, or a resume, as a mean over tokens of ``rejected``;
    ``lmdyn/valley``, the share of rejected tokens below the squeeze line; ``lmdyn/entropy``, nats a
    token, along ``correct`` or else ``chosen``; ``lmdyn/kl``, nats an answer, KL(start‖now) as the
    model's own answers of the start tell; ``lmdyn/repeats``, the share of three words in a row that
    an answer of the present model had before; and, where two prompts have both answers or two have
    ``correct``, ``lmdyn/alert``, 0 or 1 (`squeeze`; for a reward `fades`), which warns with reason
    and remedy. A probing that fails warns, and is the last one.

    Args:
        probes: a `ProbeSet` (see `ProbeSet.from_dataset`), or rows.
        every: updates between two probings; there is one before the first and after the last.
        trainer: the one that it is added to, whose reporters it cannot reach otherwise.
        budget: the share of the run's time that probing may take, the first and the last one not
            counted. Where all prompts would take more, fewer are scored, always the same, whose
            changes the means then have, and one that would exceed it is left out. None: no limit.
        answers: prompts to answer greedily, each time, for ``repeats``; not with sharded weights.
        stop: end the training at the first alert.
        out: a folder for the trajectory; ``lmdyn`` in the trainer's ``output_dir`` if not given.
        tokenizer: the trainer's own if not given.

    Attributes:
        alerts: the `Alert` of each probing that had one, or the reason of `fades`.
        seconds: spent on probing.
    """

    def __init__(
        self,
        probes: Rows,
        every: int = 50,
        *,
        trainer: "transformers.Trainer | None" = None,
        budget: float | None = 0.05,
        answers: int = 0,
        stop: bool = False,
        out: str | Path | None = None,
        tokenizer=None,
    ):
        check_count("every", every, 1)
        check_count("answers", answers, 0)
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget must be a share of the run's time, 0 to 1, got {budget}")
        self.probes, self.every, self.stop, self.budget = as_probes(probes), every, stop, budget
        self.trainer, self.out, self.tokenizer, self.answers = trainer, out, tokenizer, answers
        given = [{*row} & {*self.probes.types} for row in self.probes]
        watched = {"chosen", "rejected"}, {CORRECT}
        self._rings = max(sum(needs <= of for of in given) for needs in watched) > 1
        if stop and not self._rings:
            raise ValueError("stop needs two probes with chosen and rejected, or with correct")
        self.alerts: list[Alert | str] = []
        self.seconds, self._recorder, self._meta = 0.0, Recorder(self.probes), {}

    @property
    def trajectory(self) -> Trajectory:
        """What has been recorded so far; prompts left out for the budget are NaN.

        ``examples_seen`` counts each update as a whole one, the last one of an epoch too.
        """
        return self._recorder.trajectory(self._meta)

    def on_train_begin(self, args, state, control, **kwargs):
        self.alerts, self.seconds, self._recorder = [], 0.0, Recorder(self.probes)
        self._tells, self._failed, self._top = state.is_world_process_zero, False, None
        self._rows, self._last = np.arange(len(self.probes)), 0.0
        if args.report_to and self.trainer is None:
            reporters = ", ".join(args.report_to)
            self._warn(f"pass trainer=trainer for {reporters} to get the logs of ProbeCallback")
        self._file = Path(self.out or Path(args.output_dir) / "lmdyn") / "trajectory"
        self._meta = {"trainer": type(args).__name__, "every": self.every}
        self._meta |= {"probes": fingerprint_probes(self.probes), **environment(args.device)}
        if state.global_step:  # a resumed training goes on with the trajectory that it left
            before = None
            with suppress(FileNotFoundError, ValueError):
                before = Trajectory.load(self._file)
            before = gather_object([before])[0]  # perhaps only the first process can read it
            if before and before.meta.get("probes") == self._meta["probes"]:
                self._recorder.restore(before, state.global_step)
        self._probe(args, state, control, kwargs)
        self._first, self._start = self.seconds, time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        due = state.global_step % self.every == 0 and self._is_affordable()
        if due or control.should_training_stop:
            self._probe(args, state, control, kwargs)

    def on_save(self, args, state, control, **kwargs):  # after evaluation, which may end it all
        if control.should_training_stop:
            self._probe(args, state, control, kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if not args.load_best_model_at_end:  # the model is that of another step by now
            self._probe(args, state, control, kwargs)

    def _is_affordable(self) -> bool:
        """Whether one more probing keeps to the budget, perhaps of fewer prompts from now on."""
        if self.budget is None:
            return True
        spent = time.perf_counter() - self._start, self.seconds - self._first, self._last
        elapsed, spent, last = gather_object([spent])[0]  # of the first process, for all
        share, n = self.budget * elapsed / max(last, 1e-9), len(self.probes)
        if share < 1 and len(self._rows) == n > LEAST:  # more than ``every`` updates can pay for
            keep = max(int(n * share), LEAST)
            self._rows = np.linspace(0, n - 1, keep).round().astype(int)
            self._last = last = last * keep / n  # what the next one will take, or a little less
            what = f"probing {keep} of {n} prompts, every {self.every} updates or less often"
            self._warn(f"{what}, to keep to {self.budget:.0%} of the time: pass a larger budget")
        return spent + last <= self.budget * (elapsed + last)

    def _probe(self, args, state, control, kwargs) -> None:
        if self._failed or self._recorder.probed(state.global_step):
            return
        began, failure = time.perf_counter(), None
        try:
            logs = self._measure(args, state, kwargs)
            self._last = time.perf_counter() - began
            self.seconds += self._last
            logs["lmdyn/seconds"] = self._meta["seconds"] = self.seconds
            self._save()
            self._log(logs, state, control)
        except Exception as error:  # whatever it is, the training is worth more
            failure = f"{type(error).__name__}: {error}"
        # All step aside together: the others would wait for the one that has.
        if failures := [failure for failure in gather_object([failure]) if failure]:
            self._failed, what = True, f"after update {state.global_step} ({failures[0]})"
            self._warn(f"the probes could not be scored {what}: training goes on without them")
        elif self.stop and logs.get("lmdyn/alert"):
            control.should_training_stop = True

    def _measure(self, args, state, kwargs) -> dict[str, float]:
        """Score the probes: what goes to the trainer's log."""
        model, step = kwargs["model"], state.global_step
        tokenizer = self.tokenizer or kwargs.get("processing_class")
        if tokenizer is None:
            raise ValueError("the trainer has no tokenizer: ProbeCallback(…, tokenizer=tokenizer)")
        seen = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * step
        half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        share = not (args.fsdp or args.deepspeed)  # what has sharded the weights may not be FSDP2
        with torch.autocast(args.device.type, half, enabled=half is not None):
            pushed = self._recorder.probe(model, tokenizer, step, seen, share, self._rows)
            few = self.probes[self._rows[: self.answers * share].tolist()]
            said = generate(model, tokenizer, prompts_of(tokenizer, few, few.format)) if few else []
        done, alert, pair = self.trajectory, None, ("chosen", "rejected")
        means = {name: curve[-1] for name, curve in done.mean().items()}
        means |= {"repeats": repeated(said)} if said else {}
        for name in [name for name in (CORRECT, "chosen") if name in done.types][:1]:
            means["entropy"] = done.mean(name, "entropy")[-1]
        if OWN in done.types:
            means["kl"] = known_mean(done.values(OWN)[0] - done.values(OWN)[-1])
        logs = {f"lmdyn/{name}": float(x) for name, x in means.items() if np.isfinite(x)}
        self._top = pushed["top"] if self._top is None else self._top
        if {*pair} <= {*done.types}:
            logs["lmdyn/valley"] = float(np.nanmean(pushed["valley"]))
            logs["lmdyn/argmax_gain"] = float(np.nanmean(pushed["top"] - self._top))
            lengths = np.stack([done.values(name, "n_tokens") for name in pair], 1)
            alert = squeeze(done.steps, *map(done.values, (*pair, "argmax")), lengths)
        if CORRECT in done.types and not alert:
            alert = fades(done.steps, done.values(CORRECT), done.values(CORRECT, "entropy"))
        if alert and not self.alerts:
            self._warn(str(alert))
        self.alerts += [alert] if alert else []
        return logs | ({"lmdyn/alert": float(alert is not None)} if self._rings else {})

    def _log(self, logs: dict[str, float], state, control) -> None:
        if self.trainer is None:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
            return
        due = control.should_log  # the trainer's own log, which it now would take as done
        # TRL's trainers would add their own metrics, and begin them anew.
        transformers.Trainer.log(self.trainer, logs)
        control.should_log = due

    def _save(self) -> None:
        try:
            if self._tells and self._file:
                self.trajectory.save(self._file)
        except OSError as error:
            self._warn(f"the probes are only logged: {self._file} could not be written ({error})")
            self._file = None

    def _warn(self, what: str) -> None:
        if self._tells:
            warnings.warn(what, stacklevel=3)
