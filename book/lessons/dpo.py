"""The runs of the chapter "What DPO does": three worlds, SFT of two lengths, DPO after each."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

import world
from lmdyn import lm
from lmdyn.lm.generate import generate

SEEDS, N_TRAIN, N_TEST = 3, 48, 24
COMMON = {"batch_size": 4, "optimizer": "adamw", "clip": 10.0}
SFT = COMMON | {"lr": 3e-4}
DPO = COMMON | {"lr": 1e-4}
EPOCHS, PER_EPOCH = 3, 12  # of DPO; updates
PAIR = ("chosen", "rejected")
SPLITS = ("train", "test")
NEAR = ("reject_gptsemantic", "reject_gptformat")  # to y−
FAR = ("chosen_gptsemantic", "chosen_gptformat", "irr_train", "random_permute")
WATCHED = (*PAIR, *NEAR, *FAR)
ARMS = ("short", "long")
TOLD = (*WATCHED, "argmax")
ROUNDS = 2  # of sampling, an epoch each
SHOWN = ("chosen", "chosen_gptsemantic", "rejected", "irr_train", "random_permute", "argmax")
SOME = 24  # pairs of one step
KINDS = ("later, valley", "later, hill")


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


def logps_of(model, tokenizer, rows) -> dict[str, torch.Tensor]:
    """response → (B,): its log-prob, as a loss reads it."""
    scores = lm.score(model, tokenizer, rows.only(*PAIR))
    return {n: torch.tensor(scores.logp[:, scores.types.index(n)].astype(float)) for n in PAIR}


def sft_step(model, tokenizer, rows, response: str, lr: float) -> dict[str, torch.Tensor]:
    """The SGD step of SFT on one of the responses; of its opposite, if lr is negative."""
    rows = world.probe_set({"prompt": row["prompt"], "chosen": row[response]} for row in rows)
    return lm.sgd_direction(model, tokenizer, rows, "sft", lr=lr)


def length(step) -> float:
    return torch.cat([v.flatten() for v in step.values()]).norm().item()


def found(base, tokenizer, seed: int) -> dict[str, np.ndarray]:
    """All that the chapter tells of one world: name → array."""
    start = begin(base, tokenizer, seed)
    runs = {name: dpo(start, tokenizer, name, seed) for name in ARMS}
    both, of = _first_step(start, tokenizer)
    of |= told(start, runs) | _own_pairs(start, runs["long"], tokenizer)
    of |= _masses(start, runs["long"], tokenizer)
    step = {name: both[0][name] + both[1][name] for name in both[0]}
    of["line"] = np.array([*who_gains(start, runs["long"], tokenizer, step).values()])
    of["spreads"] = spread_of_others(start, runs["long"], tokenizer)["hill"]
    of |= _beginnings(start, runs["long"], tokenizer) | _on_policy(
        start, runs["long"], tokenizer, seed
    )
    return {name: np.asarray(value) for name, value in of.items()}


def told(start: Start, runs: dict[str, Run]) -> dict:
    """The curves of some arms."""
    long = runs["long"].record
    means = {split: [run.record.mean(split=split) for run in runs.values()] for split in SPLITS}
    return {split: np.stack([[m[n] for n in TOLD] for m in of]) for split, of in means.items()} | {
        "steps": long.steps,
        "sft": start.sft.mean("chosen"),
        "unsure": [long.mean(n, "argmax_logp", "train")[0] for n in ("chosen", "random_permute")],
        "entropy": long.mean("rejected", "entropy", "train")[[0, -1]],
    }


def _first_step(start: Start, tokenizer):
    """Both halves of a first DPO step after long SFT; their lengths and what they do."""
    lengths = []
    for name in ARMS:
        model = start.models[name]
        both = [
            sft_step(model, tokenizer, start.train[:SOME], response, sign * 0.05 / SOME)
            for response, sign in zip(PAIR, (1, -1), strict=True)
        ]
        lengths.append([length(step) for step in both])
    rows = start.probes[:8].only(*WATCHED)
    effects = [lm.predict_change(model, tokenizer, rows, step).logp.mean(0) for step in both]
    return both, {"lengths": lengths, "effects": effects}


def _own_pairs(start: Start, run: Run, tokenizer) -> dict:
    """What a step on each pair alone does to its own y+, before DPO and after it."""
    few, own = start.train[:SOME], []
    ref = logps_of(start.models["long"], tokenizer, few)
    for model in (start.models["long"], run.model):
        effect = lm.influence(
            model, tokenizer, few, few.only("chosen"), "dpo", ref=ref, progress=False
        )
        own.append(np.diagonal(np.asarray(effect)[..., 0]))
    return {"own_pair": own}  # (2, pairs)


def _masses(start: Start, run: Run, tokenizer) -> dict:
    """The account of the mass, by place, and of the hills by what y− is."""
    gains = account(start, run, tokenizer)
    at = [mask for name in PAIR for mask in places(run.before, name).values()]
    hills = places(run.before, "rejected")
    evasive = np.array([world.is_evasive(row["rejected"]) for row in start.train])[run.before.row]
    hill = hills["later, hill"]
    return {
        "gained": [gains[:, mask].mean(1) for mask in at],  # (6, 4)
        "tokens": [mask.sum() for mask in at],
        "off": np.abs(gains.sum(0)).max(),
        "rival": [[rival_share(of, hills[k]) for of in (run.before, run.after)] for k in KINDS],
        "kinds": [gains[0, hill & evasive].mean(), gains[0, hill & ~evasive].mean()],
    }


def _beginnings(start: Start, run: Run, tokenizer) -> dict:
    """The fall of what is far, at the first token and later; how greedy answers begin."""
    early = lm.token_mass(start.models["long"], tokenizer, start.probes[:8], FAR)
    late = lm.token_mass(run.model, tokenizer, start.probes[:8], FAR, follow=early)
    change = np.log(late.label_prob / early.label_prob)
    said = []
    for model in (start.models["long"], run.model):
        prompts = [row["prompt"] for row in start.train]
        answers = generate(model, tokenizer, prompts, 2, batch_size=N_TRAIN)
        said.append(Counter(answer.split()[0] for answer in answers))
    word, n = said[1].most_common(1)[0]
    taught = np.mean([row["chosen"].split()[0] == word for row in start.train])
    return {
        "by_place": [change[early.position == 0].sum(), change[early.position > 0].sum()],
        "opener": np.array(word),
        "opens": [said[0][word] / N_TRAIN, n / N_TRAIN, taught],
    }


def _on_policy(start: Start, run: Run, tokenizer, seed: int) -> dict:
    """Samples beside the squeeze line, and DPO that samples its y− anew in each epoch."""
    model = start.models["long"]
    sampled = {"max_new_tokens": 28, "seed": seed}
    own = lm.sample_rejected(model, tokenizer, start.train, batch_size=N_TRAIN, **sampled)
    drawn = []
    for mass in (lm.token_mass(model, tokenizer, own, types=("rejected",)), run.before):
        of = mass.squeeze[mass.of("rejected")]
        drawn.append([of.mean(), of.std() / len(of) ** 0.5, (of > 0).mean()])
    said = [lm.rows.text_of(row["rejected"], tokenizer) for row in own]
    true = [world.is_true(row["prompt"], text) for row, text in zip(own, said, strict=True)]
    settings = DPO | sampled | {"rounds": ROUNDS, "sample_batch_size": N_TRAIN}
    settings |= {"loss": "dpo", "ref": model, "probes": start.probes.only(*SHOWN[:-1])}
    record = lm.finetune_on_policy(copy.deepcopy(model), tokenizer, start.train, **settings)
    mean = record.mean(split="train")
    return {
        "drawn": drawn,
        "said_true": np.mean(true),
        "own": [mean[name] for name in SHOWN],
        "own_steps": record.steps,
        "own_loss": record.log["loss"].reshape(-1, PER_EPOCH).mean(1),
    }
