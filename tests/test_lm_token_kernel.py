import sys

import brute
import pytest
import torch
from tiny import FAMILIES, tiny
from torch import nn
from torch.nn.functional import one_hot

from lmdyn.lm.influence import influence
from lmdyn.lm.token_kernel import token_influence, token_kernel

EXACT = {"rtol": 1e-10, "atol": 1e-10}
IDS_O, IDS_U = [5, 9, 20, 21, 9, 7], [12, 9, 5, 18, 22, 20, 9]
AT_O, AT_U = [1, 4], [0, 5]
SEQUENCES = (IDS_O, IDS_U)
AT = {"positions_o": AT_O, "positions_u": AT_U}


def small(family, **config):
    return tiny(family, **{"vocab_size": 24} | config)[0]


def same(found, expected):
    torch.testing.assert_close(found, expected, **EXACT)


def check(model):
    """K, the effect on the whole vocabulary, and that on the labels, one logit at a time."""
    z_o, z_u = (
        model(input_ids=torch.tensor([ids])).logits[0][at]
        for ids, at in ((IDS_O, AT_O), (IDS_U, AT_U))
    )
    k = torch.einsum("mip,ljp->mlij", brute.jacobian(model, z_o), brute.jacobian(model, z_u))
    same(token_kernel(model, *SEQUENCES, **AT), k)
    same(token_kernel(model, *SEQUENCES, **AT, norms=True), k.flatten(2).norm(dim=2))
    y_o, y_u = (torch.tensor(ids)[1:][at] for ids, at in ((IDS_O, AT_O), (IDS_U, AT_U)))
    dz = -torch.einsum("mlij,lj->mli", k, z_u.detach().softmax(-1) - one_hot(y_u, 24))
    change = dz - (z_o.detach().softmax(-1)[:, None] * dz).sum(-1, keepdim=True)
    same(token_influence(model, *SEQUENCES, **AT, vocab=True), change)
    same(token_influence(model, *SEQUENCES, **AT), change[range(2), :, y_o])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_brute_force(family, tied):
    check(small(family, tie_word_embeddings=tied, num_hidden_layers=1))


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["norm", "embed", "bias", "lm_head", "o_proj"])
def test_frozen_parameters_do_not_count(kept):
    model = small("qwen2", tie_word_embeddings=False, num_hidden_layers=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kept in name)
    check(model)


@pytest.mark.slow
def test_a_bias_of_the_output_layer():
    model = small("llama", num_hidden_layers=1)
    model.lm_head.bias = nn.Parameter(torch.randn(24, dtype=torch.float64))
    check(model)


@pytest.mark.slow
def test_steps_one_by_one_give_the_same(monkeypatch):
    model, at = small("llama", num_hidden_layers=1), {"positions_o": AT_O, "positions_u": [3]}
    both = token_kernel, token_influence
    expected = [function(model, *SEQUENCES, **at) for function in both]
    monkeypatch.setattr(sys.modules[token_kernel.__module__], "HELD_BYTES", 1)
    for function, known in zip(both, expected, strict=True):
        same(function(model, *SEQUENCES, **at), known)


class Odd(nn.Module):
    """Scales by 1 + weight, and its layer's weight also enters on its own, as does the table."""

    def __init__(self, layer, table):
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.ones(48, dtype=torch.float64))
        self.table = table

    def forward(self, x):
        plain = self.layer(x) * (1 + self.weight) + x @ self.layer.weight.T.square()
        return plain + (x @ self.table.weight.T).sum(-1, keepdim=True)


@pytest.mark.slow
def test_unusual_uses():
    model = small("llama")
    first, second = model.model.layers
    first.mlp.gate_proj = Odd(first.mlp.gate_proj, model.model.embed_tokens)
    second.mlp.up_proj = first.mlp.up_proj
    check(model)


@pytest.mark.slow
def test_of_a_sequence_with_itself():
    model = small("gpt2", num_hidden_layers=1)
    k = token_kernel(model, IDS_O)
    same(k, k.permute(1, 0, 3, 2))
    matrix = k.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10 * matrix.diagonal().max()
    same(token_kernel(model, IDS_O, norms=True), k.flatten(2).norm(dim=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_to_the_influence_of_the_sequences(family):
    model, tokenizer = tiny(family)
    rows = [
        {"prompt": "how long was it", "chosen": " it was a very long time"},
        {"prompt": "where is she", "chosen": " down there"},
    ]
    texts = (f"{row['prompt']}{row['chosen']} {tokenizer.eos_token}" for row in rows)
    u, o = (tokenizer(text).input_ids for text in texts)
    at = {"positions_o": range(2, len(o) - 1), "positions_u": range(3, len(u) - 1)}
    found = token_influence(model, o, u, **at).sum()
    assert float(found) == pytest.approx(influence(model, tokenizer, rows[:1], rows[1:])[0, 0, 0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    model = small("gpt2")  # in float64 throughout
    expected = token_kernel(model, *SEQUENCES, **AT)
    found = token_kernel(model.cuda(), *SEQUENCES, **AT)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-8)


def test_the_model_is_left_alone():
    model = small("gpt2", resid_pdrop=0.5)
    expected = token_kernel(model, IDS_O, positions_o=[1], positions_u=[2])
    model.train()
    found = token_kernel(model, torch.tensor(IDS_O), positions_o=[1], positions_u=[2])
    assert torch.equal(found, expected) and not found.requires_grad
    assert model.training and all(p.grad is None for p in model.parameters())


BAD = [
    ((IDS_O[:1] * 100,), {"memory": 4e7}, r"K takes 46 MB \(100 × 100 blocks of 24 × 24\)"),
    (SEQUENCES, {"positions_u": [7]}, r"positions_u must be some of 0 … 6; got \[7\]"),
    ((IDS_O,), {"positions_o": []}, r"positions_o must be some of 0 … 5; got \[\]"),
    (([24],), {}, r"ids_o must be .* in 0 … 23, got \(1,\): \[24\]"),
    ((IDS_O, torch.zeros(2, 3).long()), {}, "ids_u must be the tokens of one sequence"),
    (([3] * 129,), {"norms": True}, r"up to 128 in .* got \(129,\)"),
]


def test_bad_input():
    model = small("llama")
    for sequences, options, message in BAD:
        with pytest.raises(ValueError, match=message):
            token_kernel(model, *sequences, **options)
    with pytest.raises(ValueError, match=r"some of 0 … 5, as there is no token after the last"):
        token_influence(model, *SEQUENCES, positions_u=[6])
    with pytest.raises(ValueError, match=r"float32 or float64 weights, got torch\.bfloat16"):
        token_kernel(small("llama", dtype=torch.bfloat16), IDS_O)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to learn"):
        token_kernel(model, IDS_O)
