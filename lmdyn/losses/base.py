"""What losses share: a registry, the checks of what they are given, and the coefficients."""

import math
from collections.abc import Mapping
from dataclasses import Field, FrozenInstanceError, dataclass, field, fields, replace
from functools import partial
from itertools import product
from typing import ClassVar, dataclass_transform

import torch
from torch import Tensor

from lmdyn.checks import check_finite, described, is_number

REGISTRY: dict[str, type["Loss"]] = {}
Responses = Mapping[str, Tensor] | None  # response name → (B,) or (B, T)
HELD = {  # what there is of each response
    "logps": "log-probs",
    "ref": "log-probs under the reference model",
    "old": "log-probs under the model that sampled: logps, if its weights are those",
    "lengths": "numbers of tokens, 1 or more and no more than there are log-probs",
}


def within(low: float, high: float, ends: str, default: float) -> Field:
    """A hyperparameter between two numbers; ``ends`` says which of them it may be, as in "[)"."""
    return field(default=default, metadata={"range": (low, high, ends)})


positive, nonnegative = partial(within, 0, math.inf, "()"), partial(within, 0, math.inf, "[)")


def unpadded(values: Tensor, lengths: Tensor) -> Tensor:
    """Values (B, T) at the first ``lengths`` (B,) places, and 0 at the others."""
    places = torch.arange(values.shape[1], device=values.device)
    return torch.where(places < lengths.unsqueeze(1), values, 0)


@dataclass(frozen=True)
class Given:
    """What a loss computes B rows from, as in `Loss.value`, with zeros for padding."""

    logps: Responses
    ref: Responses = None
    lengths: Responses = None
    old: Responses = None
    advantage: Tensor | None = None

    def delta(self, response: str) -> Tensor:
        """Δ = log π(y|x) − log π_ref(y|x), nats."""
        return self.logps[response] - self.ref[response]

    def mean(self, response: str) -> Tensor:
        """ℓ̄ = log π(y|x) / n, nats per token."""
        return self.logps[response] / self.lengths[response]

    @property
    def margin(self) -> Tensor:
        """h = Δ+ − Δ−, nats."""
        return self.delta("chosen") - self.delta("rejected")


