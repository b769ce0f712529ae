"""Make the record at scale: SmolLM2 on 300 rows of HH, eight ways to tune, at the paper's lengths.

    python book/record_scale.py --rows FILE --workers 7 --deadline 400    # a GPU: some minutes
    python book/record_scale.py --rows FILE --bf16                        # a CPU: a day on a thread
    python book/record_scale.py --rows FILE --arms dpo:1 --threads 2      # hours of two cores
    python book/record_scale.py --rows FILE --arms paper:1 --bf16         # DPO as the paper's code
    python book/record_scale.py --rows FILE --arms rpo:1 --rates 1e-5     # another learning rate
    python book/record_scale.py --rows OTHER --sizes 137 34 0 --arms dpo --out DIR    # other rows
    python book/record_scale.py --rows FILE --small --out DIR             # all of it in small

Leaves ``scale-smollm2.npz`` (the numbers) and ``scale-smollm2.json`` (settings, command, versions,
hardware, seconds and seed of each run) in ``--out``, written anew whenever a run is finished: what
is there when time is up is a record, of the most telling runs first. Finished runs, and the models
that others begin with, stay in ``_runs``, so that the same command goes on after an interruption;
on a CPU, where a run takes hours, also within a run. Without them, what the record has already is
not made again; but models to begin with are, without probing: made twice on an H200, a day apart,
five of them agreed to the eighth of a nat that the record keeps. A record of other rows, of another
model or of other sizes, such as ``--small``, is not written over. ``--arms`` leaves
``scale-smollm2-arms``; with ``--rates``, ``scale-smollm2-rates``: there y+ and y− of prompts that
are not trained on are probed before and after, which is enough to choose a learning rate.

No text is kept, neither of HH nor of the model. FILE is the paper's probing file of HH; without it,
that is fetched.

300 rows are trained on, 100 are held out, and 99 more choose the learning rate and when to stop, if
``--sizes`` does not say otherwise. The last lines tell how far y+ has moved in each run, and
whether surely. On a GPU, products of float32 matrices are rounded to TF32 while a run trains and is
probed. The last runs repeat DPO without that, and in bfloat16, to tell whether it matters.
"""

import argparse
import json
import math
import multiprocessing
import shlex
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers

import kept
import record
from audit.scale import Scale, verdicts
from lmdyn import lm
from lmdyn.lm import ways
from lmdyn.lm.generate import generate, repeated
from lmdyn.lm.models import locate, pick_device
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.records import environment, replacing
from scale_rows import Data, read
from scale_runs import COMMON, FULL, ON_CPU, SMALL, Run, Size, plan

SAVE_EVERY = 15  # updates, on a CPU: some minutes
SHARED = ("types", "group", "n_tokens")  # by all runs of a record
PACKED = ("logp", "argmax")
MADE = ("command", "date", "hardware", "versions")  # told of each run
SAMPLED = {"max_new_tokens": 96, "sample_batch_size": 100}  # of on-policy answers

# --- one run, in a process of its own -----------------------------------------------------------


class Setup(NamedTuple):
    """What all runs share: the model and rows to begin with, where to compute and what to keep."""

    model: str
    source: str
    size: Size
    device: str
    parts: Path
    threads: int = 1

    def recipe(self, run: Run) -> dict:
        size, rows = asdict(self.size), read(self.source, self.size).sha256
        return {"run": asdict(run), "model": self.model, "size": size, "rows": rows}

    def part_of(self, run: Run) -> Path:
        return self.parts / f"{run.name.replace(', ', '-').replace(' ', '-')}.npz"

    def folder_of(self, run: Run) -> Path:
        """What a run on a CPU goes on from after an interruption."""
        return self.part_of(run).with_suffix(".going")

    def model_of(self, run: Run | None) -> str | Path:
        """What a run leaves for others to begin with; without a run, what all begin with."""
        return self.model if run is None else self.part_of(run).with_suffix(".model")


