"""The coefficients c = ∂L/∂ log π(y|x) of every loss by hand, as its docstring has them.

Each takes the loss, Δ+, Δ−, the log-probs and the lengths, and gives response → (B,).
"""

import math

import torch
from torch.nn.functional import logsigmoid


def s(u):
    """σ(u)."""
    return u.sigmoid()


def bump(u):
    """σ′(u) = σ(u)σ(−u)."""
    return s(u) * s(-u)


def pair(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def of_margin(slope):
    """c+ = βL′(u) = −c− at u = βh."""

    def coefficients(loss, up, down, logps, n):
        c = loss.beta * slope(loss, loss.beta * (up - down))
        return pair(c, -c)

    return coefficients


def discopop(loss, u):
    v = u / loss.tau
    m_exp = (logsigmoid(v) - u).exp()
    blend = (bump(v) * logsigmoid(u) + s(-v) * m_exp) / loss.tau
    return blend - s(-v) * s(-u) - m_exp


def exo(loss, u):
    eps = loss.label_smoothing
    return bump(u) * (u - math.log1p(-eps) + math.log(eps))


def robust(loss, u):
    eps = loss.label_smoothing
    return -((1 - eps) * s(-u) + eps * s(u)) / (1 - 2 * eps)


def ipo(loss, up, down, logps, n):
    n = n if loss.average else {"chosen": 1, "rejected": 1}
    c = 2 * (up / n["chosen"] - down / n["rejected"] - 1 / (2 * loss.beta))
    return pair(c / n["chosen"], -c / n["rejected"])


def slic(loss, up, down, logps, n):
    active = (loss.delta - logps["chosen"] + logps["rejected"] > 0).double()
    c = {r: torch.zeros_like(active) for r in loss.responses} | pair(-active, active)
    return c | {loss.target: c[loss.target] - loss.beta}


def simpo(loss, up, down, logps, n):
    gap = logps["chosen"] / n["chosen"] - logps["rejected"] / n["rejected"]
    c = loss.beta * s(loss.gamma - loss.beta * gap)
    return pair(-c / n["chosen"], c / n["rejected"])


def orpo(loss, up, down, logps, n):
    top = -torch.finfo(torch.float64).eps  # p = 1 counts as the number before it
    mean = {r: (logps[r] / n[r]).clamp(max=top) for r in ("chosen", "rejected")}
    below = {r: (logps[r] / n[r] <= top).double() for r in mean}
    odds = {r: x - torch.log(-torch.expm1(x)) for r, x in mean.items()}
    c = loss.weight * s(odds["rejected"] - odds["chosen"])
    slope = {r: -below[r] / torch.expm1(x) for r, x in mean.items()}
    return pair(-(1 + c * slope["chosen"]) / n["chosen"], c * slope["rejected"] / n["rejected"])


def nca(loss, up, down, logps, n):
    b = loss.beta
    return pair(-b * (s(-b * up) - s(b * up) / 2), b * s(b * down) / 2)


def kto(loss, up, down, logps, n, *, kl):
    b = loss.beta
    up = -loss.desirable * b * bump(b * (up - kl))
    down = loss.undesirable * b * bump(b * (kl - down))
    return pair(up, down) | {"irr_train": torch.zeros_like(up)}


def rpo(loss, up, down, logps, n):
    c = loss.beta * s(loss.beta * (down - up))
    return pair(-c - loss.weight / n["chosen"], c)


def dpop(loss, up, down, logps, n):
    c = loss.beta * s(-loss.beta * (up - down - loss.penalty * (-up).clamp(min=0)))
    return pair(-c * (1 + loss.penalty * (up < 0)), c)


def cal_dpo(loss, up, down, logps, n):
    half, c = 1 / (2 * loss.beta), s(down - up)
    return pair(2 * (up - half) - c, 2 * (down + half) + c)


def gate_dpo(loss, up, down, logps, n):
    push = loss.beta * s(-loss.beta * (up - down))
    p = torch.exp(logps["rejected"] / n["rejected"])
    return pair(-push, push * s(loss.alpha * (p - loss.tau)))


def cw_dpo(loss, up, down, logps, n):
    w = s((logps["rejected"] / n["rejected"] - loss.floor) / loss.tau)
    c = loss.beta * s(-loss.beta * (up - w * down))
    return pair(-c, w * c)


def cw_sft(loss, up, down, logps, n):
    above = (logps["rejected"] > loss.floor * n["rejected"]).double()
    return pair(-torch.ones_like(above), loss.weight * above)


CLOSED = {
    "sft": lambda loss, up, down, logps, n: {"chosen": -torch.ones_like(logps["chosen"])},
    "sft_per_token": lambda loss, up, down, logps, n: {"chosen": -1 / n["chosen"]},
    "ga": lambda loss, up, down, logps, n: {"response": torch.ones_like(logps["response"])},
    "npo": lambda loss, up, down, logps, n: {"response": 2 * s(loss.beta * up)},
    "slic": slic,
    "simpo": simpo,
    "orpo": orpo,
    "dpo": of_margin(lambda loss, u: loss.label_smoothing - s(-u)),
    "spin": of_margin(lambda loss, u: -s(-u)),
    "ipo": ipo,
    "hinge": of_margin(lambda loss, u: -(u < 1).double()),
    "robust": of_margin(robust),
    "exo": of_margin(exo),
    "discopop": of_margin(discopop),
    "sppo": lambda x, up, down, logps, n: pair(2 * (up - x.eta / 2), 2 * (down + x.eta / 2)),
    "nca": nca,
    "bco": lambda x, up, down, logps, n: pair(-x.beta * s(-x.beta * up), x.beta * s(x.beta * down)),
    "apo_zero": lambda x, up, down, logps, n: pair(
        -x.beta * bump(x.beta * up), x.beta * bump(x.beta * down)
    ),
    "apo_down": lambda x, up, down, logps, n: pair(
        x.beta * (bump(x.beta * up) - bump(x.beta * (up - down))),
        x.beta * bump(x.beta * (up - down)),
    ),
    "kto": kto,
    "rpo": rpo,
    "dpop": dpop,
    "cal_dpo": cal_dpo,
    "cw_dpo": cw_dpo,
    "gate_dpo": gate_dpo,
    "cw_sft": cw_sft,
}


def closed_form(loss, logps, ref, lengths):
    """Response → (B,)."""
    delta = {r: logps[r] - ref[r] for r in loss.responses}
    extra = {}
    if loss.name == "kto":
        extra["kl"] = delta["irr_train"].mean().clamp(min=0)
    up, down = delta.get("chosen", delta.get("response")), delta.get("rejected")
    lengths = {r: n.double() for r, n in lengths.items()}
    return CLOSED[loss.name](loss, up, down, logps, lengths, **extra)
