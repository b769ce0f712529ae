"""Rows to probe, out of a dataset in the formats that TRL's trainers take."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmdyn.lm.data import TYPES

MADE = ("irr_train", "random_permute", "random_nonhum")
_FORMATS = "prompt with chosen or completion, chosen with rejected, or messages"


def probe_rows(
    dataset: Iterable[Mapping], tokenizer, limit: int, seed: int, types: Sequence[str] | None
) -> list[dict[str, str]]:
    """Up to ``limit`` rows of text, evenly spread over the dataset, with cheap types added."""
    examples = _spread(dataset, limit)
    if not examples:
        raise ValueError("the dataset has no row to probe")
    rows = [_row(example, tokenizer, f"dataset[{i}]") for i, example in examples]
    wanted = [name for name in MADE if types is None or name in types]
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
        rows[i] = row | {k: made[k] for k in wanted if made[k] is not None and k not in row}
    return rows


def _spread(dataset, limit: int) -> list[tuple[int, Mapping]]:
    """Indexed rows, evenly spaced; the first ones of a stream, whose length nobody knows."""
    try:
        n = len(dataset)
    except TypeError:
        return [(i, row) for i, row in zip(range(limit), dataset, strict=False)]
    places = np.unique(np.linspace(0, n - 1, min(limit, n)).astype(int)) if n else []
    return [(int(i), dataset[int(i)]) for i in places]


def _row(example, tokenizer, where: str) -> dict[str, str]:
    """One row of text, whatever the format."""
    if not isinstance(example, Mapping):
        raise ValueError(f"{where} must be a dict, got {type(example).__name__}")
    keys = {key for key, value in example.items() if value is not None}
    responses = {name: example[name] for name in TYPES if name in keys}
    if "prompt" in keys and "completion" in keys and "chosen" not in keys:
        responses["chosen"] = example["completion"]
    if "messages" in keys and not responses:
        prompt, responses = example["messages"][:-1], {"chosen": example["messages"][-1:]}
    elif "prompt" in keys:
        prompt = example["prompt"]
    elif {"chosen", "rejected"} <= keys:
        prompt, responses = _shared(example["chosen"], example["rejected"], responses, where)
    else:
        responses = {}
    if "chosen" not in responses:
        raise ValueError(
            f"{where} is in no format that can be probed: it has {', '.join(sorted(keys))}, "
            f"and needs {_FORMATS}"
        )
    if not isinstance(prompt, str):
        prompt, responses = _render(prompt, responses, tokenizer, where)
    row = {"prompt": prompt}
    for name, text in responses.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {name!r} is a conversation, but its prompt is text")
        text = _without_eos(text, tokenizer)
        if text.strip():
            row[name] = text
    if "chosen" not in row or not row["prompt"]:
        raise ValueError(f"{where}: the prompt or the chosen response is empty: leave the row out")
    return row


def _shared(chosen, rejected, responses: dict, where: str):
    """An implicit prompt: what chosen and rejected begin with alike."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if isinstance(chosen, str):  # not within a word
        while 0 < n and not chosen[n - 1].isspace():
            n -= 1
    if not n:
        raise ValueError(f"{where} has no prompt, and chosen and rejected begin differently")
    return chosen[:n], {name: value[n:] for name, value in responses.items()}


def _render(prompt, responses: dict, tokenizer, where: str) -> tuple[str, dict[str, str]]:
    """A conversation as text, through the chat template."""
    if tokenizer is None:
        raise ValueError(f"{where} is a conversation: pass the tokenizer, whose template writes it")
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"{where} is a conversation, but the tokenizer has no chat template: "
            "set tokenizer.chat_template, or give rows of text"
        )
    prompt = list(prompt)
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    texts = {}
    for name, turn in responses.items():
        turn = [{"role": "assistant", "content": turn}] if isinstance(turn, str) else list(turn)
        whole = tokenizer.apply_chat_template(prompt + turn, tokenize=False)
        if not whole.startswith(before):
            raise ValueError(
                f"{where}: the chat template writes the prompt otherwise once {name!r} follows: "
                "give rows of text"
            )
        texts[name] = whole[len(before) :]
    return before, texts


def _without_eos(text: str, tokenizer) -> str:
    """A response up to its EOS: `encode` appends one."""
    eos = getattr(tokenizer, "eos_token", None)
    return text.split(eos)[0] if eos and eos in text else text
