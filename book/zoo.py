"""The zoo of losses: the names, the formulas and TRL's words for them, and what each of them does.

`ZOO` holds what cannot be computed. Where a loss pushes and where it stops is read off the
library's coefficients, so that a formula typed here has none to contradict.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lmdyn import losses
from lmdyn.losses import Loss

START, TOKENS = -60.0, 24  # the pair that all losses are held to: log π_ref, nats, and its tokens
EDGE = 100.0  # the largest margin looked at, nats
GRID = 2002  # margins between -EDGE and EDGE; even, so that h = 0 is none of them


@dataclass(frozen=True)
class Entry:
    """What a chapter says of a loss: its name in figures, c in LaTeX, and TRL's name for it."""

    label: str
    c: str
    config: str = ""  # TRL's class, "" if it has none
    settings: tuple[tuple[str, object], ...] = ()  # the fields of that class that choose the loss
    stop: str = ""  # when it stops, where the library has no coefficient to tell

    @property
    def trl(self) -> str:
        """TRL's name, as Markdown: the class without its "Config", then the kind, then the rest."""
        if not self.config:
            return "–"
        named = dict(self.settings)
        kinds = named.pop("loss_type", [])
        said = [f"`{kind}`" for kind in ([kinds] if isinstance(kinds, str) else kinds)]
        said += [f"`{key}` = {value}" for key, value in named.items()]
        return f"{self.config.removesuffix('Config')}: {', '.join(said)}".removesuffix(": ")


def _dpo(label: str, c: str, *kinds: str) -> Entry:
    kind = kinds[0] if len(kinds) == 1 else list(kinds)
    return Entry(label, c, "DPOConfig", (("loss_type", kind),))


def _grpo(label: str, c: str, **settings) -> Entry:
    return Entry(label, c, "GRPOConfig", tuple(settings.items()))


ZOO = {
    "sft": Entry("SFT", r"$c^+=-1$", "SFTConfig", (("loss_type", "nll"),)),
    "sft_per_token": Entry("SFT per token", r"$c^+=-1/n$"),
    "slic": Entry("SLiC", r"$-c^+=c^-=1$; $-\beta$ on $y^+$ always"),
    "simpo": Entry(
        "SimPO",
        r"$-n^+c^+=n^-c^-=\beta\sigma(\gamma-\beta\bar h)$",
        "CPOConfig",
        (("loss_type", "simpo"), ("cpo_alpha", 0.0)),
    ),
    "orpo": Entry("ORPO", r"$c^+\approx-1/n^+$, $c^-$ small", "ORPOConfig"),
    "dpo": _dpo("DPO", r"$-c^+=c^-=\beta\sigma(-\beta h)$", "sigmoid"),
    "spin": _dpo("SPIN", "DPO's, on own samples", "sigmoid"),
    "ipo": _dpo("IPO", r"$-c^+=c^-=1/\beta-2h$", "ipo"),
    "hinge": _dpo("hinge", r"$-c^+=c^-=\beta$", "hinge"),
    "robust": _dpo(
        "robust DPO",
        r"$-c^+=c^-=\beta\frac{(1-\varepsilon)\sigma(-\beta h)+\varepsilon\sigma(\beta h)}"
        r"{1-2\varepsilon}$",
        "robust",
    ),
    "exo": _dpo(
        "EXO",
        r"$-c^+=c^-=\beta\sigma'(\beta h)(\log\frac{1-\varepsilon}{\varepsilon}-\beta h)$",
        "exo_pair",
    ),
    "discopop": _dpo("DiscoPOP", "$-c^+=c^-$, with a dip around 0", "discopop"),
    "rpo": _dpo("RPO", r"DPO's, and $-\alpha/n^+$ on $y^+$", "sigmoid", "sft"),
    "dpop": Entry("DPOP", r"$c^+=-(1+w[\Delta^+<0])\,c^-$"),
    "cal_dpo": Entry("Cal-DPO", r"SPPO's, and DPO's with $\beta=1$"),
    "cw_dpo": Entry("CW-DPO", r"DPO's, $c^-$ times $\sigma((\bar\ell^--f)/\tau)$"),
    "gate_dpo": Entry("Gate-DPO", r"DPO's, $c^-$ times $\sigma(\alpha(e^{\bar\ell^-}-\tau))$"),
    "cw_sft": Entry("CW-SFT", r"$c^+=-1$, $c^-=w[\bar\ell^->f]$"),
    "reinforce": Entry("REINFORCE", r"$c=-\hat A$"),
    "grpo": _grpo("GRPO", r"$c_l=-\hat A\rho_l/n$", loss_type="grpo"),
    "dr_grpo": _grpo(
        "Dr. GRPO", r"$c_l=-\hat A\rho_l/L_{\max}$", loss_type="dr_grpo", scale_rewards="none"
    ),
    "bnpo": _grpo("BNPO", r"$c_l=-\hat A\rho_l/\sum n$", loss_type="bnpo"),
    "dapo": _grpo("DAPO", r"$c_l=-\hat A\rho_l/\sum n$", loss_type="dapo", epsilon_high=0.28),
    "cispo": _grpo(
        "CISPO",
        r"$c_l=-\hat A\min(\rho_l,1+\varepsilon_\text{high})/\sum n$",
        loss_type="cispo",
        epsilon_high=5.0,
    ),
    "gspo": _grpo(
        "GSPO", r"$c_l=-\hat As/n$", loss_type="grpo", importance_sampling_level="sequence"
    ),
    "rloo": Entry("RLOO", r"$c=-\hat As$", "RLOOConfig"),
    "sppo": _dpo("SPPO", r"$c^\pm=2(\Delta^\pm\mp\Delta^*)$", "sppo_hard"),
    "nca": _dpo(
        "NCA",
        r"$-c^+=\beta(\sigma(-\beta\Delta^+)-\frac12\sigma(\beta\Delta^+))$, "
        r"$c^-=\frac\beta2\sigma(\beta\Delta^-)$",
        "nca_pair",
    ),
    "ga": Entry("gradient ascent", r"$c=1$"),
    "npo": Entry("NPO", r"$c=2\sigma(\beta\Delta)$"),
    "bco": _dpo("BCO", r"$c^\pm=\mp\beta\sigma(\mp\beta\Delta^\pm)$", "bco_pair"),
    "apo_zero": _dpo("APO-zero", r"$c^\pm=\mp\beta\sigma'(\beta\Delta^\pm)$", "apo_zero"),
    "apo_down": _dpo(
        "APO-down",
        r"$c^+=\beta(\sigma'(\beta\Delta^+)-\sigma'(\beta h))$, $c^-=\beta\sigma'(\beta h)$",
        "apo_down",
    ),
    "kto": Entry(
        "KTO",
        r"$c^\pm=\mp w\beta\sigma'(\beta(\Delta^\pm-\mathrm{kl}))$",
        "KTOConfig",
        (("loss_type", "kto"),),
    ),
}
# What is no function of the log-probs of a response, and has a vector G at a token.
VECTORS = [
    Entry(
        "entropy bonus",
        r"$G=\alpha\,\pi\circ(\log\pi+H)$",
        "GRPOConfig",
        (("entropy_coef", 0.01),),
        r"$\pi$ uniform",
    ),
    Entry("forward KL", r"$G=\pi-q$", "DistillationConfig", (("beta", 0.0),), r"$\pi=q$"),
    Entry(
        "reverse KL",
        r"$G=\pi\circ(\log\frac\pi q-\mathrm{KL})$",
        "DistillationConfig",
        (("beta", 1.0),),
        r"$\pi=q$",
    ),
]