@dataclass_transform(frozen_default=True, field_specifiers=(within, positive, nonnegative))
class Loss:
    """A loss of one or more responses to the same prompt, through their log-probs.

    It is one formula, `_value`. Being defined makes it a frozen dataclass, whose fields are its
    hyperparameters, and known by its name to `get` and everything that takes a loss::

        class Ratio(Loss, name="ratio"):
            '''log π(y−) − log π(y+): the log of their ratio.'''

            def _value(self, given):
                return given.logps["rejected"] - given.logps["chosen"]
    """

    name: ClassVar[str]  #: what `get` knows it by
    responses: ClassVar[tuple[str, ...]] = ("chosen", "rejected")  #: what it reads
    needs_ref: ClassVar[bool] = False  #: and under a reference model
    needs_lengths: ClassVar[bool] = False  #: and the numbers of tokens
    needs_old: ClassVar[bool] = False  #: and under the model that sampled
    needs_advantage: ClassVar[bool] = False  #: and how much better than expected it is
    baseline: ClassVar[str] = "grpo"  #: the kind of `lmdyn.losses.advantages` that it is meant for
    per_token: ClassVar[bool] = False  #: whether it must see each token's log-prob
    of_batch: ClassVar[bool] = False  #: whether rows share a norm, so that their *sum* is the loss

    def __init_subclass__(cls, name: str | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)
        del cls.__setattr__, cls.__delattr__  # so that the decorator may stand there as well
        if name is None:  # a class for others to build on
            return
        known = REGISTRY.get(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            told = f"there is a loss {name!r} already, {known.__name__}"
            raise ValueError(f"{told}: name it otherwise")
        cls.name, REGISTRY[name] = name, cls

    def __setattr__(self, name: str, value):
        raise FrozenInstanceError(f"{type(self).__name__} keeps its {name}: make another one")

    def __post_init__(self):
        for hyper in (hyper for hyper in fields(self) if "range" in hyper.metadata):
            value, (low, high, (left, right)) = getattr(self, hyper.name), hyper.metadata["range"]
            at_end = (left == "[" and value == low) or (right == "]" and value == high)
            if not (is_number(value) and (low < value < high or at_end)):
                must = f"{hyper.name} must be a number in {left}{low:g}, {high:g}{right}"
                raise ValueError(f"{type(self).__name__}: {must}, got {value!r}")

    def _value(self, given: Given) -> Tensor:
        """The formula, (B,)."""
        raise NotImplementedError

    def value(
        self,
        logps: Responses,
        ref: Responses = None,
        lengths: Responses = None,
        *,
        old: Responses = None,
        advantage: Tensor | None = None,
    ) -> Tensor:
        """The loss (B,) of each of B rows, whose gradient is that of ``logps`` alone.

        Args:
            logps: response name → (B,) log π(y|x), nats, or (B, T) token by token, as a loss
                `per_token` needs them. Padding, on the right, may hold anything and has c = 0.
            ref: the same under the reference model, where `needs_ref`.
            lengths: response name → (B,) tokens, EOS included, where `needs_lengths` or (B, T).
            old: the same as ``logps`` under the model that sampled, where `needs_old`.
            advantage: (B,), where `needs_advantage`.
        """
        given = self._read(Given(logps, ref, lengths, old, advantage))
        value, rows = self._value(given), logps[self.responses[0]].shape[:1]
        if value.shape != rows:
            told = f"{type(self).__name__}._value gives {tuple(value.shape)}, not {tuple(rows)}"
            raise ValueError(f"{told}: one number a row")
        return value

    def coefficients(self, logps: Responses, *given, **named) -> dict[str, Tensor]:
        """c = ∂ΣL/∂ log π, by autograd, of what `value` takes: response name → as its ``logps``."""
        with torch.inference_mode(False), torch.enable_grad():
            own = {r: logps[r].detach().clone().requires_grad_() for r in logps}
            total = self.value(own, *given, **named).sum()
            read = [own[r] for r in self.responses]
            grads = torch.autograd.grad(total, read, materialize_grads=True)
        return dict(zip(self.responses, grads, strict=True))

    def _read(self, given: Given) -> Given:
        """What the formula sees, checked: no padding, and sums over tokens unless `per_token`."""
        held = ["logps", *["ref"] * self.needs_ref, *["old"] * self.needs_old]
        some = [x.ndim for what in held for x in (getattr(given, what) or {}).values()]
        self._check(given, [*held, *["lengths"] * (self.needs_lengths or 2 in some)])
        kept = {what: {} for what in held}
        for what, response in product(held, self.responses):
            x = getattr(given, what)[response]
            x = unpadded(x, given.lengths[response]) if x.ndim == 2 else x
            x = x if x.ndim == 1 or self.per_token else x.sum(1)
            kept[what][response] = x if what == "logps" else x.detach()
        if self.needs_advantage:
            kept["advantage"] = given.advantage.detach().to(kept["logps"][self.responses[0]])
        return replace(given, **kept)

    def _check(self, given: Given, held: list[str]) -> None:
        """Refuse to read what is not there, or not one number a row or token."""
        rows, name = (), type(self).__name__
        for what, response in product(held, self.responses):
            values = getattr(given, what) or {}
            x = values.get(response)
            rows = rows or (() if x is None else tuple(x.shape[:1]))
            if x is None or not self._fits(what, x, rows, given.logps[response]):
                there = {r: tuple(x.shape) for r, x in values.items()} or "none"
                of = " (the chosen answer to another training prompt)" * (response == "irr_train")
                shape = "(B, T)" if self.per_token and what != "lengths" else rows or "(B,)"
                how = f"pass {what}, response name → {shape} {HELD[what]}; there is {there}"
                raise ValueError(f"{name} needs {what}[{response!r}]{of}: {how}")
        if self.needs_advantage:
            if not isinstance(given.advantage, Tensor) or tuple(given.advantage.shape) != rows:
                there = "none" if given.advantage is None else described(given.advantage)
                raise ValueError(f"{name} needs advantage, a tensor {rows}; there is {there}")
            check_finite(given.advantage.double(), "advantage")

    def _fits(self, what: str, x: Tensor, rows: tuple[int, ...], logps: Tensor) -> bool:
        if what == "lengths":
            most = logps.shape[1] if logps.ndim == 2 else math.inf
            return tuple(x.shape) == rows and bool(((x >= 1) & (x <= most)).all())
        forms = (2,) if self.per_token else (1, 2)
        return x.ndim in forms and tuple(x.shape[:1]) == rows and x.shape in (logps.shape, rows)


class Relative(Loss):
    """A loss of a pair through Δ± = log π(y±) − log π_ref(y±)."""

    needs_ref = True
    beta: float = positive(default=0.1)  #: β, how fast a push fades, per nat; the default is TRL's
