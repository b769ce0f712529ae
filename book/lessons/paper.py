"""What "The paper and this book" reads: the paper's logs, this book's records, other chapters."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import torch
from IPython.display import Markdown
from torch import nn

import explorer
import world
from audit.scale import Scale
from hallucination import hallucination
from lmdyn import lm, softmax_step

# Mean summed log-prob of 500 (or 50) training prompts in nats: first, last, and the peak where one
# is told. "faulty": an argmax logged before the repair of May 2025.
LOGS = {
    "Pythia-410M, SFT": {"chosen": (-152.0, -92.4), "argmax": (-61.6, -44.5)},
    "Qwen1.5-0.5B, SFT": {"chosen": (-132.7, -87.4), "argmax": (-51.6, -41.3)},
    "Pythia-410M, DPO, 50 probes": {
        "chosen": (-152.0, -146.3, -140.2),
        "rejected": (-121.4, -197.6),
        "chosen_gptsemantic": (-155.9, -187.9),
        "irr_train": (-193.4, -223.0, -191.7),
        "random_permute": (-401.3, -491.5),
        "faulty": (-113.5, -72.3),
    },
    "Pythia-1B, DPO, 50 probes": {
        "chosen": (-132.3, -139.0, -124.6),
        "rejected": (-103.6, -291.8),
        "chosen_gptsemantic": (-138.1, -205.3),
        "irr_train": (-173.6, -252.1),
        "random_permute": (-385.1, -476.0),
        "faulty": (-110.3, -82.5),
    },
    "Pythia-410M, DPO": {"chosen": (-152.0, -156.2, -148.7), "argmax": (-61.6, -41.2)},
    "Qwen1.5-0.5B, DPO": {"chosen": (-132.7, -159.8), "argmax": (-51.6, -35.9)},
    # The independent repetition: SFT on y+, or extend, SFT on y+ and y−; then DPO.
    "Qwen1.5-1.8B, SFT": {
        "chosen": (-122.8, -56.4),
        "rejected": (-97.2, -105.2, -87.1),
        "chosen_gptsemantic": (-128.6, -140.1, -127.5),
        "irr_train": (-163.4, -143.3, -141.1),
        "argmax": (-49.5, -30.8),
    },
    "Qwen1.5-1.8B, DPO": {
        "chosen": (-54.4, -113.3),
        "rejected": (-106.5, -325.3),
        "chosen_gptsemantic": (-140.5, -289.1),
        "irr_train": (-144.0, -317.0),
        "argmax": (-30.0, -15.4),
    },
    "Qwen1.5-1.8B, extend": {
        "chosen": (-122.8, -88.2),
        "rejected": (-97.2, -68.0),
        "chosen_gptsemantic": (-128.6, -130.4),
        "irr_train": (-163.4, -143.1),
        "argmax": (-49.5, -41.8),
    },
    "Qwen1.5-1.8B, extend, DPO": {
        "chosen": (-87.5, -127.0),
        "rejected": (-67.5, -214.6),
        "chosen_gptsemantic": (-130.0, -222.4),
        "irr_train": (-142.3, -261.8),
        "argmax": (-42.2, -23.4),
    },
}
OFF_POLICY = ("Pythia-410M, DPO, 50 probes", "Pythia-1B, DPO, 50 probes", "Qwen1.5-1.8B, DPO")
QWEN = ("Qwen1.5-1.8B, extend, DPO", "Qwen1.5-1.8B, DPO")
GREEDY = (-113, -63)  # the paper's own words on the argmax in DPO
WINS = {"ChatGPT": (0.4729, 0.6518, 0.6928, 0.6667), "Claude 3": (0.4679, 0.5151, 0.6045, 0.5432)}

RECORDS = {
    "sft-hh": "SFT, SmolLM2, HH",
    "sft-sample": "SFT, SmolLM2, the sample",
    "dpo-hh": "SFT of 6 epochs, then DPO",
    "dpo-hh-seed1": "the same, rows in another order",
    "dpo-hh-short": "SFT of 2 epochs, then DPO",
    "dpo-hh-on-policy": "SFT of 6 epochs, then DPO with own answers as $y^-$",
    "dpo-hh-extend": "extend, then DPO",
    "dpo-hh-extend-seed1": "the same, rows in another order",
    "helps-world": "toy world: 15 ways of tuning, 3 seeds each",
    "scale-smollm2": "SmolLM2, 300 rows of HH: SFT in two orders; 7 ways of tuning",
    "scale-smollm2-arms": "the same: on-policy, paper's optimizer; DPO, extend in another order",
    "scale-smollm2-rates": "the same, five ways at other learning rates, an epoch each",
    "forces-smollm2": "the same, who pushes whom: 48 of its pairs",
}


def arrow(first: float, last: float, peak: float = -np.inf) -> str:
    """First → last (peak), in nats."""
    inside = f" ({peak:.1f})" if peak > max(first, last) + 0.05 else ""
    return f"{first:.1f} → {last:.1f}{inside}"


def logged(name: str, *runs: str) -> str:
    """What the logs of some runs say of a response type."""
    return "; ".join(f"{run.split(',')[0]} {arrow(*LOGS[run][name])}" for run in runs)


def gain(run: str, name: str) -> float:
    """By how much a log has risen, nats."""
    return LOGS[run][name][1] - LOGS[run][name][0]


def about(name: str) -> dict:
    """How a record was made."""
    return json.loads(Path(f"recorded/{name}.json").read_text(encoding="utf-8"))


def commands(meta: dict) -> str:
    """The commands that made a record, each once."""
    runs = meta.get("runs", {"": meta}).values()
    return ", ".join(dict.fromkeys(f"`{run.get('made', meta)['command']}`" for run in runs))


@cache
def run_of(name: str) -> dict[str, np.ndarray]:
    """A record of SmolLM2: type → log-probs of its training prompts (S, N); "argmax" along y+."""
    record = lm.Trajectory.load(f"recorded/{name}")
    train = record.split == "train"
    run = {kind: record.logp[:, train, i] for i, kind in enumerate(record.types)}
    return run | {"argmax": record.argmax_logp[:, train, record.types.index("chosen")]}


def rate_of(name: str, kind: str) -> tuple[float, int, float]:
    """Mean rise of a type in a record (nats), the examples seen, and the learning rate."""
    record, run = lm.Trajectory.load(f"recorded/{name}"), run_of(name)
    risen = np.nanmean(run[kind][-1].astype(float) - run[kind][0])
    return risen, int(record.examples_seen[-1]), record.meta["settings"]["lr"]


@cache
def _helps() -> dict[str, np.ndarray]:
    with np.load("recorded/helps-world.npz", allow_pickle=False) as file:
        return dict(file)


def in_world(arm: str) -> list[dict[str, np.ndarray]]:
    """The runs of one way of tuning in the toy world, one for each seed."""
    file = _helps()
    at, types = file["arms"].tolist().index(arm), file["types"].tolist()
    train = file["split"] == "train"
    logp, argmax = (file[key][at][:, :, train] for key in ("logp", "argmax_logp"))
    return [
        {kind: of_seed[..., i] for i, kind in enumerate(types)}
        | {"argmax": best[..., types.index("chosen")]}
        for of_seed, best in zip(logp, argmax, strict=True)
    ]


@cache
def sft_at_scale(seed: int) -> dict[str, np.ndarray]:
    """SFT on 300 rows of HH in one of two orders, as `run_of` gives a run."""
    record = Scale.load("recorded/scale-smollm2")
    (run,) = record.sweep("start sft", seed, role="start")
    return {kind: record.values(run, kind, "train") for kind in (*record.types, "argmax")}


@cache
def at_scale(arm: str) -> dict[str, dict[str, np.ndarray]]:
    """Learning rate → a run on 300 pairs of HH, as `run_of` gives it (96 training prompts)."""
    record = Scale.load("recorded/scale-smollm2")
    kinds = [*record.types, "argmax"]
    runs = sorted((record.meta["runs"][run]["lr"], run) for run in record.sweep(arm))
    return {f"lr {lr:g}": {k: record.values(run, k, "train") for k in kinds} for lr, run in runs}


def account(name: str) -> np.ndarray:
    """(3, N): what y−, i* and the rest have gained at tokens of y−; a mean for each prompt."""
    before, after = (lm.TokenMass.load(f"recorded/{name}-{end}.npz") for end in ("before", "after"))
    train = np.flatnonzero(lm.Trajectory.load(f"recorded/{name}").split == "train")
    at = before.of("rejected")
    gained = before.moved(after).values()
    return np.array([[part[at & (before.row == row)].mean() for row in train] for part in gained])


def account_in_world(arm: str) -> np.ndarray:
    """(seeds, 3): the same in the toy world, over all training prompts."""
    file = _helps()
    return file["moved"][file["arms"].tolist().index(arm), :, 0, 1]


def repeats(name: str) -> tuple[float, float]:
    """The share of repeated 3-grams in greedy answers, before and after."""
    found = about(name)["repeated 3-grams"]
    return found["before"], found["after"]


@cache
def share_true(arm: str) -> list[float]:
    """Shares of true answers to held-out questions of the world, one for each seed."""
    file, settings = _helps(), about("helps-world")["rows"]
    said_by, shares = file["answers"][file["arms"].tolist().index(arm)], []
    for seed, said in zip(file["seeds"].tolist(), said_by, strict=True):
        rows = world.probes(**settings, seed=seed)
        held_out = [i for i, row in enumerate(rows) if row["split"] == "test"]
        asked, told = [rows[i] for i in held_out], [str(said[i]) for i in held_out]
        shares.append(hallucination(asked, told, rows[: settings["n_train"]])["true"])
    return shares


# One step of softmax regression, on many distributions.

V = 50


def random_steps():
    """p (N, V), y (N,), η′ (N,): from nearly one-hot to nearly flat; y at random or likely."""
    torch.manual_seed(0)
    peaks = torch.tensor([0.03, 0.1, 0.3, 1, 3, 10, 100], dtype=torch.float64)
    peaks = peaks.repeat_interleave(300)
    p = torch.distributions.Dirichlet(peaks[:, None].expand(-1, V)).sample()
    p = (1 - 1e-4) * p + 1e-4 / V  # a softmax never gives zero
    n = len(p)
    likely = torch.multinomial(p, 1)[:, 0]
    y = torch.where(torch.rand(n) < 0.5, torch.randint(V, (n,)), likely)
    return p, y, 10 ** (3 * torch.rand(n, dtype=torch.float64) - 2)


def log_alpha(p, y, eta):
    """log p′/p of a negative step on y."""
    return softmax_step(p, y, -eta).log() - p.log()


def lemma_1(p, y, eta):
    """log α by the closed form of Lemma 1, a double sum."""
    e = eta[:, None, None]
    is_y = nn.functional.one_hot(y, V).double()
    weight = torch.exp(-e * (p[:, :, None] - p[:, None, :]))
    weight = weight * torch.exp(e * (is_y[:, :, None] - is_y[:, None, :]))
    return (1 / (weight * p[:, None, :]).sum(-1)).log()


def flat_steps() -> dict[str, torch.Tensor]:
    """Where y stands in a flat p → log α of the others, 1000 draws."""
    torch.manual_seed(2)
    flat = torch.distributions.Dirichlet(torch.full((1000, V), 100.0).double()).sample()
    rare = flat.clone()
    rare[:, 0] = 1e-4
    rare = rare / rare.sum(-1, keepdim=True)
    step = (torch.tensor(0), torch.tensor(0.1))
    return {
        how: log_alpha(q, *step)[:, 1:]
        for how, q in (("as likely as the rest", flat), ("rare", rare))
    }


def with_p_y(p, y, s):
    """The same shares among the others, another probability of y."""
    at = p.gather(-1, y[:, None])
    q = p.scatter(-1, y[:, None], 0.0) / (1 - at)
    return ((1 - s)[:, None] * q).scatter(-1, y[:, None], s[:, None])


def gainers(peakiness, label, p_label, lr, n_labels=V) -> int:
    """How many other labels a step lifts."""
    q = explorer.distribution(peakiness, label, p_label, n_labels)
    after = softmax_step(q, label, lr)
    return int(((after > q) & (torch.arange(n_labels) != label)).sum())


# What other chapters found.


@cache
def claims_of(chapter: str) -> dict[str, tuple[str, str]]:
    """Claim → (here, verdict), of the claim tables of a chapter as it was last run."""
    notebook, claims = json.loads(Path(f"{chapter}.ipynb").read_text(encoding="utf-8")), {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            head, *lines = "".join(output.get("data", {}).get("text/markdown", "")).split("\n")
            for line in lines[1:] if head == "| verdict | claim |" else ():
                verdict, told = (part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1])
                claim, _, small = told.replace(r"\|", "|").partition("<br><small>")
                here = [s for s in re.split("<br>|</small>", small) if s.startswith("here: ")]
                claims[claim] = ("".join(here).removeprefix("here: "), verdict.split(" ", 1)[1])
    if not claims:
        raise ValueError(f"{chapter}.ipynb shows no claim table: run it first (book/execute.py)")
    return claims


def claim_of(chapter: str, words: str) -> tuple[str, str]:
    """What a chapter found on the one claim of its tables that this pattern finds."""
    rows = [row for text, row in claims_of(chapter).items() if re.search(words, text)]
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} claims of {chapter} match {words!r}, not one")
    return rows[0]


def folded(title: str, table) -> Markdown:
    """A table of the page behind a line that opens it."""
    return Markdown(f"::::{{dropdown}} {title}\n\n{table._repr_markdown_()}\n\n::::")