def work(run: Run, setup: Setup) -> None:
    """Make a run and keep what it found; a run that others begin with leaves its model too."""
    began = time.perf_counter()
    torch.set_num_threads(setup.threads)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # responses that were cut
    if setup.device.startswith("cuda"):
        ways.SLACK = math.inf  # there, padding costs less than another pass
    size, data = setup.size, read(setup.source, setup.size)
    model, tokenizer = lm.load(setup.model_of(run.start), setup.device)
    torch.set_float32_matmul_precision("high" if run.precision == "tf32" else "highest")
    done = train(model, tokenizer, data, run, setup)
    torch.set_float32_matmul_precision("highest")
    held_out = np.flatnonzero(data.group == "test")[: size.spoken].tolist()
    prompts = [row["prompt"] for row in data.probes[held_out]]
    told = np.empty((0, 3))
    if prompts:
        batch = {"batch_size": len(prompts), "return_ids": True}
        said, _, ended = generate(model, tokenizer, prompts, size.new_tokens, **batch)
        told = [(repeated([a]), len(a.split()), end) for a, end in zip(said, ended, strict=True)]
    if run.start is None:
        with replacing(setup.model_of(run)) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    arrays = {
        "steps": done.steps,
        "logp": done.logp,
        "argmax": done.values("argmax"),
        "said": np.array(told, np.float32),
        "types": np.array(done.types),
        "group": data.group,
        "n_tokens": done.n_tokens,
        "seconds": np.array([done.meta["seconds"], time.perf_counter() - began]),
    }
    kept.keep(setup.part_of(run), setup.recipe(run), arrays)
    shutil.rmtree(setup.folder_of(run), ignore_errors=True)


def train(model, tokenizer, data: Data, run: Run, setup: Setup) -> lm.Trajectory:
    bare = run.role == "unprobed"
    every = None if run.role == "stop" or bare else setup.size.probe_every  # the whole run has more
    settings = run.settings | {"probes": data.probes[: 1 if bare else None], "probe_every": every}
    settings |= {"progress": False, "mixed_precision": "bf16" if run.precision == "bf16" else "no"}
    if setup.device == "cpu":  # hours: go on after an interruption
        settings |= {"out": setup.folder_of(run), "resume": True, "save_every": SAVE_EVERY}
    if run.arm == "on-policy":
        settings |= {"rounds": settings.pop("epochs"), "epochs": 1, "ref": deepcopy(model)}
        return finetune_on_policy(model, tokenizer, data.train, **settings, **SAMPLED)
    rows = record.both(data.train) if run.both else data.train
    return lm.finetune(model, tokenizer, rows, **settings)


# --- all runs ------------------------------------------------------------------------------------


class Progress:
    """What has been found so far, by the names of runs, and the record of it."""

    def __init__(self, setup: Setup, out: Path, meta: dict):
        self.setup, self.out = setup, out
        self.meta = json.loads(json.dumps(meta))  # as a record has it: a tuple is a list there
        self.found, self.runs, self.began = {}, {}, time.perf_counter()
        self.lost = set()  # names of what others begin with and could not be trained anew
        self.go_on()

    def go_on(self) -> None:
        """Take the runs of the record that is there; a ValueError if it is of other things."""
        told = self.out.with_name(f"{self.out.name}.json")
        if not told.is_file():
            return
        there = Scale.load(self.out)
        about = there.meta
        if other := [key for key in ("model", "rows", "size") if about[key] != self.meta[key]]:
            told = f"{told} is a record of another {' and '.join(other)}"
            raise ValueError(f"{told}: remove it, or write to another folder with --out")
        made = {key: about[key] for key in MADE}
        shared = np.array(there.types), there.group, there.n_tokens
        for name, one in there.runs.items():
            self.found[name] = one | dict(zip(SHARED, shared, strict=True))
        self.runs = {name: {"made": made} | told for name, told in about["runs"].items()}

    def wanted(self, planned: Callable) -> Iterator[Run]:
        """What is planned and not found; before it what it begins with, if that has no model."""
        for run in planned(self.found):
            if run.name in self.found or (run.start and run.start.name in self.lost):
                continue
            if run.start and run.start.name in self.found and not self.has_model(run.start):
                yield replace(run.start, role="unprobed")
            yield run

    def has_model(self, run: Run | None) -> bool:
        return run is None or self.setup.model_of(run).is_dir()

    def kept(self, run: Run) -> dict | None:
        if run.start is None and not self.has_model(run):
            return None
        return kept.kept(self.setup.part_of(run), self.setup.recipe(run))

    def take(self, run: Run, error: BaseException | None = None) -> None:
        """Add a run that is finished, or has failed, and write the record."""
        one = None if error else self.kept(run)
        told = {"failed": f"{type(error).__name__}: {error}"}
        if one is not None:
            told = {"seconds": dict(zip(("finetune", "all"), one["seconds"].tolist(), strict=True))}
        print(f"{self.seconds:6.0f} s  {run.name}: {told}", flush=True)
        if error:
            traceback.print_exception(error)
        if run.name in self.found:  # trained anew for its model: the record keeps its first
            self.lost |= {run.name} if error else set()
            return
        start = {"start": run.start.name} if run.start else {}
        self.runs[run.name] = {"arm": run.arm, **start, **run.settings, "both": run.both}
        self.runs[run.name] |= {"precision": run.precision, "role": run.role, **told}
        self.runs[run.name]["made"] = {key: self.meta[key] for key in MADE}
        self.found[run.name] = one
        self.write()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def write(self) -> None:
        probed = {name for name, run in self.runs.items() if run["role"] != "unprobed"}
        ones = {name: one for name, one in self.found.items() if one and name in probed}
        if not ones:
            return
        first = next(iter(ones.values()))
        arrays = {key: first[key] for key in SHARED}
        for name, one in ones.items():
            for key in SHARED:
                np.testing.assert_array_equal(one[key], first[key], f"{key} of {name}")
            arrays |= {f"{name}|{key}": one[key] for key in ("steps", "said")}
            arrays |= {f"{name}|{key}": kept.packed(one[key]) for key in PACKED}
        meta = self.meta | {"seconds": self.seconds, "runs": self.runs}
        kept.write(self.out, arrays, meta)


