"""From text to tokens, as the paper's probing data prescribes (its section on the experiments)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Format:
    """How a prompt and its responses become tokens.

    Prompt and response are tokenised apart, without special tokens, and EOS is appended to the
    response. Where the prompt and the longest response of its row do not fit into ``max_length``
    together, the prompt is cut to ``max_prompt``; a response that still does not fit loses its end.

    Attributes:
        max_length: tokens of prompt and response together.
        max_prompt: tokens that a prompt is cut to, where it must be cut.
        prompt_keeps: which side of a cut prompt stays, "end" (as for HH) or "start"
            (as for UltraFeedback).
        as_written: take each response exactly as it is written. Off, all of a row begin with the
            white space of its ``chosen``: in the reference's files only the original texts begin
            with a space, which changes their first token and so their log-prob.
    """

    max_length: int = 512
    max_prompt: int = 256
    prompt_keeps: str = "end"
    as_written: bool = False

    def __post_init__(self):
        if self.prompt_keeps not in ("end", "start"):
            raise ValueError(f"prompt_keeps must be 'end' or 'start', got {self.prompt_keeps!r}")
        if not 0 < self.max_prompt < self.max_length:
            raise ValueError(
                f"max_prompt ({self.max_prompt}) must be positive and smaller than "
                f"max_length ({self.max_length}): a response needs room"
            )


@dataclass(frozen=True)
class Encoded:
    """The tokens of one row.

    Attributes:
        prompt: token ids.
        responses: type → token ids; the last is EOS, unless the response was cut.
        truncated: the types whose response was cut.
        prompt_cut: whether the prompt was.
    """

    prompt: list[int]
    responses: dict[str, list[int]] = field(repr=False)
    truncated: tuple[str, ...] = ()
    prompt_cut: bool = False


def begin_alike(row: Mapping[str, str], response: str) -> str:
    """The response, beginning with the white space that the row's chosen begins with."""
    chosen = row["chosen"]
    return chosen[: len(chosen) - len(chosen.lstrip())] + response.lstrip()


def encode(tokenizer, probes) -> list[Encoded]:
    """Tokenise every row of a `ProbeSet`.

    Args:
        tokenizer: a Hugging Face tokenizer with an EOS token.
        probes: a `ProbeSet`; its ``format`` says how, its ``types`` say which responses.

    Raises:
        ValueError: a tokenizer without EOS; a prompt or a response without a token; a response
            that holds the EOS token, which would end it early.

    Warns:
        UserWarning: some responses were cut, and how many.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token: set tokenizer.eos_token")
    encoded = [
        _encode_row(tokenizer, row, probes.types, probes.format, f"rows[{i}]")
        for i, row in enumerate(probes.rows)
    ]
    cut = sum(len(row.truncated) for row in encoded)
    if cut:
        total = sum(len(row.responses) for row in encoded)
        warnings.warn(
            f"{cut} of {total} responses were cut: with their prompts they are longer than "
            f"max_length={probes.format.max_length} tokens",
            stacklevel=3,
        )
    return encoded


def _encode_row(
    tokenizer, row: Mapping[str, str], types: Sequence[str], form: Format, where: str
) -> Encoded:
    def ids(text: str, key: str) -> list[int]:
        tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise ValueError(f"{where}: {key!r} gives no token: write something there")
        if key != "prompt" and tokenizer.eos_token_id in tokens:
            raise ValueError(
                f"{where}: {key!r} contains the EOS token {tokenizer.eos_token!r}: "
                "remove it, one is appended"
            )
        return tokens

    prompt = ids(row["prompt"], "prompt")
    responses = {}
    for name in types:
        if name in row:
            text = row[name] if form.as_written else begin_alike(row, row[name])
            responses[name] = [*ids(text, name), tokenizer.eos_token_id]
    longest = max(map(len, responses.values()), default=0)
    prompt_cut = len(prompt) + longest > form.max_length and len(prompt) > form.max_prompt
    if prompt_cut:
        keeps_end = form.prompt_keeps == "end"
        prompt = prompt[-form.max_prompt :] if keeps_end else prompt[: form.max_prompt]
    room = form.max_length - len(prompt)
    truncated = tuple(name for name, tokens in responses.items() if len(tokens) > room)
    return Encoded(prompt, {k: ids[:room] for k, ids in responses.items()}, truncated, prompt_cut)
