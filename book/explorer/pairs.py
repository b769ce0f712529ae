"""The zoo explorer: which two numbers a loss of pairs makes of a pair."""

from dataclasses import asdict

from explorer.fragment import Page, fragment
from lmdyn import losses
from lmdyn.losses.base import Loss

START, TOKENS = -60.0, 24  # log π_ref of both responses, nats, and their lengths
SYMBOLS = {"beta": "β", "eta": "η", "weight": "λ"}  # what the slider moves: the first of these


def pair_losses() -> dict[str, Loss]:
    """The losses that read a chosen and a rejected response, by name."""
    every = {name: losses.get(name) for name in losses.names()}
    return {name: x for name, x in every.items() if {"chosen", "rejected"} <= {*x.responses}}


def zoo(first: str = "dpo") -> Page:
    """Pull on y⁺ and push on y⁻ against the margin h, for every loss of pairs.

    Of KTO's third response, Δ is zero.

    Args:
        first: the loss that it opens with.

    Raises:
        ValueError: no loss of pairs has this name.
    """
    known = pair_losses()
    if first not in known:
        raise ValueError(f"first must be one of {', '.join(known)}; got {first!r}")
    shown = []
    for name, loss in known.items():
        formula = type(loss).__doc__.splitlines()[0]
        hyper = next(key for key in SYMBOLS if hasattr(loss, key))
        given = {"name": name, "title": type(loss).__name__, "formula": formula, "hyper": hyper}
        shown.append(given | {"symbol": SYMBOLS[hyper], "defaults": asdict(loss)})
    sliders = {
        "h": {"low": -30, "high": 60, "step": 1},
        "up": {"low": -30, "high": 20, "step": 1},
        "factor": {"low": -1, "high": 1, "step": 0.05},
    }
    config = {"losses": shown, "first": first, "sliders": sliders, "start": START, "n": TOKENS}
    return fragment("zoo", "The zoo explorer", ("h", "Margin h, nats"), config)
