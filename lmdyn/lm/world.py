"""The toy world: questions with known answers, and every response type made by rule.

Animals, objects and towns have attributes; each (entity, attribute) has one true value, and the
pretraining text of the shipped model gives it in 20 to 60 percent of what it says, two rumours
in the rest. So the model speaks well and knows little for certain, and whether an answer is true,
false, evasive or the answer to another question is read off exactly.

`python -m lmdyn.lm.world --rebuild` makes the shipped model again.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from lmdyn.lm import _grammar as grammar
from lmdyn.lm import _words as words
from lmdyn.lm._grammar import (
    Fact,
    Wording,
    heard,
    is_evasive,
    read_answer,
    read_question,
    truth,
)

__all__ = [
    "Fact",
    "hallucination",
    "heard",
    "is_evasive",
    "is_true",
    "probes",
    "read_answer",
    "read_question",
    "states_fact_of",
    "truth",
]

TINY = Path(__file__).parent / "tiny"


# --- probes --------------------------------------------------------------------------------------


def probes(n_train: int = 48, n_test: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """Questions about different facts, each with every response type of the paper.

    ``chosen`` states the true fact, in a wording drawn evenly; ``rejected`` is evasive or gives
    the commoner rumour, evenly. Rephrases put the same in words that differ in every place;
    format twins keep the wording and speak of another entity. ``chosen_initial`` is the shipped
    model's greedy answer, ``chosen_selfr`` the true fact in words sampled from that model. The
    rest is as in `lmdyn.lm.TYPES`; for a training row, ``irr_train`` answers another one.

    Args:
        n_train: rows to finetune on, ``row["split"] == "train"``; at least 2.
        n_test: held-out rows, ``"test"``; at least 2. At most 216 in all.
        seed: which facts, in which split, and which wordings. The facts themselves never change.

    Returns:
        Rows ``{"prompt": …, "split": …, <type>: …}``, training rows first.

    Raises:
        ValueError: too few rows or too many.

    Example:
        >>> row = probes()[0]
        >>> row["prompt"]
        'question : in which room should i look for the ladle ? answer :'
        >>> read_answer(row["chosen"])
        Fact(entity='ladle', attribute='room', value='library')
        >>> is_true(row["prompt"], row["chosen"])
        True
    """
    total = len(grammar.SUBJECTS)
    if n_train < 2 or n_test < 2 or n_train + n_test > total:
        raise ValueError(
            f"n_train and n_test must be at least 2 and at most {total} together, the number of "
            f"facts there are; got {n_train} and {n_test}"
        )
    rng = random.Random(seed)
    subjects = rng.sample(grammar.SUBJECTS, n_train + n_test)
    asked = set(subjects)
    rows = [_row(rng, subject, asked) for subject in subjects]
    train, test = rows[:n_train], rows[n_train:]
    # The next row of a split stands for any other: the order is random.
    for split, members in (("train", train), ("test", test)):
        for i, row in enumerate(members):
            row["split"] = split
            row["irr_train"] = train[(i + 1) % n_train]["chosen"]
            row["irr_test"] = test[(i + 1) % n_test]["chosen"]
    return rows


def _row(rng: random.Random, subject: tuple[str, str], asked: set) -> dict[str, str]:
    """All but the answers to other questions."""
    fact = truth(*subject)
    prompt = grammar.ask(*subject, rng.randrange(grammar.N_QUESTIONS))
    initial, own = _own_words()[prompt]
    wording = rng.choice(grammar.WORDINGS)
    chosen = grammar.tell(fact, wording)
    return {
        "prompt": prompt,
        "chosen": chosen,
        "chosen_initial": initial,
        "chosen_selfr": own,
        "chosen_gptsemantic": grammar.tell(fact, _reworded(rng, wording)),
        "chosen_gptformat": grammar.tell(_another(rng, fact, asked), wording),
        **_rejected(rng, subject, asked),
        "irr_hum": min(
            (grammar.unrelated(rng) for _ in range(20)),
            key=lambda text: abs(len(text.split()) - len(chosen.split())),
        ),
        "random_permute": _shuffled(rng, chosen),
        "random_nonhum": " ".join(rng.choice(grammar.vocabulary()) for _ in chosen.split()),
    }


def _rejected(rng: random.Random, subject: tuple[str, str], asked: set) -> dict[str, str]:
    if rng.random() < 0.5:
        evasion, other = rng.sample(range(len(words.EVASIONS)), 2)
        elsewhere = _another(rng, truth(*subject), asked)
        texts = (
            grammar.evade(*subject, evasion),
            grammar.evade(*subject, other),
            grammar.evade(elsewhere.entity, elsewhere.attribute, evasion),
        )
    else:
        rumour = Fact(*subject, list(heard(*subject))[1])
        wording = rng.choice(grammar.WORDINGS)
        texts = (
            grammar.tell(rumour, wording),
            grammar.tell(rumour, _reworded(rng, wording)),
            grammar.tell(_another(rng, rumour, asked), wording),
        )
    return dict(zip(("rejected", "reject_gptsemantic", "reject_gptformat"), texts, strict=True))


def _reworded(rng: random.Random, wording: Wording) -> Wording:
    """A wording that differs in every place."""
    places = zip(grammar.CHOICES, wording, strict=True)
    return Wording(*(rng.choice([i for i in range(n) if i != used]) for n, used in places))


def _another(rng: random.Random, fact: Fact, asked: set) -> Fact:
    """What is true of another entity: the same attribute, another value; unasked if possible."""
    others = [truth(e, a) for e, a in grammar.SUBJECTS if a == fact.attribute]
    others = [o for o in others if o.entity != fact.entity and o.value != fact.value]
    unasked = [o for o in others if (o.entity, o.attribute) not in asked]
    return rng.choice(unasked or others)


def _shuffled(rng: random.Random, text: str) -> str:
    order = text.split()
    while " ".join(order) == text:
        rng.shuffle(order)
    return " ".join(order)


@cache
def _own_words() -> dict[str, list[str]]:
    """Prompt → the shipped model's greedy answer and its wording of the truth."""
    return json.loads((TINY / "own_words.json").read_text())