def entry(name: str) -> Entry:
    """What a chapter says of a loss; of one that a reader has defined, its name."""
    return ZOO.get(name, Entry(name, ""))


def label(name: str) -> str:
    """What figures call a loss."""
    return entry(name).label


def every() -> dict[str, Loss]:
    """All losses, name → loss: in the order of `ZOO`, then those that a reader has defined."""
    return {name: losses.get(name) for name in [*ZOO, *losses.names()]}


def of_pairs() -> dict[str, Loss]:
    """The losses of a pair. SFT per token, which is SFT up to its scale, is left out."""
    pairs = {name: loss for name, loss in every().items() if "response" not in loss.responses}
    del pairs["sft_per_token"]
    return pairs


def of_samples() -> dict[str, Loss]:
    """The losses of one response."""
    return {name: loss for name, loss in every().items() if loss.responses == ("response",)}


def push(loss: Loss, chosen, rejected, n_chosen=TOKENS, n_rejected=TOKENS) -> Tensor:
    """(2, …): the pushes −c⁺ and −c⁻ of a pair whose Δ⁺ and Δ⁻, nats, are these; above 0 is up."""
    chosen, rejected = torch.broadcast_tensors(
        *(torch.as_tensor(delta, dtype=torch.float64) for delta in (chosen, rejected))
    )
    change = {"chosen": chosen.flatten(), "rejected": rejected.flatten()}
    change["irr_train"] = torch.zeros_like(change["chosen"])
    ref = {name: torch.full_like(delta, START) for name, delta in change.items()}
    logps = {name: ref[name] + delta for name, delta in change.items()}
    n = {"chosen": n_chosen, "rejected": n_rejected, "irr_train": TOKENS}
    n = {name: torch.full_like(ref[name], n[name]) for name in n}
    c = loss.coefficients(logps, ref, n)
    both = [c[x] if x in c else torch.zeros_like(c["chosen"]) for x in ("chosen", "rejected")]
    return -torch.stack(both).reshape(2, *chosen.shape)


def sample_push(loss: Loss, ratio, advantage: float = 1.0, n: int = TOKENS) -> Tensor:
    """(…): the push −c on each token of a sample, of which this is each token's ratio ρ.

    The log-prob of the sample has then moved by Δ = n log ρ since it was sampled, and its model is
    the reference. Each sample stands alone, so that a norm over a batch is its own n.
    """
    ratio = torch.as_tensor(ratio, dtype=torch.float64)
    rows = ratio.flatten()
    old = torch.full((len(rows), n), START / n, dtype=torch.float64)
    given = {"lengths": {"response": torch.full((len(rows),), n)}, "old": {"response": old}}
    given |= {"advantage": torch.full((len(rows),), advantage, dtype=torch.float64)}
    now = {"response": old + rows.log()[:, None]}
    c = loss.coefficients(now, {"response": old}, **given)["response"][:, 0]
    return -(c * len(rows) if loss.of_batch else c).reshape(ratio.shape)


