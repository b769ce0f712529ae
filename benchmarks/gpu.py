"""Throughput, memory and agreement of `lmdyn.lm` on a GPU, in float32 and bfloat16.

    python benchmarks/gpu.py                          # on a GPU: minutes
    python benchmarks/gpu.py --json gpu.json          # and keep what was found
    python benchmarks/gpu.py --device cpu --tiny      # all of it in small, to see that it runs

No hub is needed: models of the paper's shapes are filled with random weights. Each share is that
of a large matrix product of the same precision, timed in the same run; only products with weights
count as work, attention comes on top. Times are medians after a warm-up. A bfloat16 model scores in
bfloat16; finetuning computes in bfloat16 with float32 weights; `predict_change` works in float32
always. Ends with status 1 if the device disagrees with the CPU, with 2 without a GPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from random_models import SHAPES, random_model, rows, words
from score import operations

from lmdyn.lm import finetune, load, load_probes, predict_change, score, sgd_direction
from lmdyn.lm.recipes import Stage
from lmdyn.lm.recipes.running import lengths, memory
from lmdyn.lm.records import environment, replacing
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import ways

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOSE = 1e-3  # nats: by how much the device may differ from the CPU in float64
HEAD = f"{'model':<14}{'what':<16}{'dtype':<10}{'ms':>9}{'tokens/s':>10}{'share':>7}{'GB':>7}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        seconds: of one pass over the rows, or of one update.
        tokens_per_second: fed to the model, padding included.
        share: of the matrix rate that products with weights reach.
        peak_gb: the most memory held meanwhile; None on a CPU.
        planned_gb: what the plan of a recipe estimates for it; None where there is no plan.
    """

    model: str
    what: str
    dtype: str
    seconds: float
    tokens_per_second: float
    share: float
    peak_gb: float | None
    planned_gb: float | None = None

    def __str__(self) -> str:
        peak, planned = (
            "–" if value is None else f"{value:.2f}" for value in (self.peak_gb, self.planned_gb)
        )
        return (
            f"{self.model:<14}{self.what:<16}{self.dtype:<10}{1e3 * self.seconds:>9.2f}"
            f"{self.tokens_per_second:>10,.0f}{self.share:>7.1%}{peak:>7}{planned:>9}"
        )


