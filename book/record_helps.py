"""Make the record of the chapter "What helps": every remedy in the toy world, over three seeds.

    python book/record_helps.py          # about six minutes on one core, offline

Leaves ``book/recorded/helps-world.npz`` (the numbers and the answers) and ``helps-world.json``
(settings, command, versions, hardware, seeds, date). Each run is kept in ``_runs/helps-world`` once
it is finished, so that the same command goes on after an interruption.
"""

import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import kept
import world
from lmdyn import lm, losses
from lmdyn.lm.generate import generate
from lmdyn.lm.records import environment

HERE = Path(__file__).parent
PARTS = HERE.parent / "_runs" / "helps-world"
SEEDS = (0, 1, 2)
N_TRAIN, N_TEST = 48, 96
PROBED = {"train": 16, "test": 16}  # prompts whose responses are scored on the way
TYPES = ("chosen", "chosen_gptsemantic", "rejected", "reject_gptsemantic", "irr_train")
TRIES = 8  # samples in which to find a false answer
MASSES = ("chosen", "rejected")  # responses at whose tokens the probability is followed

COMMON = {"batch_size": 4, "optimizer": "adamw", "clip": 10.0}
SFT = {"loss": "sft", "epochs": 6, "lr": 3e-4}
TUNE = {"loss": "dpo", "epochs": 4, "lr": 1e-4, "probe_every": 6}

# What preference tuning begins with. Extend learns y+ and y−, twice the rows in half the epochs;
# "half" learns y+ as often as extend does.
STARTS = {
    "sft": SFT,
    "half": SFT | {"epochs": 3},
    "extend": SFT | {"epochs": 3},
    "gentle": SFT | {"loss": "cw_sft"},
}


@dataclass(frozen=True)
class Arm:
    """A way to tune on preferences.

    Attributes:
        start: which of STARTS it begins with.
        change: what differs from the settings of DPO.
        judged: take for y−, anew in each epoch, a false answer of the model itself.
    """

    start: str
    change: dict
    judged: bool = False


ARMS = {
    "dpo": Arm("sft", {}),
    "more beta": Arm("sft", {"loss": losses.DPO(beta=0.5)}),
    "lower lr": Arm("sft", {"lr": TUNE["lr"] / 4}),
    "ipo": Arm("sft", {"loss": "ipo"}),
    "sppo": Arm("sft", {"loss": "sppo"}),
    "rpo": Arm("sft", {"loss": "rpo"}),
    "dpop": Arm("sft", {"loss": "dpop"}),
    "cal-dpo": Arm("sft", {"loss": "cal_dpo"}),
    "on-policy": Arm("sft", {"rounds": TUNE["epochs"], "epochs": 1, "max_new_tokens": 32}),
    "judged": Arm("sft", {}, judged=True),
    "spare valleys": Arm("sft", {"spare_valleys": True}),
    "cw-dpo": Arm("gentle", {"loss": "cw_dpo"}),
    "extend": Arm("extend", {}),
    "half sft": Arm("half", {}),
    # Beyond the budget: three times the updates, probed as often in all.
    "extend x3": Arm("extend", {"epochs": 3 * TUNE["epochs"], "probe_every": 18}),
}


def main():
    base, tokenizer = kept.begin(__doc__)
    began = time.perf_counter()
    for seed in SEEDS:
        rows = world.probes(n_train=N_TRAIN, n_test=N_TEST, seed=seed)
        for start in STARTS:
            wanted = [f"start {start}"]
            wanted += [name for name, arm in ARMS.items() if arm.start == start]
            missing = [name for name in wanted if _kept(name, seed) is None]
            if not missing:
                continue
            model = first_stage(base, tokenizer, rows, start, seed)
            if wanted[0] in missing:
                _keep(wanted[0], seed, _speak(model, tokenizer, rows))
            for name in missing:
                if name in ARMS:
                    _keep(name, seed, tune(model, tokenizer, rows, ARMS[name], seed))
                    print(f"{time.perf_counter() - began:5.0f} s  seed {seed}  {name}", flush=True)
    _write()


def first_stage(base, tokenizer, rows, start: str, seed: int):
    """The model that preference tuning begins with."""
    train, model = rows[:N_TRAIN], copy.deepcopy(base)
    if start == "extend":
        learned = ({"prompt": r["prompt"], "chosen": r[key]} for r in train for key in MASSES)
        train = world.probe_set(learned)
    lm.finetune(model, tokenizer, train, **COMMON, **STARTS[start], seed=seed)
    return model


def tune(start, tokenizer, rows, arm: Arm, seed: int) -> dict[str, np.ndarray]:
    """What a run records: log-probs on the way, where probability went, and the answers."""
    train, test = rows[:N_TRAIN], rows[N_TRAIN:]
    watched = [*range(PROBED["train"]), *range(N_TRAIN, N_TRAIN + PROBED["test"])]
    settings = COMMON | TUNE | arm.change | {"seed": seed, "ref": start}
    settings["probes"] = rows[watched].only(*TYPES)
    pairs = {"train": train, "test": test[:N_TRAIN]}
    model = copy.deepcopy(start)
    own = np.nan
    if arm.judged:
        run, own = tune_judged(model, tokenizer, train, **settings)
    elif "rounds" in settings:
        run = lm.finetune_on_policy(model, tokenizer, train, **settings)
    else:
        run = lm.finetune(model, tokenizer, train, **settings)
    assert run.types == TYPES
    argmax = run.argmax_logp[..., :1]  # along chosen: the paper's y*
    found = {"steps": run.steps, "logp": run.logp, "argmax_logp": argmax, "own": np.array(own)}
    masses = [_masses(start, model, tokenizer, some) for some in pairs.values()]
    found |= {key: np.stack([mass[key] for mass in masses]) for key in masses[0]}
    return found | _speak(model, tokenizer, rows)


