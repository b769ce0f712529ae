"""Make the records of the chapter "Probe your own run", once, by hand.

    python book/record_alert.py alert-world                   # tiny model, offline
    python book/record_alert.py alert-smollm2 [--rows FILE]   # SmolLM2 on HH rows

Each leaves ``book/recorded/NAME.npz`` (the numbers) and ``NAME.json`` (settings, command, versions,
hardware, date). The runs are those of TRL's own trainers, with the callback. What is finished stays
in ``_runs/NAME``, so that the same command goes on after an interruption. The models that SmolLM2's
runs begin with are those of ``record.py``, made if they are not there.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import kept
import record
from lessons.probe import trl_pairs
from lmdyn import lm
from lmdyn.lm.records import environment, replacing

HERE = Path(__file__).parent
PAIR = ("prompt", "chosen", "rejected")
QUIET = {
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "precompute_ref_log_probs": True,
}
COMMON = {"per_device_train_batch_size": 4, "lr_scheduler_type": "constant", "max_grad_norm": 10.0}

# alert-world: 96 prompts are probed, of which the chapter lets some raise alerts and others judge.
SEEDS = tuple(range(10))
N_TRAIN, N_TEST = 48, 48
SFT = COMMON | {"num_train_epochs": 6, "learning_rate": 3e-4}
DPO = COMMON | {"num_train_epochs": 4, "learning_rate": 1e-4, "beta": 0.1}
SFT_EVERY, DPO_EVERY = 12, 6
# run → what it begins with, and its settings.
RUNS = {
    "sft": ("base", SFT),
    "sft, a third of the lr": ("base", SFT | {"learning_rate": 1e-4}),
    "dpo": ("sft", DPO),
    "dpo, 1/20 of the lr": ("sft", DPO | {"learning_rate": 5e-6}),
    "rpo": ("sft", DPO | {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}),
    "extend": ("both", DPO),
}
BOTH = SFT | {"num_train_epochs": 3}  # twice the rows
# Probing under the default budget, in a run long enough for the first probing not to count.
BUDGET = 0.05
LONG = DPO | {"num_train_epochs": 30}

# alert-smollm2: the settings of record.py's dpo-hh, in TRL.
SMOLLM2 = COMMON | {
    "learning_rate": 5e-6,
    "beta": 0.1,
    "max_steps": 24,
    "seed": 0,
    "logging_steps": 3,
}
EVERY = 3
N_DROP = 12  # of 48 pairs
ARMS = ("dpo", "extend", "dropped")


def main():
    makers = {"alert-world": alert_world, "alert-smollm2": alert_smollm2}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=makers)
    parser.add_argument("--rows", type=Path, help="the paper's HH probing file, if it is at hand")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="of SmolLM2's runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # those of the libraries; alerts are recorded
    arrays, settings = makers[args.name](args)
    meta = environment(torch.device("cpu"))
    meta["command"] = f"python book/record_alert.py {args.name}"  # --rows is of this machine
    if tuple(args.arms) != ARMS:
        meta["command"] += f" --arms {' '.join(args.arms)}"
    meta["versions"] |= {name: version(name) for name in ("trl", "accelerate", "datasets")}
    meta["settings"] = settings
    kept.write(HERE / "recorded" / args.name, arrays, meta)


def trained(model, tokenizer, rows, probe=None, **settings) -> tuple[float, list]:
    """SFT or DPO, as the rows tell, in TRL's trainer; the seconds that it took, and its log."""
    kind = (SFTConfig, SFTTrainer) if "completion" in rows[0] else (DPOConfig, DPOTrainer)
    quiet = {k: v for k, v in QUIET.items() if hasattr(kind[0], k)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind[1](
            model,
            args=kind[0](output_dir=folder, **quiet, **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        if probe is not None:
            trainer.add_callback(probe)
        began = time.perf_counter()
        trainer.train()
    return time.perf_counter() - began, trainer.state.log_history


# --- the toy world -------------------------------------------------------------------------------


def alert_world(args):
    """SFT and preference runs: log-probs of chosen, rejected and the argmax of every prompt."""
    base, tokenizer = lm.load("tiny", device="cpu")
    runs = HERE.parent / "_runs" / "alert-world"
    found = []
    for seed in SEEDS:
        done = runs / f"{seed}.npz"
        if not done.is_file():
            one = _world_runs(base, tokenizer, seed)
            with replacing(done) as temporary, temporary.open("wb") as file:
                np.savez(file, **one)
            print("seed", seed, flush=True)
        found.append(np.load(done))
    arrays = {}
    for run in RUNS:
        arrays[f"{run} steps"] = found[0][f"{run} steps"]
        # To 1/256 nat, which packs well.
        arrays[run] = np.round(np.stack([one[run] for one in found]) * 256) / np.float32(256)
    done = runs / "budget.json"
    if not done.is_file():
        one = _budgeted(base, tokenizer)
        with replacing(done) as temporary:
            temporary.write_text(json.dumps(one))
    settings = {"seeds": SEEDS, "n_train": N_TRAIN, "n_test": N_TEST, "both": BOTH}
    return arrays, settings | {"runs": RUNS, "budget": json.loads(done.read_text())}


def _budgeted(base, tokenizer) -> dict:
    """One long run with a budget: what probing took of its time."""
    train = trl_pairs(N_TRAIN, N_TEST, SEEDS[0])[:N_TRAIN]
    probe = lm.ProbeCallback(train, DPO_EVERY, budget=BUDGET)
    seconds, log = trained(copy.deepcopy(base), tokenizer, train, probe, **LONG)
    done = probe.trajectory
    return {
        "budget": BUDGET,
        "settings": LONG,
        "seconds": seconds,
        "probing": probe.seconds,
        "first probing": next(e["lmdyn/seconds"] for e in log if "lmdyn/seconds" in e),
        "prompts": [int((~np.isnan(of[:, 0])).sum()) for of in done.logp],
        "steps": done.steps.tolist(),
    }


def _world_runs(base, tokenizer, seed) -> dict[str, np.ndarray]:
    rows = trl_pairs(N_TRAIN, N_TEST, seed)
    train = rows[:N_TRAIN]
    learned = {
        key: [{"prompt": row["prompt"], "completion": row[key]} for row in train]
        for key in PAIR[1:]
    }

    def begin(weights):
        model = copy.deepcopy(base)  # never one that was in a trainer, which wraps its forward
        model.load_state_dict(weights)
        return model

    both = begin(base.state_dict())
    trained(both, tokenizer, learned["chosen"] + learned["rejected"], **BOTH, seed=seed)
    starts = {"base": base.state_dict(), "both": both.state_dict()}
    found = {}
    for run, (start, settings) in RUNS.items():
        model, dpo = begin(starts[start]), "beta" in settings
        probe = lm.ProbeCallback(rows, DPO_EVERY if dpo else SFT_EVERY, budget=None)
        trained(model, tokenizer, train if dpo else learned["chosen"], probe, **settings, seed=seed)
        starts[run] = model.state_dict()
        probed = probe.trajectory
        chosen, rejected = (probed.types.index(key) for key in PAIR[1:])
        found[f"{run} steps"] = probed.steps
        found[run] = np.stack(
            [probed.logp[..., chosen], probed.logp[..., rejected], probed.argmax_logp[..., chosen]],
            axis=-1,
        )  # (probings, prompts, 3)
    return found


# --- SmolLM2 on HH -------------------------------------------------------------------------------


def alert_smollm2(args):
    """DPO, the same after extend, and the same without the worst pairs."""
    rows = record.hh_rows(args.rows).only("chosen", "rejected")
    train, test = rows.split("train"), rows.split("test")
    ranking, watched = test[::2], test[1::2]  # held out: half rank the pairs, half are probed
    runs = HERE.parent / "_runs" / "alert-smollm2"
    found = {}
    for arm in args.arms:
        done = runs / f"{arm}.json"
        if not done.is_file():
            one = _smollm2_run(arm, args, train, ranking, watched, runs / arm)
            with replacing(done) as temporary:
                temporary.write_text(json.dumps(one))
            print(arm, one["seconds"], one["probing"], flush=True)
        found[arm] = json.loads(done.read_text())
    arrays = {}
    for arm in args.arms:
        probed = lm.Trajectory.load(runs / arm / "trajectory")
        arrays |= {f"{arm} steps": probed.steps, f"{arm} logp": probed.logp}
        arrays[f"{arm} argmax"] = probed.argmax_logp[..., probed.types.index("chosen")]
    settings = {"dpo": SMOLLM2, "every": EVERY, "n_probed": len(watched), "n_drop": N_DROP}
    return arrays, settings | {"runs": found}


def _smollm2_run(arm, args, pairs, ranking, watched, folder) -> dict:
    start = "sft-extend" if arm == "extend" else "sft-long"
    args = argparse.Namespace(rows=args.rows, model="smollm2-135m", seed=0, resume=False)
    model, tokenizer = lm.load(str(record.record(start, args)), device="cpu")
    one = {"begins with": start, "rows": len(pairs)}
    if arm == "dropped":
        began = time.perf_counter()
        found = lm.diagnose(model, tokenizer, pairs, held_out=ranking, progress=False)
        one["diagnosis"] = {
            "seconds": time.perf_counter() - began,
            "own": found.own.tolist(),
            "held_out": found.held_out.tolist(),
            "held_out_push": found.held_out_push.tolist(),
            "squeeze": found.squeeze.tolist(),
            "valley": found.valley.tolist(),
        }
        one["dropped"] = sorted(found.order[:N_DROP].tolist())
        pairs = pairs[[i for i in range(len(pairs)) if i not in one["dropped"]]]
    probe = lm.ProbeCallback(watched, EVERY, budget=None, out=folder)
    pairs = [{key: row[key] for key in PAIR} for row in pairs]
    one["seconds"], _ = trained(model, tokenizer, pairs, probe, **SMOLLM2)
    one["probing"] = probe.seconds
    return one


if __name__ == "__main__":
    sys.exit(main())
