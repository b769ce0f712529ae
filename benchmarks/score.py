"""`lmdyn.lm.score` against one forward pass per sequence with full-vocabulary softmaxes.

    python benchmarks/score.py --rows probes.jsonl    # SmolLM2, 16 prompts: some minutes on 2 cores

The baseline does what the paper's code does for each response: the logits of all positions, their
log-softmax and softmax over the whole vocabulary, and from them the log-prob, the argmax's and
‖π‖. Both run in this process, in turns; times are medians. On the CPU, torch's log-softmax in
float32 is biased by about 1e-5 nats a token, so both are also compared with a float64 one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from lmdyn.lm import load_probes
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.models import load
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import ways


@torch.no_grad()
def one_by_one(model, tokenizer, probes: ProbeSet, dtype=torch.float32) -> np.ndarray:
    """(3, N, R): log-prob, argmax's log-prob, mean ‖π‖², from the logits in ``dtype``."""
    found = np.full((3, len(probes), len(probes.types)), np.nan)
    for i, row in enumerate(encode(tokenizer, probes)):
        for name, ids in row.responses.items():
            sequence = torch.tensor([row.prompt + ids], device=model.device)
            logits = model(sequence, use_cache=False).logits[:, :-1].to(dtype)
            logp, p = logits.log_softmax(-1), logits.softmax(-1)
            label = logp.gather(2, sequence[:, 1:, None]).squeeze(2)
            best = logp.gather(2, logits.argmax(-1, keepdim=True)).squeeze(2)
            norm = torch.linalg.vector_norm(p, dim=-1)
            response = slice(len(row.prompt) - 1, None)
            values = (x[0, response] for x in (label, best, norm.square()))
            total, argmax, square = (x.double().cpu() for x in values)
            at = i, probes.types.index(name)
            found[(slice(None), *at)] = float(total.sum()), float(argmax.sum()), square.mean()
    return found


def seconds(function: Callable, *args) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*args)  # ends on the CPU, so it waits for a GPU
    return time.perf_counter() - start, result


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large float32 matrix product."""
    n = 2048 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device)
    return 2 * n**3 / min(seconds(lambda: float((a @ a)[0, 0]))[0] for _ in range(5))


def operations(model, tokens: int, positions: int) -> float:
    """Multiplications and additions in the weights; attention comes on top of them."""
    head = model.get_output_embeddings().weight.numel()
    tables = {id(p) for p in (model.get_input_embeddings().weight,)}
    body = sum(p.numel() for p in model.base_model.parameters() if id(p) not in tables)
    return 2 * body * tokens + 2 * head * positions


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device=options.device)
    probes = load_probes(options.rows, limit=options.limit)
    encoded = encode(tokenizer, probes)
    lengths = [(len(r.prompt), len(ids)) for r in encoded for ids in r.responses.values()]
    sequences = sum(p + n for p, n in lengths)
    targets = sum(n for _, n in lengths)
    found = ways(model, encoded, options.tokens)
    shape = [b.input_ids.shape for b in found.batches(model, encoded)]
    fed = sum(b * length for b, length in shape)
    print(
        f"{options.model}, {model.dtype}, {model.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
        f"{len(probes)} prompts × {len(probes.types)} types: {len(lengths)} responses of "
        f"{targets / len(lengths):.0f} tokens, prompts of "
        f"{sum(len(r.prompt) for r in encoded) / len(encoded):.0f}\n"
        f"tokens fed: {sequences} one by one, {fed} by score ({len(shape)} batches); "
        f"logits at {sequences} and {targets} positions"
    )

    def fast():
        return score(model, tokenizer, probes, tokens=options.tokens, progress=False)

    warm = probes[:1]
    one_by_one(model, tokenizer, warm), score(model, tokenizer, warm, progress=False)
    slow_times, fast_times = [], []
    for _ in range(options.repeats):
        took, reference = seconds(one_by_one, model, tokenizer, probes)
        slow_times.append(took)
        took, scores = seconds(fast)
        fast_times.append(took)
    slow, quick = statistics.median(slow_times), statistics.median(fast_times)
    rate = matrix_rate(model.device)
    share = [
        operations(model, *counts) / took / rate
        for counts, took in (((sequences, sequences), slow), ((fed, targets), quick))
    ]
    print(f"one by one  {slow:8.2f} s   {targets / slow:8.0f} response tokens/s")
    print(f"score       {quick:8.2f} s   {targets / quick:8.0f} response tokens/s")
    print(f"ratio       {slow / quick:8.2f} ×")
    print(
        f"matrix products alone: {share[0]:.0%} and {share[1]:.0%} of the "
        f"{rate / 1e9:.0f} Gflop/s of one large product"
    )
    mine = np.stack([scores.logp, scores.argmax_logp, scores.prob_sq])
    few = min(2, len(probes))
    exact = one_by_one(model, tokenizer, probes[:few], torch.float64)
    print("largest difference         log-prob   argmax's   mean ‖π‖²")
    for name, x, y in (
        ("score, one by one", mine, reference),
        (f"score, float64 ({few})", mine[:, :few], exact),
        (f"one by one, float64 ({few})", reference[:, :few], exact),
    ):
        print(f"{name:<26}" + "".join(f"{d:11.1e}" for d in np.nanmax(abs(x - y), axis=(1, 2))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="sample", help="a source of load_probes, or JSONL file")
    parser.add_argument("--limit", type=int, default=16, help="prompts")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=4096, help="token budget of score")
    parser.add_argument("--repeats", type=int, default=3)
    main(parser.parse_args())
