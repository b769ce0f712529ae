"""What "Probe your own run" claims of the callback, of its alert, and of the cures."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from audit import found, guarantee, trend
from lessons.probe import SIZES, Rate, Written

Hits = Mapping[str, Sequence[int | None]]  # split → for each run an update, or None


def _rates(hits: Hits) -> str:
    return "; ".join(f"{split} prompts {Rate.of(of)}" for split, of in hits.items())


def _update(step: float) -> str:
    return f"at update {step:.0f}" if step < np.inf else "none"


def logs_are_scores(same: Sequence[tuple[float, float]]) -> tuple:
    claim = "the callback logs what `score` finds in the trainer's model"
    here = "in TRL, with full finetuning and with LoRA: to 1e-5"
    return claim, "", here, guarantee(np.allclose(*zip(*same, strict=True), rtol=1e-5))


def off_policy(judged: Hits) -> tuple:
    here = ", ".join(
        f"{Rate.of(of).hits} of {len(of)} worlds on {split} prompts" for split, of in judged.items()
    )
    claim = "off-policy DPO: $y^+$ and $y^-$ fall while the argmax rises"
    return claim, "observed", here, trend(*(j is not None for of in judged.values() for j in of))


def silent_in_sft(alerts: Hits) -> tuple:
    return "no alert in SFT", "", _rates(alerts), found(*(not any(of) for of in alerts.values()))


def silent_without_pattern(alerts: Hits) -> tuple:
    claim = "no alert in preference runs where other prompts do not show the pattern"
    return claim, "", _rates(alerts), found(*(not any(of) for of in alerts.values()))


def catches(alerts: Hits) -> tuple:
    claim = "where they show it, the alert finds four runs of five"
    return claim, "", _rates(alerts), found(*(Rate.of(of).share >= 0.8 for of in alerts.values()))


def more_prompts(shares: Mapping[str, Sequence[float]]) -> tuple:
    here = "; ".join(
        f"{split} prompts " + ", ".join(f"{share:.0%}" for share in of) + f" of {SIZES}"
        for split, of in shares.items()
    )
    claim = "the more prompts are probed, the more it finds"
    return claim, "", here, found(*(np.all(np.diff(of) >= 0) for of in shares.values()))


def writes_worse(runs: Mapping[str, Sequence[Written]]) -> tuple:
    """Do runs with an alert write surely worse more often than others, beyond both intervals?"""
    texts, parts = [], []
    for where, of in runs.items():
        heard, silent = (
            Rate.of([run.worse or None for run in of if (run.alert is not None) == alert])
            for alert in (True, False)
        )
        texts.append(f"{where}: worse in {heard} with an alert, {silent} without")
        parts.append(heard.low > silent.high)
    claim = "an alert tells whether the model then writes worse"
    return claim, "", "; ".join(texts), found(*parts)


def nats_tell(runs: Mapping[str, Sequence[Written]], least=0.5) -> tuple:
    """Does what a run writes change with how far y+ has moved on held-out prompts?"""
    rank = {
        where: spearmanr([run.moved for run in of], [run.change for run in of]).statistic
        for where, of in runs.items()
    }
    here = ", ".join(f"{where} {value:.2f}" for where, value in rank.items())
    claim = f"how far held-out $y^+$ has fallen tells more (rank correlation ≥ {least})"
    return claim, "", here, found(*(value >= least for value in rank.values()))


def extend_weakens(
    falls: Mapping[str, float], margins: Mapping[str, float], firsts: Sequence[float]
) -> tuple:
    """Of y+ and of the margin by way of tuning, and the first alerts on SmolLM2, DPO and extend."""
    arms = ("extend", "dpo")
    here = " against ".join(f"{falls[a]:+.1f} nats (margin {margins[a]:+.1f})" for a in arms)
    here = f"held-out $y^+$ {here}, live; first alert on SmolLM2 "
    here += f"{_update(firsts[1])} against {_update(firsts[0])}"
    verdict = trend(falls["extend"] > falls["dpo"], firsts[1] > firsts[0])
    return "extend weakens the squeeze, after as many updates", "observed", here, verdict


def real_model(firsts: Mapping[str, float]) -> tuple:
    here = ", ".join(f"{arm}: {_update(firsts[arm])}" for arm in ("dpo", "extend"))
    claim = "SmolLM2 in TRL: DPO raises the alert; after extend not, or later"
    return claim, "", here, found(firsts["dpo"] < np.inf, firsts["extend"] > firsts["dpo"])


def later(live: Mapping[str, float], real: Mapping[str, float]) -> tuple:
    """Of first alerts by way of tuning."""
    here = ", ".join(f"{arm} {_update(live[arm])}" for arm in ("dpo", "dropped", "rpo"))
    here += f", live; SmolLM2: dpo {_update(real['dpo'])}, dropped {_update(real['dropped'])}"
    claim = "without the worst pairs, or with RPO, the alert comes later"
    parts = (
        live["dropped"] > live["dpo"],
        live["rpo"] > live["dpo"],
        real["dropped"] > real["dpo"],
    )
    return claim, "", here, found(*parts)


def falls_less(live: Mapping[str, float], real: Mapping[str, float]) -> tuple:
    """Of the changes of y+ by way of tuning."""
    here = ", ".join(f"{arm} {live[arm]:+.1f}" for arm in ("dpo", "dropped", "rpo"))
    here += f" nats, live; SmolLM2: dpo {real['dpo']:+.1f}, dropped {real['dropped']:+.1f}"
    parts = (
        live["dropped"] > live["dpo"],
        live["rpo"] > live["dpo"],
        real["dropped"] > real["dpo"],
    )
    return "but $y^+$ falls less", "", here, found(*parts)


def within_budget(later_: float, whole: float, budget: float) -> tuple:
    here = f"{later_:.1%} of the time, budget {budget:.0%}; with the first probing {whole:.1%}"
    return "probing keeps to its budget once it has begun", "", here, found(later_ <= budget)


# Of `fades`, the rule for a reward: runs as in fades-world.json.


def fades_rate(runs: Sequence[Mapping], harm: bool, deepest: float) -> Rate:
    """In how many runs with harm, or without, log π of right answers fell by such a share."""
    return Rate.of([run["deepest"] > deepest or None for run in runs if run["harm"] == harm])


def fades_fires(runs: Sequence[Mapping], harm: bool) -> Rate:
    return Rate.of([run["fires"] or None for run in runs if run["harm"] == harm])


def fades_catches(runs: Sequence[Mapping]) -> tuple:
    rate = fades_fires(runs, True)
    claim = "for a reward, on fresh seeds: an alert in four harmful runs of five"
    return claim, "", f"{rate}", found(rate.share >= 0.8)


def fades_is_harm(runs: Sequence[Mapping]) -> tuple:
    rate = fades_fires(runs, False)
    claim = "and none in four of five runs that do no harm"
    here = f"one in {rate}; the depth alone is no alert, the fall must be sure"
    return claim, "", here, found(rate.share <= 0.2)