def tune_judged(model, tokenizer, train, *, epochs: int, seed: int, **settings):
    """Tune on pairs whose y− the model has just said, and the truth has judged to be wrong.

    A row with no false answer among TRIES samples keeps its own y−, off-policy as it is.

    Returns:
        The trajectory, and the share of pairs whose y− was sampled.
    """
    parts, sampled = [], 0
    for epoch in range(epochs):
        pairs = {row["prompt"]: row for row in train}
        left = list(pairs)
        for attempt in range(TRIES):
            draw = int(np.random.default_rng((seed, epoch, attempt)).integers(2**31))
            said = generate(model, tokenizer, left, 32, sample=True, seed=draw, batch_size=48)
            false = {p: t for p, t in zip(left, said, strict=True) if t and not world.is_true(p, t)}
            pairs |= {prompt: {**pairs[prompt], "rejected": text} for prompt, text in false.items()}
            left = [prompt for prompt in left if prompt not in false]
            if not left:
                break
        sampled += len(train) - len(left)
        rows = world.probe_set(pairs.values())
        parts.append(lm.finetune(model, tokenizer, rows, epochs=1, seed=draw, **settings))
    return lm.Trajectory.join(parts), sampled / (epochs * len(train))


def _masses(start, model, tokenizer, pairs) -> dict[str, np.ndarray]:
    """Where probability lies at the tokens of each of MASSES, on average.

    Returns:
        ``valley``: (types,) the share of tokens with π_y < ‖π‖² before. ``moved``: (types, 3) what
        the label, the first rival and the rest have gained. ``top``: (types, 2) the probability of
        the likeliest token but the label before and after, which need not be the same one.
    """
    before = lm.token_mass(start, tokenizer, pairs, MASSES)
    after = lm.token_mass(model, tokenizer, pairs, MASSES)
    same_rivals = lm.token_mass(model, tokenizer, pairs, MASSES, follow=before)

    def by_type(*values):
        return np.array([[v[before.of(name)].mean() for v in values] for name in MASSES])

    return {
        "valley": by_type(before.squeeze > 0)[:, 0],
        "moved": by_type(*before.moved(same_rivals).values()),
        "top": by_type(before.rival_prob, after.rival_prob),
    }


def _speak(model, tokenizer, rows) -> dict[str, np.ndarray]:
    """The greedy answer to every question, trained and held out."""
    prompts = [row["prompt"] for row in rows]
    answers, _, ended = generate(model, tokenizer, prompts, 32, batch_size=96, return_ids=True)
    return {"answers": np.array(answers), "ended": np.array(ended)}


def _recipe(name: str) -> dict:
    """The settings of a run, as JSON can hold them."""
    if name not in ARMS:
        start = name.removeprefix("start ")
        return {"start": start, "first stage": COMMON | STARTS[start]}
    arm = ARMS[name]
    settings = COMMON | TUNE | arm.change
    loss = settings["loss"]
    settings["loss"] = repr(losses.get(loss) if isinstance(loss, str) else loss)
    if arm.judged:
        settings["judged"] = f"the first of {TRIES} samples that is false"
    return _recipe(f"start {arm.start}") | {"tune": settings}


def _file(name: str, seed: int) -> Path:
    return PARTS / f"{name.replace(' ', '-')}-{seed}.npz"


def _keep(name: str, seed: int, arrays: dict) -> None:
    kept.keep(_file(name, seed), _recipe(name), arrays)


def _kept(name: str, seed: int) -> dict | None:
    """What a finished run recorded, if it was made with these settings."""
    return kept.kept(_file(name, seed), _recipe(name))


def _write() -> None:
    """All runs in one file: (arms, seeds, …), and (starts, seeds, …) for the starts' answers."""
    arms, starts = (
        [[_kept(name, seed) for seed in SEEDS] for name in names]
        for names in (ARMS, [f"start {name}" for name in STARTS])
    )
    whole = {
        key: np.array([[run[key] for run in runs] for runs in arms])
        for key in arms[0][0]
        if key != "steps"
    }
    whole["steps"] = np.array([runs[0]["steps"] for runs in arms])
    whole["arms"] = np.array(list(ARMS))
    whole |= {"seeds": np.array(SEEDS), "types": np.array(TYPES), "starts": np.array(list(STARTS))}
    whole["split"] = np.repeat(list(PROBED), list(PROBED.values()))
    for key in ("answers", "ended"):
        whole[f"start_{key}"] = np.array([[run[key] for run in runs] for runs in starts])
    meta = environment(torch.device("cpu")) | {
        "command": "python book/record_helps.py",
        "model": "tiny",
        "seeds": SEEDS,
        "rows": {"n_train": N_TRAIN, "n_test": N_TEST},
        "arms": {name: _recipe(name) for name in ARMS},
    }
    kept.write(HERE / "recorded" / "helps-world", whole, meta)


if __name__ == "__main__":
    sys.exit(main())
