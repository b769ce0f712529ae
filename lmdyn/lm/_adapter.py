"""A checkpoint that is an adapter (LoRA and its like): the model that it adapts, with it merged."""

import json
import warnings
from pathlib import Path

from lmdyn.lm.models import load

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether peft has written an adapter there, as safetensors."""
    return (folder / _CONFIG).is_file() and (folder / _WEIGHTS).is_file()


def base_of(folder: Path) -> str | None:
    """The model that an adapter names as its own, as `load` takes it."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        return config.get("base_model_name_or_path") or None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG} cannot be read ({error})") from None


def load_adapted(folder: Path, base: str | None, device: str):
    """What the adapter makes of its model.

    Args:
        folder: of the adapter.
        base: the model that it adapts; the one that it names if not given.
        device: as for `load`.

    Returns:
        (model, tokenizer), an ordinary model whose weights all take gradients.

    Raises:
        ValueError: no base, one that cannot be loaded, or one that the adapter does not fit.
        ImportError: peft is not installed.
    """
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(
            f"{folder} is an adapter, which needs the package peft: pip install peft"
        ) from None
    name = base or base_of(folder)
    if name is None:
        raise ValueError(f"{folder} is an adapter that names no model: pass --model NAME")
    try:
        model, tokenizer = load(name, device=device)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is an adapter of {name!r}, which does not load ({error}): pass --model "
            "NAME, the model that the run began with"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            # peft uses names that transformers is about to drop.
            adapted = PeftModel.from_pretrained(model, folder)
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder} is an adapter that does not fit {name!r} ({said})") from None
    return adapted.merge_and_unload().requires_grad_().eval(), tokenizer
