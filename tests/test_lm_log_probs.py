"""Log-probs with gradients, by row."""

import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows

from lmdyn.lm.data import as_probes
from lmdyn.lm.log_probs import LogProbs
from lmdyn.lm.score import score
from lmdyn.lm.tokens import encode

KEYS = {"up": "chosen", "down": "rejected"}


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_and_tokens_are_those_of_score(family):
    model, tokenizer = tiny(family)
    scores = score(model, tokenizer, tiny_rows(), per_token=True)
    log_probs = LogProbs(model, encode(tokenizer, as_probes(tiny_rows())), KEYS)
    rows = [3, 0, 4]
    sums, tokens, every = log_probs(rows), log_probs(rows, per_token=True), log_probs.all(2)
    for name, key in KEYS.items():
        expected = torch.from_numpy(scores.logp[:, scores.types.index(key)])
        torch.testing.assert_close(sums[name], expected[rows])
        torch.testing.assert_close(every[name], expected)
        assert tokens[name].requires_grad and not every[name].requires_grad
        lengths = log_probs.lengths[name][rows].tolist()
        assert tokens[name].shape == (3, max(lengths))
        for b, (i, n) in enumerate(zip(rows, lengths, strict=True)):
            torch.testing.assert_close(
                tokens[name][b, :n], torch.from_numpy(scores.tokens[i][key].logp)
            )
            assert (tokens[name][b, n:] == 0).all()
