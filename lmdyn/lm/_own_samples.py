"""The model's own answers as a response type, `chosen_initial` of the paper."""

import warnings
from collections.abc import Mapping, Sequence

from lmdyn.lm.generate import generate
from lmdyn.lm.tokens import Format

OWN = "chosen_initial"


def with_own_samples(
    model,
    tokenizer,
    rows: Sequence[Mapping[str, str]],
    form: Format,
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[dict[str, str]]:
    """The rows with an answer of the model's own, where they have none yet.

    Scoring appends EOS to every response, so an answer that the model did not end itself would be
    charged for a token that it never said: it is left out, as is an empty one.

    Args:
        model: a Hugging Face causal language model, as it is before the run.
        tokenizer: its tokenizer.
        rows: with ``prompt``.
        form: how many tokens there are for a prompt and its response.
        max_new_tokens: where an answer stops at the latest.
        temperature: of the sampling; 0 takes the likeliest token each time.
        seed: of the sampling.

    Raises:
        ValueError: no tokenizer, settings out of range, not one answer to keep.

    Warns:
        UserWarning: some rows go without, how many and why.
    """
    if tokenizer is None:
        raise ValueError("the model answers through its tokenizer: pass the tokenizer too")
    if temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}")
    asked = [i for i, row in enumerate(rows) if OWN not in row]
    room = _room(model, form) - max_new_tokens - 1  # EOS
    fits = [i for i in asked if _length(tokenizer, rows[i]["prompt"]) <= room]
    answers, ended = [], []
    if fits:
        answers, ended = generate(
            model,
            tokenizer,
            [rows[i]["prompt"] for i in fits],
            max_new_tokens,
            sample=temperature > 0,
            temperature=temperature or 1.0,
            seed=seed,
            return_ended=True,
        )
    said = dict(zip(fits, zip(answers, ended, strict=True), strict=True))
    kept = {i: text for i, (text, whole) in said.items() if whole and text.strip()}
    missing = {
        f"did not end within {max_new_tokens} tokens": sum(not whole for whole in ended),
        "said nothing": sum(whole and not text.strip() for text, whole in said.values()),
        f"had a prompt that leaves no room for {max_new_tokens}": len(asked) - len(fits),
    }
    why = ", ".join(f"{n} {reason}" for reason, n in missing.items() if n)
    if asked and not kept:
        raise ValueError(
            f"none of {len(asked)} answers of the model's own can be kept ({why}): change "
            "max_new_tokens, or leave model out"
        )
    if why:
        warnings.warn(
            f"{len(asked) - len(kept)} of {len(asked)} rows go without {OWN!r}: {why}; "
            "change max_new_tokens to have more",
            stacklevel=3,
        )
    return [{**row, OWN: kept[i]} if i in kept else dict(row) for i, row in enumerate(rows)]


def _room(model, form: Format) -> int:
    """Tokens for a prompt and its response together."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(form.max_length, context or form.max_length)


def _length(tokenizer, prompt: str) -> int:
    return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
