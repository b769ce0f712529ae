"""How the shipped tiny model was made."""

import json
import math
import random
from collections import Counter

import pytest
import torch

import make_tiny
import world
from lmdyn.lm import load

SMALL = {"lr": 1e-2, "batch_size": 16, "width": 32, "layers": 1, "subjects": world.SUBJECTS[:2]}


def test_the_shipped_model_has_the_tokens_of_the_documents_and_a_record_of_the_script():
    rng = random.Random(0)
    texts = [make_tiny.document(rng) for _ in range(500)]
    assert {word for text in texts for word in text.split()} <= set(world.VOCABULARY)
    assert load("tiny")[1].get_vocab() == make_tiny.make_tokenizer().get_vocab()
    record = json.loads((world.TINY / "rebuild.json").read_text())
    assert record["command"] == "python book/make_tiny.py --steps 1500 --seed 0"
    assert {record[key] for key in ("steps", "seed", "batch_size", "lr")} == {1500, 0, 64, 3e-3}


@pytest.mark.slow
def test_a_small_twin_learns_and_comes_out_the_same_again(tmp_path):
    state = torch.get_rng_state()
    losses = make_tiny.make(tmp_path / "a", steps=60, **SMALL)
    again = make_tiny.make(tmp_path / "b", steps=60, **SMALL)
    assert losses == again and torch.equal(torch.get_rng_state(), state)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files and not any(name.startswith(".") for name in files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    spoken = json.loads((tmp_path / "a" / "own_words.json").read_text())
    assert len(spoken) == 6 and all(world.is_true(p, own) for p, (_, own) in spoken.items())

    rng = random.Random(1)
    texts = [f"{make_tiny.document(rng)} {make_tiny.EOS}" for _ in range(1000)]
    counts = Counter(word for text in texts for word in text.split())
    n = counts.total()
    unigram_entropy = -sum(c / n * math.log(c / n) for c in counts.values())
    assert sum(losses[-10:]) / 10 < unigram_entropy - 0.5


def test_making_that_fails_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"the one before")
    monkeypatch.setattr(make_tiny.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_tiny.make(tmp_path, steps=1, **SMALL)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"the one before"


@pytest.mark.parametrize("option", [{"steps": 0}, {"width": 48}, {"lr": float("inf")}])
def test_what_makes_no_model_is_refused(tmp_path, option):
    message = "steps must be 1 or more and width a multiple of 32|nan at step .: lower the learning"
    with pytest.raises(ValueError, match=message):
        make_tiny.make(tmp_path / "out", **{"steps": 3} | SMALL | option)
    assert not (tmp_path / "out").exists()
