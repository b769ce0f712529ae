"""Make the tiny model that lmdyn ships: its text, its tokenizer, its training, what it says.

`python book/make_tiny.py` pretrains a small Llama on what the toy world has heard (a few minutes),
so that it knows the language well and the facts by hearsay only, and writes it to lmdyn/lm/tiny
with ``own_words.json``: its answer to every question, and the truth in words of its own. Bit for
bit the same on one machine with one thread; another processor may round otherwise.
"""

import argparse
import json
import math
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import world
from lmdyn.lm.generate import generate

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
IGNORED = -100  # cross_entropy's mark for a position without a target
NEW_TOKENS = 40

# What the pretraining text is made of, and what follows its questions: as in text from the web,
# not always an answer to the question, and not always language.
DOCUMENTS = {"question": 0.75, "statement": 0.15, "unrelated": 0.10}
ANSWERS = {
    "answer": 0.82,
    "evasion": 0.10,
    "other answer": 0.04,
    "unrelated": 0.02,
    "shuffled": 0.01,
    "random": 0.01,
}


# --- text ----------------------------------------------------------------------------------------


def _usual(rng: random.Random, n: int) -> int:
    """One of n ways to say something: the earlier ones are the usual ones."""
    return rng.choices(range(n), [(i + 1) ** -1.5 for i in range(n)])[0]


def _one_of(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _statement(rng: random.Random, entity: str, attribute: str) -> str:
    value = _one_of(rng, world.heard(entity, attribute))
    wording = tuple(_usual(rng, n) for n in world.CHOICES)
    return world.tell(world.Fact(entity, attribute, value), wording)


def document(rng: random.Random) -> str:
    """One text of the pretraining corpus."""
    kind = _one_of(rng, DOCUMENTS)
    subject = rng.choice(world.SUBJECTS)
    if kind == "unrelated":
        return world.unrelated(rng)
    if kind == "statement":
        return _statement(rng, *subject)
    prompt = world.ask(*subject, rng.randrange(world.N_QUESTIONS))
    kind = _one_of(rng, ANSWERS)
    if kind == "evasion":
        answer = world.evade(*subject, _usual(rng, len(world.WORDS["evasions"])))
    elif kind == "unrelated":
        answer = world.unrelated(rng)
    elif kind == "other answer":
        answer = _statement(rng, *rng.choice(world.SUBJECTS))
    else:
        answer = _statement(rng, *subject)
    if kind == "shuffled":
        answer = " ".join(rng.sample(answer.split(), len(answer.split())))
    elif kind == "random":
        answer = " ".join(rng.choices(world.VOCABULARY, k=len(answer.split())))
    return f"{prompt} {answer}"


def _batches(rng: random.Random, batch_size: int) -> Iterator[list[str]]:
    """Texts of similar length together, so that little is padding; four batches at a time."""
    while True:
        texts = sorted((document(rng) for _ in range(4 * batch_size)), key=lambda t: t.count(" "))
        batches = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
        rng.shuffle(batches)
        yield from batches


# --- model ---------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world; texts are split at spaces and joined with spaces."""
    vocabulary = {word: i for i, word in enumerate((PAD, EOS, UNK, *world.VOCABULARY))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def make_model(width: int, layers: int, n_tokens: int) -> LlamaForCausalLM:
    """A Llama of random weights, with heads of 32 and tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=n_tokens,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Mean −log π of the tokens of the texts after the first, each text ended by EOS."""
    rows = tokenizer([f"{text} {EOS}" for text in texts], padding=True, return_tensors="pt")
    ids, mask = rows["input_ids"], rows["attention_mask"]
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1]).logits
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    log_every: int = 100,
) -> list[float]:
    """Train by AdamW, in place. Returns the loss of each step, in nats per token."""
    batches = _batches(random.Random(seed), batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 20)

    def factor(step: int) -> float:
        """Linear warm-up, then a cosine down to zero."""
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    model.train()
    for step in range(1, steps + 1):
        loss = _loss(model, tokenizer, next(batches))
        if not loss.isfinite():
            raise ValueError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % log_every == 0 or step == steps:
            recent = losses[-log_every:]
            mean = sum(recent) / len(recent)
            print(f"step {step}/{steps}: {mean:.4f} nats per token", flush=True)
    model.eval()
    return losses


# --- what it says by itself ----------------------------------------------------------------------


def own_words(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    subjects: Sequence[tuple[str, str]] = world.SUBJECTS,
) -> dict[str, list[str]]:
    """Every question about the subjects → [the greedy answer, the truth in the model's words]."""
    spoken = {}
    for attribute in dict.fromkeys(attribute for _, attribute in subjects):
        asked = [subject for subject in subjects if subject[1] == attribute]
        true = [
            _tree(tokenizer, [world.tell(world.truth(*s), w) for w in world.WORDINGS])
            for s in asked
        ]
        for question in range(world.N_QUESTIONS):
            prompts = [world.ask(*subject, question) for subject in asked]
            greedy = generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
            own = _sample_among(model, tokenizer, prompts, true)
            spoken |= {p: list(pair) for p, *pair in zip(prompts, greedy, own, strict=True)}
    return spoken


def _tree(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict:
    """Texts as nested dicts: token → what may follow it, EOS last."""
    vocabulary = tokenizer.get_vocab()
    root = {}
    for text in texts:
        node = root
        for word in (*text.split(), EOS):
            node = node.setdefault(vocabulary[word], {})
    return root


def _sample_among(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
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
        max_new_tokens=NEW_TOKENS,
        do_sample=True,
        top_k=0,
        prefix_allowed_tokens_fn=goes_on,
    )
    return tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)


# --- the whole -----------------------------------------------------------------------------------


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded generator inside, both as they were outside."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def make(
    out: Path,
    *,
    steps: int = 1500,
    seed: int = 0,
    batch_size: int = 64,
    lr: float = 3e-3,
    width: int = 128,
    layers: int = 4,
    subjects: Sequence[tuple[str, str]] = world.SUBJECTS,
) -> list[float]:
    """Pretrain a model on the world and write it to a folder, with what it says by itself.

    Nothing is written before all is done; files of the same name in the folder are replaced.

    Args:
        out: the folder; made if need be.
        steps: updates.
        seed: of the weights, the text and the sampling.
        batch_size: texts per update.
        lr: the highest learning rate.
        width: of the model, a multiple of 32.
        layers: of the model.
        subjects: what it is asked about in the end.

    Returns:
        The loss of each step, in nats per token.

    Raises:
        ValueError: fewer than one step, a width that does not fit, or a loss that is not finite.
    """
    if steps < 1 or width < 32 or width % 32:
        raise ValueError(
            f"steps must be 1 or more and width a multiple of 32, got {steps} and {width}"
        )
    with _reproducible(seed):
        tokenizer = make_tokenizer()
        model = make_model(width, layers, len(tokenizer))
        losses = pretrain(model, tokenizer, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
    with _reproducible(seed):
        spoken = own_words(model, tokenizer, subjects)
    record = {
        "command": f"python book/make_tiny.py --steps {steps} --seed {seed}",
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "lr": lr,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss_nats_per_token": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    out.mkdir(parents=True, exist_ok=True)
    # Beside its destination, so that moving each file into place is atomic.
    with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (Path(new) / "own_words.json").write_text(json.dumps(spoken, indent=1) + "\n")
        (Path(new) / "rebuild.json").write_text(json.dumps(record, indent=2) + "\n")
        for file in Path(new).iterdir():
            os.replace(file, out / file.name)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=world.TINY, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=1500, help="updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    make(**vars(parser.parse_args()))
