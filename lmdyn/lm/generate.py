"""Text from a model: greedy or sampled, as a response of its own, and how it repeats itself."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from lmdyn.checks import check_count, check_number, check_texts
from lmdyn.lm.forward import evaluating
from lmdyn.lm.tokens import Format, check_tokenizer, is_ids, prompts_of

OWN, CORRECT, WRONG = "chosen_initial", "correct", "wrong"


def generate(
    model: PreTrainedModel,
    tokenizer,
    prompts: Sequence[str | list[int]],
    max_new_tokens: int = 64,
    *,
    sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    return_ids: bool = False,
) -> list[str] | tuple[list[str], list[list[int]], list[bool]]:
    """Let the model answer each prompt, up to EOS or whatever its generation_config ends with.

    The answers are without the prompt and without special tokens.

    Args:
        model: any causal language model; its mode and the global random state stay as they are, and
            nothing else in its generation_config counts.
        tokenizer: its tokenizer, with an EOS token.
        prompts: texts, or token ids, such as those of `prompts_of`.
        sample, temperature, seed: draw from π; else, or at temperature 0, take the likeliest.
        batch_size: prompts at a time; one, where the model says other things in a batch, as
            recurrent layers may. Greedy answers do not depend on it, beyond ties.
        return_ids: return as well, of each answer, its token ids with the one that ended it, and
            whether there is one: it ended within ``max_new_tokens``.
    """
    texts = prompts if isinstance(prompts, str) else ["" if is_ids(p) else p for p in prompts]
    check_texts("prompts", texts)
    check_count("max_new_tokens", max_new_tokens, 1)
    check_number("temperature", temperature, zero=True)
    check_tokenizer(tokenizer)
    tokens = [[*p] if is_ids(p) else tokenizer(p)["input_ids"] for p in prompts]
    if [] in tokens:
        raise ValueError(f"prompts[{tokens.index([])}] gives no token: write something there")
    vocabulary = len(model.get_input_embeddings().weight)
    if (most := max(map(max, tokens))) >= vocabulary:
        told = f"token {most} of a prompt is not among the model's {vocabulary}"
        raise ValueError(f"{told}: use the tokenizer that belongs to the model")
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of an adapter
    own, eos = owner.generation_config, tokenizer.eos_token_id
    ends = {eos, *np.atleast_1d(eos if own.eos_token_id is None else own.eos_token_id).tolist()}
    options = {"max_new_tokens": max_new_tokens, "eos_token_id": sorted(ends), "pad_token_id": eos}
    if sample and temperature > 0:
        options |= {"do_sample": True, "temperature": temperature, "top_k": 0}  # the whole of π
    answers, ids, ended = [], [], []
    devices = [model.device] if model.device.type == "cuda" else []
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        owner.generation_config = GenerationConfig()  # has what an argument leaves open
        try:
            several = min(batch_size, len(tokens)) > 1
            if several and not _can_batch(model, tokens, eos, max_new_tokens):
                batch_size = 1
            torch.manual_seed(seed)
            for start in range(0, len(tokens), batch_size):
                batch = tokens[start : start + batch_size]
                out = _continue(model, batch, **options)
                for said in out[:, max(map(len, batch)) :].tolist():
                    end = next((i for i, token in enumerate(said) if token in ends), None)
                    answers.append(tokenizer.decode(said[:end], skip_special_tokens=True))
                    ids.append(said if end is None else said[: end + 1])
                    ended.append(end is not None)
        finally:
            owner.generation_config = own
    return (answers, ids, ended) if return_ids else answers


def _continue(model, prompts: Sequence[list[int]], pad_token_id: int, **options):
    """What generate() gives for prompts padded on the left."""
    width, config = max(map(len, prompts)), GenerationConfig(pad_token_id=pad_token_id, **options)
    ids = torch.tensor([[-1] * (width - len(t)) + t for t in prompts], device=model.device)
    inputs = {"attention_mask": (ids >= 0).long(), "generation_config": config}
    return model.generate(ids.where(ids >= 0, pad_token_id), **inputs)


def _can_batch(model, tokens: Sequence[list[int]], pad_token_id: int, max_new_tokens: int) -> bool:
    """Whether the shortest prompt's logits at two tokens are the same beside the longest prompt."""
    short, long = min(tokens, key=len), max(tokens, key=len)
    options = {"output_logits": True, "return_dict_in_generate": True}
    options |= {"pad_token_id": pad_token_id, "max_new_tokens": min(2, max_new_tokens)}
    parts = (_continue(model, some, **options).logits for some in ([short], [short, long]))
    alone, beside = (torch.stack(part)[:, 0] for part in parts)
    if alone[0].argmax() != beside[0].argmax():  # the second tokens follow on others
        alone, beside = alone[:1], beside[:1]
    tolerance = 1e-3 if torch.finfo(model.dtype).bits > 16 else 5e-2
    scale = float(alone.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(beside, alone, rtol=0, atol=tolerance * scale)


def repeated(texts: Sequence[str], n: int = 3) -> float:
    """The share of n-grams of words that their own text already held, over all texts."""
    check_texts("texts", texts)
    check_count("n", n, 1)
    grams = [list(zip(*(text.split()[i:] for i in range(n)), strict=False)) for text in texts]
    total = sum(map(len, grams))
    return (total - sum(len(set(of)) for of in grams)) / total if total else 0.0


def with_own_samples(
    model, tokenizer, rows, form: Format, where, *, max_new_tokens: int, temperature, seed: int
) -> list[dict]:
    """The rows with the model's own answer as ``chosen_initial``, where they have none yet.

    It is token ids, up to the one that ended it. Some left out are a warning, all are a ValueError.
    """
    check_count("max_new_tokens", max_new_tokens, 1)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = min((n for n in (form.max_length, context) if n), default=math.inf) - max_new_tokens
    rows = [dict(row) for row in rows]
    asked = [(row, name) for row, name in zip(rows, where, strict=True) if OWN not in row]
    tokens = prompts_of(tokenizer, [row for row, _ in asked], form, [name for _, name in asked])
    fits = [i for i, ids in enumerate(tokens) if 0 < len(ids) <= room]
    options = {"sample": True, "temperature": temperature, "seed": seed, "return_ids": True}
    given = [tokens[i] for i in fits]
    said = generate(model, tokenizer, given, max_new_tokens, **options) if fits else ([], [], [])
    why = [f"had no prompt that leaves room for {max_new_tokens}"] * (len(asked) - len(fits))
    for i, text, ids, ended in zip(fits, *said, strict=True):
        if ended and text.strip():
            asked[i][0][OWN] = ids
        else:
            why.append("said nothing" if ended else f"did not end within {max_new_tokens} tokens")
    if why:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(why).items())
        told = f"{len(why)} of {len(asked)} rows go without {OWN!r} ({reasons}): change "
        if len(why) == len(asked):
            raise ValueError(f"{told}max_new_tokens, or leave model out")
        warnings.warn(f"{told}max_new_tokens to have more", stacklevel=3)
    return rows


