"""Rows to probe, out of a dataset in the formats that TRL's trainers take."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmdyn.lm.rows import TYPES

MADE = ("irr_train", "random_permute", "random_nonhum")


def probe_rows(
    dataset: Iterable[Mapping], tokenizer, limit: int, seed: int, types: Sequence[str] | None
) -> list[dict[str, str]]:
    """Up to ``limit`` rows of text, evenly spread over the dataset, with cheap types added."""
    rows = [_row(row, tokenizer, f"dataset[{i}]") for i, row in _spread(dataset, limit)]
    if not rows:
        raise ValueError("the dataset has no row to probe")
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


def _spread(dataset, limit: int) -> Iterable[tuple[int, Mapping]]:
    """Indexed rows, evenly spaced; the first ones of a stream, whose length nobody knows."""
    if not hasattr(dataset, "__len__"):
        return zip(range(limit), dataset, strict=False)
    n = len(dataset)
    places = np.unique(np.linspace(0, n - 1, min(limit, n)).astype(int)) if n else []
    return ((int(i), dataset[int(i)]) for i in places)


def _row(example, tokenizer, where: str) -> dict[str, str]:
    """One row of text, whatever the format."""
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
        n = _shared(example["chosen"], example["rejected"], where)
        return example["chosen"][:n], {name: value[n:] for name, value in responses.items()}
    raise ValueError(
        f"{where} is in no format that can be probed: it has {', '.join(sorted(example))}, and "
        "needs prompt with chosen or completion, chosen with rejected, or messages"
    )


def _shared(chosen, rejected, where: str) -> int:
    """The length of an implicit prompt: what chosen and rejected begin with alike."""
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    while isinstance(chosen, str) and 0 < n and not chosen[n - 1].isspace():
        n -= 1  # not within a word
    if not n:
        raise ValueError(f"{where} has no prompt, and chosen and rejected begin differently")
    return n


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
