"""Prompts and their responses as batches."""

import pytest
import torch
from tiny import tiny_rows, tiny_tokenizer

from lmdyn.lm.batches import pack
from lmdyn.lm.data import as_probes
from lmdyn.lm.tokens import Encoded, encode

ROWS = [{"prompt": "what is it", "chosen": " the water", "rejected": " no"}]


def encoded(rows):
    return encode(tiny_tokenizer(), as_probes(rows))


def words(ids):
    return tiny_tokenizer().convert_ids_to_tokens(ids.tolist())


def test_the_shared_form_holds_the_prompt_once_and_each_response_sees_only_it_and_itself():
    (batch,) = pack(encoded(ROWS))
    assert batch.shared
    # no EOS among what is fed: it predicts nothing
    assert words(batch.input_ids[0]) == ["what", "is", "it", "the", "water", "no"]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert batch.source.tolist() == [2, 3, 4, 2, 5]
    assert batch.segment.tolist() == [0, 0, 0, 1, 1]
    assert batch.responses == [(0, "chosen"), (0, "rejected")]
    assert words(batch.target) == ["the", "water", "<eos>", "no", "<eos>"]


def test_the_plain_form_holds_one_response_a_line():
    (batch,) = pack(encoded(ROWS), shared=False)
    assert not batch.shared
    assert batch.responses == [(0, "rejected"), (0, "chosen")]  # the shorter one first
    assert words(batch.input_ids[0, :4]) == ["what", "is", "it", "no"]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]]
    assert batch.source.tolist() == [2, 3, 7, 8, 9]


def test_values_of_tokens_are_told_apart_and_summed_by_response():
    (batch,) = pack(encoded(ROWS))
    values = torch.arange(10.0).view(5, 2)
    parts = batch.split(values)
    assert torch.equal(parts[0, "chosen"], values[:3])
    assert torch.equal(parts[0, "rejected"], values[3:])
    sums = batch.sum(values[:, 0])
    assert {key: float(total) for key, total in sums.items()} == {
        (0, "chosen"): 6.0,
        (0, "rejected"): 14.0,
    }


@pytest.mark.parametrize("shared", [True, False])
def test_batches_keep_the_budget_and_lose_no_response(shared):
    rows = encoded(tiny_rows() * 3)
    every = sorted((i, name) for i, row in enumerate(rows) for name in row.responses)
    for tokens in (1, 25, 60, 4096):
        found = list(pack(rows, tokens=tokens, shared=shared))
        assert sorted(key for batch in found for key in batch.responses) == every
        for batch in found:
            assert batch.input_ids.numel() <= tokens or len(batch.responses) == 1
    with pytest.raises(ValueError, match="tokens must be an integer of at least 1"):
        list(pack(rows, tokens=0))


def test_a_long_row_is_split_where_attention_costs_more_than_the_prompt():
    row = Encoded(list(range(80)), {str(i): list(range(70)) for i in range(13)})
    few = Encoded(row.prompt, {name: row.responses[name] for name in "01"})
    (whole,), (split,) = (list(pack([r])) for r in (few, row))
    assert whole.input_ids.shape == (1, 80 + 2 * 69)
    assert split.input_ids.shape == (2, 80 + 7 * 69)
    (plain,) = pack([row], shared=False)
    assert plain.input_ids.shape == (13, 80 + 69)


def test_a_full_batch_takes_no_row_that_needs_much_padding():
    lengths = [100] * 6 + [104, 150, 151, 600]
    rows = [Encoded(list(range(n)), {"chosen": [1]}) for n in lengths]

    def shapes(tokens):
        return [tuple(batch.input_ids.shape) for batch in pack(rows, tokens=tokens)]

    assert shapes(4096) == [(7, 104), (3, 600)]  # too few tokens in the second to be picky
    assert shapes(400) == [(4, 100), (3, 104), (2, 151), (1, 600)]
