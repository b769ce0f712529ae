"""From text to tokens, as the paper's probing data prescribes (its section on the experiments)."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Format:
    """How a prompt and its responses become tokens.

    Prompt and response are tokenised apart, without special tokens, and EOS is appended to the
    response. Where the prompt and the longest response of its row do not fit into ``max_length``
    together, the prompt is cut to ``max_prompt``; a response that still does not fit loses its end.

    Attributes:
        max_length: tokens of prompt and response together.
        max_prompt: tokens that a prompt is cut to.
        prompt_keeps: the side of a cut prompt that stays: "end" (HH) or "start" (UltraFeedback).
        as_written: take each response as it is. Off, all of a row begin with the white space of its
            ``chosen``: in the reference's files only the original texts begin with a space, which
            changes their first token and so their log-prob.
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
    """

    prompt: list[int]
    responses: dict[str, list[int]] = field(repr=False)
    truncated: tuple[str, ...] = ()


def begin_alike(row: Mapping[str, str], response: str) -> str:
    """The response, beginning with the white space that the row's chosen begins with."""
    chosen = row["chosen"]
    return chosen[: len(chosen) - len(chosen.lstrip())] + response.lstrip()


def encode(tokenizer, probes) -> list[Encoded]:
    """Tokenise every row of a `ProbeSet`, and warn if responses were cut.

    Raises:
        ValueError: a tokenizer without EOS; a prompt or a response without a token; a response
            that holds the EOS token, which would end it early.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token: set tokenizer.eos_token")
    encoded = [_encode_row(tokenizer, row, probes, i) for i, row in enumerate(probes.rows)]
    if cut := sum(len(row.truncated) for row in encoded):
        total = sum(len(row.responses) for row in encoded)
        warnings.warn(
            f"{cut} of {total} responses were cut: with their prompts they are longer than "
            f"max_length={probes.format.max_length} tokens",
            stacklevel=3,
        )
    return encoded


def _encode_row(tokenizer, row: Mapping[str, str], probes, index: int) -> Encoded:
    form, ids = probes.format, {}
    for name in ("prompt", *(name for name in probes.types if name in row)):
        as_is = name == "prompt" or form.as_written
        text = row[name] if as_is else begin_alike(row, row[name])
        ids[name] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not ids[name]:
            raise ValueError(f"rows[{index}]: {name!r} gives no token: write something there")
        if name != "prompt" and tokenizer.eos_token_id in ids[name]:
            raise ValueError(
                f"rows[{index}]: {name!r} contains the EOS token {tokenizer.eos_token!r}: "
                "remove it, one is appended"
            )
    prompt = ids.pop("prompt")
    longest = max((len(tokens) + 1 for tokens in ids.values()), default=0)
    if len(prompt) + longest > form.max_length and len(prompt) > form.max_prompt:
        keeps_end = form.prompt_keeps == "end"
        prompt = prompt[-form.max_prompt :] if keeps_end else prompt[: form.max_prompt]
    room = form.max_length - len(prompt)
    responses = {name: [*tokens, tokenizer.eos_token_id][:room] for name, tokens in ids.items()}
    truncated = tuple(name for name, tokens in ids.items() if len(tokens) + 1 > room)
    return Encoded(prompt, responses, truncated)
