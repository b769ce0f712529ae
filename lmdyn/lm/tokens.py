"""From texts and conversations to token ids: those of the training, or those of the paper."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lmdyn.checks import check_count, check_known, described

# Of a row, besides its responses.
KEYS = ("prompt", "split", "tools", "chat_template_kwargs", "advantage")


@dataclass(frozen=True)
class Format:
    """How a row becomes tokens.

    "training" gives the ids that TRL's trainers make of the row: prompt and response tokenised
    together, texts with the tokenizer's special tokens and EOS, conversations by the chat template.
    The response begins where this parts from the prompt alone; of a pair, where the first one does.

    "paper" is the format of the paper's code: tokenised apart, without special tokens, with EOS.
    Where the prompt and the longest response of its row do not fit into ``max_length`` together,
    the prompt is cut to ``max_prompt``.

    Attributes:
        name: "training" or "paper".
        max_length: tokens of prompt and response together, beyond which the response loses its end,
            as by TRL's setting of this name; None for no limit, of "paper" for 512.
        max_prompt: tokens that a prompt is cut to, 256 if None; "paper" alone, as what follows.
        prompt_keeps: the side of a cut prompt that stays: "end" (HH) or "start" (UltraFeedback).
        as_written: take each response as it is. Off, all of a row begin with the white space of its
            ``chosen``: in the reference's files only the original texts begin with a space.
    """

    name: str = "training"
    max_length: int | None = None
    max_prompt: int | None = None
    prompt_keeps: str = "end"
    as_written: bool = False

    def __post_init__(self):
        check_known("format", self.name, ("training", "paper"))
        check_known("side for prompt_keeps", self.prompt_keeps, ("end", "start"))
        for name, least, of_paper in (("max_length", 2, 512), ("max_prompt", 1, 256)):
            check_count(name, getattr(self, name), least, optional=True)
            if self.name == "paper" and getattr(self, name) is None:
                object.__setattr__(self, name, of_paper)
        if self.name == "paper" and self.max_prompt >= self.max_length:
            longest = f"smaller than max_length ({self.max_length}): a response needs room"
            raise ValueError(f"max_prompt ({self.max_prompt}) must be {longest}")
        settings = self.max_prompt, self.prompt_keeps, self.as_written
        if self.name == "training" and settings != (None, "end", False):
            paper = "max_prompt, prompt_keeps and as_written are settings of the paper's format"
            raise ValueError(f"{paper}: pass Format('paper', …), or leave them out")


@dataclass(frozen=True)
class Encoded:
    """The tokens of one row."""

    prompt: list[int]  #: token ids
    #: type → token ids, the one that ends the response included, unless it was cut
    responses: dict[str, list[int]] = field(repr=False)
    truncated: tuple[str, ...] = ()  #: the types whose response was cut
    own: dict[str, list[int]] = field(default_factory=dict)  #: type → its prompt, if another one
    merged: bool = False  #: whether the end of the prompt became one with a response's beginning


def begin_alike(row: Mapping, response):
    """A response that is a text, with the white space that the row's chosen begins with."""
    chosen = row.get("chosen")
    if not isinstance(chosen, str) or not isinstance(response, str):
        return response
    return chosen[: len(chosen) - len(chosen.lstrip())] + response.lstrip()


def encode(tokenizer, probes, where: Sequence[str] | str | None = None) -> list[Encoded]:
    """Tokenise every row of a `ProbeSet`, and warn if responses were cut or merge with a prompt.

    ValueError for a tokenizer without EOS, and for a row that the chat template refuses, or of
    which the tokenizer or the cut leaves no token: the i-th is ``where[i]``, or, by one name for
    all (``where``, "rows" if not given), "rows[i]".
    """
    check_tokenizer(tokenizer)
    way = _paper if probes.format.name == "paper" else _training
    encoded = each(probes.rows, where, lambda row: way(tokenizer, row, probes.types, probes.format))
    total = sum(len(row.responses) for row in encoded)
    if cut := sum(len(row.truncated) for row in encoded):
        longer = f"with their prompts they are longer than max_length={probes.format.max_length}"
        warnings.warn(f"{cut} of {total} responses were cut: {longer} tokens", stacklevel=3)
    if merged := sum(row.merged for row in encoded):
        told = f"in {merged} of {len(encoded)} rows a response changes the last tokens of its"
        warnings.warn(f"{told} prompt, which count to it then, as in TRL's trainers", stacklevel=3)
    return encoded


def check_tokenizer(tokenizer) -> None:
    """Refuse what is no tokenizer of transformers, or one without EOS."""
    if isinstance(tokenizer, type) or not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ValueError(f"tokenizer must be one of transformers, got {described(tokenizer)}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token: set tokenizer.eos_token")


def each(rows: Sequence, where: Sequence[str] | str | None, make: Callable) -> list:
    """What ``make`` makes of each row; a ValueError names the row, by ``where`` as in `encode`."""
    found = []
    for i, row in enumerate(rows):
        try:
            found.append(make(row))
        except ValueError as error:
            name = f"{where or 'rows'}[{i}]" if isinstance(where, str | None) else where[i]
            raise ValueError(f"{name}: {error}") from None
    return found


