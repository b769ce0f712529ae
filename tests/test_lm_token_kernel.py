import pytest
import torch
from tiny import FAMILIES, tiny
from torch import nn
from torch.nn.functional import one_hot

from lmdyn.lm import _positions
from lmdyn.lm.influence import influence
from lmdyn.lm.token_kernel import token_influence, token_kernel

EXACT = {"rtol": 1e-10, "atol": 1e-10}
IDS_O, IDS_U = [5, 9, 20, 21, 9, 7], [12, 9, 5, 18, 22, 20, 9]
AT_O, AT_U = [1, 2, 4], [0, 3, 5]
AT = {"positions_o": AT_O, "positions_u": AT_U}


def small(family, **config):
    return tiny(family, **{"vocab_size": 24} | config)[0]


def jacobian(model, ids, positions):
    """(P, V, parameters) and the logits (P, V), one logit at a time."""
    params = [p for p in model.parameters() if p.requires_grad]
    z = model(input_ids=torch.tensor([ids])).logits[0][positions]
    rows = []
    for value in z.flatten():
        grads = torch.autograd.grad(
            value, params, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows).unflatten(0, z.shape), z.detach()


def brute(model):
    """K, the effect on the whole vocabulary, and that on the labels."""
    (j_o, z_o), (j_u, z_u) = jacobian(model, IDS_O, AT_O), jacobian(model, IDS_U, AT_U)
    k = torch.einsum("mip,ljp->mlij", j_o, j_u)
    y_o, y_u = (
        torch.tensor(IDS_O)[[p + 1 for p in AT_O]],
        torch.tensor(IDS_U)[[p + 1 for p in AT_U]],
    )
    residual = z_u.softmax(-1) - one_hot(y_u, z_u.shape[1])
    dz = -torch.einsum("mlij,lj->mli", k, residual)
    change = dz - (z_o.softmax(-1)[:, None] * dz).sum(-1, keepdim=True)
    return k, change, change[torch.arange(len(AT_O)), :, y_o]


def check(model):
    k, change, labels = brute(model)
    torch.testing.assert_close(token_kernel(model, IDS_O, IDS_U, **AT), k, **EXACT)
    norms = token_kernel(model, IDS_O, IDS_U, **AT, norms=True)
    torch.testing.assert_close(norms, k.flatten(2).norm(dim=2), **EXACT)
    torch.testing.assert_close(token_influence(model, IDS_O, IDS_U, **AT), labels, **EXACT)
    torch.testing.assert_close(
        token_influence(model, IDS_O, IDS_U, **AT, vocab=True), change, **EXACT
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_brute_force(family, tied):
    check(small(family, tie_word_embeddings=tied, num_hidden_layers=1))


@pytest.mark.parametrize("kept", ["norm", "embed", "bias", "lm_head", "layers.1", "o_proj"])
def test_frozen_parameters_do_not_count(kept):
    model = small("qwen2", tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(kept in name)
    check(model)


def test_small_chunks_give_the_same(monkeypatch):
    model = small("llama")
    expected = token_kernel(model, IDS_O, IDS_U, **AT)
    monkeypatch.setattr(_positions, "ROWS", 64)  # two positions
    monkeypatch.setattr(_positions, "HELD_BYTES", 1)
    torch.testing.assert_close(token_kernel(model, IDS_O, IDS_U, **AT), expected, **EXACT)


class Odd(nn.Module):
    """Scales by 1 + weight, and its layer's weight also enters on its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.ones(48, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x) * (1 + self.weight) + x @ self.layer.weight.T.square()


def test_unusual_uses():
    model = small("llama")
    first, second = model.model.layers
    first.mlp.gate_proj = Odd(first.mlp.gate_proj)
    second.mlp.up_proj = first.mlp.up_proj
    check(model)


def test_of_a_sequence_with_itself():
    model = small("gpt2", num_hidden_layers=1)
    k = token_kernel(model, IDS_O)
    torch.testing.assert_close(k, k.permute(1, 0, 3, 2), **EXACT)
    matrix = k.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10 * matrix.diagonal().max()
    torch.testing.assert_close(token_kernel(model, IDS_O, norms=True), k.flatten(2).norm(dim=2))


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_to_the_influence_of_the_sequences(family):
    model, tokenizer = tiny(family)
    rows = [
        {"prompt": "how long was it", "chosen": "it was a very long time"},
        {"prompt": "where is she", "chosen": "down there"},
    ]
    u, o = (
        [*tokenizer(f"{row['prompt']} {row['chosen']}").input_ids, tokenizer.eos_token_id]
        for row in rows
    )
    found = token_influence(
        model, o, u, positions_o=range(2, len(o) - 1), positions_u=range(3, len(u) - 1)
    )
    expected = influence(model, tokenizer, rows[:1], rows[1:])[0, 0, 0]
    torch.testing.assert_close(float(found.sum()), float(expected), **EXACT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    model = small("llama")
    expected = token_kernel(model, IDS_O, IDS_U, **AT)
    found = token_kernel(model.cuda(), IDS_O, IDS_U, **AT)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-8)


def test_the_model_is_left_alone():
    model = small("gpt2", resid_pdrop=0.5)
    expected = token_kernel(model, IDS_O, positions_o=[1], positions_u=[2])
    model.train()
    found = token_kernel(model, torch.tensor(IDS_O), positions_o=[1], positions_u=[2])
    assert torch.equal(found, expected) and not found.requires_grad
    assert model.training and all(p.grad is None for p in model.parameters())


def test_bad_input():
    model = small("llama")
    with pytest.raises(ValueError, match=r"K takes 46 MB \(100 × 100 blocks of 24 × 24\)"):
        token_kernel(model, IDS_O[:1] * 100, memory=4e7)
    with pytest.raises(ValueError, match=r"positions_u must lie in 0 … 6; got 7"):
        token_kernel(model, IDS_O, IDS_U, positions_u=[7])
    with pytest.raises(ValueError, match=r"lie in 0 … 5, as there is no token after the last"):
        token_influence(model, IDS_O, IDS_U, positions_u=[6])
    with pytest.raises(ValueError, match="positions_o is empty"):
        token_kernel(model, IDS_O, positions_o=[])
    with pytest.raises(ValueError, match=r"ids_o must lie in 0 … 23, got \[24\]"):
        token_kernel(model, [24])
    with pytest.raises(ValueError, match=r"ids_u must be the tokens of one sequence"):
        token_kernel(model, IDS_O, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="has 129 tokens, but the model reads 128"):
        token_kernel(model, [3] * 129, norms=True)
    with pytest.raises(ValueError, match=r"float32 or float64 weights, got torch\.bfloat16"):
        token_kernel(small("llama", dtype=torch.bfloat16), IDS_O)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to learn"):
        token_kernel(model, IDS_O)
