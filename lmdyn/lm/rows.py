"""Rows of a probe set: what one may hold, and reading them from a file or a dataset."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from lmdyn.checks import unknown

# The response types of the paper's probing data, in the order that every table here follows.
TYPES = {
    "chosen": "the preferred response, y+",
    "chosen_initial": "the base model's own answer",
    "chosen_selfr": "chosen, rephrased by the model itself",
    "chosen_gptsemantic": "chosen in other words, the same meaning",
    "chosen_gptformat": "the form of chosen with another meaning",
    "rejected": "the dispreferred response, y−",
    "reject_gptsemantic": "rejected in other words, the same meaning",
    "reject_gptformat": "the form of rejected with another meaning",
    "irr_train": "the chosen answer to another training prompt",
    "irr_test": "the chosen answer to a held-out prompt",
    "irr_hum": "a fluent sentence that has nothing to do with the prompt",
    "random_permute": "the words of chosen, shuffled",
    "random_nonhum": "random words",
}
SPLITS = ("train", "test")
NEEDED = ("prompt", "chosen")


def checked(row, types: Sequence[str] | None, drop_empty: bool, where: str) -> dict[str, str]:
    """The texts of one row (arguments as in `as_probes`); what is None counts as missing."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be a dict with 'prompt' and 'chosen', got {row!r:.60}")
    keys = dict.fromkeys(["prompt", "split", *TYPES, *(types or ())])
    for key in row:
        if types is None and key not in keys:
            wrong = unknown("response type", key, TYPES)
            raise ValueError(f"{where}: {wrong}; pass types=[…] to read only those")
    texts = {key: row[key] for key in keys if row.get(key) is not None}
    for key in NEEDED:
        if key not in texts:
            raise ValueError(f"{where} has no {key!r}: every row needs 'prompt' and 'chosen'")
    for key, text in list(texts.items()):
        if not isinstance(text, str):
            raise ValueError(f"{where}: {key!r} must be text, got {type(text).__name__}")
        if drop_empty and key not in NEEDED and not text.strip():
            del texts[key]
        elif not text.strip():
            raise ValueError(f"{where}: {key!r} is empty: leave it out (drop_empty=True does it)")
    if texts.get("split", "train") not in SPLITS:
        raise ValueError(f"{where}: split must be 'train' or 'test', got {texts['split']!r}")
    return texts


def read_jsonl(path: Path) -> tuple[list, list[str]]:
    """The rows of a JSONL file, and a name for each in error messages."""
    rows, where = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            where.append(f"{path.name}, line {number}")
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where[-1]} is not JSON: {error}") from None
    return rows, where


# --- out of a dataset in the formats that TRL's trainers take ------------------------------------


def probe_rows(dataset: Iterable[Mapping], tokenizer, limit: int, seed: int) -> list[dict]:
    """Up to ``limit`` rows of text, evenly spread, with three cheap types added."""
    if hasattr(dataset, "__len__"):
        n = len(dataset)
        places = np.linspace(0, n - 1, min(limit, n)).astype(int).tolist()
        found = [(i, dataset[i]) for i in places]
    else:  # a stream
        found = zip(range(limit), dataset, strict=False)
    rows = [_row(row, tokenizer, f"dataset[{i}]") for i, row in found]
    if not rows:
        raise ValueError("the dataset has no row to probe")
    draw = np.random.default_rng(seed)
    words = sorted({word for row in rows for word in row["chosen"].split()})
    for i, row in enumerate(rows):
        own = row["chosen"].split()
        others = [other["chosen"] for other in rows if other["chosen"] != row["chosen"]]
        made = {
            "irr_train": others[draw.integers(len(others))] if others else None,
            "random_permute": " ".join(draw.permutation(own)) if len(own) > 1 else None,
            "random_nonhum": " ".join(draw.choice(words, len(own))),
        }
        rows[i] = {name: text for name, text in (made | row).items() if text is not None}
    return rows


def _row(example, tokenizer, where: str) -> dict[str, str]:
    if not isinstance(example, Mapping):
        raise ValueError(f"{where} must be a dict, got {type(example).__name__}")
    prompt, responses = _parts({k: v for k, v in example.items() if v is not None}, where)
    if not isinstance(prompt, str):
        prompt, responses = _render(prompt, responses, tokenizer, where)
    row = {"prompt": prompt}
    eos = getattr(tokenizer, "eos_token", None)
    for name, text in responses.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {name!r} is a conversation, but its prompt is text")
        text = text.split(eos)[0] if eos else text  # `encode` appends one
        if text.strip():
            row[name] = text
    if "chosen" not in row or not prompt:
        raise ValueError(f"{where}: the prompt or the chosen response is empty: leave the row out")
    return row


def _parts(example: dict, where: str) -> tuple:
    """Prompt and responses, each as text or as turns."""
    responses = {name: example[name] for name in TYPES if name in example}
    if "prompt" in example and "completion" in example:
        responses.setdefault("chosen", example["completion"])
    if "messages" in example and not responses:
        return example["messages"][:-1], {"chosen": example["messages"][-1:]}
    if "prompt" in example and "chosen" in responses:
        return example["prompt"], responses
    if "prompt" not in example and {"chosen", "rejected"} <= example.keys():
        chosen, rejected, n = example["chosen"], example["rejected"], 0
        while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
            n += 1
        while isinstance(chosen, str) and 0 < n and not chosen[n - 1].isspace():
            n -= 1  # not within a word
        if not n:
            raise ValueError(f"{where} has no prompt, and chosen and rejected begin differently")
        return chosen[:n], {name: value[n:] for name, value in responses.items()}
    raise ValueError(
        f"{where} is in no format that can be probed: it has {', '.join(sorted(example))}, and "
        "needs prompt with chosen or completion, chosen with rejected, or messages"
    )


def _render(prompt, responses: dict, tokenizer, where: str) -> tuple[str, dict[str, str]]:
    """A conversation as text, through the chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"{where} is a conversation: pass a tokenizer with a chat_template")
    prompt = list(prompt)
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    texts = {}
    for name, turn in responses.items():
        turn = [{"role": "assistant", "content": turn}] if isinstance(turn, str) else list(turn)
        whole = tokenizer.apply_chat_template(prompt + turn, tokenize=False)
        if not whole.startswith(before):
            wrong = f"the chat template writes the prompt otherwise once {name!r} follows"
            raise ValueError(f"{where}: {wrong}: give rows of text")
        texts[name] = whole[len(before) :]
    return before, texts
