"""The split of probability at each token, against the logits of single sequences."""

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny, tiny_rows

from lmdyn.lm.data import as_probes
from lmdyn.lm.mass import TokenMass, token_mass
from lmdyn.lm.tokens import encode


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_the_softmax_of_each_sequence_alone(family):
    model, tokenizer = tiny(family)
    probes = as_probes(tiny_rows(), ["chosen", "rejected"])
    mass = token_mass(model, tokenizer, probes)
    total = mass.label_prob + mass.rival_prob + mass.rest_prob
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    seen = 0
    for i, row in enumerate(encode(tokenizer, probes)):
        for name, ids in row.responses.items():
            logits = model(torch.tensor([row.prompt + ids])).logits[0, len(row.prompt) - 1 : -1]
            p = logits.softmax(-1).numpy()
            at = mass.of(name) & (mass.row == i)
            places = np.arange(len(ids))
            np.testing.assert_array_equal(mass.label[at], ids)
            np.testing.assert_array_equal(mass.position[at], places)
            np.testing.assert_allclose(mass.label_prob[at], p[places, ids], rtol=1e-9)
            np.testing.assert_allclose(mass.prob_sq[at], (p**2).sum(1), rtol=1e-9)
            squeeze = (p**2).sum(1) - p[places, ids]
            np.testing.assert_allclose(mass.squeeze[at], squeeze, rtol=1e-9, atol=1e-12)
            p[places, ids] = 0
            np.testing.assert_array_equal(mass.rival[at], p.argmax(1))
            np.testing.assert_allclose(mass.rival_prob[at], p.max(1), rtol=1e-9)
            seen += len(ids)
    assert len(mass.row) == seen


def test_what_has_moved_adds_up_to_zero_and_follows_the_rivals_of_before():
    model, tokenizer = tiny("llama")
    probes = as_probes(tiny_rows(), ["chosen", "rejected"])
    before = token_mass(model, tokenizer, probes)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    fresh = token_mass(model, tokenizer, probes)
    after = token_mass(model, tokenizer, probes, follow=before)
    assert not np.array_equal(fresh.rival, before.rival)
    np.testing.assert_array_equal(after.rival, before.rival)
    moved = before.moved(after)
    assert np.abs(moved["label"]).max() > 1e-2
    np.testing.assert_allclose(sum(moved.values()), 0, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="differ in rival"):
        before.moved(fresh)


def test_it_is_saved_and_loaded_bit_for_bit(tmp_path):
    model, tokenizer = tiny("qwen2")
    mass = token_mass(model, tokenizer, tiny_rows())
    mass.save(tmp_path / "mass.npz")
    loaded = TokenMass.load(tmp_path / "mass.npz")
    assert loaded.types == mass.types
    assert all((gained == 0).all() for gained in mass.moved(loaded).values())
    np.testing.assert_array_equal(loaded.prob_sq, mass.prob_sq)


def test_another_file_or_a_damaged_one_is_no_token_mass(tmp_path):
    mass = token_mass(*tiny("qwen2"), tiny_rows())
    mass.save(tmp_path / "mass.npz")
    whole = (tmp_path / "mass.npz").read_bytes()
    for start in range(len(whole) // 3, len(whole) - 40, len(whole) // 9):
        (tmp_path / "cut.npz").write_bytes(whole[:start])
        (tmp_path / "hole.npz").write_bytes(whole[:start] + bytes(30) + whole[start + 30 :])
        for name in ("cut", "hole"):
            with pytest.raises(ValueError, match=f"{name}.npz is no TokenMass"):
                TokenMass.load(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "other.npz", row=mass.row)
    np.save(tmp_path / "array.npy", mass.row)
    (tmp_path / "text.npz").write_text("hello")
    for name in ("other.npz", "array.npy", "text.npz"):
        with pytest.raises(ValueError, match=f"{name} is no TokenMass"):
            TokenMass.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        TokenMass.load(tmp_path / "none.npz")


def test_bad_input_is_named():
    model, tokenizer = tiny("llama")
    rows = tiny_rows()
    mass = token_mass(model, tokenizer, rows)
    with pytest.raises(ValueError, match=r"response type 'chossen'.*'chosen'"):
        mass.of("chossen")
    with pytest.raises(ValueError, match="follow is a split of other responses"):
        token_mass(model, tokenizer, rows[:1], follow=mass)
    with pytest.raises(ValueError, match="follow is a split of other responses"):
        token_mass(model, tokenizer, rows, ["chosen"], follow=mass)
    with pytest.raises(ValueError, match="response type"):
        token_mass(model, tokenizer, rows, ["rejcted"])
    with pytest.raises(ValueError, match="no row has a response of type irr_hum"):
        token_mass(model, tokenizer, rows, ["irr_hum"])
