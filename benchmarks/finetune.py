"""A training step of `lmdyn.lm.finetune` against a plain Hugging Face loop on the same batch.

    python benchmarks/finetune.py                      # SmolLM2, batches of 4: minutes on 2 cores

The plain loop is ``model(input_ids, attention_mask, labels=…).loss``, backward, clipping, AdamW:
logits at all positions of the padded batch. Both begin at the same weights and make the same
updates, in turns; times are medians. Then what probing adds.
"""

import argparse
import copy
import statistics

import torch
from score import matrix_rate, operations, seconds
from torch import Tensor

from lmdyn.lm import load_probes
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.models import load
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune

LR, CLIP = 1e-6, 1.0


def collate(tokenizer, rows: ProbeSet, device: torch.device) -> dict[str, Tensor]:
    """Prompts with their chosen responses, padded on the right; labels on the responses."""
    encoded = encode(tokenizer, rows.only("chosen"))
    pairs = [(e.prompt, e.responses["chosen"]) for e in encoded]
    length = max(len(prompt) + len(response) for prompt, response in pairs)
    ids = torch.full((len(pairs), length), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids[i, :end], mask[i, :end] = torch.tensor(prompt + response), 1
        labels[i, len(prompt) : end] = torch.tensor(response)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def plain(model, batch: dict[str, Tensor], updates: int) -> list[float]:
    """The losses of some updates on one batch, as a mean over rows of a sum over tokens."""
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)
    scale = int((batch["labels"] != -100).sum()) / len(batch["labels"])
    losses = []
    model.train()
    for _ in range(updates):
        loss = model(**batch).loss * scale
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def main(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, device=options.device)
    size, updates = options.batch_size, options.updates
    # A probe has every type, a training row is one of them.
    probes = load_probes(options.rows, limit=options.batches * size)
    start = copy.deepcopy(model.state_dict())
    rate = matrix_rate(model.device)
    print(
        f"{options.model}, {model.dtype}, {model.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; one large product: {rate / 1e9:.0f} Gflop/s\n"
        f"AdamW, {updates} updates on each batch of {size} rows\n"
        "   tokens  padded  targets    plain s  finetune s  ratio  of the rate  loss differs by"
    )

    def ours(rows: ProbeSet):
        # Seconds of the loop alone, which is what the plain one is timed for.
        run = finetune(model, tokenizer, rows, epochs=updates, lr=LR, batch_size=size, clip=CLIP)
        return run.meta["seconds"], run.log["loss"]

    steps = []
    for b in range(options.batches):
        rows = probes[b * size : (b + 1) * size]
        batch = collate(tokenizer, rows, model.device)
        times = {"plain": [], "ours": []}
        for _ in range(options.repeats):
            model.load_state_dict(start)
            took, theirs = seconds(plain, model, batch, updates)
            times["plain"].append(took / updates)
            model.load_state_dict(start)
            took, losses = ours(rows)
            times["ours"].append(took / updates)
        slow, fast = (statistics.median(times[name]) for name in times)
        steps.append(fast)
        targets = int((batch["labels"] != -100).sum())
        padded = batch["input_ids"].numel()
        share = 3 * operations(model, padded, targets) / fast / rate  # backward is twice forward
        worst = max(abs(x / y - 1) for x, y in zip(losses, theirs, strict=True))
        print(
            f"   {int(batch['attention_mask'].sum()):6d}  {padded:6d}  {targets:7d}"
            f"  {slow:9.3f}  {fast:10.3f}  {fast / slow:5.2f}  {share:11.0%}  {worst:15.1e}",
            flush=True,
        )

    model.load_state_dict(start)
    score(model, tokenizer, probes[:1], progress=False)  # warm up
    took, _ = seconds(lambda: score(model, tokenizer, probes, progress=False))
    step = statistics.median(steps)
    print(
        f"\nOne probing of {len(probes)} prompts × {len(probes.types)} types takes {took:.2f} s, "
        f"{took / step:.1f} updates. It adds"
    )
    for every in (10, 25, 100):
        print(
            f"  {took / (every * step):7.0%} to the time of a run that probes every {every} updates"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="sample", help="a source of load_probes, or JSONL file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=3, help="different batches")
    parser.add_argument("--updates", type=int, default=3, help="on each batch")
    parser.add_argument("--repeats", type=int, default=3)
    main(parser.parse_args())
