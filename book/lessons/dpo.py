"""The runs of the chapter "What DPO does": three worlds, SFT of two lengths, DPO after each."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

import world
from lmdyn import lm

SEEDS, N_TRAIN, N_TEST = 3, 48, 24
COMMON = {"batch_size": 4, "optimizer": "adamw", "clip": 10.0}
SFT = COMMON | {"lr": 3e-4}
DPO = COMMON | {"lr": 1e-4}
EPOCHS, PER_EPOCH = 3, 12  # of DPO; updates
PAIR = ("chosen", "rejected")
NEAR = ("reject_gptsemantic", "reject_gptformat")  # to y−
FAR = ("chosen_gptsemantic", "chosen_gptformat", "irr_train", "random_permute")
WATCHED = (*PAIR, *NEAR, *FAR)


class Run(NamedTuple):
    """A run of DPO: its record, the model, and where the mass was before and (long) after."""

    record: lm.Trajectory
    model: torch.nn.Module
    before: lm.TokenMass
    after: lm.TokenMass | None


class Start(NamedTuple):
    """What DPO begins with: the rows, the prompts to watch, both models, the record of SFT."""

    train: lm.ProbeSet
    probes: lm.ProbeSet
    models: dict  # "short" and "long" → the model
    sft: lm.Trajectory


def begin(base, tokenizer, seed: int) -> Start:
    """SFT of two epochs, and of four more: the long one goes on from the short one."""
    rows = world.probes(n_train=N_TRAIN, n_test=N_TEST, seed=seed)
    train = rows[:N_TRAIN]
    probes = rows[[*range(8), *range(N_TRAIN, N_TRAIN + 4)]].only(*WATCHED)
    models, model, parts = {}, copy.deepcopy(base), []
    settings = SFT | {"seed": seed, "probes": probes[:8].only("chosen")}
    for name, epochs in (("short", 2), ("long", 4)):
        parts.append(lm.finetune(model, tokenizer, train, epochs=epochs, **settings))
        models[name] = copy.deepcopy(model)
    return Start(train, probes, models, lm.Trajectory.join(parts))


def dpo(start: Start, tokenizer, name: str, seed: int) -> Run:
    """DPO on one of the models, probed twice in an epoch."""
    model = copy.deepcopy(start.models[name])
    settings = DPO | {"seed": seed, "probes": start.probes, "probe_every": PER_EPOCH // 2}
    before = lm.token_mass(model, tokenizer, start.train)
    record = lm.finetune(model, tokenizer, start.train, "dpo", epochs=EPOCHS, **settings)
    after = lm.token_mass(model, tokenizer, start.train, follow=before) if name == "long" else None
    return Run(record, model, before, after)


def curves(runs: Sequence[Run], split: str = "train") -> dict[str, np.ndarray]:
    """type → (runs, probings): mean log-prob over the prompts, nats."""
    records = [run.record for run in runs]
    names = records[0].mean()
    return {name: np.stack([r.mean(name, split=split) for r in records]) for name in names}


def turn(curve: np.ndarray):
    """How far a curve rises to its peak, and how far it falls from there to its end, nats."""
    return curve.max(-1) - curve[..., 0], curve.max(-1) - curve[..., -1]


PARTS = ("the label", "its rival", "a new favourite", "all others")


def account(start: Start, run: Run, tokenizer) -> np.ndarray:
    """(4, tokens): what each of PARTS has gained at each token of y+ and y−."""
    moved = run.before.moved(run.after)
    winners = lm.token_mass(run.model, tokenizer, start.train)
    earlier = lm.token_mass(start.models["long"], tokenizer, start.train, follow=winners)
    is_new = winners.rival != run.before.rival
    new = np.where(is_new, winners.rival_prob - earlier.rival_prob, 0)
    return np.stack([moved["label"], moved["rival"], new, moved["rest"] - new])


def places(mass: lm.TokenMass, name: str) -> dict[str, np.ndarray]:
    """Where in a response: its first token, and the others by the squeeze line before DPO."""
    of, first, valley = mass.of(name), mass.position == 0, mass.squeeze > 0
    return {
        "first token": of & first,
        "later, valley": of & ~first & valley,
        "later, hill": of & ~first & ~valley,
    }


def rival_share(mass: lm.TokenMass, mask: np.ndarray) -> float:
    """The rival's part of what the label does not have, mean over tokens."""
    return (mass.rival_prob / (1 - mass.label_prob))[mask].mean()


@torch.no_grad()
def log_pi(model, tokenizer, row, name: str = "rejected") -> torch.Tensor:
    """(tokens, V): log π at each token of a response."""
    prompt, answer = (
        tokenizer(row[key], add_special_tokens=False).input_ids for key in ("prompt", name)
    )
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    return model(ids).logits[0, len(prompt) - 1 :].double().log_softmax(-1).cpu()


def spread_of_others(start: Start, run: Run, tokenizer, n: int = 24) -> dict[str, np.ndarray]:
    """How unequal the tokens other than y− are: the spread of log π, before and after DPO."""
    seen = run.before.of("rejected") & (run.before.row < n)
    label, valley = torch.as_tensor(run.before.label[seen]), run.before.squeeze[seen] > 0
    both = []
    for model in (start.models["long"], run.model):
        log_p = torch.cat([log_pi(model, tokenizer, row) for row in start.train[:n]])
        both.append(np.nanstd(log_p.scatter(1, label[:, None], torch.nan).numpy(), axis=1))
    masks = {"valley": valley, "hill": ~valley}
    return {kind: np.array([of[mask].mean() for of in both]) for kind, mask in masks.items()}


def who_gains(start: Start, run: Run, tokenizer, step, n: int = 24) -> dict[str, tuple]:
    """valley, hill → the shares of tokens of y− where the rival gains, where the rest gains."""
    rows = start.train[:n].only(*PAIR)
    moved = lm.predict_change(start.models["long"], tokenizer, rows, step, vocab=True)
    seen = run.before.of("rejected") & (run.before.row < n)
    d_log = torch.cat([of_row["rejected"] for of_row in moved.vocab]).numpy()
    label, rival = (
        getattr(run.before, f"{part}_prob")[seen]
        * d_log[np.arange(seen.sum()), getattr(run.before, part)[seen]]
        for part in ("label", "rival")
    )
    valley = run.before.squeeze[seen] > 0
    gains = np.stack([rival > 0, label + rival < 0])
    return {k: gains[:, m].mean(1) for k, m in (("valley", valley), ("hill", ~valley))}


def change_in(record: lm.Trajectory, name: str, split: str = "train") -> tuple[float, float]:
    """The mean change of a type, from the first probing to the last, and its standard error."""
    values = record.logp[:, record.split == split, record.types.index(name)].astype(float)
    change = values[-1] - values[0]
    change = change[~np.isnan(change)]
    return change.mean(), change.std(ddof=1) / np.sqrt(len(change))


def fastest(curve: np.ndarray, record: lm.Trajectory) -> float:
    """The steepest rise over an epoch, nats per update."""
    per_epoch = record.meta["settings"]["n_rows"] // record.meta["settings"]["batch_size"]
    every = per_epoch // int(record.steps[1] - record.steps[0])  # probings in an epoch
    return np.diff(curve[::every]).max() / per_epoch
