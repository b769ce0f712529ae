"""log π(y|x) with its gradient: what every loss is a function of."""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lmdyn.lm.batches import SLACK, Batch, pack
from lmdyn.lm.forward import CHUNK, can_share, check_fits, head, hidden, token_logps
from lmdyn.lm.processes import as_forward, is_sharded, together
from lmdyn.lm.tokens import Encoded


class LogProbs(nn.Module):
    """The log-probs of the responses that a loss reads, as a module that can be distributed.

    A prompt is computed once for several responses where the model allows it, and logits only
    where they predict a response token.

    Args:
        model: a Hugging Face causal language model.
        encoded: the N rows.
        keys: what the loss calls a response → its type in the rows.
        bf16: compute in bfloat16, whatever the weights are in.
        spare: names of responses whose tokens in a valley, π_y < ‖π‖², give no gradient.

    Attributes:
        lengths: response name → (N,) its tokens, EOS included.

    Raises:
        ValueError: a response beyond the model's context, a token it does not know, a model whose
            logits do not come out of its output layer.
    """

    def __init__(
        self,
        model,
        encoded: Sequence[Encoded],
        keys: Mapping[str, str],
        bf16: bool = False,
        spare: Sequence[str] = (),
    ):
        super().__init__()
        self.model, self.head = model, head(model)
        self.encoded, self.keys, self.bf16 = encoded, keys, bf16
        self.spared = [keys[name] for name in spare]
        longest = check_fits(model, encoded)
        self.shared = len(keys) > 1 and can_share(model, longest)
        self.lengths = {
            name: torch.tensor([len(e.responses[key]) for e in encoded], device=model.device)
            for name, key in keys.items()
        }

    def forward(self, rows: Sequence[int], per_token: bool = False) -> dict[str, Tensor]:
        """The log-probs of these B rows, nats.

        Returns:
            Response name → (B,) sums; with ``per_token`` (B, T), 0 behind a response's `lengths`.
        """
        return as_forward(self.model, self._log_probs, rows, per_token)

    def _log_probs(self, rows: Sequence[int], per_token: bool) -> dict[str, Tensor]:
        device, found = self.model.device, {}
        # One batch, or a few where the rows differ so much in length that padding would cost more:
        # one where processes share out the weights, as each must pass as often as the others.
        slack = math.inf if is_sharded(self.model) else SLACK
        packed = {"tokens": sys.maxsize, "shared": self.shared, "device": device, "slack": slack}
        for batch in pack([self.encoded[i] for i in rows], **packed):
            # Each weight is used once: a cache would only hold copies of all of them.
            with torch.autocast(
                device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False
            ):
                logits = self.head(hidden(self.model, batch))
            logps = token_logps(logits, batch)
            if self.spared:
                logps = torch.where(self._in_valley(logits, logps, batch), logps.detach(), logps)
            found |= batch.split(logps) if per_token else batch.sum(logps)
        join = partial(pad_sequence, batch_first=True) if per_token else torch.stack
        return {
            name: join([found[i, key] for i in range(len(rows))]) for name, key in self.keys.items()
        }

    @torch.no_grad()
    def _in_valley(self, logits: Tensor, logps: Tensor, batch: Batch) -> Tensor:
        """(M,), which tokens of the spared responses have π_y < ‖π‖²."""
        parts = logits.split(CHUNK)
        prob_sq = torch.cat([part.to(logps).softmax(-1).square().sum(-1) for part in parts])
        spared = torch.tensor([name in self.spared for _, name in batch.responses])
        return spared.to(logps.device)[batch.segment] & (logps.exp() < prob_sq)

    @torch.no_grad()
    def all(self, batch_size: int, rank: int = 0, n: int = 1) -> dict[str, Tensor]:
        """Response name → (N,), of all rows, without a gradient; n processes share them out."""

        def some(rows: np.ndarray) -> dict[str, np.ndarray]:
            starts = range(0, len(rows), batch_size)
            parts = [self(rows[i : i + batch_size].tolist()) for i in starts]
            return {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in self.keys}

        size = len(self.encoded)
        found = together(np.arange(size), some, size, rank, n)
        return {key: torch.from_numpy(x).to(self.model.device) for key, x in found.items()}
