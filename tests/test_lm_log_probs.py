"""Log-probs whose spared tokens give no gradient, and those of rows of very different lengths."""

import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows

from lmdyn.lm.data import as_probes
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import LogProbs

ROWS = tiny_rows()


@pytest.mark.parametrize("family", FAMILIES)
def test_spared_tokens_give_no_gradient_and_the_loss_keeps_its_value(family):
    model, tokenizer = tiny(family)
    encoded = encode(tokenizer, as_probes(ROWS))
    keys = {"chosen": "chosen", "rejected": "rejected"}
    spared = LogProbs(model, encoded, keys, spare=["rejected"])(range(len(ROWS)))
    some = 0
    for i, row in enumerate(encoded):
        total = {}
        for name in keys:
            ids = row.responses[name]
            logits = model(torch.tensor([row.prompt + ids])).logits[0, len(row.prompt) - 1 : -1]
            p = logits.softmax(-1)
            label = p[range(len(ids)), ids]
            valley = (label < p.square().sum(-1)) & (name == "rejected")
            some += int(valley.sum())
            total[name] = (label.log() * ~valley).sum()
            torch.testing.assert_close(spared[name][i], label.log().sum(), rtol=1e-12, atol=0)
        for name in keys:
            ours, theirs = (
                torch.autograd.grad(x, list(model.parameters()), retain_graph=True)
                for x in (spared[name][i], total[name])
            )
            for x, y in zip(ours, theirs, strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    assert 0 < some < sum(len(row.responses["rejected"]) for row in encoded)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_on_rows_of_very_different_lengths_is_that_of_each_row(family):
    model, tokenizer = tiny(family)
    short = {"prompt": "where", "chosen": "down there", "rejected": "up"}
    long = {"prompt": "what is it " * 12, "chosen": "they use water " * 9, "rejected": "no " * 20}
    encoded = encode(tokenizer, as_probes([short] * 40 + [long] * 10))
    keys = {"chosen": "chosen", "rejected": "rejected"}
    log_probs = LogProbs(model, encoded, keys)
    together = log_probs(range(50))
    for name, values in together.items():
        alone = torch.cat([log_probs([i])[name] for i in (0, 49)])
        torch.testing.assert_close(values[[0, 49]], alone, rtol=0, atol=1e-9)
        torch.testing.assert_close(values, values[[0] * 40 + [49] * 10], rtol=0, atol=1e-9)
    weights = list(model.parameters())
    grads = torch.autograd.grad(together["chosen"].sum(), weights)
    ones = [torch.autograd.grad(log_probs([i])["chosen"].sum(), weights) for i in (0, 49)]
    for grad, of_short, of_long in zip(grads, *ones, strict=True):
        torch.testing.assert_close(grad, 40 * of_short + 10 * of_long, rtol=1e-9, atol=1e-9)
