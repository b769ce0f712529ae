"""What the chapter "What SFT does" measures: where the fact is, who pulls, what answers borrow."""

import copy
from contextlib import contextmanager
from itertools import count

import numpy as np
from torch.optim.optimizer import register_optimizer_step_post_hook

import world
from audit.scale import Scale
from hallucination import hallucination
from lmdyn import lm
from lmdyn.lm.generate import generate, repeated


def at_scale(name="recorded/scale-smollm2"):
    """Of each seed of SFT on y+ in the record at scale: split → type → log π, (S, N), nats."""
    record = Scale.load(name)
    runs = [*record.sweep("start sft", 0, "start"), *record.sweep("start sft", 1, "start")]
    return [
        {
            split: {kind: record.values(run, kind, split) for kind in record.types}
            for split in ("train", "test")
        }
        for run in runs
    ]


def fact_and_wording(model, tokenizer, rows, name):
    """(2,): the log-prob of the token that states the fact, and of all others, nats; mean."""
    scores = lm.score(model, tokenizer, rows.only(name), per_token=True)
    parts = []
    for row, tokens in zip(rows, scores.tokens, strict=True):
        words, logp = row[name].split(), tokens[name].logp
        fact = len(words) - 1 - words[::-1].index(world.read_answer(row[name]).value)
        parts.append((logp[fact], logp.sum() - logp[fact]))
    return np.mean(parts, axis=0)


@contextmanager
def half_way(model, updates):
    """A model beside the one in training, which takes over its weights after so many updates.

    Raises:
        ValueError: the block ends before that.
    """
    beside, done = copy.deepcopy(model), count(1)

    def look(*_):
        if next(done) == updates:
            beside.load_state_dict(model.state_dict())

    hook = register_optimizer_step_post_hook(look)
    try:
        yield beside
    finally:
        hook.remove()
    if next(done) <= updates:
        raise ValueError(f"fewer than {updates} updates were made")


def sources(pull, rows, observed):
    """What pulls on each type: its own row, the answer's row, all other rows; how aligned those.

    Args:
        pull: (N, N_o, R) of each row on the responses to the first N_o.
        rows: the N rows.
        observed: the R types.

    Returns:
        (3, R), mean over prompts; and of the other rows |Σ pull| and Σ |pull|, (2, R), likewise.
    """
    prompts, other = np.arange(pull.shape[1]), list(observed).index("irr_train")
    rest, own = pull.copy(), pull[prompts, prompts]
    rest[prompts, prompts] = 0
    answers = [row["chosen"] for row in rows]
    at = [answers.index(row["irr_train"]) for row in rows[: len(prompts)]]
    source = np.zeros_like(own)
    source[:, other] = pull[at, prompts, other]
    rest[at, prompts, other] = 0
    parts = np.stack([own, source, rest.sum(0)]).mean(1)
    return parts, np.stack([np.abs(rest.sum(0)), np.abs(rest).sum(0)]).mean(1)


def strangers(run, seed):
    """As many rows as are trained on, about facts that this run never asks for."""
    mentioned = {world.read_question(row["prompt"]) for row in [*run.train, *run.test]}
    rows = world.probes(n_train=190, n_test=26, seed=seed)  # all facts there are
    unseen = [row for row in rows if world.read_question(row["prompt"]) not in mentioned]
    return unseen[: len(run.train)]


def counted(run, tokenizer, seed):
    """What answers are: "training" and "held-out" → [before, after], shares by kind.

    Before are the shipped model's greedy answers, in the rows. ``borrowed_value`` is of training
    rows, ``strangers`` of rows never learned.
    """
    never, found = strangers(run, seed), {}
    for who, rows in (("training", run.train), ("held-out", run.test)):
        says = generate(run.model, tokenizer, [row["prompt"] for row in rows], 32, batch_size=96)
        found[who] = []
        for answers in ([row["chosen_initial"] for row in rows], says):
            shares = hallucination(rows, answers, run.train)
            shares["strangers"] = hallucination(rows, answers, never)["borrowed_value"]
            shares |= {"trigrams": repeated(answers, 3)}
            found[who].append(shares)
    return found
