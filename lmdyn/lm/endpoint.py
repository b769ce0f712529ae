"""A model behind an OpenAI-compatible address, which rephrases responses and judges answers."""

import json
import os
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lmdyn.checks import check_known, check_texts
from lmdyn.lm.data import TYPES, ProbeSet, Rows, as_probes
from lmdyn.lm.rows import said, saying
from lmdyn.lm.tokens import begin_alike

REQUESTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
MADE = REQUESTS["made"]  # type → the response it is made of, and how
Texts = Sequence[str]


class EndpointError(RuntimeError):
    """There is no answer: no connection, none in time, or an HTTP status other than 200."""


class EndpointNonsense(EndpointError):
    """There is an answer, and it is none to the question."""


class Endpoint:
    """A function from a text to what a model says to it; needs ``pip install "lmdyn[endpoint]"``.

    Args:
        model: its name there.
        url: the base, such as ``https://host/v1``; by default OPENAI_BASE_URL.
        options: further fields of the request, such as ``{"temperature": 0}``.
        client: of `openai.OpenAI`, such as ``api_key`` (by default OPENAI_API_KEY), ``timeout``.
    """

    def __init__(self, model: str, url: str | None = None, *, options=None, **client):
        import openai

        if not (url := url or os.environ.get("OPENAI_BASE_URL")):
            raise ValueError("there is no endpoint to ask: pass url, or set OPENAI_BASE_URL")
        http = openai.DefaultHttpxClient(follow_redirects=False)
        self._client = openai.OpenAI(base_url=url, http_client=http, **client)
        if not (self._client.api_key.isascii() and self._client.api_key.isprintable()):
            raise ValueError("api_key, or OPENAI_API_KEY, must be one line of ASCII characters")
        self._failed = openai.APIError, json.JSONDecodeError
        self.description = {"model": model, "options": dict(options or {})}

    def __call__(self, text: str) -> str:
        """The model's answer, stripped; `EndpointNonsense` if it is empty, cut or no text."""
        try:
            reply = self._client.chat.completions.create(
                model=self.description["model"],
                messages=[{"role": "user", "content": text}],
                extra_body=self.description["options"],
            )
        except self._failed as error:
            status = getattr(error, "status_code", None)
            why = self._said(f"HTTP {status}, {error.body}" if status else error.__cause__ or error)
            raise EndpointError(f"no answer: {why} (check url, key, model and timeout)") from None
        with suppress(AttributeError, LookupError, TypeError):
            choice = reply.choices[0]
            if choice.finish_reason != "length" and choice.message.content.strip():
                return choice.message.content.strip()
        raise EndpointNonsense(f"the answer is empty, cut or no text: {self._said(reply)}")

    def _said(self, what) -> str:
        """What an error may show of it: short, on one line, without the key."""
        return " ".join(str(what).replace(self._client.api_key, "[key]").split())[:200]


