"""The toy world: questions with known answers, and every response type made by rule.

Animals, objects and towns have attributes; each (entity, attribute) has one true value. The text
that the shipped model learned from (``book/make_tiny.py``) gives it in 20 to 60 percent of what it
says, and two rumours in the rest. So the model speaks well and knows little for certain, and
whether an answer is true, false, evasive or off the question is read off exactly. The words stand
in ``world.toml``. The library holds what `probes` gives: run this file to write its world.jsonl.
"""

import json
import random
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import lmdyn
from lmdyn.lm import TYPES, Format, ProbeSet
from lmdyn.lm.data import as_probes

TINY = Path(lmdyn.__file__).parent / "lm" / "tiny"
# prompt → the shipped model's greedy answer and its wording of the truth
OWN_WORDS = json.loads((TINY / "own_words.json").read_text(encoding="utf-8"))
WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
PAPER = Format("paper")
PROMPT = "question : {q} answer :"
N_QUESTIONS, N_CLAUSES = 3, 4  # ways to ask for an attribute, and to state it
Subject = tuple[str, str]  # (entity, attribute)
Wording = tuple[int, int, int, int]  # which opener, clause, qualifier and closer an answer has


class Fact(NamedTuple):
    """What a sentence states, truly or not."""

    entity: str
    attribute: str
    value: str


ENTITIES = {kind: names.split() for kind, names in WORDS["entities"].items()}
ATTRIBUTES = {a["name"]: a | {"values": a["values"].split()} for a in WORDS["attributes"]}
SUBJECTS = [(entity, name) for name, a in ATTRIBUTES.items() for entity in ENTITIES[a["kind"]]]
OPENERS, QUALIFIERS, CLOSERS = WORDS["openers"], WORDS["qualifiers"], WORDS["closers"]
CHOICES = (len(OPENERS), N_CLAUSES, len(QUALIFIERS), len(CLOSERS))
WORDINGS = list(product(*map(range, CHOICES)))
_TEXTS = [PROMPT, "and", ".", *OPENERS, *QUALIFIERS, *CLOSERS, *WORDS["evasions"]]
_TEXTS += chain(*WORDS["unrelated"].values(), *ENTITIES.values())
for _of in ATTRIBUTES.values():
    _TEXTS += [_of["topic"], *_of["questions"], *_of["clauses"], *_of["values"]]
VOCABULARY = sorted({word for text in _TEXTS for word in text.split() if word[0] != "{"})


@cache
def _heard() -> dict[Subject, dict[str, float]]:
    rng, shares = random.Random("lmdyn world"), {}
    for subject in SUBJECTS:
        true, often, seldom = rng.sample(ATTRIBUTES[subject[1]]["values"], 3)
        share = rng.uniform(0.2, 0.6)
        shares[subject] = {true: share, often: (1 - share) * 2 / 3, seldom: (1 - share) / 3}
    return shares


def heard(entity: str, attribute: str) -> dict[str, float]:
    """What the model has read: value → its share, the true value first, then the commoner rumour.

    A KeyError if there is no such entity, or if it has no such attribute.
    """
    if (entity, attribute) not in _heard():
        raise KeyError(f"the world has no {attribute!r} of {entity!r}")
    return dict(_heard()[entity, attribute])


def truth(entity: str, attribute: str) -> Fact:
    """The true fact (errors as `heard`)."""
    return Fact(entity, attribute, next(iter(heard(entity, attribute))))


def ask(entity: str, attribute: str, question: int) -> str:
    """A prompt, in one of the three ways to ask."""
    return PROMPT.format(q=ATTRIBUTES[attribute]["questions"][question].format(e=entity))


def tell(fact: Fact, wording: Wording) -> str:
    """An answer that states the fact."""
    opener, clause, qualifier, closer = wording
    said = ATTRIBUTES[fact.attribute]["clauses"][clause].format(e=fact.entity, v=fact.value)
    return f"{OPENERS[opener]} {said} {QUALIFIERS[qualifier]} {CLOSERS[closer]}"


def evade(entity: str, attribute: str, evasion: int) -> str:
    """An answer that says nothing."""
    topic = ATTRIBUTES[attribute]["topic"].format(e=entity)
    return WORDS["evasions"][evasion].format(t=topic)


def unrelated(rng: random.Random) -> str:
    """A fluent sentence about something else."""
    say = WORDS["unrelated"]
    deeds = rng.sample(say["deeds"], rng.choice((1, 2)))
    start = f"{rng.choice(say['times'])} {rng.choice(say['somebody'])} {' and '.join(deeds)}"
    return _spaced(f"{start} {rng.choice(say['ends'])} .")


def _spaced(text: str) -> str:
    return " ".join(text.split())


# From words back to facts.
QUESTIONS = {ask(*subject, i): subject for subject in SUBJECTS for i in range(N_QUESTIONS)}
EVASIONS = {evade(*subject, i) for subject in SUBJECTS for i in range(len(WORDS["evasions"]))}
_ONE_OF = ("|".join(map(re.escape, texts)) for texts in (OPENERS, QUALIFIERS, CLOSERS))
ANSWER = re.compile("(?:{}) (.+) (?:{}) (?:{})".format(*_ONE_OF))
CLAUSES = {
    clause.format(e=entity, v=value): Fact(entity, name, value)
    for name, a in ATTRIBUTES.items()
    for clause, entity, value in product(a["clauses"], ENTITIES[a["kind"]], a["values"])
}


def read_question(prompt: str) -> Subject:
    """(entity, attribute) a prompt asks about; a ValueError if it is no question of the world."""
    if _spaced(prompt) not in QUESTIONS:
        raise ValueError(f"not a question of the world: {prompt!r}")
    return QUESTIONS[_spaced(prompt)]


