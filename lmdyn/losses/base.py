"""What every loss shares: its two methods, and checks of what it is given."""

import math
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import ClassVar

from torch import Tensor


def within(low: float, high: float, ends: str = "()", *, default: float) -> Field:
    """A hyperparameter between two numbers; ``ends`` says which of them it may be, as in "[)"."""
    return field(default=default, metadata={"range": (low, high, ends)})


def positive(default: float) -> Field:
    """A hyperparameter above zero."""
    return within(0, math.inf, default=default)


def nonnegative(default: float) -> Field:
    """A hyperparameter that zero switches off."""
    return within(0, math.inf, "[)", default=default)


class Loss:
    """A loss of one or more responses to the same prompt.

    A loss is a frozen dataclass whose fields are its hyperparameters. It is added to the zoo by
    its name in `lmdyn.losses`.

    Attributes:
        responses: the names of the responses it reads.
        needs_ref: whether it reads the log-probs of a reference model.
        needs_lengths: whether it reads the numbers of tokens.
    """

    responses: ClassVar[tuple[str, ...]]
    needs_ref: ClassVar[bool] = False
    needs_lengths: ClassVar[bool] = False

    def value(
        self,
        logps: Mapping[str, Tensor],
        ref: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss of each of B rows.

        Args:
            logps: response name → (B,) log π(y|x), nats.
            ref: the same under the reference model, where `needs_ref`.
            lengths: response name → (B,) tokens, EOS included, where `needs_lengths`.

        Returns:
            (B,), differentiable in ``logps``.

        Raises:
            ValueError: a response, ``ref`` or ``lengths`` that the loss reads is missing, or of
                another shape.
        """
        raise NotImplementedError

    def coefficients(
        self,
        logps: Mapping[str, Tensor],
        ref: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """c = ∂L/∂ log π(y|x) in closed form: response name → (B,). Arguments as in `value`."""
        raise NotImplementedError

    def __post_init__(self):
        for hyper in fields(self):
            if "range" not in hyper.metadata:
                continue
            value = getattr(self, hyper.name)
            low, high, (left, right) = hyper.metadata["range"]
            number = isinstance(value, int | float) and math.isfinite(value)
            at_low, at_high = left == "[" and value == low, right == "]" and value == high
            if not (number and (low < value < high or at_low or at_high)):
                raise ValueError(
                    f"{type(self).__name__}: {hyper.name} must be a number in "
                    f"{left}{low:g}, {high:g}{right}, got {value!r}"
                )

    def _check(self, logps, ref, lengths) -> None:
        """Refuse to read what is not there, or not one number a row."""
        name = type(self).__name__
        given = {"logps": logps}
        if self.needs_ref:
            if ref is None:
                raise ValueError(
                    f"{name} compares with a reference model: "
                    "pass ref, response name → (B,) log-probs under it"
                )
            given["ref"] = ref
        if self.needs_lengths:
            if lengths is None:
                raise ValueError(
                    f"{name} averages over tokens: "
                    "pass lengths, response name → (B,) numbers of tokens"
                )
            given["lengths"] = lengths
        for what, values in given.items():
            for response in self.responses:
                if response not in values:
                    is_kl = response == "irr_train"
                    hint = " (the chosen answer to another training prompt)" if is_kl else ""
                    raise ValueError(
                        f"{name} reads the response {response!r}{hint}, which {what} lacks: "
                        f"there is {', '.join(values) or 'none'}"
                    )
                first, shape = logps[self.responses[0]].shape, values[response].shape
                if shape != first or len(shape) != 1:
                    raise ValueError(
                        f"{name}: {what}[{response!r}] has shape {tuple(shape)}, but "
                        f"logps[{self.responses[0]!r}] has {tuple(first)}: both must be (B,)"
                    )
        if self.needs_lengths and any((lengths[r] < 1).any() for r in self.responses):
            raise ValueError(f"{name}: a response has no token: lengths must be 1 or more")


class Relative(Loss):
    """A loss of a pair through Δ± = log π(y±) − log π_ref(y±)."""

    responses = ("chosen", "rejected")
    needs_ref = True

    def value(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        return self._value(*deltas(logps, ref))

    def coefficients(self, logps, ref=None, lengths=None):
        self._check(logps, ref, lengths)
        chosen, rejected = self._slopes(*deltas(logps, ref))
        return {"chosen": chosen, "rejected": rejected}

    def _value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """The loss at Δ+ and Δ−."""
        raise NotImplementedError

    def _slopes(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Its derivatives with respect to Δ+ and Δ−: the coefficients."""
        raise NotImplementedError


def deltas(logps: Mapping[str, Tensor], ref: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Δ+ and Δ−."""
    return logps["chosen"] - ref["chosen"], logps["rejected"] - ref["rejected"]
