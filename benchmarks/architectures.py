"""Every causal architecture of the installed transformers, tiny and random: right, or refused?

    python benchmarks/architectures.py              # all of them: some minutes on one core
    python benchmarks/architectures.py gpt_neo rwkv

`score` and `influence` are compared with a plain loop, one sequence at a time, in float64, all
weights with noise. What cannot be made small by the names of its sizes is told as not built.
"""

import argparse
import warnings
from collections import Counter
from contextlib import suppress

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from lmdyn.lm.influence import gradient_products
from lmdyn.lm.tokens import Encoded
from lmdyn.lm.ways import token_values, ways

V = 96
SMALL = {  # a size → the names that configurations have for it
    V: "vocab_size vocab_size_per_layer_input",
    64: "intermediate_size ffn_dim n_inner d_ff moe_intermediate_size"
    " shared_expert_intermediate_size ffn_hidden_size decoder_ffn_dim dim_ff dff"
    " mlp_hidden_size attention_hidden_size",
    32: "hidden_size n_embd d_model dim d_embed embedding_size word_embed_proj_dim emb_dim"
    " q_lora_rank kv_lora_rank rnn_hidden_size lru_width embed_dim hidden_size_per_layer_input"
    " index_head_dim",
    16: "mamba_d_head linear_key_head_dim linear_value_head_dim mamba_d_ssm ssm_state_size",
    8: "head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim qk_head_dim mamba_d_state rotary_dim"
    " global_head_dim swa_head_dim d_kv state_size attention_window",
    6: "sliding_window attention_window_size window_size local_attention_window"
    " attention_chunk_size",
    4: "num_attention_heads n_head n_heads num_heads num_experts n_routed_experts num_local_experts"
    " decoder_attention_heads mamba_n_heads linear_num_value_heads linear_num_key_heads"
    " moe_num_experts",
    2: "num_key_value_heads num_hidden_layers n_layer n_layers num_layers num_experts_per_tok"
    " decoder_layers moe_top_k moe_k num_experts_per_token n_groups mamba_n_groups",
    1: "n_group topk_group n_shared_experts first_k_dense_replace num_nextn_predict_layers"
    " pad_token_id bos_token_id eos_token_id",
}
# Sizes that must fit each other, or that the default configuration leaves out.
LATENT = {"qk_head_dim": 16, "num_experts_per_tok": 2, "n_routed_experts": 4}
MAMBA = {"head_dim": 16, "mamba_headdim": 16, "mamba_d_head": 16, "num_heads": 4, "n_groups": 1}
MAMBA |= {"mamba_n_groups": 1, "mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_d_ssm": 64}
HYBRID = {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
FIT = {
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)
    },
    "deepseek_v2": LATENT,
    "dots1": {**LATENT, "head_dim": 8, "n_shared_experts": 1},
    "falcon_h1": MAMBA,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2, "num_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_experts": 4},
    "longcat_flash": LATENT,
    "mamba2": MAMBA,
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "prophetnet": {"num_decoder_layers": 2, "is_decoder": True},
    "qwen4_exp_text": {
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlstm": {"embedding_dim": 32, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": HYBRID,
    "zamba2": {**MAMBA, **HYBRID, "hybrid_layer_ids": [1, 3]},
}
ROWS = [  # the packed rows are longer than any window, the sequences too
    Encoded([3, 17, 40, 8], {"chosen": [5, 11, 60, 9, 2], "rejected": [7, 31, 22, 2]}),
    Encoded([9, 4, 8, 50, 33, 21, 70], {"chosen": [14, 6, 90, 77, 13, 2], "rejected": [8, 2]}),
    Encoded([12], {"chosen": [45, 2], "rejected": [88, 71, 19, 25, 2]}),
]


def small_config(kind: str):
    """The default configuration, with few layers and small sizes."""
    config = CONFIG_MAPPING[kind]()
    towers = [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    for part in filter(None, (*towers, config, config.get_text_config())):
        for size, names in SMALL.items():
            for name in names.split():
                with suppress(Exception):  # what is read off others, or differs by layer
                    if isinstance(getattr(part, name, None), int):
                        setattr(part, name, size)
        with suppress(Exception):  # latent attention has as many keys as queries
            if part.kv_lora_rank:
                part.num_key_value_heads = part.num_attention_heads
        for name in ("layer_types", "mlp_layer_types", "layers_block_type", "attention_layers"):
            if isinstance(of := getattr(part, name, None), list | tuple):
                kinds = list(dict.fromkeys(of))  # one of each
                with suppress(AttributeError):  # some only read it off other settings
                    setattr(part, name, (kinds * 2)[: max(2, len(kinds))])
                    part.num_hidden_layers = max(2, len(kinds))
    for name, value in FIT.get(kind, {}).items():
        setattr(config, name, value)
    return config


def build(kind: str):
    """A tiny model in float64, all of whose weights are random."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # of constants that some make in their forward pass
    with torch.device("meta"):  # a size that has another name must not fill the memory
        model = AutoModelForCausalLM.from_config(small_config(kind))
    if (n := model.num_parameters()) > 2e7:
        raise MemoryError(f"{n:,} parameters")
    model = AutoModelForCausalLM.from_config(small_config(kind)).double().eval()
    with suppress(ValueError):
        model.set_experts_implementation("eager")  # the only one in float64
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    alone(model, ROWS[0].prompt, ROWS[0].responses["chosen"])
    return model


def alone(model, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """(T,) log π of a response, the plain way."""
    logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().log_softmax(-1)[range(len(ids)), ids]


def read(logits: torch.Tensor, batch, part: slice) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, batch.target[part].unsqueeze(-1))


def gradient(model, value: torch.Tensor) -> torch.Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(value, weights, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in found])


def compare(model) -> tuple[str, float, float]:
    """The form that was found right, and the relative differences of `score` and `influence`."""
    every = [(row.prompt, ids) for row in ROWS for ids in row.responses.values()]
    with torch.no_grad():
        expected = np.array([float(alone(model, *of).sum()) for of in every])
    found = ways(model, ROWS)
    form = "shared" if found.shared else "plain" if found.tokens > 1 else "alone"
    form += "" if found.head else ", full logits"
    given = dict(token_values(model, ROWS, read))
    ours = [given[i, name].sum() for i, row in enumerate(ROWS) for name in row.responses]
    products = gradient_products(model, ROWS[:1], ROWS[1:2], *[["chosen", "rejected"]] * 2)[1]
    one, two = (gradient(model, alone(model, *of).sum()) for of in every[:4:3])
    pairs = (np.array(ours), expected), (products[0, 0, 0, 1], float(one @ two))
    return form, *(float(np.abs(x - y).max() / max(1.0, np.abs(y).max())) for x, y in pairs)


def main(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    counts = Counter()
    for kind in options.kinds or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            model = build(kind)
        except Exception as error:  # of whatever a configuration asks for
            what, told = "not built", f"{type(error).__name__}: {error}"
        else:
            try:
                form, *differ = compare(model)
                what = "right" if max(differ) < 1e-4 else "WRONG"
                told = f"{form}; differences {differ[0]:.0e}, {differ[1]:.0e}"
            except ValueError as error:
                what, told = "refused", str(error)
            except Exception as error:
                what, told = "FAILED", f"{type(error).__name__}: {error}"
        counts[what] += 1
        print(f"{kind:<28}{what:<10}{' '.join(told.split()):.160}", flush=True)
    print(", ".join(f"{n} {what}" for what, n in counts.most_common()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help="model types, all if none is given")
    main(parser.parse_args())
