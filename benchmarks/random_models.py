"""Models of the paper's shapes with random weights, and rows for them: no hub is needed."""

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast, Qwen2Config

from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.tokens import Format

SHAPES = {
    "pythia-410m": lambda: _pythia(1024, layers=24, heads=16),
    "pythia-1b": lambda: _pythia(2048, layers=16, heads=8),
    "qwen1.5-0.5b": lambda: _qwen(1024, inner=2816, tie_word_embeddings=True),
    "qwen1.5-1.8b": lambda: _qwen(2048, inner=5504),
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "vocab_size": 512}
WORDS = 400  # that rows are made of
TYPES = ("chosen", "chosen_initial", "rejected", "irr_train")


def _pythia(width: int, layers: int, heads: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


def _qwen(width: int, inner: int, **others) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        **others,
    )


def random_model(name: str, tokenizer, device: torch.device, dtype: torch.dtype, tiny: bool):
    """Random weights in the shape of a model, or in a small one of the same architecture."""
    config = SHAPES[name]()
    if tiny:
        config.update(SMALL)
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = SMALL["num_attention_heads"]
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of random words."""
    vocabulary = {"<eos>": 0, "<unk>": 1} | {f"w{i}": i + 2 for i in range(WORDS)}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def rows(n: int, prompt: int, answer: int) -> ProbeSet:
    """Prompts and responses of so many random words each."""
    random = np.random.default_rng(0)

    def text(length: int) -> str:
        return " ".join(f"w{i}" for i in random.integers(WORDS, size=length))

    made = [{"prompt": text(prompt)} | {name: text(answer) for name in TYPES} for _ in range(n)]
    return as_probes(made, format=Format("paper"))
