"""`lmdyn.lm.influence` against a loop over per-example gradients, on SmolLM2.

    python benchmarks/influence.py         # 32 updates × 32 probes: some minutes on 2 cores

The loop is the fastest that fits into 16 GB: it holds the gradients of 16 updates at a time (a
gradient of SmolLM2 takes 0.54 GB), passes over the probes once for each such block, four at a time,
and multiplies both as matrices. Gradients land in their place without a copy, and logits are taken
at the response alone. Each method runs in a process of its own, which gives its time, and its peak
memory above what it held with the model loaded and warmed up.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from alone import begin, found_by, parser, peak_memory, start_memory
from score import matrix_rate
from torch import Tensor

from lmdyn.lm import load_probes
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.influence import influence
from lmdyn.lm.models import load
from lmdyn.lm.tokens import Encoded, encode

METHODS = ("loop", "influence")
PART = 2**20  # parameters in one product of gradients, of the loop


def loop(model, tokenizer, updates: ProbeSet, probes: ProbeSet, block: int, group: int):
    """(N_u, N_o) inner products of the gradients of log π(chosen)."""
    model.eval()
    ours, theirs = encode(tokenizer, updates), encode(tokenizer, probes)
    found = np.zeros((len(ours), len(theirs)))
    size = sum(p.numel() for p in model.parameters())
    rows = torch.empty(min(block, len(ours)), size, device=model.device)
    columns = torch.empty(min(group, len(theirs)), size, device=model.device)
    for i in range(0, len(ours), block):
        left = gradients(model, ours[i : i + block], rows)
        for j in range(0, len(theirs), group):
            right = gradients(model, theirs[j : j + group], columns)
            # In parts: one float32 sum over all parameters would lose half of the digits.
            for a, b in zip(left.split(PART, 1), right.split(PART, 1), strict=True):
                found[i : i + block, j : j + group] += (a @ b.T).double().cpu().numpy()
    model.zero_grad()
    return found


def gradients(model, encoded: Sequence[Encoded], out: Tensor) -> Tensor:
    """One forward and backward pass a row, whose gradient is summed up in its row of ``out``."""
    out = out[: len(encoded)].zero_()
    for row, flat in zip(encoded, out, strict=True):
        start = 0
        for p in model.parameters():
            p.grad = flat[start : start + p.numel()].view_as(p)
            start += p.numel()
        response = row.responses["chosen"]
        ids = torch.tensor([row.prompt + response], device=model.device)
        keep = len(response) + 1
        logits = model(ids, use_cache=False, logits_to_keep=keep).logits[0, :-1]
        (
            -torch.nn.functional.cross_entropy(logits, ids[0, -keep + 1 :], reduction="sum")
        ).backward()
    return out


def run(options: argparse.Namespace) -> None:
    """One method: time, memory, result and counts of operations, into a file."""
    model, tokenizer = load(options.model, device=options.device)
    updates, probes = rows(options)
    if options.method == "loop":

        def method(updates, probes):
            return loop(model, tokenizer, updates, probes, options.block, options.group)
    else:

        def method(updates, probes):
            return influence(
                model, tokenizer, updates, probes, memory=options.memory, progress=False
            )[..., 0]

    method(updates[:1], probes[:1])  # warm up
    before = start_memory(model.device)
    start = time.perf_counter()
    result = method(updates, probes)
    took = time.perf_counter() - start
    peak = peak_memory(model.device) - before
    np.savez(options.out, result=result, took=took, peak=peak, rate=matrix_rate(model.device))


def rows(options: argparse.Namespace) -> tuple[ProbeSet, ProbeSet]:
    every = load_probes(options.rows, types=["chosen"])
    n = options.updates + options.probes
    if len(every) < n:
        raise SystemExit(f"{options.rows} has {len(every)} rows, {n} are needed")
    return every[: options.updates], every[options.updates : n]


def operations(options: argparse.Namespace, model, encoded: list[list[Encoded]]) -> dict:
    """Multiplications and additions with weights, and of gradients; attention comes on top."""
    total = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    body = total - head  # tied: the table counts once, as the output layer
    u, o = (
        sum(
            2 * body * (len(e.prompt) + len(e.responses["chosen"]) - 1)
            + 2 * head * len(e.responses["chosen"])
            for e in side
        )
        for side in encoded
    )
    pairs = 2 * total * options.updates * options.probes
    passes = -(-options.updates // options.block)
    # Forward, gradients of inputs, gradients of weights: each as much as the other.
    return {"loop": 3 * (u + passes * o) + pairs, "influence": 3 * (u + o) + pairs}


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device="cpu")
    updates, probes = rows(options)
    encoded = [encode(tokenizer, side) for side in (updates, probes)]
    fed, learnt = (
        sum(count(e) for side in encoded for e in side)
        for count in (
            lambda e: len(e.prompt) + len(e.responses["chosen"]) - 1,
            lambda e: len(e.responses["chosen"]),
        )
    )
    print(
        f"{options.model}, float32, torch {torch.__version__}, {torch.get_num_threads()} threads\n"
        f"{len(updates)} updates × {len(probes)} probes: {fed} tokens, {learnt} of them in "
        f"responses\nloop: {options.block} updates' gradients in memory, {options.group} probes at "
        "a time"
    )
    work = operations(options, model, encoded)
    del model
    found = {method: found_by(method) for method in METHODS}
    rate = max(float(f["rate"]) for f in found.values())
    for method, f in found.items():
        share = work[method] / float(f["took"]) / rate
        print(
            f"{method:10s} {float(f['took']):8.1f} s   {float(f['peak']):7.0f} MB   "
            f"{work[method] / 1e12:.2f} Tflop, {share:.0%} of the {rate / 1e9:.0f} Gflop/s of one "
            "large matrix product"
        )
    slow, fast = found["loop"], found["influence"]
    difference = abs(fast["result"] - slow["result"]).max() / abs(slow["result"]).max()
    print(
        f"ratio {float(slow['took'] / fast['took']):.2f} × in time, "
        f"{float(slow['peak'] / fast['peak']):.2f} × in memory; "
        f"largest difference {difference:.1e} of the largest influence"
    )


if __name__ == "__main__":
    parser = parser(__doc__, METHODS)
    parser.add_argument("--updates", type=int, default=32)
    parser.add_argument("--probes", type=int, default=32)
    parser.add_argument("--memory", type=float, default=8e9, help="bytes, of influence")
    parser.add_argument("--block", type=int, default=16, help="updates in memory, of the loop")
    parser.add_argument("--group", type=int, default=4, help="probes in memory, of the loop")
    begin(parser, run, main)
