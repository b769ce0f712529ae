"""Text from a model: greedy or sampled, and how much it repeats itself."""

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
) -> list[str]:
    """Let the model answer each prompt, until EOS or a number of tokens.

    Args:
        model: any causal language model; its mode and the global random state stay as they are.
        tokenizer: its tokenizer, with an EOS token.
        prompts: texts, tokenised without special tokens.
        max_new_tokens: where to stop at the latest.
        sample: draw from π; otherwise take the likeliest token each time (greedy).
        temperature: of the sampling.
        seed: of the sampling.
        batch_size: prompts at a time. Greedy answers do not depend on it, beyond ties.

    Returns:
        One text a prompt, without the prompt and without EOS.

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
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        temperature=temperature if sample else None,
        top_k=0 if sample else None,  # from the whole of π
        eos_token_id=eos,
        pad_token_id=eos,
    )
    training = model.training
    model.eval()
    answers = []
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
                answers += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    finally:
        model.train(training)
    return answers


def repeated(texts: Sequence[str], n: int = 3) -> float:
    """The share of n-grams of words that their own text already held, over all texts.

    Args:
        texts: at least one.
        n: words in an n-gram.

    Returns:
        0 if no text repeats itself, near 1 if all do; 0 if every text is shorter than n words.

    Example:
        >>> repeated(["to be or not to be"], n=2)
        0.2
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a list, got one text")
    again = total = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        again += len(grams) - len(set(grams))
        total += len(grams)
    return again / total if total else 0.0