def remembering(ask: Callable[..., str], answerer, out, skip_nonsense: bool) -> Callable:
    """``ask``, of equal texts once, as a function of the place to name in errors and of texts.

    The file ``out`` keeps a line of JSON for each answer, before the next question is asked.
    """
    known, who = {}, getattr(answerer, "description", None)
    if out is not None:
        if who is None:
            raise ValueError("out must tell who answered: give the function a `description`")
        out = Path(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
        content = out.read_bytes()
        if content[:10] != b'{"asked": '[: len(content)]:
            raise ValueError(f"{out} holds no answers: pass another file")
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(out, len(whole))  # a kill may have torn the last line
        for line in whole.splitlines():
            with suppress(ValueError):  # someone has broken it, and it is asked again
                entry = json.loads(line)
                known[json.dumps(entry["asked"], sort_keys=True)] = entry["answer"]

    def answer(where: str, *texts: str) -> str | None:
        asked = json.dumps([who, *texts], sort_keys=True)
        if asked not in known:
            try:
                known[asked] = ask(*texts)
            except EndpointError as error:
                if skip_nonsense and isinstance(error, EndpointNonsense):
                    return None
                kept = f"{out} keeps" if out else "pass out to keep"
                told = f"{where}: {error}; {kept} the {len(known)} answers so far"
                raise type(error)(told) from None
            if out:
                with out.open("a") as file:
                    file.write(f'{{"asked": {asked}, "answer": {json.dumps(known[asked])}}}\n')
        return known[asked]

    return answer


def rephrase(
    rows: Rows,
    writer: Callable[[str], str],
    types: Texts = tuple(MADE)[:4],
    *,
    out: str | Path | None = None,
    skip_nonsense: bool = False,
) -> ProbeSet:
    """Add rephrases to rows: the same meaning in other words, the same form with another meaning.

    Args:
        rows: dicts with ``prompt`` and ``chosen``, or a `ProbeSet`; what they have stays.
        writer: an `Endpoint`, or any function from a request to what a model says to it.
        types: ``chosen_gptsemantic`` and ``chosen_gptformat`` are made of ``chosen``,
            ``reject_gptsemantic`` and ``reject_gptformat`` of ``rejected``, where a row has it.
            ``chosen_selfr``, of ``chosen``, is for a writer that is the model to be trained.
        out: a file that keeps each answer as it comes: after an error or a kill, the same call goes
            on. It serves any rows, and any writers that have a ``description`` of their own.
        skip_nonsense: leave out what a reply did not give, else an `EndpointError`.
    """
    for name in types:
        check_known("rephrase", name, MADE)

    def reword(how: str, text: str) -> str:
        reply = writer(REQUESTS["rephrase"].format(how, text))
        answer = reply.strip().removeprefix("<text>").removesuffix("</text>").strip()
        if not answer or answer.casefold().split() == text.casefold().split():
            raise EndpointNonsense(f"the writer gave no other text but {reply!r:.200}")
        return answer

    probes, ask = as_probes(rows), remembering(reword, writer, out, skip_nonsense)
    rows, there = [dict(row) for row in probes], set(probes.types)
    for i, row in enumerate(tqdm(rows, "rephrasing", unit="row", delay=10)):
        for name in types:
            source, how = MADE[name]
            if name not in row and (text := said(row.get(source, ()))):
                if answer := ask(f"rows[{i}], {name!r}", REQUESTS[how], text.strip()):
                    row[name] = saying(row[source], begin_alike(row, answer))
        there |= set(types) & set(row)
    return as_probes(rows, sorted(there, key=[*TYPES, *probes.types].index), probes.format)


@dataclass(repr=False)
class Comparison:
    """How often a judge prefers the answers a to the answers b.

    An answer wins if it is preferred in both orders, so that none wins by its place; all else is a
    tie (Zheng et al. 2023, arXiv:2306.05685).

    Attributes:
        outcomes: of each pair "a", "b" or "tie"; None without a verdict, which counts nowhere.
        n, wins, ties, losses: pairs with a verdict, and those that a won, nobody, b.
        win_rate: (wins + ties / 2) / n; at 0.5 neither is better.
    """

    outcomes: Sequence[str | None]

    def __post_init__(self):
        self.wins, self.ties, self.losses = map(self.outcomes.count, ("a", "tie", "b"))
        self.n = self.wins + self.ties + self.losses
        if not self.n:
            raise ValueError("there is a verdict on none of the pairs: nothing can be compared")
        self.win_rate = (self.wins + self.ties / 2) / self.n

    def interval(self) -> tuple[float, float]:
        """Wilson's 95% score interval of the win rate; with ties, wider than need be."""
        n, m, z = self.n, self.win_rate, 1.959963984540054
        middle, scale = m + z**2 / (2 * n), 1 + z**2 / n
        half = z * (m * (1 - m) / n + z**2 / (4 * n**2)) ** 0.5
        return (middle - half) / scale, (middle + half) / scale

    def __repr__(self) -> str:
        counts = f"a wins {self.wins}, ties {self.ties}, loses {self.losses} of {self.n}"
        interval = "{:.3f} to {:.3f}".format(*self.interval())
        return f"Comparison({counts}: win rate {self.win_rate:.3f}, 95% interval {interval})"


def compare(
    judge: Callable[..., str], prompts: Texts, a: Texts, b: Texts, *, out=None, skip_nonsense=False
) -> Comparison:
    """Have two models' answers to the same prompts judged, each pair in both orders.

    Args:
        judge: an `Endpoint`, best at temperature 0, or any function (prompt, first, second) →
            "first", "second" or "tie". Equal answers are a tie, without asking.
        prompts, a, b: N texts each: the prompts, the one model's answers and the other's.
        out, skip_nonsense: as in `rephrase`, of pairs.
    """
    for name, texts in {"prompts": prompts, "a": a, "b": b}.items():
        check_texts(name, texts, len(prompts))

    def verdict(*texts: str) -> str:
        if texts[1] == texts[2]:
            return "tie"
        asked = [REQUESTS["judge"].format(*texts)] if isinstance(judge, Endpoint) else texts
        said = str(judge(*asked)).strip("\"'`*. ").lower()
        if said not in ("first", "second", "tie"):
            raise EndpointNonsense(f"the judge must say first, second or tie, not {said!r:.200}")
        return said

    ask, outcomes = remembering(verdict, judge, out, skip_nonsense), []
    for i, pair in enumerate(zip(tqdm(a, "judging", unit="pair", delay=10), b, strict=True)):
        said = tuple(ask(f"prompts[{i}]", prompts[i], *texts) for texts in (pair, pair[::-1]))
        won = {("first", "second"): "a", ("second", "first"): "b"}.get(said, "tie")
        outcomes.append(None if None in said else won)
    return Comparison(outcomes)