def rewarded(reward: Callable, row: Mapping, text: str, where: str, when="") -> float:
    """What anyone's function gives for an answer; a ValueError tells of which row otherwise."""
    told = f"{when}the reward of {where} for {text!r:.80}"
    try:
        found = float(reward(row, text))
    except Exception as error:  # anyone's function may raise anything
        raise ValueError(f"{told} raised {type(error).__name__}: {error}") from error
    if not math.isfinite(found):
        raise ValueError(f"{told} is {found}: give a finite number")
    return found


def with_rewarded_samples(
    model, tokenizer, rows, form: Format, where, reward, given, size: int, **sampling
) -> list[dict]:
    """The rows with the first of ``size`` samples as ``chosen_initial``, as token ids, the first
    that is rewarded by more than a half as ``correct``, and the first that is not as ``wrong``.

    The function reads the rows as they were ``given``.
    """
    check_count("group_size", size, 1)
    ids = [tokens for tokens in prompts_of(tokenizer, rows, form, where) for _ in range(size)]
    texts, said, _ = generate(model, tokenizer, ids, sample=True, return_ids=True, **sampling)
    found = [dict(row) for row in rows]
    for i, (text, tokens) in enumerate(zip(texts, said, strict=True)):
        at = i // size
        right = rewarded(reward, given[at], text, where[at]) > 0.5
        for name in (OWN, CORRECT if right else WRONG):
            found[at].setdefault(name, tokens)
    return found
