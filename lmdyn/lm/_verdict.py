"""What a judge says, and the ways in which it can fail."""

from collections.abc import Mapping
from typing import Literal, Protocol, get_args

Verdict = Literal["first", "second", "tie"]
VERDICTS: tuple[str, ...] = get_args(Verdict)


class Judge(Protocol):
    """Whatever says which of two answers to a prompt is the better one.

    Attributes:
        description: all that its verdicts depend on, as JSON can hold it. A file of judgements
            carries it, so that the verdicts of two judges are never mixed.
    """

    description: Mapping

    def __call__(self, prompt: str, first: str, second: str) -> Verdict:
        """Compare two answers to a prompt, shown in this order.

        Raises:
            JudgeError: there is no verdict.
        """


class JudgeError(RuntimeError):
    """A judge gave no verdict.

    Attributes:
        finished: judgements that were finished before, where `compare` raises it.
    """

    finished: int = 0


class JudgeNonsense(JudgeError):
    """The judge answered, with something else than a verdict."""


class JudgeTimeout(JudgeError):
    """The judge did not answer in time."""


class JudgeRefused(JudgeError):
    """The judge's server declined to answer.

    Attributes:
        status: its HTTP status.
        retry_after: seconds that it wants to be left alone, if it said so.
    """

    def __init__(self, message: str, status: int, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class JudgeUnreachable(JudgeError):
    """There is no connection to the judge, or it broke."""
