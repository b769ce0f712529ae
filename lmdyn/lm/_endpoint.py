"""A language model behind an OpenAI-compatible chat-completions address."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2

T = TypeVar("T")

LONGEST_WAIT = 60.0  # seconds; a server that asks for more had better be called again later
SHOWN = 200  # characters of a reply in a message

_HINTS = {
    401: "set {key_env} to a key that is valid there",
    403: "the key in {key_env} may not use this model",
    404: "check url, which ends before /chat/completions, and model",
    429: "too many requests, or no quota left",
}
_WORTH_RETRYING = {408, 409, 425, 429}  # and all from 500 on


class EndpointError(RuntimeError):
    """An endpoint gave no answer that can be used.

    Attributes:
        finished: what was finished before, where a longer job raises it.
    """

    finished: int = 0


class EndpointNonsense(EndpointError):
    """It answered, with something else than what it was asked for."""


class EndpointTimeout(EndpointError):
    """It did not answer in time."""


class EndpointRefused(EndpointError):
    """It declined to answer.

    Attributes:
        status: its HTTP status.
        retry_after: seconds that it wants to be left alone, if it said so.
    """

    def __init__(self, message: str, status: int, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class EndpointUnreachable(EndpointError):
    """There is no connection to it, or it broke."""


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: all of it.
        cut: whether it stopped at the limit of its tokens.
    """

    text: str
    cut: bool


class Endpoint:
    """A model behind an OpenAI-compatible endpoint: a text goes there, a text comes back.

    The key comes from the environment alone; it is sent to the endpoint and shown nowhere.
    Timeouts, broken connections, HTTP 408, 409, 425, 429 and 5xx are tried again after 1, 2, 4 …
    seconds, or after what the server's Retry-After says; nonsense is tried again at once. No
    redirection is followed.

    Args:
        model: its name at the endpoint.
        url: the base, such as ``https://host/v1``; what ``OPENAI_BASE_URL`` says in the
            environment, if not given.
        key_env: the environment variable that holds the key; None for a server without keys.
        timeout: seconds without a word from the server.
        retries: how often to try again, at most.
        options: further fields of the request, such as ``{"temperature": 0}``.

    Raises:
        ValueError: no url or key, or one that cannot be used; retries below 0, no timeout.

    Example:
        >>> endpoint = Endpoint("any-model", "http://127.0.0.1:8080/v1", key_env=None)
        >>> endpoint
        Endpoint('any-model', 'http://127.0.0.1:8080/v1/chat/completions')
        >>> endpoint("Say hello in French.")  # doctest: +SKIP
        'Bonjour !'
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        *,
        key_env: str | None = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 3,
        options: Mapping | None = None,
    ):
        url = url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise ValueError(
                "there is no endpoint to ask: pass url, such as http://127.0.0.1:8080/v1, or set "
                "the environment variable OPENAI_BASE_URL"
            )
        if not _usable(url):
            raise ValueError("url must be http://host… or https://host…, without password or query")
        if retries < 0 or timeout <= 0:
            raise ValueError(
                f"retries must be at least 0 and timeout above 0, got {retries} and {timeout}"
            )
        self.url = url.rstrip("/") + "/chat/completions"
        self.key_env, self.retries = key_env, retries
        self.description = {"model": model, "options": dict(options or {})}
        self._key()
        # No connection outlives its request: there is nothing to close.
        self._client = httpx2.Client(
            timeout=timeout, limits=httpx2.Limits(max_keepalive_connections=0)
        )

    def __repr__(self) -> str:
        return f"Endpoint({self.description['model']!r}, {self.url!r})"

    def __call__(self, text: str) -> str:
        """Send a text as the user, and get the model's answer, whole and not empty.

        Raises:
            EndpointError: as in `ask`.
            ValueError: the key is gone from the environment.
        """
        return self.ask(text, _whole)

    def ask(self, text: str, read: Callable[[Reply], T]) -> T:
        """What `read` makes of the answer; it raises `EndpointNonsense` to have it asked again.

        Raises:
            EndpointNonsense: the last reply is none, or `read` refuses it.
            EndpointTimeout: no answer in time.
            EndpointRefused: an HTTP status other than 200, with what the server said.
            EndpointUnreachable: no connection.
            ValueError: the key is gone from the environment.
        """
        body = {
            **self.description["options"],
            "model": self.description["model"],
            "messages": [{"role": "user", "content": text}],
        }
        for attempt in range(self.retries + 1):
            try:
                return read(self._reply(body))
            except EndpointError as error:
                wait = _wait(error, attempt)
                if attempt == self.retries or wait is None:
                    raise
            time.sleep(wait)

    def _reply(self, body: Mapping) -> Reply:
        """One request."""
        key = self._key()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            response = self._client.post(self.url, json=body, headers=headers)
        except httpx2.TimeoutException:
            seconds = f"{self._client.timeout.read:g} s"
            raise EndpointTimeout(
                f"{self.url} did not answer in {seconds}: pass a longer timeout"
            ) from None
        except httpx2.RequestError as error:
            raise EndpointUnreachable(f"no connection to {self.url} ({error}): check url") from None
        shown = response.text if key is None else response.text.replace(key, "[key]")
        if response.status_code != 200:
            status, after = response.status_code, _retry_after(response.headers)
            hint = "the server failed" if status >= 500 else "check url, model and options"
            hint = _HINTS.get(status, hint).format(key_env=self.key_env or "key_env")
            pause = "" if after is None else f"; it wants {after:.0f} s of pause"
            text = f"{self.url} declined with HTTP {status}, {said(shown)}: {hint}{pause}"
            raise EndpointRefused(text, status, after)
        try:
            choice = response.json()["choices"][0]
            text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise EndpointNonsense(f"{self.url} sent no chat completion but {said(shown)}")
        if key is not None and key in text:  # a file must not hold it
            raise EndpointNonsense(f"{self.url} sent the key back: {said(shown)}")
        return Reply(text, cut)

    def _key(self) -> str | None:
        """From the environment each time: no object holds it, so none can show it."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ValueError(
                f"there is no key for {self.url}: set the environment variable {self.key_env}, "
                "name another as key_env, or pass key_env=None for a server without keys"
            )
        if not (key.isascii() and key.isprintable() and " " not in key):
            # httpx2 would say so too, and quote the key.
            raise ValueError(
                f"the environment variable {self.key_env} holds no key: it has spaces, line breaks "
                "or letters that no header can carry"
            )
        return key


def said(text: str) -> str:
    """A reply as a message may show it: short and on one line."""
    text = " ".join(text.split())
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def _whole(reply: Reply) -> str:
    if reply.cut:
        raise EndpointNonsense(
            f"the reply was cut at the limit of its tokens: {said(reply.text)}; raise the limit in "
            "options"
        )
    if not reply.text.strip():
        raise EndpointNonsense("the reply is empty")
    return reply.text


def _usable(url: str) -> bool:
    try:
        parts = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    web = parts.scheme in ("http", "https") and parts.host
    return bool(web) and not (parts.userinfo or parts.query or parts.fragment)


def _wait(error: EndpointError, attempt: int) -> float | None:
    """Seconds until it is worth asking again; None if it never is."""
    if isinstance(error, EndpointNonsense):
        return 0.0
    if isinstance(error, EndpointRefused):
        if error.status not in _WORTH_RETRYING and error.status < 500:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= LONGEST_WAIT else None
    return min(2.0**attempt, LONGEST_WAIT)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; the header gives them, or a date."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None
