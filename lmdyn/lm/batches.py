"""Prompts and their responses as batches: each prompt computed once, however many responses."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from lmdyn.checks import check_count
from lmdyn.lm.tokens import Encoded

TOKENS = 4096  # the budget of a batch, padding included
FULL, SLACK = 512, 1.05  # a batch of so many tokens takes no row that needs more padding


@dataclass(frozen=True)
class Batch:
    """B sequences of padded length L, and the M response tokens that they predict, in order."""

    input_ids: Tensor  #: (B, L), padded on the right, without the last token of a response
    position_ids: Tensor  #: (B, L); in the shared form they start again after the prompt
    #: (B, 1, L, L) booleans, who sees whom, in the shared form; else (B, L), 1 and 0 for padding
    attention_mask: Tensor
    source: Tensor  #: (M,) the positions, among the B·L, whose logits predict
    target: Tensor  #: (M,) the token ids to predict
    segment: Tensor  #: (M,) whose token it is: an index into `responses`
    responses: list[tuple[int, str]]  #: (row, type) of each response in the batch

    @property
    def shared(self) -> bool:
        return self.attention_mask.ndim == 4

    def split(self, values: Tensor) -> dict[tuple[int, str], Tensor]:
        """(row, type) → (T, …), the ``values`` (M, …) at the tokens of that response."""
        sizes = self.segment.bincount().tolist()
        return dict(zip(self.responses, values.split(sizes), strict=True))

    def join(self, values: Mapping[tuple[int, str], Tensor]) -> Tensor:
        """(M,), what `split` undoes; the values may be padded."""
        sizes = self.segment.bincount().tolist()
        return torch.cat([values[at][:n] for at, n in zip(self.responses, sizes, strict=True)])

    def sum(self, values: Tensor) -> dict[tuple[int, str], Tensor]:
        """(row, type) → the sum of ``values`` (M,) over the tokens of that response."""
        sums = values.new_zeros(len(self.responses)).index_add(0, self.segment, values)
        return dict(zip(self.responses, sums, strict=True))


Group = list[tuple[int, Encoded]]  # of a batch: parts of rows, with the numbers of the rows


def pack(
    encoded: Sequence[Encoded], *, device: torch.device | str | None = None, **options
) -> Iterator[Batch]:
    """The batches of `plan`, with its options."""
    for group in plan(encoded, **options):
        yield collate(group, device)


def plan(
    encoded: Sequence[Encoded], *, tokens: int = TOKENS, shared: bool = True, slack: float = SLACK
) -> list[Group]:
    """Which sequences, of similar length, make a batch, within a budget of B·L tokens.

    The shared form holds a prompt once and its responses after it, each of which sees the prompt
    and itself; a long row is split. The plain form, which a response without others has anyway,
    holds one response in each sequence. A row that would pad a full batch to more than ``slack``
    times its tokens begins another one.
    """
    check_count("tokens", tokens, 1)
    parts = [
        (len(part.responses) > 1, fed(part), i, part)
        for i, row in enumerate(encoded)
        for part in _parts(row, min(tokens, _best_length(row)) if shared else 0)
    ]
    groups, some, held, form = [], [], 0, None
    for shares, length, *row in sorted(parts, key=itemgetter(0, 1)):  # equal ones in their order
        size = (len(some) + 1) * length  # of the batch, padded, if it took this row too
        full = size > tokens or (held >= FULL and size > slack * (held + length))
        if some and (full or (shares != form and slack < math.inf)):
            groups.append(some)
            some, held = [], 0
        some.append(tuple(row))
        held, form = held + length, shares
    return [*groups, some] if some else groups


def fed(row: Encoded) -> int:
    """The tokens of a row that go through the model, its prompt once."""
    return len(row.prompt) + sum(len(ids) - 1 for ids in row.responses.values())


def _best_length(row: Encoded) -> int:
    """The length beyond which it is cheaper to split a row than to attend over all of it.

    Attention costs the length squared, also where the mask hides it, and each part the prompt once
    more: on SmolLM2 least for parts of √(P² + 3000·P) response tokens, and flat around it.
    """
    prompt, lengths = len(row.prompt) or 1, [*map(len, row.responses.values())]
    parts = max(1, round(sum(lengths) / math.sqrt(prompt**2 + 3000 * prompt)))
    return prompt + math.ceil(sum(lengths) / parts) + max(lengths, default=0) // 2


def _parts(row: Encoded, limit: int) -> Iterator[Encoded]:
    """The responses of a row, in parts of up to ``limit`` tokens, at least one response each."""
    part = Encoded(row.prompt, {})
    for name, ids in row.responses.items():
        if name in row.own:
            yield Encoded(row.own[name], {name: ids})
            continue
        if part.responses and fed(part) + len(ids) - 1 > limit:
            yield part
            part = Encoded(row.prompt, {})
        part.responses[name] = ids
    if part.responses:
        yield part


def collate(rows: Group, device: torch.device | str | None = None) -> Batch:
    """The batch of some rows, in the shared form if one of them has several responses."""
    shared = any(len(row.responses) > 1 for _, row in rows)
    length = max(fed(row) for _, row in rows)
    lines, source, target, segment, responses = [], [], [], [], []
    for b, (index, row) in enumerate(rows):
        prompt = len(row.prompt)
        ids, positions, blocks = list(row.prompt), list(range(prompt)), [0] * prompt
        for number, (name, tokens) in enumerate(row.responses.items(), 1):
            start, inner = b * length + len(ids), len(tokens) - 1
            source += [b * length + prompt - 1, *range(start, start + inner)]
            target += tokens
            segment += [len(responses)] * len(tokens)
            responses.append((index, name))
            ids += tokens[:-1]
            positions += range(prompt, prompt + inner)
            blocks += [number] * inner
        rest = length - len(ids)
        lines.append((ids + [0] * rest, positions + [0] * rest, blocks + [-1] * rest))
    ids, positions, block = (torch.tensor(line) for line in zip(*lines, strict=True))
    mask = (block >= 0).long()
    if shared:
        key, query = block.unsqueeze(1), block.unsqueeze(2)
        mask = ((key == 0) | (key == query)).tril().unsqueeze(1)
    tensors = ids, positions, mask, *map(torch.tensor, (source, target, segment))
    return Batch(*(x.to(device) for x in tensors), responses)
