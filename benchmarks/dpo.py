"""A DPO step of `lmdyn.lm.finetune` against one of TRL's DPOTrainer on the same batch.

    python benchmarks/dpo.py               # SmolLM2, batches of 4 pairs: minutes on 2 cores

Both begin at the same weights, have the reference's log-probs before they start, clip, and step
with AdamW. Each runs in a process of its own, which gives its time and its peak memory above what
it held with the model loaded. TRL's gradient checkpointing, on by default, is off: it would trade
time for memory.
"""

import argparse
import copy
import statistics
import tempfile
import time
import warnings

import numpy as np
import torch
from alone import begin, found_by, parser, peak_memory, start_memory
from score import matrix_rate

from lmdyn.lm import load_probes
from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.models import load
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune

LR, CLIP, BETA = 1e-6, 1.0, 0.1


def ours(model, tokenizer, rows: ProbeSet, updates: int) -> tuple[float, list[float]]:
    run = finetune(
        model, tokenizer, rows, "dpo", epochs=updates, lr=LR, batch_size=len(rows), clip=CLIP
    )
    return run.meta["seconds"], run.log["loss"].tolist()


def trl(model, tokenizer, rows: ProbeSet, epochs: int, size: int = 0) -> tuple[float, list[float]]:
    """Batches of ``size`` pairs; of all of them, if it is not given."""
    from datasets import Dataset, disable_progress_bars
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        seconds = 0.0

        def on_train_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_train_end(self, *args, **kwargs):
            self.seconds = time.perf_counter() - self.start

    disable_progress_bars()
    keys = ("prompt", "chosen", "rejected")
    data = Dataset.from_list([{key: row[key] for key in keys} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=size or len(rows),
            num_train_epochs=epochs,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=CLIP,
            beta=BETA,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            max_length=None,
            bf16=False,
            use_cpu=model.device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = DPOTrainer(
            model,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.seconds, losses


METHODS = {"trl": trl, "finetune": ours}


def pairs(source: str, n: int) -> ProbeSet:
    """Pairs with the tokens of TRL's trainer, a response parted from the prompt by a space."""
    found = []
    for row in load_probes(source, types=["chosen", "rejected"]):
        said = {key: row[key] for key in ("chosen", "rejected") if key in row}
        said = {key: x if x[:1].isspace() else f" {x}" for key, x in said.items()}
        found += [{"prompt": row["prompt"], **said}] * (len(said) == 2)
    if len(found) < n:
        raise SystemExit(f"{source} has only {len(found)} pairs, and {n} are needed")
    return as_probes(found[:n])


def batches(options: argparse.Namespace) -> list[ProbeSet]:
    size = options.batch_size
    found = pairs(options.rows, options.batches * size)
    return [found[start : start + size] for start in range(0, len(found), size)]


def run(options: argparse.Namespace) -> None:
    """One method: times, losses and memory, into a file."""
    warnings.filterwarnings("ignore")  # TRL's own, on what it may change
    model, tokenizer = load(options.model, device=options.device)
    start = copy.deepcopy(model.state_dict())
    step = METHODS[options.method]
    work = batches(options)
    before = start_memory(model.device)
    times, losses = [], []
    for rows in work:
        took = []
        for _ in range(options.repeats):
            model.load_state_dict(start)
            took.append(step(model, tokenizer, rows, options.updates))
        times.append(statistics.median(t for t, _ in took) / options.updates)
        losses.append(took[0][1])
    peak = peak_memory(model.device) - before
    np.savez(options.out, times=times, losses=losses, peak=peak)


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device=options.device)
    work = batches(options)
    rate = matrix_rate(model.device)
    print(
        f"{options.model}, {model.dtype}, {model.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; one large product: {rate / 1e9:.0f} Gflop/s\n"
        f"AdamW, {options.updates} updates on each batch of {options.batch_size} pairs"
    )
    del model
    slow, fast = map(found_by, METHODS)
    print("   prompts  responses   TRL s/update  finetune s/update  ratio  loss differs by")
    for b, rows in enumerate(work):
        encoded = encode(tokenizer, rows)
        prompts = sum(len(e.prompt) for e in encoded)
        responses = sum(len(ids) for e in encoded for ids in e.responses.values())
        worst = np.abs(slow["losses"][b] - fast["losses"][b]).max()
        a, c = slow["times"][b], fast["times"][b]
        print(f"   {prompts:7d}  {responses:9d}  {a:13.3f}  {c:17.3f}  {c / a:5.2f}  {worst:15.1e}")
    print(
        f"memory beyond the model: {slow['peak'] / 1e3:.2f} GB with TRL, "
        f"{fast['peak'] / 1e3:.2f} GB here, ratio {fast['peak'] / slow['peak']:.2f}"
    )


if __name__ == "__main__":
    parser = parser(__doc__, METHODS)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3, help="different batches")
    parser.add_argument("--updates", type=int, default=3, help="on each batch")
    parser.add_argument("--repeats", type=int, default=3)
    begin(parser, run, main)
