"""Prompts and their responses as batches: each prompt computed once, however many responses."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmdyn.lm.tokens import Encoded

TOKENS = 4096  # the budget of a batch, padding included
# A batch of so many tokens keeps the machine busy: it takes no row that needs more padding.
FULL, SLACK = 512, 1.05


@dataclass(frozen=True)
class Batch:
    """B sequences of padded length L, and the M response tokens that they predict.

    The tokens of one response follow each other in `source`, `target` and `segment`, in the
    order of the text. A response's last token is only a target: what it predicts is not asked.

    Attributes:
        input_ids: (B, L), padded on the right.
        position_ids: (B, L). In the shared form they start again after the prompt.
        attention_mask: (B, 1, L, L) booleans, who sees whom, in the shared form; (B, L) integers,
            1 for a token and 0 for padding, in the plain form.
        source: (M,), the positions, among the B·L, whose logits predict. The first token of each
            response is predicted by the last of the prompt.
        target: (M,), the token ids to predict.
        segment: (M,), whose token it is: an index into `responses`.
        responses: (row, type) of each response in the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    source: Tensor
    target: Tensor
    segment: Tensor
    responses: list[tuple[int, str]]

    @property
    def shared(self) -> bool:
        """Whether responses share their prompt's tokens."""
        return self.attention_mask.ndim == 4


@dataclass(frozen=True)
class _Row:
    """What becomes one sequence of a batch: a prompt and some of its responses."""

    index: int
    prompt: list[int]
    responses: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(ids) - 1 for ids in self.responses.values())


def pack(
    encoded: Sequence[Encoded],
    *,
    tokens: int = TOKENS,
    shared: bool = True,
    device: torch.device | str | None = None,
    slack: float = SLACK,
) -> Iterator[Batch]:
    """Batches of sequences of similar length, within a budget of B·L tokens.

    ``shared=True`` holds a prompt once and its responses after it, each of which sees the prompt
    and itself; a long row is split and repeats its prompt. ``shared=False`` holds one prompt and
    one response in each sequence. A row that would pad a full batch to more than ``slack`` times
    its tokens begins another one.
    """
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    rows = []
    for i, row in enumerate(encoded):
        rows += _parts(i, row, min(tokens, _best_length(row)) if shared else 0)
    rows.sort(key=len)  # stable: equal lengths stay in the order of the rows
    start, held = 0, 0
    for end, row in enumerate(rows):
        size = (end + 1 - start) * len(row)  # of the batch, padded, if it took this row too
        if end > start and (size > tokens or (held >= FULL and size > slack * (held + len(row)))):
            yield _collate(rows[start:end], shared, device)
            start, held = end, 0
        held += len(row)
    if rows:
        yield _collate(rows[start:], shared, device)


def _best_length(encoded: Encoded) -> int:
    """The length beyond which it is cheaper to split a row than to attend over all of it.

    Attention costs the length squared, also where the mask hides it; each part costs the prompt
    once more. With P tokens of prompt the sum is least for parts of √(P² + 3000·P) response
    tokens on SmolLM2, and flat around it: wider models gain little from longer parts.
    """
    prompt = len(encoded.prompt)
    lengths = [len(ids) for ids in encoded.responses.values()]
    parts = max(1, round(sum(lengths) / math.sqrt(prompt**2 + 3000 * prompt)))
    return prompt + math.ceil(sum(lengths) / parts) + max(lengths, default=0) // 2


def _parts(index: int, encoded: Encoded, limit: int) -> Iterator[_Row]:
    """The responses of a row, in parts of at most ``limit`` tokens and at least one response."""
    part = _Row(index, encoded.prompt, {})
    for name, ids in encoded.responses.items():
        if part.responses and len(part) + len(ids) - 1 > limit:
            yield part
            part = _Row(index, encoded.prompt, {})
        part.responses[name] = ids
    if part.responses:
        yield part


def _collate(rows: Sequence[_Row], shared: bool, device) -> Batch:
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    block = torch.full_like(ids, -1)  # 0 in the prompt, 1, 2, … in its responses, −1 in padding
    source, target, segment, responses = [], [], [], []
    for b, row in enumerate(rows):
        prompt = len(row.prompt)
        ids[b, :prompt] = torch.tensor(row.prompt)
        positions[b, :prompt] = torch.arange(prompt)
        block[b, :prompt] = 0
        start = prompt
        for number, (name, tokens) in enumerate(row.responses.items(), 1):
            fed = len(tokens) - 1
            end = start + fed
            ids[b, start:end] = torch.tensor(tokens[:-1], dtype=torch.long)
            positions[b, start:end] = torch.arange(prompt, prompt + fed)
            block[b, start:end] = number
            source += [b * length + prompt - 1, *range(b * length + start, b * length + end)]
            target += tokens
            segment += [len(responses)] * len(tokens)
            responses.append((row.index, name))
            start = end
    if shared:
        key, query = block.unsqueeze(1), block.unsqueeze(2)
        mask = (((key == 0) | (key == query)).tril()).unsqueeze(1)
    else:
        mask = (block >= 0).long()
    tensors = ids, positions, mask, torch.tensor(source), torch.tensor(target)
    return Batch(*(t.to(device) for t in (*tensors, torch.tensor(segment))), responses)
