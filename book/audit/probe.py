"""What "Probe your own run" claims of the callback, of its alert, and of the cures."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from audit import found, guarantee, trend
from audit.scale import Paired
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
    """Are fewer answers as wanted more often in runs with an alert, beyond both intervals?"""
    texts, parts = [], []
    for where, of in runs.items():
        heard, silent = (
            Rate.of([run.worse or None for run in of if (run.alert is not None) == alert])
            for alert in (True, False)
        )
        texts.append(f"{where}: fewer in {heard} with an alert, {silent} without")
        parts.append(heard.low > silent.high)
    claim = "an alert tells whether then fewer answers are true, or end within 64 tokens"
    return claim, "", "; ".join(texts), found(*parts)


def nats_tell(runs: Mapping[str, Sequence[Written]], least=0.5) -> tuple:
    """Does what a run writes go with how far y+ has moved? Of all runs, and of all but DPO's."""
    texts, parts = [], []
    for where, of in runs.items():
        for name, those in ((where, of), ("without DPO", [run for run in of if run.name != "dpo"])):
            told = [run.moved for run in those], [run.alert is None for run in those]
            ranks = [spearmanr(by, [run.change for run in those]).statistic for by in told]
            texts.append("{} {:.2f} (the alert {:.2f})".format(name, *ranks))
            parts.append(ranks[0] >= least)
    claim = (
        f"the fall of held-out $y^+$ goes with what is then written (rank correlation ≥ {least})"
    )
    return claim, "", "; ".join(texts), found(*parts)


def extend_weakens(
    falls: Mapping[str, float], margins: Mapping[str, float], firsts: Sequence[float]
) -> tuple:
    """Of y+ and of the margin by way of tuning, and the first alerts on SmolLM2, DPO and extend."""
    arms = ("extend", "dpo")
    here = " against ".join(f"{falls[a]:+.1f} nats (margin {margins[a]:+.1f})" for a in arms)
    here = f"held-out $y^+$ {here}, live; first alert on SmolLM2 "
    here += f"{_update(firsts[1])} against {_update(firsts[0])}; one run each"
    verdict = trend(falls["extend"] > falls["dpo"], firsts[1] > firsts[0])
    return "extend weakens the squeeze, after as many updates", "observed", here, verdict


def real_model(firsts: Mapping[str, float]) -> tuple:
    here = ", ".join(f"{arm}: {_update(firsts[arm])}" for arm in ("dpo", "extend"))
    here += "; one run each"
    claim = "SmolLM2 in TRL: DPO raises the alert; after extend not, or later"
    return claim, "", here, found(firsts["dpo"] < np.inf, firsts["extend"] > firsts["dpo"])


def later(live: Mapping[str, float], real: Mapping[str, float]) -> tuple:
    """Of first alerts by way of tuning."""
    here = ", ".join(f"{arm} {_update(live[arm])}" for arm in ("dpo", "dropped", "rpo"))
    here += f", live; SmolLM2: dpo {_update(real['dpo'])}, dropped {_update(real['dropped'])}"
    here += "; one run each"
    claim = "without the worst pairs, or with RPO, the alert comes later"
    parts = (
        live["dropped"] > live["dpo"],
        live["rpo"] > live["dpo"],
        real["dropped"] > real["dpo"],
    )
    return claim, "", here, found(*parts)


def falls_less(live: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> tuple:
    """Of the changes of y+ by way of tuning, (prompts,), beside DPO's on the same prompts."""
    dropped, rpo, smol = beside = [
        Paired.of(of[arm] - of["dpo"])
        for of, arm in ((live, "dropped"), (live, "rpo"), (real, "dropped"))
    ]
    here = f"beside dpo, nats: dropped {dropped}, rpo {rpo}, live; SmolLM2: dropped {smol}; one "
    here += "run each, 95% over its prompts"
    return "but $y^+$ falls less", "", here, found(*(of.verdict == "more" for of in beside))


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
