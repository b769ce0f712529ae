"""Make the record of GRPO on a real model: SmolLM2 learns small sums in TRL's trainer, probed.

    python book/record_grpo.py --seed 0 --steps 60          # about an hour on one core, offline

Leaves ``book/recorded/grpo-smollm2.npz`` (the numbers: a run for each seed) and
``grpo-smollm2.json`` (settings, command, versions, hardware, seconds). A run that was interrupted
goes on from its last checkpoint in ``_runs/grpo``. No text is kept.

The prompts are "What is a + b?" for a and b from 1 to 12; 64 are trained on, 32 held out. The
reward is 1 where the last number of the answer is the sum. Probes are answers that SmolLM2 itself
sampled at the start: of each prompt one that is right and one that is wrong, if it gave both.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

import kept
from lmdyn import lm
from lmdyn.lm.generate import generate, repeated
from lmdyn.lm.records import environment
from lmdyn.lm.tokens import prompts_of

HERE = Path(__file__).parent
PARTS = HERE.parent / "_runs" / "grpo"
TRAIN, TEST, UP_TO, LONGEST = 64, 32, 12, 24
STATS = ("logp", "argmax_logp", "entropy", "squeeze", "label_prob", "prob_sq")
SETTINGS = {
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "num_generations": 8,
    "max_completion_length": LONGEST,
    "temperature": 1.0,
    "beta": 0.0,
    "gradient_checkpointing": False,
}


def sums(seed: int) -> list[dict]:
    """Rows with a prompt as a conversation and the sum, training rows first."""
    pairs = [(a, b) for a in range(1, UP_TO + 1) for b in range(1, UP_TO + 1)]
    order = np.random.default_rng(seed).permutation(len(pairs))[: TRAIN + TEST]
    return [
        {"prompt": [{"role": "user", "content": f"What is {a} + {b}?"}], "sum": a + b}
        for a, b in (pairs[i] for i in order)
    ]


def is_right(row, answer: str) -> float:
    """The reward."""
    numbers = re.findall(r"\d+", answer)
    return float(bool(numbers) and int(numbers[-1]) == row["sum"])


def rewarded(completions, sum, **_) -> list[float]:
    """`is_right` as TRL calls it."""
    return [
        is_right({"sum": right}, said[0]["content"])
        for said, right in zip(completions, sum, strict=True)
    ]


def answers(model, tokenizer, rows) -> tuple[float, float]:
    """Of greedy answers: the share that is right, and of words that repeat."""
    prompts = prompts_of(tokenizer, [{"prompt": row["prompt"]} for row in rows], lm.Format())
    said = generate(model, tokenizer, prompts, LONGEST)
    right = [is_right(*both) for both in zip(rows, said, strict=True)]
    return float(np.mean(right)), repeated(said)


def run(seed: int, steps: int) -> tuple[dict, dict]:
    """A run of TRL's trainer with the callback: its arrays, and its seconds."""
    began, folder = time.perf_counter(), PARTS / str(seed)
    model, tokenizer = lm.load("smollm2-135m", device="cpu")
    rows = sums(seed)
    probed = {"reward": is_right, "max_new_tokens": LONGEST, "seed": seed, "group_size": 8}
    probes = [
        lm.ProbeSet.from_dataset(part, tokenizer, len(part), model=model, **probed)
        for part in (rows[:TRAIN:2], rows[TRAIN:])
    ]
    named = zip(("train", "test"), probes, strict=True)
    watched = [{**row, "split": name} for name, of in named for row in of]
    watched = lm.ProbeSet(tuple(watched), probes[0].types, probes[0].format)
    ends = [answers(model, tokenizer, part) for part in (rows[:TRAIN], rows[TRAIN:])]
    config = GRPOConfig(
        output_dir=str(folder), max_steps=steps, seed=seed, use_cpu=True, bf16=False, **SETTINGS,
        report_to="none", logging_steps=1, save_steps=10, save_total_limit=1, disable_tqdm=True,
    )  # fmt: skip
    callback = lm.ProbeCallback(watched, every=5, budget=None)
    trainer = GRPOTrainer(
        model, rewarded, args=config, train_dataset=Dataset.from_list(rows[:TRAIN]),
        processing_class=tokenizer, callbacks=[callback],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=folder.exists() and get_last_checkpoint(folder))
    ends += [answers(model, tokenizer, part) for part in (rows[:TRAIN], rows[TRAIN:])]
    done, history = callback.trajectory, trainer.state.log_history
    found = {stat: np.float32(getattr(done, stat)) for stat in STATS}
    logs = [log for log in history if "reward" in log]
    found |= {"steps": done.steps, "split": done.split, "types": np.array(done.types)}
    told = ("reward", "entropy", "frac_reward_zero_std", "completions/mean_length")
    found |= {f"log {key}": np.array([log[key] for log in logs]) for key in told}
    found["n_tokens"] = done.n_tokens
    found["answers"] = np.array(ends).reshape(2, 2, 2)  # before and after; split; right, repeats
    return found, {"all": time.perf_counter() - began, "probes": callback.seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60, help="updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, seconds = run(options.seed, options.steps)
    out = HERE / "recorded" / "grpo-smollm2"
    old = dict(np.load(f"{out}.npz")) if out.with_name(f"{out.name}.npz").is_file() else {}
    arrays = old | {f"{options.seed}|{key}": values for key, values in found.items()}
    command = f"python book/record_grpo.py --seed {options.seed} --steps {options.steps}"
    meta = environment(torch.device("cpu")) | {"command": command}
    meta |= {"model": "smollm2-135m", "steps": options.steps, "settings": SETTINGS}
    meta |= {"train": TRAIN, "test": TEST, "seconds": {str(options.seed): seconds}}
    kept.write(out, arrays, meta)


if __name__ == "__main__":
    sys.exit(main())