def apart(loss: Loss, part: int, h, n: int = TOKENS) -> Tensor:
    """The push of y⁺ (part 0) up, or of y⁻ (1) down, at Δ⁺ = h/2 = −Δ⁻."""
    h = torch.as_tensor(h, dtype=torch.float64)
    return (1, -1)[part] * push(loss, h / 2, -h / 2, n, n)[part]


def ends(loss: Loss, part: int, n: int = TOKENS) -> float | None:
    """The margin at which the push apart ends for good, by bisection; None if it never does."""
    ray = torch.linspace(-EDGE, EDGE, GRID, dtype=torch.float64)
    on = apart(loss, part, ray, n) > 0
    turns = (on[:-1] & ~on[1:]).nonzero()
    if on[-1] or not len(turns):
        return None
    low, high = ray[turns[-1, 0]], ray[turns[-1, 0] + 1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if apart(loss, part, middle, n) > 0 else (low, middle)
    return high.item()


def stop_of_pair(loss: Loss) -> str:
    """When the pull on y⁺ and the push on y⁻ stop, along Δ⁺ = h/2 = −Δ⁻, in words."""
    said = [_stop(loss, part) for part in (0, 1)]
    if said[1] == "none" or said[0] == said[1]:
        return said[0]
    return f"$y^+$: {said[0]}<br>$y^-$: {said[1]}"


def _stop(loss: Loss, part: int) -> str:
    ray = torch.linspace(-EDGE, EDGE, GRID, dtype=torch.float64)
    pushed, end = apart(loss, part, ray), ends(loss, part)
    if not (pushed > 0).any():
        return ("pushed down", "pulled up")[part] if (pushed < 0).any() else "none"
    if end is not None:
        return f"$h$ = {end:.1f}" + (", then reversed" if pushed[-1] < 0 else "")
    fades = _fades(*apart(loss, part, torch.tensor([0.8 * EDGE, EDGE])).tolist())
    dip = ", reversed near 0" if (pushed < 0).any() else ""
    return ("never; fades" if fades else "never") + dip


def stop_of_sample(loss: Loss) -> str:
    """When the push on a sample stops, in words."""
    if not loss.needs_advantage:
        far = torch.tensor([-0.8 * EDGE, -EDGE]) / TOKENS  # log ρ
        return "never; fades" if _fades(*sample_push(loss, far.exp()).abs()) else "never"
    clips = [(clip(loss, 1.0), ">"), (clip(loss, -1.0), "<")]
    name = "s" if loss.name in ("gspo", "rloo") else r"\rho_l"
    said = [rf"$\hat A {s} 0$: ${name} {s} {at:.5g}$" for at, s in clips if at is not None]
    return "<br>".join(said) or "never"


def clip(loss: Loss, advantage: float) -> float | None:
    """The ratio, a sample's own where that is clipped, beyond which c = 0; None if nowhere."""
    per_sample = loss.name == "rloo"  # π(y)/π_old(y), the product over the tokens

    def pushes(log_ratio: float) -> bool:
        ratio = torch.tensor(log_ratio / (TOKENS if per_sample else 1), dtype=torch.float64).exp()
        return bool(sample_push(loss, ratio, advantage) != 0)

    on, off = 0.0, 3.0 if advantage > 0 else -3.0
    if pushes(off):
        return None
    for _ in range(50):
        middle = (on + off) / 2
        on, off = (middle, off) if pushes(middle) else (on, middle)
    return math.exp(off)


def _fades(near: float, far: float) -> bool:
    """Whether a push that has no end has weakened by a third between two places far out."""
    return far < near / 1.5


def rows() -> list[tuple[str, str, str]]:
    """A row a loss: its name and c, when it stops, what TRL calls it."""
    samples, found = of_samples(), []
    for name, loss in sorted(every().items(), key=lambda item: item[0] in samples):
        stop = stop_of_sample(loss) if name in samples else stop_of_pair(loss)
        found.append((entry(name), stop))
    found += [(its, its.stop) for its in VECTORS]
    return [(f"**{its.label}**<br>{its.c}", stop, its.trl) for its, stop in found]


def table() -> str:
    """Markdown: the name of each loss, its formula, what it is and what it reads."""
    lines = ["| name | loss | what it is | reads | reference |", "|---|---|---|---|---|"]
    for name in losses.names():
        loss = losses.get(name)
        formula, _, what = type(loss).__doc__.splitlines()[0].replace("|", "\\|").partition(": ")
        more = ["advantage"] * loss.needs_advantage + ["old"] * loss.needs_old
        reads = ", ".join([*loss.responses, *more])
        lines.append(f"| `{name}` | {formula} | {what} | {reads} | {'✓' * loss.needs_ref} |")
    return "\n".join(lines)