def read_answer(text: str) -> Fact | None:
    """The fact an answer states, true or not; None if it is no complete statement.

    Example:
        >>> read_answer("well , the otter lives in the attic as always .")
        Fact(entity='otter', attribute='home', value='attic')
    """
    found = ANSWER.fullmatch(_spaced(text))
    return CLAUSES.get(found[1]) if found else None


def is_evasive(text: str) -> bool:
    """Whether an answer is one of the world's ways to say nothing, on any topic."""
    return _spaced(text) in EVASIONS


def is_true(prompt: str, answer: str) -> bool:
    """Whether the answer states the true fact the prompt asks for (errors as `read_question`)."""
    return read_answer(answer) == truth(*read_question(prompt))


def probe_set(rows: Iterable[Mapping], *types: str) -> ProbeSet:
    """Rows of the world in the format that the shipped model learned them in, the paper's."""
    return as_probes(rows, types or None, PAPER)


def probes(n_train: int = 48, n_test: int = 24, seed: int = 0) -> ProbeSet:
    """Questions about different facts, as rows with every response type of the paper.

    ``chosen`` states the true fact, in a wording drawn evenly; ``rejected`` is evasive or gives
    the commoner rumour, evenly. Rephrases put the same in words that differ in every place;
    format twins keep the wording and speak of another entity. ``chosen_initial`` is the shipped
    model's greedy answer, ``chosen_selfr`` the true fact in words sampled from that model. The
    rest is as in `lmdyn.lm.TYPES`; ``irr_train`` of a training row answers another one.

    Args:
        n_train: rows with split "train", which come first; at least 2.
        n_test: rows with split "test"; at least 2. At most 216 in all, else a ValueError.
        seed: which facts, in which split, and which wordings. The facts themselves never change.

    Example:
        >>> row = probes()[0]
        >>> row["prompt"]
        'question : in which room should i look for the ladle ? answer :'
        >>> read_answer(row["chosen"])
        Fact(entity='ladle', attribute='room', value='library')
    """
    if n_train < 2 or n_test < 2 or n_train + n_test > len(SUBJECTS):
        must = f"must be 2 or more, at most {len(SUBJECTS)} together"
        raise ValueError(f"n_train and n_test {must}: got {n_train} and {n_test}")
    rng = random.Random(seed)
    subjects = rng.sample(SUBJECTS, n_train + n_test)
    rows = [_row(rng, subject, set(subjects)) for subject in subjects]
    train, test = rows[:n_train], rows[n_train:]
    # The next row of a split stands for any other: the order is random.
    for split, members in (("train", train), ("test", test)):
        for i, row in enumerate(members):
            row["split"] = split
            row["irr_train"] = train[(i + 1) % n_train]["chosen"]
            row["irr_test"] = test[(i + 1) % n_test]["chosen"]
    return ProbeSet(tuple(rows), tuple(TYPES), PAPER)


def _row(rng: random.Random, subject: Subject, asked: set) -> dict[str, str]:
    """All but the answers to other questions. The order of the draws fixes the rows."""
    fact = truth(*subject)
    prompt = ask(*subject, rng.randrange(N_QUESTIONS))
    wording = rng.choice(WORDINGS)
    chosen = tell(fact, wording)
    words = chosen.split()
    initial, own = OWN_WORDS[prompt]
    row = {"prompt": prompt, "chosen": chosen, "chosen_initial": initial, "chosen_selfr": own}
    row["chosen_gptsemantic"] = tell(fact, _reworded(rng, wording))
    row["chosen_gptformat"] = tell(_another(rng, fact, asked), wording)
    if rng.random() < 0.5:
        evasion, other = rng.sample(range(len(WORDS["evasions"])), 2)
        elsewhere = _another(rng, fact, asked)
        said, semantic = evade(*subject, evasion), evade(*subject, other)
        twin = evade(elsewhere.entity, elsewhere.attribute, evasion)
    else:
        rumour = Fact(*subject, list(heard(*subject))[1])
        wording = rng.choice(WORDINGS)
        said, semantic = tell(rumour, wording), tell(rumour, _reworded(rng, wording))
        twin = tell(_another(rng, rumour, asked), wording)
    row |= {"rejected": said, "reject_gptsemantic": semantic, "reject_gptformat": twin}
    fluent = [unrelated(rng) for _ in range(20)]
    row["irr_hum"] = min(fluent, key=lambda text: abs(len(text.split()) - len(words)))
    order = list(words)
    while order == words:
        rng.shuffle(order)
    row["random_permute"] = " ".join(order)
    row["random_nonhum"] = " ".join(rng.choice(VOCABULARY) for _ in words)
    return row


def _reworded(rng: random.Random, wording: Wording) -> Wording:
    """A wording that differs in every place."""
    places = zip(CHOICES, wording, strict=True)
    return tuple(rng.choice([i for i in range(n) if i != used]) for n, used in places)


def _another(rng: random.Random, fact: Fact, asked: set) -> Fact:
    """What is true of another entity: the same attribute, another value; unasked if possible."""
    others = [truth(e, a) for e, a in SUBJECTS if a == fact.attribute]
    others = [o for o in others if o.entity != fact.entity and o.value != fact.value]
    return rng.choice([o for o in others if o[:2] not in asked] or others)


if __name__ == "__main__":
    rows = [json.dumps(row, ensure_ascii=False) + "\n" for row in probes()]
    (TINY.parent / "world.jsonl").write_text("".join(rows), encoding="utf-8")