def make(progress: Progress, pool: Executor, planned: Callable, workers: int, deadline: float):
    """Run all that is ``planned`` by what has been found; after the deadline start none."""
    setup, going = progress.setup, {}

    def ready(run: Run) -> bool:
        started = run.start is None or progress.found.get(run.start.name) is not None
        return started and progress.has_model(run.start) and run not in going.values()

    while True:
        more = []
        for run in filter(ready, progress.wanted(planned)):
            more += [run] if run not in more else []
        if resumed := [run for run in more if progress.kept(run) is not None]:
            for run in resumed:
                progress.take(run)
            continue
        free = workers - len(going) if progress.seconds < deadline else 0
        for run in more[:free]:
            going[pool.submit(work, run, setup)] = run
        if not going:
            break
        for future in wait(going, return_when=FIRST_COMPLETED).done:
            progress.take(going.pop(future), future.exception())


def options(doc: str) -> argparse.ArgumentParser:
    """What all commands on these rows have: the rows, where the record goes, threads."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--rows", default="hh", help="the paper's HH probing file, if at hand")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "recorded")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    return parser


def command(args: argparse.Namespace) -> str:
    """What makes the same record elsewhere: the other options are of this machine."""
    words = ["python", "book/record_scale.py"]
    for option in ("bf16", "small", "arms", "epochs", "rates", "sizes"):
        if value := getattr(args, option):
            given = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{option}", *map(str, given)]
    return shlex.join(words)


def main():
    parser = options(__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds to start in")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM[:SEED]", help="only these")
    parser.add_argument("--epochs", type=int, help="of these arms; of what they begin with, all")
    parser.add_argument("--rates", type=float, nargs="+", default=[], metavar="LR", help="theirs")
    kinds = ("TRAIN", "TEST", "TUNE")
    parser.add_argument("--sizes", type=int, nargs=3, default=[], metavar=kinds, help="rows")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--small", action="store_true", help="a few rows, to see that it runs")
    args = parser.parse_args()
    if args.rates and not args.arms:
        parser.error("--rates needs --arms: say of which")
    if args.sizes and not (args.arms or args.sizes[-1]):
        parser.error("--sizes without rows to tune on needs --arms: say which")
    device = pick_device(args.device)
    on_gpu, name = device.type == "cuda", f"scale-{Path(args.model).name.removesuffix('-135m')}"
    name += "-rates" if args.rates else "-arms" if args.arms else ""
    size = SMALL if args.small else FULL if on_gpu else ON_CPU
    size = size.cut(*args.sizes) if args.sizes else size
    if args.rates:
        size = replace(size, watched=(0, 0), spoken=0, probe_every=size.epochs * size.train)
    elif args.arms and not on_gpu:
        size = replace(size, probe_every=math.ceil(size.train / COMMON["batch_size"]))  # an epoch
    precision = "bf16" if args.bf16 else "tf32" if on_gpu else "fp32"
    parts = record.RUNS / "-".join([name, *["small"] * args.small, *map(str, args.sizes)])
    setup = Setup(args.model, args.rows, size, str(device), parts, args.threads)
    locate(args.model)  # converts SmolLM2, unless that is done
    meta = environment(device) | {"command": command(args)}
    meta |= {"model": args.model, "workers": args.workers, "threads": args.threads}
    meta |= {"size": asdict(size), "rows": read(args.rows, size).sha256}
    progress = Progress(setup, args.out / name, meta)
    only = {"arms": args.arms, "epochs": args.epochs, "rates": args.rates}
    planned = partial(plan, size=size, precision=precision, **only)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=spawn) as pool:
        make(progress, pool, planned, args.workers, args.deadline)
    if (args.out / f"{name}.json").is_file():  # unless all has failed
        print(*verdicts(Scale.load(progress.out)), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
