"""`lmdyn.lm.predict_change` against one forward pass over the same batches, and how exact it is.

    python benchmarks/predict.py                        # SmolLM2, 8 prompts of the sample
    python benchmarks/predict.py --rows probes.jsonl    # your own

The forward pass reads the same packed batches, takes logits where they predict a response token
and from them log π of that token. Both run in this process, in turns; times are medians. A matrix
product W·x becomes three in forward mode, W·x, dW·x and W·dx, so three passes are the floor.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lmdyn.lm import load, load_probes
from lmdyn.lm.batches import pack
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.forward import hidden
from lmdyn.lm.predict import CHUNK, Change, measure_change, predict_change, sgd_direction
from lmdyn.lm.tokens import encode


@torch.no_grad()
def forward(model, tokenizer, probes: ProbeSet, tokens: int) -> float:
    """Σ log π over all response tokens."""
    total, layer = 0.0, model.get_output_embeddings()
    for batch in pack(encode(tokenizer, probes), tokens=tokens, device=model.device):
        chunks = zip(hidden(model, batch).split(CHUNK), batch.target.split(CHUNK), strict=True)
        for states, target in chunks:
            logp = layer(states).log_softmax(-1).gather(1, target[:, None])
            total += float(logp.sum())  # waits for a GPU
    return total


def seconds(function: Callable, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def matrix_rate(model) -> float:
    """Floating-point operations per second of one large matrix product."""
    n = 2048 if model.device.type == "cpu" else 8192
    a = torch.randn(n, n, device=model.device, dtype=model.dtype)
    return 2 * n**3 / min(seconds(lambda: float((a @ a)[0, 0])) for _ in range(5))


def operations(model, tokens: int, positions: int) -> float:
    """Of one forward pass, in the weights' products; attention comes on top of them."""
    table = model.get_input_embeddings().weight
    body = sum(p.numel() for p in model.base_model.parameters() if p is not table)
    return 2 * body * tokens + 2 * model.get_output_embeddings().weight.numel() * positions


def flat(change: Change) -> Tensor:
    """Every label at every token."""
    return torch.cat([part.flatten() for row in change.vocab for part in row.values()]).double()


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device=options.device)
    probes = load_probes(options.rows, limit=options.limit)
    encoded = encode(tokenizer, probes)
    work = list(pack(encoded, tokens=options.tokens, device=model.device))
    fed = sum(batch.input_ids.numel() for batch in work)
    positions = sum(len(batch.target) for batch in work)
    print(
        f"{options.model}, {model.dtype}, {model.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads\n"
        f"{len(probes)} prompts × {len(probes.types)} types: "
        f"{sum(len(row.responses) for row in encoded)} responses in {len(work)} batches of up to "
        f"{max(batch.input_ids.shape[1] for batch in work)} tokens a sequence\n"
        f"{fed} tokens fed, padding included, logits at {positions}"
    )
    gradient = sgd_direction(model, tokenizer, probes[:1])

    def predict(which: ProbeSet) -> Change:
        return predict_change(
            model, tokenizer, which, gradient, tokens=options.tokens, progress=False
        )

    def once(which: ProbeSet) -> float:
        return forward(model, tokenizer, which, options.tokens)

    once(probes[:1]), predict(probes[:1])  # warm up
    times = {once: [], predict: []}
    for _ in range(options.repeats):
        for function, took in times.items():
            took.append(seconds(function, probes))
    short, long = (statistics.median(took) for took in times.values())
    rate = matrix_rate(model)
    products = operations(model, fed, positions)
    share = products / short / rate, 3 * products / long / rate
    print(f"one forward     {short:8.2f} s   {fed / short:7.0f} tokens/s")
    print(f"predict_change  {long:8.2f} s   {fed / long:7.0f} tokens/s")
    print(f"ratio           {long / short:8.2f} ×  (at least 3 matrix products for one)")
    print(
        f"products with weights: {share[0]:.0%} and {share[1]:.0%} of the "
        f"{rate / 1e9:.0f} Gflop/s of one large product"
    )
    accuracy(model, tokenizer, probes, options.updates)
    entropies(model, tokenizer, probes)


def accuracy(model, tokenizer, probes: ProbeSet, updates: int) -> None:
    print(
        "\nOne SGD step on one chosen response; predicted against measured Δ log π of every label\n"
        "of the vocabulary at every token of a response: correlation, and ‖predicted − measured‖ /"
        "\n‖measured‖. The error of first order is proportional to lr.\n"
        "update  observed        tokens      lr  correlation   error  Δ log π  predicted"
    )
    for i in range(min(updates, len(probes))):
        update = probes[i : i + 1].only("chosen")
        gradient = sgd_direction(model, tokenizer, update)
        for name, observed in (
            ("itself", update),
            ("another prompt", probes[[(i + 1) % len(probes)]].only("chosen")),
        ):
            for lr in (1e-5, 1e-6):
                step = {key: lr * part for key, part in gradient.items()}
                both = [
                    change(model, tokenizer, observed, step, vocab=True, progress=False)
                    for change in (predict_change, measure_change)
                ]
                p, m = map(flat, both)
                correlation = float(torch.corrcoef(torch.stack([p, m]))[0, 1])
                print(
                    f"{i:6d}  {name:<15}{len(both[0].tokens[0]['chosen']):7d}{lr:8.0e}"
                    f"{correlation:13.6f}{float((p - m).norm() / m.norm()):8.2%}"
                    f"{both[1].logp[0, 0]:9.4f}{both[0].logp[0, 0]:11.4f}",
                    flush=True,
                )


def entropies(model, tokenizer, probes: ProbeSet) -> None:
    print(
        "\nOne SGD step on one chosen response; predicted against measured change of the entropy\n"
        "of each response of each prompt, its mean over the tokens.\n"
        "      lr  correlation   error"
    )
    gradient = sgd_direction(model, tokenizer, probes[:1].only("chosen"))
    for lr in (1e-5, 1e-6):
        step = {key: lr * part for key, part in gradient.items()}
        p, m = (
            change(model, tokenizer, probes, step, progress=False).entropy
            for change in (predict_change, measure_change)
        )
        p, m = (x[~np.isnan(m)] for x in (p, m))
        error = np.linalg.norm(p - m) / np.linalg.norm(m)
        print(f"{lr:8.0e}{np.corrcoef(p, m)[0, 1]:13.6f}{error:8.2%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder for lm.load")
    parser.add_argument("--rows", default="sample", help="a source or JSONL file for load_probes")
    parser.add_argument("--limit", type=int, default=8, help="prompts")
    parser.add_argument("--tokens", type=int, default=4096, help="in a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3, help="steps to check the prediction of")
    parser.add_argument("--device", default="auto")
    main(parser.parse_args())