class Bench:
    """What is measured, on one device.

    Args:
        device: a CUDA device, or the CPU.
        tiny: models and rows so small that all takes seconds.
        repeats: of each timing, after one to warm up.
    """

    def __init__(self, device: torch.device, tiny: bool, repeats: int):
        self.device, self.tiny, self.repeats = device, tiny, repeats
        self.on_gpu = device.type == "cuda"
        self.tokenizer = words()
        prompt, answer = (6, 5) if tiny else (128, 128)
        self.probes = rows(3 if tiny else 32, prompt, answer)
        self.batch = 2 if tiny else 4
        self.updates = 2 if tiny else 8
        self.rates = {name: self.matrix_rate(dtype) for name, dtype in self.dtypes().items()}

    def dtypes(self) -> dict[str, torch.dtype]:
        """Without bfloat16 where the GPU has no units for it (before Ampere)."""
        has_units = not self.on_gpu or torch.cuda.get_device_capability(self.device) >= (8, 0)
        return DTYPES if has_units else {"float32": torch.float32}

    def seconds(self, function: Callable[[], object]) -> float:
        """The median time of a call on the device."""
        function()
        times = []
        for _ in range(self.repeats):
            if self.on_gpu:
                ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                ends[0].record()
                function()
                ends[1].record()
                torch.cuda.synchronize(self.device)
                times.append(ends[0].elapsed_time(ends[1]) / 1e3)
            else:
                began = time.perf_counter()
                function()
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def peak(self, function: Callable[[], object]) -> tuple[object, float | None]:
        """(what a call gives, the GB held at its worst moment)."""
        if not self.on_gpu:
            return function(), None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        result = function()
        return result, torch.cuda.max_memory_allocated(self.device) / 1e9

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Operations per second of a large matrix product."""
        n = 256 if self.tiny else 8192
        a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        return 2 * n**3 / self.seconds(lambda: a @ b)

    def model(self, name: str, dtype: torch.dtype):
        """Random weights in the shape of a model."""
        return random_model(name, self.tokenizer, self.device, dtype, self.tiny)

    def measure(self, name: str) -> Iterator[Row]:
        """All rows of one model."""
        for dtype in self.dtypes():
            yield self.score(name, dtype)
        yield self.predict(name)
        for loss in ("sft", "dpo"):
            for dtype in self.dtypes():
                yield self.finetune(name, loss, dtype)

    def work(self, model) -> tuple[int, float]:
        """(tokens fed, operations) of one pass over the probes."""
        encoded = encode(self.tokenizer, self.probes)
        fed = list(ways(model, encoded).batches(model, encoded))
        tokens = sum(batch.input_ids.numel() for batch in fed)
        return tokens, operations(model, tokens, sum(len(batch.target) for batch in fed))

    def score(self, name: str, dtype: str) -> Row:
        model = self.model(name, DTYPES[dtype])

        def once():
            return score(model, self.tokenizer, self.probes, progress=False)

        took = self.seconds(once)
        tokens, work = self.work(model)
        share = work / took / self.rates[dtype]
        return Row(name, "score", dtype, took, tokens / took, share, self.peak(once)[1])

    def predict(self, name: str) -> Row:
        model = self.model(name, torch.float32)
        step = sgd_direction(model, self.tokenizer, self.probes[:1].only("chosen"), lr=1e-6)

        def once():
            return predict_change(model, self.tokenizer, self.probes, step, progress=False)

        took = self.seconds(once)
        tokens, work = self.work(model)
        share = 3 * work / took / self.rates["float32"]  # W x, dW x and W dx
        peak = self.peak(once)[1]
        return Row(name, "predict_change", "float32", took, tokens / took, share, peak)

    def finetune(self, name: str, loss: str, dtype: str) -> Row:
        model = self.model(name, torch.float32)
        precision = "bf16" if dtype == "bfloat16" else "no"
        settings = {"lr": 1e-6, "batch_size": self.batch, "optimizer": "rmsprop"}
        learn = self.probes[: self.batch].only("chosen", "rejected")

        def updates(n: int):
            return finetune(
                model,
                self.tokenizer,
                learn,
                loss,
                epochs=n,
                mixed_precision=precision,
                progress=False,
                **settings,
            )

        updates(1)
        run, peak = self.peak(lambda: updates(self.updates))
        took = run.meta["seconds"] / self.updates  # the loop alone; each update waits for the GPU
        stage = Stage(loss=loss, epochs=1, mixed_precision=precision, **settings)
        size = lengths(self.tokenizer, learn if loss == "dpo" else learn.only("chosen"))
        fed, predicted = (sum(n) for n in zip(*size, strict=True))
        share = 3 * operations(model, fed, predicted) / took / self.rates[dtype]
        planned = memory(model, stage, size)["peak"] / 1e9
        return Row(name, f"finetune {loss}", dtype, took, fed / took, share, peak, planned)


def agreement(device: torch.device) -> dict[str, dict[str, float]]:
    """The largest differences (nats) of the device from the CPU in float64, on the shipped model.

    Beside them those of the CPU in float32, which rounds as well.
    """
    probes = load_probes("world", ["chosen", "rejected", "irr_train"], limit=8)

    def found(where: torch.device, dtype: str) -> dict[str, np.ndarray]:
        model, tokenizer = load("tiny", where, dtype)
        step = sgd_direction(model, tokenizer, probes[:2], "dpo", lr=1e-4)
        change = predict_change(model, tokenizer, probes, step, progress=False)
        result = {"score": score(model, tokenizer, probes, progress=False).logp}
        result["predict_change"] = change.logp
        for loss in ("sft", "dpo"):
            model, tokenizer = load("tiny", where, dtype)
            settings = {"epochs": 2, "lr": 1e-4, "batch_size": 4, "clip": 10.0, "probes": probes}
            result[f"finetune {loss}"] = finetune(
                model, tokenizer, probes, loss, progress=False, **settings
            ).logp
        return result

    cpu = torch.device("cpu")
    exact = found(cpu, "float64")
    differences = {}
    for name, where in ((str(device), device), ("cpu, again", cpu)):
        single = found(where, "float32")
        differences[name] = {key: float(abs(single[key] - exact[key]).max()) for key in exact}
    return differences


def report(options: argparse.Namespace, device: torch.device) -> tuple[dict, bool]:
    """Measure and print; (what was found, whether the device agrees with the CPU)."""
    about = environment(device)
    bench = Bench(device, options.tiny, options.repeats)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['hardware']}; {versions}, CUDA {torch.version.cuda}")
    for name, rate in bench.rates.items():
        print(f"one large matrix product in {name}: {rate / 1e12:.3g} TFLOP/s")
    if len(bench.rates) < len(DTYPES):
        print("no bfloat16: this GPU has no units for it")
    print(f"\n{HEAD}{'planned':>9}")
    table = []
    for name in options.models:
        try:
            for row in bench.measure(name):
                table.append(row)
                print(row, flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f"{name:<14}does not fit into this GPU's memory from here on")
    differences = agreement(device)
    print("\nlargest difference from the CPU in float64, nats; tiny model")
    for name, found in differences.items():
        print(f"  {name:<12}" + ", ".join(f"{key} {value:.1e}" for key, value in found.items()))
    agrees = all(value < CLOSE for value in differences[str(device)].values())
    print(f"the device agrees with the CPU to {CLOSE} nats: {'yes' if agrees else 'NO'}")
    result = {
        **about,
        "cuda": torch.version.cuda,
        "matrix rates": bench.rates,
        "rows": [asdict(row) for row in table],
        "differences": differences,
    }
    return result, agrees


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and rows, in seconds")
    parser.add_argument(
        "--models", nargs="+", choices=SHAPES, default=["pythia-410m", "pythia-1b", "qwen1.5-0.5b"]
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep what was found")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    refused = ""
    if device.type == "cpu" and not options.tiny:
        refused = "the models are too large for a CPU: add --tiny"
    if device.type == "cuda" and not torch.cuda.is_available():
        refused = "there is no GPU here; --device cpu --tiny runs all of it in small"
    if refused:
        print(f"gpu.py: {refused}", file=sys.stderr)
        return 2
    result, agrees = report(options, device)
    if options.json:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
