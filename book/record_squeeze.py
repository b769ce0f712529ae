"""Make the records of the chapter "Who squeezes whom", once, by hand.

    python book/record_squeeze.py forces-world        # ten worlds, tiny model, about two minutes
    python book/record_squeeze.py drop-world          # tiny model, about three minutes
    python book/record_squeeze.py lora-world          # tiny model and peft, about two minutes
    python book/record_squeeze.py squeeze-smollm2     # SmolLM2 on the sample, about four minutes

Each leaves ``book/recorded/NAME.npz`` (the numbers) and ``NAME.json`` (settings, command,
versions, hardware, date). All are offline.
"""

import argparse
import copy
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import kept
import world
from lmdyn import lm
from lmdyn.lm.records import environment

HERE = Path(__file__).parent
COMMON = {"batch_size": 4, "optimizer": "adamw", "clip": 10.0}

# The settings of the chapter.
N_TRAIN, N_TEST = 48, 24
SFT = COMMON | {"lr": 3e-4}
DPO = COMMON | {"loss": "dpo", "lr": 1e-4, "epochs": 2}
MOMENTS = (0, 12, 24)  # updates of the run on all pairs at which influences are taken

# forces-world: pull and push of the own pair and of the others, in worlds the chapter has not seen.
MORE_SEEDS = tuple(range(3, 13))

# drop-world: which 12 of the 48 pairs to leave out.
SEEDS, N_DROP = (0, 1, 2), 12
N_RANKING = 12  # of the held-out prompts; the others judge
ORDERS = 3  # runs of each chosen subset, in different orders
N_RANDOM = 12  # random subsets, each in its own order

# lora-world: influences over an adapter's weights.
LORA_RANKS = (1, 4, 16)

# squeeze-smollm2: one step on one pair.
N_PAIRS = 24
LR = 2e-5  # of SGD


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    makers = {
        "forces-world": forces_world,
        "drop-world": drop_world,
        "lora-world": lora_world,
        "squeeze-smollm2": squeeze_smollm2,
    }
    parser.add_argument("name", choices=makers)
    name = parser.parse_args().name
    torch.set_num_threads(1)
    arrays, settings = makers[name]()
    meta = environment(torch.device("cpu"))
    meta |= {"command": f"python book/record_squeeze.py {name}", "settings": settings}
    kept.write(HERE / "recorded" / name, arrays, meta)


class _World(NamedTuple):
    """A world's pairs, training ones first, where DPO starts, and its log-probs there, nats."""

    pairs: lm.ProbeSet
    start: torch.nn.Module
    ref: dict

    def tuned(self, tokenizer, kept, order, **limit):
        """The model after DPO on some of the pairs."""
        model, some = copy.deepcopy(self.start), self.pairs[kept]
        lm.finetune(model, tokenizer, some, **DPO, seed=order, **limit)
        return model

    def moments(self, tokenizer, seed):
        """The model at each moment of the run on all pairs."""
        later = [
            self.tuned(tokenizer, range(N_TRAIN), seed, max_steps=updates)
            for updates in MOMENTS[1:]
        ]
        return [self.start, *later]


def _world(base, tokenizer, seed) -> _World:
    rows = world.probes(n_train=N_TRAIN, n_test=N_TEST, seed=seed)
    pairs = rows.only("chosen", "rejected")
    start = copy.deepcopy(base)
    for epochs in (2, 4):
        lm.finetune(start, tokenizer, pairs[:N_TRAIN], epochs=epochs, **SFT, seed=seed)
    ref = lm.score(start, tokenizer, pairs[:N_TRAIN], stats=False).logp.T
    return _World(pairs, start, dict(zip(("chosen", "rejected"), ref, strict=True)))


