"""What losses share: a registry, the checks of what they are given, and the coefficients."""

import math
from collections.abc import Mapping
from dataclasses import Field, FrozenInstanceError, dataclass, field, fields
from functools import partial
from itertools import product
from typing import ClassVar, dataclass_transform

import torch
from torch import Tensor

from lmdyn.checks import is_number

REGISTRY: dict[str, type["Loss"]] = {}
Responses = Mapping[str, Tensor] | None  # response name → (B,)


def within(low: float, high: float, ends: str, default: float) -> Field:
    """A hyperparameter between two numbers; ``ends`` says which of them it may be, as in "[)"."""
    return field(default=default, metadata={"range": (low, high, ends)})


positive, nonnegative = partial(within, 0, math.inf, "()"), partial(within, 0, math.inf, "[)")


@dataclass(frozen=True)
class Given:
    """What a loss computes B rows from, as in `Loss.value`."""

    logps: Responses
    ref: Responses = None
    lengths: Responses = None

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

    def value(self, logps: Responses, ref: Responses = None, lengths: Responses = None) -> Tensor:
        """The loss (B,) of each of B rows.

        Args:
            logps: response name → (B,) log π(y|x), nats.
            ref: the same under the reference model, where `needs_ref`.
            lengths: response name → (B,) tokens, EOS included, where `needs_lengths`.
        """
        given = Given(logps, ref, lengths)
        self._check(given)
        value, rows = self._value(given), logps[self.responses[0]].shape
        if value.shape != rows:
            told = f"{type(self).__name__}._value gives {tuple(value.shape)}, not {tuple(rows)}"
            raise ValueError(f"{told}: one number a row")
        return value

    def coefficients(
        self, logps: Responses, ref: Responses = None, lengths: Responses = None
    ) -> dict[str, Tensor]:
        """c = ∂L/∂ log π(y|x), by autograd: response name → (B,). Arguments as in `value`."""
        with torch.inference_mode(False), torch.enable_grad():
            own = {r: logps[r].detach().clone().requires_grad_() for r in logps}
            total = self.value(own, ref, lengths).sum()
            read = [own[r] for r in self.responses]
            grads = torch.autograd.grad(total, read, materialize_grads=True)
        return dict(zip(self.responses, grads, strict=True))

    def _check(self, given: Given) -> None:
        """Refuse to read what is not there, or not one number a row."""
        held, rows = {"logps": "log-probs"}, ()
        if self.needs_ref:
            held["ref"] = "log-probs under the reference model"
        if self.needs_lengths:
            held["lengths"] = "numbers of tokens, 1 or more"
        for what, response in product(held, self.responses):
            values = getattr(given, what) or {}
            shape = tuple(values[response].shape) if response in values else ()
            rows = rows or shape[:1]
            if not shape or shape != rows or (what == "lengths" and (values[response] < 1).any()):
                there = {name: tuple(x.shape) for name, x in values.items()} or "none"
                of = " (the chosen answer to another training prompt)" * (response == "irr_train")
                raise ValueError(
                    f"{type(self).__name__} needs {what}[{response!r}]{of}: pass {what}, response "
                    f"name → {rows or '(B,)'} {held[what]}; there is {there}"
                )


class Relative(Loss):
    """A loss of a pair through Δ± = log π(y±) − log π_ref(y±)."""

    needs_ref = True
    beta: float = positive(default=0.1)  #: β, how fast a push fades, per nat; the default is TRL's
