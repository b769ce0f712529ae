"""What each call of `lmdyn.lm` takes, by formula, beside what it took: memory and operations.

    python benchmarks/cost.py                               # check: some minutes on two cores
    python benchmarks/cost.py --only Llama                  # those without weights of the world
    python benchmarks/cost.py --plan Qwen/Qwen2.5-7B --dtype bfloat16 --rows 64 --prompt 250

Memory is what is held at the worst moment beyond the model's weights, as PyTorch's allocator on the
CPU counts it. Operations are multiplications and additions in matrix products; those counted have
attention too, which the formulas leave out. ``--plan`` reads a model's configuration, no weights,
and measures nothing. Rows have prompts and answers of one length each.
"""

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from random_models import TYPES, rows, words
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lmdyn import lm
from lmdyn.lm.batches import TOKENS
from lmdyn.lm.influence._gradients import PASS_TOKENS, SLAB_BYTES
from lmdyn.lm.recipes import Stage
from lmdyn.lm.recipes.running import memory, operations
from lmdyn.lm.ways import CHUNK

STEP_TOKENS = 1024  # of a batch in `sgd_direction`
BUDGET = 8e9  # bytes that `influence` may hold
STAGE = {"epochs": 1, "lr": 1e-6, "batch_size": 4, "optimizer": "adamw"}


@dataclass(frozen=True)
class Rows:
    """So many prompts, each with answers of some types, all of the same length in tokens."""

    n: int
    prompt: int
    answer: int
    types: int = 2

    @property
    def fed(self) -> int:
        """Tokens that pass the model when a prompt is held once; the last ones are not fed."""
        return self.n * (self.prompt + self.types * (self.answer - 1))

    @property
    def fed_apart(self) -> int:
        """Tokens that pass when each answer has the prompt before it."""
        return self.n * self.types * (self.prompt + self.answer - 1)

    @property
    def predicted(self) -> int:
        return self.n * self.types * self.answer

    @property
    def answers(self) -> int:
        return self.n * self.types


