"""Text from a model: greedy or sampled, and how much it repeats itself.

The metrics take a text as words between white space, in upper and lower case as they stand. All
but `repeated` depend on how much text there is, so compare equal numbers of texts of like length.
"""

import gzip
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel


def generate(
    model: PreTrainedModel,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    *,
    sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    return_ended: bool = False,
) -> list[str] | tuple[list[str], list[bool]]:
    """Let the model answer each prompt, until it ends or a number of tokens.

    It ends with the tokenizer's EOS, or with what ``model.generation_config`` ends with.

    Args:
        model: any causal language model; its mode and the global random state stay as they are.
        tokenizer: its tokenizer, with an EOS token.
        prompts: texts, tokenised without special tokens.
        max_new_tokens: where to stop at the latest.
        sample: draw from π; otherwise take the likeliest token each time (greedy).
        temperature: of the sampling.
        seed: of the sampling.
        batch_size: prompts at a time. Greedy answers do not depend on it, beyond ties.
        return_ended: tell as well which answers ended on their own.

    Returns:
        One text a prompt, without the prompt and without EOS. With ``return_ended``, these texts
        and a list that says of each whether the end came within ``max_new_tokens``.

    Raises:
        ValueError: no prompts, one text instead of a list, a prompt without a token.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts must be a list of at least one text")
    tokens = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    for i, ids in enumerate(tokens):
        if not ids:
            raise ValueError(f"prompts[{i}] gives no token: write something there")
    eos = tokenizer.eos_token_id
    others = model.generation_config.eos_token_id or []  # some models end a turn otherwise
    ends = {eos, *([others] if isinstance(others, int) else others)}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        temperature=temperature if sample else None,
        top_k=0 if sample else None,  # from the whole of π
        eos_token_id=sorted(ends),
        pad_token_id=eos,
    )
    training = model.training
    model.eval()
    answers, ended = [], []
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(tokens), batch_size):
                batch = tokens[start : start + batch_size]
                longest = max(map(len, batch))
                ids = [[eos] * (longest - len(t)) + t for t in batch]
                mask = [[0] * (longest - len(t)) + [1] * len(t) for t in batch]
                out = model.generate(
                    torch.tensor(ids, device=model.device),
                    attention_mask=torch.tensor(mask, device=model.device),
                    generation_config=config,
                )
                for ids in out[:, longest:].tolist():
                    end = next((i for i, token in enumerate(ids) if token in ends), None)
                    answers.append(tokenizer.decode(ids[:end], skip_special_tokens=True))
                    ended.append(end is not None)
    finally:
        model.train(training)
    return (answers, ended) if return_ended else answers


def distinct(texts: Sequence[str], n: int = 1) -> float:
    """Distinct-n: the different n-grams of words in all texts together, over all their n-grams.

    Li et al. 2016 (arXiv:1510.03055), who divide by the words; over the n-grams, as is usual
    since, the most is 1 for every n. It falls as texts grow (Liu et al. 2022, arXiv:2202.13587).

    Args:
        texts: at least one.
        n: words in an n-gram.

    Returns:
        1 if no n-gram comes twice, near 0 if they are all the same; 0 if there is none.

    Raises:
        ValueError: one text instead of a list, no text, an entry that is no text, n below 1.

    Example:
        >>> distinct(["to be or not to be", "to be"], n=1)
        0.5
    """
    grams = [gram for text in _ngrams(texts, n) for gram in text]
    return len(set(grams)) / len(grams) if grams else 0.0


def repeated(texts: Sequence[str], n: int = 3) -> float:
    """The share of n-grams of words that their own text already held, over all texts.

    Args:
        texts: at least one.
        n: words in an n-gram.

    Returns:
        0 if no text repeats itself, near 1 if all do; 0 if every text is shorter than n words.

    Raises:
        ValueError: as in `distinct`.

    Example:
        >>> repeated(["to be or not to be"], n=2)
        0.2
    """
    ngrams = _ngrams(texts, n)
    total = sum(map(len, ngrams))
    again = total - sum(len(set(grams)) for grams in ngrams)
    return again / total if total else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """How many times smaller gzip makes the texts: what they repeat, also from one to another.

    Shaib et al. 2024 (arXiv:2403.00553): the bytes of all texts, joined by spaces, over the bytes
    that gzip leaves. Ten kilobytes of English give about 2. Below about a kilobyte the header
    of gzip counts, and repeats more than 32 kB apart are not found.

    Args:
        texts: at least one.

    Returns:
        Bytes over bytes; 0 if there is not a single character.

    Raises:
        ValueError: as in `distinct`.

    Example:
        >>> compression_ratio(["the otter lives in the attic"] * 50) > 10
        True
    """
    # Rather than self-BLEU: gzip is in the standard library and linear in the texts. Shaib et al.
    # find that it tells much of what slow n-gram overlaps between the texts tell.
    _check_texts(texts)
    data = " ".join(texts).encode()
    return len(data) / len(gzip.compress(data, mtime=0))


def summary(texts: Sequence[str], ended: Sequence[bool] | None = None) -> dict[str, float]:
    """The metrics of this module in one row of a table.

    Args:
        texts: at least one.
        ended: whether each ended on its own, as `generate` tells.

    Returns:
        ``words``: mean per text. ``distinct-1`` and ``distinct-2``. ``repeated 3-grams``.
        ``compression ratio``. ``ended``: the share that did, if it is known.

    Raises:
        ValueError: as in `distinct`; another number of ``ended`` than texts.

    Example:
        >>> summary(["to be or not to be", "to be"], ended=[True, False])["ended"]
        0.5
    """
    row = {
        "distinct-1": distinct(texts, 1),
        "distinct-2": distinct(texts, 2),
        "repeated 3-grams": repeated(texts, 3),
        "compression ratio": compression_ratio(texts),
    }
    row = {"words": sum(len(text.split()) for text in texts) / len(texts), **row}
    if ended is None:
        return row
    if len(ended) != len(texts):
        raise ValueError(f"there are {len(texts)} texts and {len(ended)} entries of ended")
    return {**row, "ended": sum(map(bool, ended)) / len(ended)}


def _ngrams(texts: Sequence[str], n: int) -> list[list[tuple[str, ...]]]:
    """The n-grams of each text."""
    _check_texts(texts)
    if n < 1:
        raise ValueError(f"n must be at least 1 word, got {n}")
    split = [text.split() for text in texts]
    return [[tuple(w[i : i + n]) for i in range(len(w) - n + 1)] for w in split]


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str) or not len(texts):
        raise ValueError("texts must be a list of at least one text")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] must be a text, got {type(text).__name__}")