def forces_world():
    """What moves log π of chosen, per unit of learning rate of SGD on the mean over the pairs."""
    base, tokenizer = lm.load("tiny", device="cpu")
    found = []
    for seed in MORE_SEEDS:
        here = _world(base, tokenizer, seed)
        probes = here.pairs.only("chosen")
        models = here.moments(tokenizer, seed)
        parts = [
            lm.influence(
                model,
                tokenizer,
                here.pairs[:N_TRAIN],
                probes,
                "dpo",
                ref=here.ref,
                by_response=True,
                progress=False,
            )[..., 0]
            / N_TRAIN
            for model in models
        ]  # (pairs, 2, prompts) at each moment
        prompts = np.arange(N_TRAIN)
        found.append(
            {
                "own": np.stack([part[prompts, :, prompts].T for part in parts]),
                "all": np.stack([part.sum(0) for part in parts]),
                "chosen": np.stack(
                    [lm.score(m, tokenizer, probes, stats=False).logp[:, 0] for m in models]
                ),
            }
        )
        print(f"{len(found)} of {len(MORE_SEEDS)} worlds", flush=True)
    arrays = {key: np.stack([of_seed[key] for of_seed in found]) for key in found[0]}
    return arrays, _settings(seeds=MORE_SEEDS)


def _settings(**more):
    settings = {"sft": SFT | {"epochs": "2, then 4"}, "dpo": DPO, "moments": MOMENTS}
    return settings | {"n_train": N_TRAIN, "n_test": N_TEST} | more


def drop_world():
    """What leaving out pairs does to log π of chosen and rejected, predicted and measured."""
    base, tokenizer = lm.load("tiny", device="cpu")
    found = []
    for seed in SEEDS:
        here = _world(base, tokenizer, seed)
        train = here.pairs[:N_TRAIN]

        def outcome(model, pairs=here.pairs):
            """(prompts, 3): log π of chosen, of rejected and of the argmax along chosen, nats."""
            scores = lm.score(model, tokenizer, pairs, stats=False)
            return np.column_stack([scores.logp, scores.argmax_logp[:, 0]])

        everything = np.arange(N_TRAIN)
        models = here.moments(tokenizer, seed)
        influence = np.mean(
            [
                lm.influence(m, tokenizer, train, here.pairs, "dpo", ref=here.ref, progress=False)
                for m in models
            ],
            axis=0,
        )  # (updates, prompts, 2), per unit learning rate
        on_chosen = {
            "held-out": influence[:, N_TRAIN : N_TRAIN + N_RANKING, 0].mean(1),
            "training": influence[:, :N_TRAIN, 0].mean(1),
        }
        arms = {}
        for split, effect in on_chosen.items():
            order = effect.argsort()
            arms[f"worst for {split}"], arms[f"best for {split}"] = order[:N_DROP], order[-N_DROP:]
        draw = np.random.default_rng(seed)
        dropped, orders = [], []
        for out in arms.values():
            dropped += [out] * ORDERS
            orders += range(ORDERS)
        for number in range(N_RANDOM):
            dropped.append(draw.choice(N_TRAIN, N_DROP, replace=False))
            orders.append(number)
        ends = []
        for out, order in zip(dropped, orders, strict=True):
            ends.append(outcome(here.tuned(tokenizer, np.setdiff1d(everything, out), order)))
            print(f"seed {seed}: {len(ends)} of {len(dropped)} runs", flush=True)
        found.append(
            {
                "influence": influence,
                "dropped": np.stack(dropped),
                "orders": np.array(orders),
                "start": outcome(models[0]),
                "full": outcome(models[-1]),
                "ends": np.stack(ends),
            }
        )
    arrays = {key: np.stack([of_seed[key] for of_seed in found]) for key in found[0]}
    arrays["arms"] = np.repeat([*arms, "random"], [ORDERS] * len(arms) + [N_RANDOM])
    return arrays, _settings(seeds=SEEDS, n_drop=N_DROP, n_ranking=N_RANKING)


def lora_world():
    """What each pair does to held-out chosen, over all weights and over those of fresh adapters."""
    from peft import LoraConfig, get_peft_model

    base, tokenizer = lm.load("tiny", device="cpu")
    found = []
    for seed in SEEDS:
        here = _world(base, tokenizer, seed)
        train, probes = here.pairs[:N_TRAIN], here.pairs[N_TRAIN:].only("chosen")
        models = {"all weights": here.start}
        for r in LORA_RANKS:
            torch.manual_seed(seed)
            config = LoraConfig(r=r, target_modules="all-linear")
            models[f"rank {r}"] = get_peft_model(copy.deepcopy(here.start), config)
        found.append(
            {
                name: lm.influence(
                    model, tokenizer, train, probes, "dpo", ref=here.ref, progress=False
                )[..., 0]
                for name, model in models.items()
            }
        )  # (pairs, prompts), per unit learning rate
        print(f"{len(found)} of {len(SEEDS)} worlds", flush=True)
    arrays = {key: np.stack([of_seed[key] for of_seed in found]) for key in found[0]}
    adapter = "peft's LoRA on all linear layers, before its first step"
    return arrays, _settings(seeds=SEEDS, ranks=LORA_RANKS, adapter=adapter)