def prompts_of(tokenizer, rows: Sequence[Mapping], form: Format, where=None) -> list[list[int]]:
    """The prompts of rows as the model is asked them, without a cut; errors are as of `encode`."""
    check_tokenizer(tokenizer)
    how = {"special": False} if form.name == "paper" else {"add_generation_prompt": True}
    return each(rows, where, lambda row: _ids(tokenizer, row["prompt"], row, **how))


def _training(tokenizer, row: Mapping, types: Sequence[str], form: Format) -> Encoded:
    alone, limit = _ids(tokenizer, row["prompt"], row, add_generation_prompt=True), form.max_length
    names = [name for name in types if name in row]
    pair = [name for name in ("chosen", "rejected") if name in row and not is_ids(row[name])]
    pair = pair if len(pair) == 2 else []
    whole = {name: _whole(tokenizer, row, name, alone) for name in dict.fromkeys([*names, *pair])}
    # The first token of all has nothing before it: no trainer learns it.
    start = {name: max(1, common(alone, ids)) for name, ids in whole.items()}
    start |= dict.fromkeys(pair, min((start[name] for name in pair), default=0))
    prompts = {name: whole[name][: start[name]] for name in names}
    responses = {name: whole[name][start[name] : limit] for name in names}
    for name, ids in responses.items():
        if not ids:
            cut = f"max_length={limit} leaves nothing of it" if limit else "it gives no token"
            raise ValueError(f"{name!r}: {cut}: mend the row, or leave it out")
    prompt = max(prompts.values(), key=len, default=alone)
    truncated = tuple(name for name in names if limit and len(whole[name]) > limit)
    own = {name: ids for name, ids in prompts.items() if ids != prompt}
    return Encoded(prompt, responses, truncated, own, any(start[x] < len(alone) for x in names))


def _whole(tokenizer, row: Mapping, name: str, prompt: list[int]) -> list[int]:
    """The tokens of the prompt followed by a response, as a trainer makes them."""
    asked, said = row["prompt"], row[name]
    if is_ids(said):
        return [*prompt, *said]
    if kind(asked) != kind(said):
        told = f"the prompt is {kind(asked)}, {name!r} {kind(said)}"
        raise ValueError(f"{told}: give both in one form")
    if isinstance(said, str):
        eos = tokenizer.eos_token
        return _ids(tokenizer, asked + said + eos * (not said.endswith(eos)))
    return _ids(tokenizer, [*asked, *said], row)


def _ids(tokenizer, given, row: Mapping | None = None, special=True, **options) -> list[int]:
    """A text, or a conversation with the ``tools`` and ``chat_template_kwargs`` of its row."""
    if is_ids(given):
        return list(given)
    if isinstance(given, str):
        return list(tokenizer(given, add_special_tokens=special)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("a conversation needs a tokenizer with a chat_template")
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    if not isinstance(more := row.get("chat_template_kwargs", {}), Mapping):
        raise ValueError(f"chat_template_kwargs must be a dict, got {more!r:.60}")
    try:
        options |= {"tools": tools, **more}
        found = tokenizer.apply_chat_template([*given], tokenize=True, return_dict=True, **options)
    except Exception as error:  # a template is anyone's program: it may raise anything
        raise ValueError(f"the chat template refuses it ({error})") from None
    return list(found["input_ids"])


def common(a: Sequence, b: Sequence) -> int:
    """How many things both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def is_ids(value) -> bool:
    """Whether a prompt or a response is given as token ids."""
    return isinstance(value, list | tuple) and all(type(t) is int and t >= 0 for t in value)


def kind(value) -> str:
    """In which form a prompt or a response is given; None and [] are conversations without turn."""
    if isinstance(value, str):
        return "a text"
    return "token ids" if is_ids(value) and value else "a conversation"


def _paper(tokenizer, row: Mapping, types: Sequence[str], form: Format) -> Encoded:
    ids, eos = {}, tokenizer.eos_token_id
    for name in (key for key in row if key not in KEYS[1:]):
        said, end, is_read = row[name], [], name in ("prompt", *types)
        if kind(said) == "a conversation":
            raise ValueError(f"{name!r} is a conversation, and the paper's format is for texts")
        if isinstance(said, str) and name != "prompt":
            said, end = said if form.as_written else begin_alike(row, said), [eos]
        found = _ids(tokenizer, said, special=False)
        if is_read and not found:
            raise ValueError(f"{name!r} gives no token: write something there")
        if is_read and end and eos in found:
            told = f"the EOS token {tokenizer.eos_token!r}: remove it, one is appended"
            raise ValueError(f"{name!r} contains {told}")
        ids[name] = [*found, *end]
    prompt = ids.pop("prompt")
    longest = max(map(len, ids.values()), default=0)
    if len(prompt) + longest > form.max_length and len(prompt) > form.max_prompt:
        keeps_end = form.prompt_keeps == "end"
        prompt = prompt[-form.max_prompt :] if keeps_end else prompt[: form.max_prompt]
    room, ids = form.max_length - len(prompt), {name: ids[name] for name in types if name in ids}
    truncated = tuple(name for name in ids if len(ids[name]) > room)
    return Encoded(prompt, {name: tokens[:room] for name, tokens in ids.items()}, truncated)