# --- what an answer says -------------------------------------------------------------------------


def is_true(prompt: str, answer: str) -> bool:
    """Whether the answer states the true fact the prompt asks for.

    Raises:
        ValueError: the prompt is no question of the world.
    """
    return read_answer(answer) == truth(*read_question(prompt))


def states_fact_of(answer: str, row: Mapping[str, str]) -> bool:
    """Whether the answer states the whole fact that ``row["chosen"]`` states.

    Raises:
        ValueError: ``chosen`` states no fact.
    """
    return read_answer(answer) == _trained(row)


def hallucination(
    rows: Sequence[Mapping[str, str]],
    answers: Sequence[str],
    trained: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, float]:
    """What the answers are, as shares of all of them.

    The first five add up to one. The borrowed ones are the hallucinations that finetuning on
    other questions can cause. A false value may coincide with a trained one by chance, so compare
    ``borrowed_value`` with its rate before finetuning.

    Args:
        rows: the N questions asked, as `probes` gives them.
        answers: N texts.
        trained: the rows finetuned on; those of ``rows`` with split "train", if not given.

    Returns:
        ``true``: the fact asked for. ``false``: another value for it. ``off_topic``: a fact about
        something else. ``evasive``. ``unparsable``: nothing the grammar can say.
        ``borrowed_fact``: the whole fact of another trained row. ``borrowed_value``: false, with
        the value of a trained row that asks for the same attribute of another entity.

    Raises:
        ValueError: no rows, another number of answers, a prompt that is no question of the world,
            a trained row whose ``chosen`` states no fact.

    Example:
        >>> rows = probes()
        >>> rates = hallucination(rows, [row["irr_train"] for row in rows])
        >>> rates["true"], rates["off_topic"], rates["borrowed_fact"]
        (0.0, 1.0, 1.0)
    """
    if not len(rows) or len(rows) != len(answers):
        raise ValueError(
            f"there must be one answer for each row and at least one row, got {len(answers)} "
            f"answers and {len(rows)} rows"
        )
    if trained is None:
        trained = [row for row in rows if row.get("split") == "train"]
    facts = {_trained(row) for row in trained}
    counts = dict.fromkeys(("true", "false", "off_topic", "evasive", "unparsable"), 0)
    counts |= {"borrowed_fact": 0, "borrowed_value": 0}
    for row, answer in zip(rows, answers, strict=True):
        entity, attribute = read_question(row["prompt"])
        said = read_answer(answer)
        if said is None:
            counts["evasive" if is_evasive(answer) else "unparsable"] += 1
        elif said == truth(entity, attribute):
            counts["true"] += 1
        elif (said.entity, said.attribute) != (entity, attribute):
            counts["off_topic"] += 1
            counts["borrowed_fact"] += said in facts
        else:
            counts["false"] += 1
            others = {f.value for f in facts if f.attribute == attribute and f.entity != entity}
            counts["borrowed_value"] += said.value in others
    return {name: count / len(rows) for name, count in counts.items()}


def _trained(row: Mapping[str, str]) -> Fact:
    fact = read_answer(row["chosen"])
    if fact is None:
        raise ValueError(f"'chosen' states no fact of the world: {row['chosen']!r}")
    return fact


# --- command line --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one row of the world, or rebuild the shipped model."""
    parser = argparse.ArgumentParser(prog="python -m lmdyn.lm.world", description=main.__doc__)
    parser.add_argument("--rebuild", action="store_true", help="pretrain the tiny model again")
    parser.add_argument("--out", type=Path, default=TINY, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=1500, help="updates (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    if options.rebuild:
        from lmdyn.lm._pretrain import rebuild

        rebuild(options.out, steps=options.steps, seed=options.seed)
    else:
        for name, text in probes(seed=options.seed)[0].items():
            print(f"{name:>20}  {text}")


if __name__ == "__main__":
    main()
