"""Records: where and with what a number was made, and files that are there whole or not at all."""

import json
import os
import platform
import shlex
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import torch

# What reading an .npz of other content, or a part of one, may raise.
DAMAGED = (ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error)


def environment(device: torch.device) -> dict:
    """Date, command, versions and hardware, as JSON can hold them."""
    script = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])  # in a notebook, of its kernel
    cpu = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "in a notebook" if "ipykernel" in sys.modules else script,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lmdyn", "torch", "transformers")},
    }


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to; it takes the place of ``path`` once the block ends well."""
    temporary = path.with_name(f"{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, thing) -> None:
    write_text(path, json.dumps(thing, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping]) -> None:
    lines = (json.dumps(dict(row), ensure_ascii=False, default=str) + "\n" for row in rows)
    write_text(path, "".join(lines))
