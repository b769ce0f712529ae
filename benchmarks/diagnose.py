"""`lmdyn.lm.diagnose` against a DPO step of TRL and of `lmdyn.lm.finetune`, all a pair, on SmolLM2.

    OMP_NUM_THREADS=1 python benchmarks/diagnose.py --rows HH.jsonl --pairs 16     # minutes

A step of AdamW on batches of pairs, without the reference's log-probs, which are made once, against
the diagnosis of the same pairs, without the gradient of the held-out rows, which is taken once.
`finetune` computes a prompt once for both responses; TRL does so twice, and so does `diagnose`,
which needs the gradient of each response. They take turns. Each runs in a process of its own, which
gives its time on the processor (what others do on the machine counts less), and its peak memory
above what it held with the model loaded.
"""

import argparse
import statistics
import time
import warnings

import numpy as np
import torch
from alone import begin, found_by, parser, peak_memory, start_memory
from dpo import pairs, trl

from lmdyn.lm import diagnose, finetune
from lmdyn.lm.models import load
from lmdyn.lm.tokens import encode

METHODS = ("trl", "finetune", "diagnose")
SETTINGS = {"lr": 1e-7, "progress": False}


def run(options: argparse.Namespace) -> None:
    """One method, again with more to do, so that what both cost once goes out; first to warm up."""
    warnings.filterwarnings("ignore")  # TRL's own, on what it may change
    model, tokenizer = load(options.model, device=options.device)
    found = pairs(options.rows, options.pairs + 1)
    rows, held_out, size = found[:-1], found[-1:], options.batch_size

    def train(epochs):
        finetune(model, tokenizer, rows, "dpo", epochs=epochs, batch_size=size, **SETTINGS)

    def look(some):
        diagnose(model, tokenizer, some, "dpo", held_out=held_out, progress=False)

    steps = {"trl": lambda epochs: trl(model, tokenizer, rows, epochs, size), "finetune": train}
    if options.method in steps:
        work, inputs, more = steps[options.method], (1, 1, 2), len(rows)
    else:
        work, inputs, more = look, (rows[:size], rows[:size], rows), len(rows) - size
    before, took = start_memory(model.device), []
    for given in inputs:
        start = time.process_time()
        work(given)
        took.append(time.process_time() - start)
    seconds = (took[2] - took[1]) / more
    np.savez(options.out, seconds=seconds, peak=peak_memory(model.device) - before)


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device="cpu")
    encoded = encode(tokenizer, pairs(options.rows, options.pairs))
    prompts = statistics.mean(len(e.prompt) for e in encoded)
    answers = statistics.mean(len(ids) for e in encoded for ids in e.responses.values())
    print(
        f"{options.model}, {model.dtype}, torch {torch.__version__}, {torch.get_num_threads()} "
        f"threads; {len(encoded)} pairs, in the mean {prompts:.0f} tokens of the prompt and "
        f"{answers:.0f} of a response; AdamW, batches of {options.batch_size}"
    )
    del model
    found = {method: [] for method in METHODS}
    for _ in range(options.repeats):
        for method, times in found.items():
            times.append(found_by(method))
    seconds, peak = (
        {method: statistics.median(float(x[what]) for x in of) for method, of in found.items()}
        for what in ("seconds", "peak")
    )
    for method in METHODS:
        print(
            f"{method:<10}{seconds[method]:6.2f} s a pair, {peak[method] / 1e3:5.2f} GB beyond the "
            f"model; diagnose takes {seconds['diagnose'] / seconds[method]:.2f} of its time"
        )


if __name__ == "__main__":
    parser = parser(__doc__, METHODS)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    begin(parser, run, main)