class Cost:
    """Bytes beyond the weights, and operations, of the calls on a model and its rows.

    Args:
        model: on any device, "meta" too.
        gpu: for a GPU, where forward mode makes all of attention's scores.
    """

    def __init__(self, model: nn.Module, gpu: bool = False):
        config, self.model = model.config.get_text_config(), model
        self.gpu, self.heads = gpu, config.num_attention_heads
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        self.parameters, self.bytes = model.num_parameters(), head.element_size()
        self.is_half = self.bytes < 4
        self.wide = max(4, self.bytes)  # of what is computed in float32 at least
        self.layers, self.width, self.head = config.num_hidden_layers, config.hidden_size, head
        self.inner = getattr(config, "intermediate_size", None) or 4 * self.width
        self.is_gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
        matrices = [p for p in model.parameters() if p.ndim == 2]
        self.largest = max(p.numel() for p in matrices)
        self.matrices = [p.shape for p in matrices if p is not table and p is not head]
        self.weights = self.wide * self.parameters  # once more, in float32 at least

    @cached_property
    def half_copy(self) -> int:
        """Half precision is computed in float32: all weights once more."""
        return self.is_half * self.weights

    def forward(self, fed: int, predicted: int) -> float:
        """Operations of a forward pass, with logits where a token is predicted."""
        return 2 * (sum(n * m for n, m in self.matrices) * fed + self.head.numel() * predicted)

    def layer(self, tokens: int, size: int) -> int:
        """Bytes of a layer's passing values at its widest place, without a backward pass."""
        wide = (3 if self.is_gated else 2) * self.inner + 4 * self.width
        return tokens * wide * size

    def mask(self, tokens: int, length: int) -> int:
        """Who sees whom, in a batch with shared prompts: as bits, and as numbers to be added."""
        return tokens * length * (1 + self.wide)

    def logits(self, positions: int) -> int:
        return positions * len(self.head) * self.wide

    def kept(self, tokens: int) -> int:
        """Bytes of activations that a backward pass needs, without logits; as a recipe plans."""
        wide = 12 * self.width + (4 if self.is_gated else 2) * self.inner
        return tokens * self.layers * wide * self.wide

    def factors(self, rows: Rows) -> int:
        """Bytes of all layers' inputs and output gradients: what a gradient is the product of."""
        body = rows.fed_apart * sum(n + m for n, m in self.matrices)
        return (body + rows.predicted * sum(self.head.shape)) * self.bytes

    # Each of these gives (bytes, operations).

    def score(self, rows: Rows) -> tuple[float, float]:
        """And a probing of the callback. Batches of 4,096 tokens, logits of 128 at a time."""
        tokens, length = min(TOKENS, rows.fed), rows.fed // rows.n
        states = rows.predicted * tokens // rows.fed * self.width * self.bytes
        body = self.layer(tokens, self.bytes) + self.mask(tokens, length)
        # As they come in half precision, in float32, their exponentials, and which are NaN.
        head = (2.25 + self.is_half / 2) * self.logits(min(CHUNK, rows.predicted))
        return max(body, states + head), self.forward(rows.fed, rows.predicted)

    def sgd_direction(self, rows: Rows) -> tuple[float, float]:
        """The gradient, which becomes the direction; before that, a batch's backward pass."""
        tokens = min(STEP_TOKENS, rows.fed)
        passing = self.kept(tokens) + 3 * self.logits(rows.predicted * tokens // rows.fed)
        passing += (rows.fed > STEP_TOKENS) * self.weights  # the gradient of the batches before
        work = 4 * self.forward(rows.fed, rows.predicted)  # one to have the coefficients
        return self.half_copy + max(self.weights, passing), work

    def predict_change(self, rows: Rows) -> tuple[float, float]:
        """Beyond the direction, too, which is as large as the weights in float32.

        Every value has a tangent: W x, dW x and W dx.
        """
        tokens, length = min(TOKENS, rows.fed), rows.fed // rows.n
        body = 2.5 * self.layer(tokens, self.wide) + self.mask(tokens, length)
        if self.gpu:  # on a CPU they are made in blocks
            body = max(body, 7.5 * tokens * length * self.heads * self.wide)
        head = 6 * self.logits(min(CHUNK, rows.predicted))
        return self.half_copy + max(body, head), 3 * self.forward(rows.fed, rows.predicted)

    def _trial(self) -> float:
        """Plain autograd on eight tokens, against which the layers' way is checked first."""
        return self.parameters * self.bytes + (4 + self.is_half) * self.largest * 4

    def _blocks(self, rows: Rows, limit: float, formed: float) -> float:
        one = PASS_TOKENS / rows.fed_apart  # the pass that reaches the limit, and its logits
        factors, logits = self.factors(rows), 2 * self.logits(int(min(1, one) * rows.predicted))
        return min(factors, limit + one * factors) + max(logits, formed)

    def products(self, rows: Rows, form: bool = False) -> tuple[float, float]:
        """Bytes and operations of all inner products of factors, the cheaper way for each matrix.

        That by tokens forms no gradient; ``form`` rules it out.
        """
        s, work, largest = rows.answers, 0.0, 0
        places = [(n, m, rows.fed_apart) for n, m in self.matrices]
        for n, m, tokens in [*places, (*self.head.shape, rows.predicted)]:
            by_tokens, formed = 2 * tokens**2 * (n + m), 2 * n * m * (tokens + s * s)
            if form or by_tokens >= formed + 2 * n * m * 8 * s:  # what memory takes, in time
                work, largest = work + formed, max(largest, n * m)
            else:
                work += by_tokens
        return min(SLAB_BYTES, s * largest * 4), work

    def influence(self, rows: Rows) -> tuple[float, float]:
        """Of rows on themselves: what the passes keep, up to a budget, and one trial before."""
        passes = 2 * self.forward(rows.fed_apart, rows.predicted)  # no gradient of a weight
        formed, work = self.products(rows)
        return max(self._trial(), self._blocks(rows, BUDGET, formed)), passes + work

    def diagnose(self, rows: Rows) -> tuple[float, float]:
        """The direction that lowers held-out answers, 16 or all; then a pair at a time."""
        held_out = Rows(min(16, rows.n), rows.prompt, rows.answer, 1)
        some = Rows(1, rows.prompt, rows.answer, 2)
        first, work = self.sgd_direction(held_out)
        work += 2 * self.forward(rows.fed_apart, rows.predicted)
        formed, products = self.products(some, form=True)
        each = max(self._trial(), self._blocks(some, float("inf"), formed))
        return max(first, self.weights + each), work + rows.n / some.n * products

    def finetune(self, rows: Rows) -> tuple[float, float]:
        """One epoch of DPO as a recipe plans it: gradients, AdamW's two numbers, activations."""
        size = [(rows.fed // rows.n, rows.predicted // rows.n)] * rows.n
        stage = Stage(loss="dpo", **STAGE)
        needs = memory(self.model, stage, size)
        return needs["peak"] - needs["weights"], operations(self.model, stage, size, [])


CALLS = ("score", "sgd_direction", "predict_change", "influence", "diagnose", "finetune")


def calls(model, tokenizer, probes, pairs) -> Mapping[str, Callable[[], object]]:
    """The calls whose costs are told, on the rows that `check` tells them of."""
    direction = lm.sgd_direction(model, tokenizer, pairs[:1], "sft", lr=1e-6)
    known = {"progress": False}
    return {
        "score": lambda: lm.score(model, tokenizer, probes, **known),
        "sgd_direction": lambda: lm.sgd_direction(model, tokenizer, pairs, "dpo", lr=1e-6),
        "predict_change": lambda: lm.predict_change(model, tokenizer, probes, direction, **known),
        "influence": lambda: lm.influence(model, tokenizer, pairs, pairs, "dpo", **known),
        "diagnose": lambda: lm.diagnose(model, tokenizer, pairs, **known),
        "finetune": lambda: lm.finetune(model, tokenizer, pairs, "dpo", **STAGE, **known),
    }


def peak(call: Callable[[], object]) -> int:
    """The most bytes that PyTorch's CPU allocator held during a call, beyond those before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    held = most = 0
    for _, size in sorted((event.start_ns(), event.nbytes()) for event in events):
        held += size
        most = max(most, held)
    return most


def counted(call: Callable[[], object]) -> int:
    """Operations in matrix products and attention during a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def llama(width: int, tokenizer, dtype=torch.float32) -> nn.Module:
    """Random weights in the shape of Llama, three layers."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def check(model, tokenizer, sizes: tuple[Rows, Rows]) -> Iterator[tuple]:
    """(call, memory planned and measured, operations planned and counted) of each call."""
    cost, (probes, pairs) = Cost(model), sizes
    made = [rows(of.n, of.prompt, of.answer - 1) for of in sizes]  # and EOS
    of_calls = calls(model, tokenizer, made[0], made[1].only("chosen", "rejected"))
    for call, run in of_calls.items():
        if call == "finetune" and cost.is_half:
            continue  # it keeps weights in float32
        planned = getattr(cost, call)(probes if call in ("score", "predict_change") else pairs)
        yield call, planned[0], peak(run), planned[1], counted(run)


def models(only: str = "") -> Iterator[tuple]:
    """(name, model, tokenizer, rows to score and pairs) of each size that runs here."""
    tokenizer, few = words(), (Rows(8, 32, 17, len(TYPES)), Rows(4, 32, 17))
    made = {
        "Llama, width 128": lambda: llama(128, tokenizer),
        "Llama, width 256": lambda: llama(256, tokenizer),
        "Llama, bfloat16": lambda: llama(256, tokenizer, torch.bfloat16),
        "SmolLM2-135M": lambda: lm.load("smollm2-135m", device="cpu")[0],
    }
    for name, make in made.items():
        if name.startswith(only):
            yield name, make(), tokenizer, few


def shaped(name: str | LlamaConfig, dtype: str) -> nn.Module:
    """A model without weights, of a configuration that the hub, a folder or the caller has."""
    config = AutoConfig.from_pretrained(name) if isinstance(name, str) else name
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def plan(model, of: Rows) -> dict[str, tuple[float, float]]:
    """Call → (bytes beyond the weights, operations) on a GPU; the direction is counted in."""
    cost = Cost(model, gpu=True)
    found = {call: getattr(cost, call)(of) for call in CALLS}
    memory, work = found["predict_change"]
    return found | {"predict_change": (memory + cost.weights, work)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", default="", help="models whose names begin so")
    parser.add_argument("--plan", metavar="MODEL", help="a hub id or a folder: measure nothing")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights, with --plan")
    for name, default in (("rows", 64), ("prompt", 250), ("answer", 250), ("types", 2)):
        parser.add_argument(f"--{name}", type=int, default=default, help="with --plan")
    options = parser.parse_args()
    if options.plan:
        model = shaped(options.plan, options.dtype)
        weights = Cost(model).parameters * model.dtype.itemsize
        print(f"weights {weights / 1e9:.1f} GB, {options.dtype}; beyond them:")
        of = Rows(options.rows, options.prompt, options.answer, options.types)
        for call, (size, work) in plan(model, of).items():
            print(f"{call:<16}{size / 1e9:>8.1f} GB{work:>10.1e} operations")
        return
    heads = "MB planned", "measured", "ratio", "Gop planned", "counted", "ratio"
    print(f"{'':<32}" + "".join(f"{head:>12}" for head in heads))
    for name, model, tokenizer, sizes in models(options.only):
        for call, size, most, work, count in check(model, tokenizer, sizes):
            told = (size / 1e6, most / 1e6, size / most, work / 1e9, count / 1e9, work / count)
            print(f"{name:<17}{call:<15}" + "".join(f"{x:>12.2f}" for x in told), flush=True)


if __name__ == "__main__":
    main()
