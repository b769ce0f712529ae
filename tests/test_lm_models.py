import time

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny, tiny_rows
from transformers import AutoTokenizer
from transformers.utils import logging

from lmdyn.lm.models import load


def saved(folder, family="llama"):
    model, tokenizer = tiny(family, torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# Folders


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
def test_weights_come_in_the_dtype_asked_for(tmp_path, dtype):
    saved(tmp_path)
    model, _ = load(str(tmp_path), device=torch.device("cpu"), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_tokenizer_without_padding_pads_with_eos(tmp_path):
    model, tokenizer = tiny("gpt2", torch.float32)
    size = len(tokenizer)
    tokenizer.pad_token = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, tokenizer = load(tmp_path, device="cpu")
    assert tokenizer.pad_token == tokenizer.eos_token == "<eos>"
    assert len(tokenizer) == size and loaded.config.vocab_size == model.config.vocab_size
    assert loaded.generation_config.pad_token_id == tokenizer.eos_token_id


def test_the_users_progress_bars_stay_as_they_were(tmp_path):
    saved(tmp_path)

    def hook(tqdm, args, options):
        return tqdm(*args, **options)

    before = logging.set_tqdm_hook(hook)
    try:
        load(tmp_path, device="cpu")
        assert logging.is_progress_bar_enabled()
    finally:
        after = logging.set_tqdm_hook(before)
    assert after is hook


def test_the_shipped_model_loads_in_under_a_second():
    model, tokenizer = load("tiny", device="cpu")
    assert len(tokenizer) <= 1000 and sum(p.numel() for p in model.parameters()) < 3e6
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        load("tiny", device="cpu")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


# Bad input


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "smollm-135m"}, "unknown model 'smollm-135m': did you mean 'smollm2-135m'?"),
        ({"name": "Tiny"}, "unknown model 'Tiny': did you mean 'tiny'?"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there; there is cpu"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"dtype": "float23"}, "unknown dtype 'float23': did you mean 'float32'?"),
        ({"dtype": "double"}, "unknown dtype 'double': there are float32, bfloat16"),
        ({"dtype": torch.int64}, "unknown dtype torch.int64"),
    ],
)
def test_what_does_not_exist_is_named(wrong, message):
    with pytest.raises(ValueError) as error:
        load(**({"name": "tiny"} | wrong))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("name", ["./nothing/here", "a/b/c", "no folder"])
def test_what_is_neither_folder_nor_hub_id_is_named(name):
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a hub id"):
        load(name)


@pytest.mark.parametrize("name", ["EleutherAI/pythia-70m-none", "gpt2-none"])
def test_a_hub_that_cannot_be_reached_is_said(offline, name):
    with pytest.raises(OSError, match=f"'{name}' is not in the hub's cache and the hub cannot be"):
        load(name)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (GatedRepoError, "'org/model' asks for consent"),
        (RepositoryNotFoundError, "no model 'org/model' on the hub; names of lmdyn: tiny, smoll"),
        (None, "cannot load 'org/model': first line$"),
    ],
)
def test_the_hubs_errors_come_in_one_line(monkeypatch, kind, message):
    def from_pretrained(*_, **__):
        # as transformers wraps them
        raise OSError("first line\nsecond line") from kind and kind.__new__(kind)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match=message):
        load("org/model")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model in .*: config.json is missing"):
        load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    model, _ = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="no safetensors in"):
        load(tmp_path)


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    model, tokenizer = tiny("llama", torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no EOS token"):
        load(tmp_path)


def test_missing_weights_are_refused(tmp_path, capfd):
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"incomplete: 1 missing, such as model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"the weights of '{tmp_path}' are damaged: "):
        load(tmp_path)
