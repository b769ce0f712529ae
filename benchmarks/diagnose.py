"""`lmdyn.lm.diagnose` against a DPO step of `lmdyn.lm.finetune`, both a pair, on SmolLM2.

    OMP_NUM_THREADS=1 python benchmarks/diagnose.py --rows HH.jsonl --pairs 16     # minutes

A step of AdamW on batches of pairs, without the reference's log-probs, which are made once, against
the diagnosis of the same pairs, without the gradient of the held-out rows, which is taken once. The
two take turns. Each runs in a process of its own, which gives its time on the processor (what
others do on the machine counts less), and its peak memory above what it held with the model loaded.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from alone import begin, found_by, parser, peak_memory, start_memory

from lmdyn.lm import diagnose, finetune, load_probes
from lmdyn.lm.models import load
from lmdyn.lm.tokens import Format, encode

METHODS = ("finetune", "diagnose")
SETTINGS = {"lr": 1e-7, "progress": False}


def pairs(options: argparse.Namespace):
    own = options.rows in ("sample", "world")
    form = None if own else Format("paper", prompt_keeps="end")
    names = ["chosen", "rejected"]
    probes = load_probes(options.rows, types=names, format=form)
    whole = [i for i, row in enumerate(probes) if "rejected" in row]
    if len(whole) < options.pairs + 1:
        raise SystemExit(f"{options.rows} has {len(whole)} pairs, {options.pairs + 1} are needed")
    return probes[whole[: options.pairs]], probes[whole[options.pairs : options.pairs + 1]]


def run(options: argparse.Namespace) -> None:
    """One method, twice: the second time with more to do, so that what both cost once goes out."""
    model, tokenizer = load(options.model, device=options.device)
    rows, held_out = pairs(options)
    size = options.batch_size

    def train(epochs):
        finetune(model, tokenizer, rows, "dpo", epochs=epochs, batch_size=size, **SETTINGS)

    def look(some):
        diagnose(model, tokenizer, some, "dpo", held_out=held_out, progress=False)

    if options.method == "finetune":
        work, inputs, more = train, (1, 2), len(rows)
    else:
        work, inputs, more = look, (rows[:size], rows), len(rows) - size
    before, took = start_memory(model.device), []
    for given in inputs:
        start = time.process_time()
        work(given)
        took.append(time.process_time() - start)
    seconds = (took[1] - took[0]) / more
    np.savez(options.out, seconds=seconds, peak=peak_memory(model.device) - before)


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device="cpu")
    encoded = encode(tokenizer, pairs(options)[0])
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
    (slow, fast), (most, less) = (
        [statistics.median(float(x[what]) for x in times) for times in found.values()]
        for what in ("seconds", "peak")
    )
    print(
        f"a pair: finetune {slow:.2f} s, diagnose {fast:.2f} s, ratio {fast / slow:.2f}; "
        f"memory beyond the model: {most / 1e3:.2f} GB and {less / 1e3:.2f} GB"
    )


if __name__ == "__main__":
    parser = parser(__doc__, METHODS)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    begin(parser, run, main)