def squeeze_smollm2():
    """One DPO step on one pair of the sample at a time: predicted, by proxies, and measured."""
    model, tokenizer = lm.load("smollm2-135m", device="cpu")
    types = ("chosen", "rejected")
    pairs = lm.load_probes("sample", types, N_PAIRS, split="train")
    found = []
    for number in range(len(pairs)):
        found.append(_of_pair(model, tokenizer, pairs[[number]]))
        print(f"{number + 1} of {len(pairs)} pairs", flush=True)
    arrays = {key: np.array([of_pair[key] for of_pair in found]) for key in found[0]}
    before = lm.token_mass(model, tokenizer, pairs)
    for name in before.types:
        arrays[f"line of {name}"] = before.squeeze[before.of(name)]
    settings = {"lr": LR, "n_pairs": N_PAIRS}
    return arrays, settings | {"model": "SmolLM2-135M-Instruct as shipped", "loss": "dpo, β = 0.1"}


def _of_pair(model, tokenizer, pair: lm.ProbeSet) -> dict[str, float]:
    """The same numbers as the chapter's `one_pair`, for a vocabulary that is 100 times larger."""
    (h_plus, p_plus, y_plus), (h_minus, p_minus, y_minus) = (
        _forward(model, tokenizer, pair[0], name) for name in ("chosen", "rejected")
    )
    at = torch.arange(len(y_minus))
    rival_of = p_minus.clone()
    rival_of[at, y_minus] = -1
    rival = rival_of.argmax(1)
    p_rival, p_label = p_minus[at, rival], p_minus[at, y_minus]
    line = p_minus.square().sum(1) - p_label

    step = lm.sgd_direction(model, tokenizer, pair, "dpo", lr=LR)
    predicted = lm.predict_change(model, tokenizer, pair, step, vocab=True, progress=False)
    moved = predicted.vocab[0]["rejected"].double()[at, rival]
    found = {
        "fall, first order": -predicted.logp[0, 0],
        "handed, first order": float((p_rival * moved).sum()),
    }
    change = lm.measure_change(model, tokenizer, pair, step, vocab=True, progress=False)
    vocab = change.vocab[0]["rejected"].double()
    found |= {
        "fall": -change.logp[0, 0],
        "margin": change.logp[0, 0] - change.logp[0, 1],
        "handed": float((p_rival * vocab[at, rival].expm1()).sum()),
        "taken": -float((p_label * vocab[at, y_minus].expm1()).sum()),
    }

    g_plus, g_minus = -p_plus, -p_minus  # e_y − π
    g_plus[torch.arange(len(y_plus)), y_plus] += 1
    g_minus[at, y_minus] += 1
    dz_plus = (h_plus @ h_plus.T) @ g_plus - (h_plus @ h_minus.T) @ g_minus
    dz_minus = (h_minus @ h_plus.T) @ g_plus - (h_minus @ h_minus.T) @ g_minus
    mean = (p_minus * dz_minus).sum(1)
    found |= {
        "fall, output layer": -float((g_plus * dz_plus).sum()),
        "handed, output layer": float((p_rival * (dz_minus[at, rival] - mean)).sum()),
        "squeeze line": float((p_rival * (p_rival - line)).sum()),
        "valley tokens": float((line > 0).sum()),
    }
    for name, of in (("CHES", torch.sum), ("CHES per token", torch.mean)):
        plus, minus = of(h_plus, 0), of(h_minus, 0)
        found[name] = float(plus @ minus - plus @ plus)
    return found


@torch.no_grad()
def _forward(model, tokenizer, row, name):
    """Last hidden states, probabilities and labels at each token of a response."""
    x = tokenizer(row["prompt"], add_special_tokens=False).input_ids
    y = [*tokenizer(row[name], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    h = model.model(torch.tensor([x + y])).last_hidden_state[0, len(x) - 1 : -1]
    return h.double(), model.lm_head(h).double().softmax(-1), torch.tensor(y)


if __name__ == "__main__":
    sys.exit(main())
