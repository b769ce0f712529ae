"""Structured `lmdyn.entk` against the method of PyTorch's own NTK tutorial, on images.

    python benchmarks/kernel.py            # a few minutes on 2 cores

LeNet on N = 100, 300 and 600 digits, then a smaller CNN on two sets of a few images.

The tutorial takes per-example Jacobians over all parameters by ``vmap(jacrev)`` and contracts
them layer by layer. It is given the advantage where there is one: the Jacobian is computed once,
where both sides of the kernel see the same images. Times are medians over alternating runs in this
process; peak memory is each method's own, in a fresh process, above what it held before (Linux).
"""

import argparse
import cProfile
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from lmdyn import digits, entk
from lmdyn.kernel.factors import PASS_EXAMPLES


def tutorial(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Tensor:
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(params, example):
        return functional_call(model, params, (example.unsqueeze(0),)).squeeze(0)

    def jacobians(x):
        return [j.flatten(2) for j in vmap(jacrev(single), (None, 0))(params, x).values()]

    ours = jacobians(x)
    pairs = zip(ours, ours if y is None else jacobians(y), strict=True)
    return torch.stack([torch.einsum("Naf,Mbf->NMab", i, j) for i, j in pairs]).sum(0)


METHODS = {"tutorial": tutorial, "entk": entk}


def setup(n: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    data = digits.load(n_train=n, n_test=10, seed=0)
    return digits.LeNet().eval(), data.train_x


def small() -> nn.Module:
    """A CNN of 8 and 16 channels, whose backward passes cost little."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    layers += nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(784, 10))


def two_sets(repeats: int) -> None:
    print("\nTwo sets of images, a CNN of 8 and 16 channels:")
    print("      N, M" + "".join(f"{name:>13}" for name in ("tutorial s", "entk s", "ratio")))
    model = small()
    for n, m in ((20, 5), (50, 50), (100, 100)):
        sets = torch.randn(n, 1, 28, 28), torch.randn(m, 1, 28, 28)
        torch.testing.assert_close(entk(model, *sets), tutorial(model, *sets), rtol=1e-3, atol=1e-3)
        slow, fast = medians(5 * repeats, model, *sets)
        print(f"{n:6d}, {m:<3d}{slow:12.4f}{fast:13.4f}{slow / fast:13.2f}", flush=True)


def seconds(function: Callable, *args) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def medians(repeats: int, *given) -> list[float]:
    """Seconds of each of `METHODS`, which take turns."""
    rounds = [[seconds(method, *given) for method in METHODS.values()] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def peak_megabytes(method: str, n: int) -> float:
    """Run the method in a process of its own."""
    command = [sys.executable, __file__, "--peak", method, "--n", str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(method: str, n: int) -> None:
    model, x = setup(n)
    METHODS[method](model, x[:2])  # what the libraries take for themselves
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    METHODS[method](model, x)
    print(memory("VmHWM") - before)


def memory(field: str) -> float:
    """A line of Linux's account of this process, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def matrix_rate(n: int) -> float:
    """Floating-point operations per second of one large float32 matrix product."""
    a = torch.randn(n, 2416)
    best = min(seconds(torch.mm, a, a.T) for _ in range(5))
    return 2 * n * n * 2416 / best


def floor(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Seconds for the backward passes, and for one half Gram product for each layer."""

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    outputs = []
    hooks = [m.register_forward_hook(lambda *args: outputs.append(args[-1])) for m in layers]

    def passes():
        for part in x.split(PASS_EXAMPLES):
            outputs.clear()
            for logit in model(part).sum(0):
                torch.autograd.grad(logit, outputs, retain_graph=True)

    backward = min(seconds(passes) for _ in range(3))
    for hook in hooks:
        hook.remove()
    # The width of each layer's Gram product: what tells its examples apart.
    widths = [
        sum(p.numel() for p in m.parameters()) if isinstance(m, nn.Conv2d) else m.out_features
        for m in layers
    ]
    rows = 10 * len(x)
    gram = sum(rows * rows * width for width in widths) / matrix_rate(rows)  # 2 · half
    return backward, gram


STAGES = {
    "forward pass, recorded": "record",
    "backward passes": "<method 'run_backward' of 'torch._C._EngineBase' objects>",
    "whose row is it: the check": "_examples_axis",
    "Jacobians of the convolutions": "_per_example",
    "Gram products": "add_gram",
}


def stages(model: nn.Module, x: Tensor) -> dict[str, float]:
    profile = cProfile.Profile()
    profile.runcall(entk, model, x)
    stats = pstats.Stats(profile)
    cumulative = {key[2]: value[3] for key, value in stats.stats.items()}
    found = {stage: cumulative[name] for stage, name in STAGES.items()}
    found["the rest: unfolding, arranging, copying"] = cumulative["entk"] - sum(found.values())
    return found


def main(sizes: list[int], repeats: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, LeNet, V = 10")
    columns = ("tutorial s", "entk s", "ratio", "tutorial MB", "entk MB", "ratio", "difference")
    print("   N" + "".join(f"{name:>13}" for name in columns))
    previous, previous_n = None, None
    for n in sizes:
        model, x = setup(n)
        entk(model, x[:50])  # warm up
        slow, fast = medians(repeats, model, x)
        reference = tutorial(model, x).detach()
        difference = float((entk(model, x) - reference).norm() / reference.norm())
        del reference
        big, small = (peak_megabytes(name, n) for name in METHODS)
        now = slow, fast, slow / fast, big, small, big / small
        print(f"{n:4d}" + "".join(f"{v:13.2f}" for v in now) + f"{difference:13.1e}", flush=True)
        if previous:
            growth = "".join(f"{v / was:13.2f}" for v, was in zip(now, previous, strict=True))
            print(" (×)" + growth + f"   against N = {previous_n}")
        previous, previous_n = now, n

    n = 300 if 300 in sizes else sizes[-1]
    model, x = setup(n)
    total = statistics.median(seconds(entk, model, x) for _ in range(max(3, repeats)))
    backward, gram = floor(model, x)
    print(f"\nWhere the time of entk goes at N = {n} (profiled once):")
    for stage, spent in stages(model, x).items():
        print(f"  {spent:6.3f} s  {stage}")
    print(
        f"Floor: {backward:.3f} s of forward and backward passes + {gram:.3f} s of Gram products\n"
        f"at the {matrix_rate(10 * n) / 1e9:.0f} Gflop/s of one large matrix product. "
        f"entk takes {total:.3f} s, {total / (backward + gram):.1f} times that."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[100, 300, 600], help="images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak, options.n[0])
    else:
        main(options.n, options.repeats)
        two_sets(options.repeats)
