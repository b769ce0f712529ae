"""The runs of the record at scale, the most telling first: `record_scale.py` makes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from audit.scale import best_stop
from lmdyn import lm
from lmdyn.checks import check_count, check_known

PAIR = ("chosen", "rejected")
COMMON = {"batch_size": 4, "optimizer": "adamw", "clip": 10.0}
SFT = COMMON | {"loss": "sft", "lr": 1e-5}
RATES = (3e-6, 1e-6, 1e-5)  # the likeliest first
TUNE = COMMON | {"loss": "dpo", "lr": RATES[0]}

# What tuning begins with: epochs, as a share, and whether y− is learned like y+, which is twice the
# rows. Half SFT learns y+ as often as extend does.
STARTS = {"sft": (1, False), "extend": (0.5, True), "half": (0.5, False)}
# arm → what it begins with, and what differs from DPO.
ARMS = {
    "dpo": ("sft", {}),
    "extend": ("extend", {}),
    "half sft": ("half", {}),
    "rpo": ("sft", {"loss": "rpo"}),
    "dpop": ("sft", {"loss": "dpop"}),
    "ipo": ("sft", {"loss": "ipo"}),
    "spare valleys": ("sft", {"spare_valleys": True}),
    "on-policy": ("sft", {}),
}
# Only where it is asked for by name: the paper's code has this rate, which grows for 150 updates.
PAPERS = {"paper": ("sft", {"optimizer": "rmsprop", "lr": 5e-7, "warmup": 150})}
SWEPT_FIRST = ("dpo", "extend", "half sft")  # before the others have more than one learning rate
AGAIN = {"dpo": "sft", "extend": "extend"}  # arm → what it begins with, of those with a second seed


@dataclass(frozen=True)
class Size:
    """Of all runs: rows of each group, prompts that are probed with every type, epochs, ….

    Attributes:
        watched: trained and held-out prompts with every type. Chosen and rejected are probed of all
            that are not trained on; they are all that is probed if both numbers are 0.
        spoken: held-out prompts that the model answers, greedily, in up to ``new_tokens``.
    """

    train: int = 300
    test: int = 100
    tune: int = 99
    watched: tuple[int, int] = (96, 64)
    epochs: int = 4
    probe_every: int = 25  # a third of an epoch
    spoken: int = 64
    new_tokens: int = 64
    format: lm.Format = lm.Format("paper")  # noqa: RUF009 (frozen)

    def cut(self, train: int, test: int, tune: int) -> "Size":
        """The same with so many rows, of which no more can be watched or answered."""
        for name, n, least in (("TRAIN", train, 2), ("TEST", test, 2), ("TUNE", tune, 0)):
            check_count(name, n, least)
        watched = min(self.watched[0], train), min(self.watched[1], test)
        rows = {"train": train, "test": test, "tune": tune}
        return replace(self, **rows, watched=watched, spoken=min(self.spoken, test))


FULL = Size()
ON_CPU = replace(FULL, watched=(48, 32), probe_every=37)
SMALL = Size(8, 4, 4, (2, 2), 1, 1, 2, 6, lm.Format("paper", 48, 24))


@dataclass(frozen=True)
class Run:
    """A run of `lm.finetune`: ``settings``, from SmolLM2 itself or from where another has ended.

    Attributes:
        both: SFT learns (x, y+) and (x, y−), the paper's extend.
        precision: "tf32", "fp32" or "bf16", of products of matrices.
        role: "start"; "unprobed", a start that is not in the record; "whole", to the end of its
            epochs; "stop", a whole one again, up to where it does best; "precision", a whole one
            again in another.
    """

    arm: str
    settings: dict
    precision: str
    role: str
    start: "Run | None" = None
    both: bool = False

    @property
    def name(self) -> str:
        stop, of = self.settings.get("max_steps"), self.settings
        long = f"{stop} updates" if stop else f"{of['epochs']} epochs"
        return f"{self.arm}, lr {of['lr']:g}, {long}, seed {of['seed']}, {self.precision}"


def plan(
    found: dict,
    size: Size,
    precision: str,
    arms: Sequence[str] = (),
    epochs: int | None = None,
    rates: Sequence[float] = (),
) -> Iterator[Run]:
    """All runs that can be told from what has been found, the most telling first.

    Args:
        arms: "ARM" or "ARM:SEED"; only these then, at their first learning rate.
        epochs: of these arms, if not as many as of all.
        rates: learning rates of these arms, if not the first.
    """

    def start(name, seed):
        share, both = STARTS[name]
        settings = SFT | {"epochs": max(1, round(share * size.epochs)), "seed": seed}
        return Run(f"start {name}", settings, precision, "unprobed" if arms else "start", both=both)

    def tune(arm, seed=0, precision=precision, role="whole", **more):
        check_known("arm", arm, known := ARMS | PAPERS)
        begin, change = known[arm]
        settings = TUNE | {"epochs": size.epochs, "seed": seed} | change | more
        # What is sampled should not depend on the batch: TF32 may make it.
        exact = "fp32" if arm == "on-policy" and precision == "tf32" else precision
        return Run(arm, settings, exact, role, start(begin, seed))

    if arms:
        named = [name.partition(":") for name in arms]
        more = {"epochs": epochs or size.epochs}
        runs = [
            tune(arm, seed=int(seed or 0), **more, **rate)
            for rate in [{"lr": lr} for lr in rates] or [{}]
            for arm, _, seed in named
        ]
        yield from {run.start.name: run.start for run in runs}.values()  # each once
        yield from runs
        return
    sweeps, best = {arm: [tune(arm, lr=lr) for lr in RATES] for arm in ARMS}, {}
    for arm, runs in sweeps.items():
        done = [run for run in runs if found.get(run.name) is not None]
        if done and all(run.name in found for run in runs):
            which, at = best_stop([pairs(found[run.name], "tune") for run in done])
            steps = found[done[which].name]["steps"].tolist()
            best[arm] = done[which].settings["lr"], steps[at], steps[-1]
    others = [runs for arm, runs in sweeps.items() if arm not in SWEPT_FIRST]
    for arm in SWEPT_FIRST:
        yield from (sweeps[arm][0].start, *sweeps[arm])
    yield from (runs[0] for runs in others)
    yield from (start(name, seed=1) for name in AGAIN.values())
    yield from (tune(arm, lr=best[arm][0], seed=1) for arm in AGAIN if arm in best)
    yield from (run for runs in others for run in runs[1:])
    for arm, (lr, update, last) in best.items():  # once more, for what the model says there
        if arm == "on-policy":
            epochs = max(1, round(size.epochs * update / last))
            yield tune(arm, lr=lr, role="stop", epochs=epochs)
        elif update < last:
            yield tune(arm, lr=lr, role="stop", max_steps=update)
    for other in ("fp32", "bf16") if "dpo" in best else ():
        yield tune("dpo", lr=best["dpo"][0], precision=other, role="precision")


def pairs(one: dict, group: str) -> np.ndarray:
    """(S, n, 2), log π of chosen and rejected of a group of prompts at each probing of a run."""
    columns = [one["types"].tolist().index(name) for name in PAIR]
    return one["logp"][:, one["group"] == group][..., columns]
