"""What the tiny model says by itself: its greedy answers, and the truth in words of its own."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lmdyn.lm import _grammar as grammar
from lmdyn.lm._grammar import SUBJECTS
from lmdyn.lm.generate import generate

FILE = "own_words.json"


def own_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Every question of the world → [the model's greedy answer, the truth in its own words]."""
    spoken = {}
    for name in dict.fromkeys(attribute for _, attribute in SUBJECTS):
        subjects = [subject for subject in SUBJECTS if subject[1] == name]
        true = [
            _tree(tokenizer, [grammar.tell(grammar.truth(*s), w) for w in grammar.WORDINGS])
            for s in subjects
        ]
        for question in range(grammar.N_QUESTIONS):
            prompts = [grammar.ask(*subject, question) for subject in subjects]
            greedy = generate(model, tokenizer, prompts, max_new_tokens=40)
            own = _sample_among(model, tokenizer, prompts, true)
            spoken |= {p: list(pair) for p, *pair in zip(prompts, greedy, own, strict=True)}
    return spoken


def _tree(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict:
    """Texts as nested dicts: token → what may follow it, EOS last."""
    vocabulary = tokenizer.get_vocab()
    root = {}
    for text in texts:
        node = root
        for word in (*text.split(), tokenizer.eos_token):
            node = node.setdefault(vocabulary[word], {})
    return root


def _sample_among(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    trees: list[dict],
) -> list[str]:
    """Answers drawn token by token among those with which a text of the prompt's tree goes on.

    The prompts are of one length, so that nothing needs padding.
    """
    ids = tokenizer(prompts, return_tensors="pt")["input_ids"]

    def goes_on(i: int, so_far: Tensor) -> list[int]:
        node = trees[i]
        for token in so_far[ids.shape[1] :].tolist():
            node = node.get(token, {})
        return list(node) or [tokenizer.pad_token_id]  # after EOS

    said = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=40,
        do_sample=True,
        top_k=0,
        prefix_allowed_tokens_fn=goes_on,
    )
    return tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
