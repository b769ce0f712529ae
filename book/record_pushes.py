"""Make the record of who pushes whom in SmolLM2: own pair, others, momentum; which tokens push.

    python book/record_pushes.py --rows FILE --start FOLDER --threads 2    # 30 minutes, 21 GB

FOLDER has SmolLM2 after SFT on 300 rows of HH, as `record_scale.py` leaves it in ``_runs`` (its
name ends in .model); FILE is the paper's probing file. As in the toy worlds of chapter 10, DPO with
AdamW learns 48 of these pairs, in two epochs of 12 updates. Before and after, 8 of their prompts
and 8 held-out ones are asked what moves y+ in a step of SGD, own pair or others, and which rejected
tokens push; after it also in AdamW's next step, which `lm.influence` cuts by pairs as well.

Leaves ``forces-smollm2.npz`` and ``.json`` in ``book/recorded``.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kept
from lessons.who_squeezes import log_probs, parts, summed, total, weighted
from lmdyn import lm
from lmdyn.lm.data import ProbeSet
from lmdyn.lm.records import environment
from record_scale import options
from scale_rows import read
from scale_runs import COMMON, ON_CPU, PAIR, RATES

N_PAIRS, N_WATCHED = 48, 8  # pairs; prompts of these, and as many held out
BATCH, CLIP, LR, EPOCHS = COMMON["batch_size"], COMMON["clip"], RATES[0], 2
MEMORY = 10e9  # bytes of activations


def tune(model, tokenizer, pairs: ProbeSet, ref: dict) -> torch.optim.AdamW:
    """DPO on the pairs, batch by batch; the optimizer, in the state in which that leaves it."""
    adamw = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0)
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(pairs))
        for some in np.split(order, range(BATCH, len(order), BATCH)):
            its = {name: values[some] for name, values in ref.items()}
            step = lm.sgd_direction(model, tokenizer, pairs[some], "dpo", lr=1 / BATCH, ref=its)
            for name, weight in model.named_parameters():
                weight.grad = -step[name]
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            adamw.step()
        print(f"epoch {epoch + 1} of {EPOCHS}", flush=True)
    for weight in model.parameters():
        weight.grad = None
    return adamw


def adamw_gain(model, adamw: torch.optim.AdamW, moves: list[dict]) -> dict[str, Tensor]:
    """P of AdamW's next step Δθ = −P g + momentum, with g minus the sum of these moves of SGD.

    Not by `lm.influence`, which has it, too: so that the two can be compared (chapter 10).
    """
    group, gains, whole = adamw.param_groups[0], {}, total(moves)
    first, second = group["betas"]
    for name, weight in model.named_parameters():
        state = adamw.state[weight]
        t = float(state["step"]) + 1
        v = second * state["exp_avg_sq"] + (1 - second) * whole[name].square()
        size = group["lr"] * (1 - first) / (1 - first**t)
        gains[name] = size / ((v / (1 - second**t)).sqrt() + group["eps"])
    return gains


def forces(model, tokenizer, pairs: ProbeSet, watched: ProbeSet, ref: dict, adamw=None) -> dict:
    """What a step on the mean over the pairs does to y+: of SGD, and of AdamW where it is given.

    Of SGD per unit of learning rate, of AdamW (keys "adamw, …") of its next step, momentum apart,
    in nats. "all" is (4, prompts), by the `parts`; "own" the same by the prompt's own pair, which
    are the first ones: the others do the rest. "count" is (4,) tokens.
    """

    def effect(move, gain, few):
        step = {name: of * gain[name] for name, of in move.items()} if gain else move
        return lm.predict_change(model, tokenizer, few, step, progress=False).logp[:, 0]

    rows = weighted(model, tokenizer, pairs, ref)
    count, moves = summed(model, rows)
    gains = {"": None} | ({"adamw, ": adamw_gain(model, adamw, moves)} if adamw else {})
    found = {"count": count}
    for by, gain in gains.items():
        found[f"{by}all"] = np.stack([effect(move, gain, watched) for move in moves])
        found[f"{by}own"] = np.zeros_like(found[f"{by}all"])
    for i in range(len(watched)):
        if pairs[i]["prompt"] == watched[i]["prompt"]:
            for part, (_, move) in enumerate(parts(model, *rows[i])):
                for by, gain in gains.items():
                    found[f"{by}own"][part, i] = effect(move, gain, watched[[i]])[0]
    return found


def measured(model, tokenizer, pairs: ProbeSet, watched: ProbeSet) -> dict:
    """What moves y+ of the watched prompts before and after, as arrays."""
    ref, arrays = log_probs(model, tokenizer, pairs), {}
    for when in ("before", "after"):
        adamw = tune(model, tokenizer, pairs, ref) if when == "after" else None
        found = forces(model, tokenizer, pairs, watched, ref, adamw)
        found["chosen"] = log_probs(model, tokenizer, watched)["chosen"]
        arrays |= {f"{when}, {key}": value for key, value in found.items()}
        print(f"{when}: own {found['own'].sum(1)}, all {found['all'].sum(1)}", flush=True)
    how = {"optimizer": adamw, "memory": MEMORY, "progress": False}
    shares = lm.influence(model, tokenizer, pairs, watched, "dpo", ref=ref, **how)
    return arrays | {"adamw": shares.rows[..., 0], "momentum": shares.momentum[:, 0]}


def main():
    parser = options(__doc__)
    parser.add_argument("--start", type=Path, required=True, help="the folder of a model")
    args, began = parser.parse_args(), time.perf_counter()
    torch.set_num_threads(args.threads)
    model, tokenizer = lm.load(args.start, "cpu")
    data = read(args.rows, ON_CPU)
    pairs = data.train[:N_PAIRS].only(*PAIR)
    held_out = np.flatnonzero(data.group == "test")[:N_WATCHED].tolist()
    watched = data.probes[[*range(N_WATCHED), *held_out]].only("chosen")
    meta = environment(torch.device("cpu")) | {"rows": data.sha256, "start": args.start.stem}
    meta["command"] = f"python book/record_pushes.py --start {args.start.name}"
    meta["settings"] = {
        "n_pairs": N_PAIRS,
        "batch_size": BATCH,
        "lr": LR,
        "clip": CLIP,
        "epochs": EPOCHS,
    }
    arrays = measured(model, tokenizer, pairs, watched)
    meta["seconds"] = time.perf_counter() - began
    kept.write(args.out / "forces-smollm2", arrays, meta)


if __name__ == "__main__":
    main()
