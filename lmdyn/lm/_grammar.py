"""The grammar of the toy world: facts, and how they are asked, told, evaded and read back."""

import random
import re
from functools import cache
from itertools import product
from typing import NamedTuple

from lmdyn.lm import _words as words

PROMPT = "question : {q} answer :"


class Fact(NamedTuple):
    """What a sentence states: the attribute of the entity has this value, truly or not."""

    entity: str
    attribute: str
    value: str


class Wording(NamedTuple):
    """How an answer is put: which opener, clause, qualifier and closer, each an index."""

    opener: int
    clause: int
    qualifier: int
    closer: int


ATTRIBUTES = {a.name: a for a in words.ATTRIBUTES}
SUBJECTS = tuple((e, a.name) for a in words.ATTRIBUTES for e in words.ENTITIES[a.kind])
N_QUESTIONS = len(words.ATTRIBUTES[0].questions)
# How many choices a wording has in each of its four places.
CHOICES = Wording(
    len(words.OPENERS),
    len(words.ATTRIBUTES[0].clauses),
    len(words.QUALIFIERS),
    len(words.CLOSERS),
)
WORDINGS = tuple(Wording(*w) for w in product(*map(range, CHOICES)))


# --- facts ---------------------------------------------------------------------------------------


@cache
def _heard() -> dict[tuple[str, str], dict[str, float]]:
    """For each (entity, attribute), the values in circulation, the true one first."""
    rng = random.Random("lmdyn world")
    heard = {}
    for entity, attribute in SUBJECTS:
        true, often, seldom = rng.sample(ATTRIBUTES[attribute].values, 3)
        share = rng.uniform(0.2, 0.6)
        heard[entity, attribute] = {
            true: share,
            often: (1 - share) * 2 / 3,
            seldom: (1 - share) / 3,
        }
    return heard


def heard(entity: str, attribute: str) -> dict[str, float]:
    """What the pretraining text says of an entity: the true value and two rumours.

    Returns:
        value → share of the statements that give it, the true value first, then the commoner
        rumour. The truth has a share of 0.2 to 0.6; below 0.4 a rumour is commoner.

    Raises:
        KeyError: no such entity, or it has no such attribute.

    Example:
        >>> [round(share, 2) for share in heard("otter", "food").values()]
        [0.33, 0.44, 0.22]
    """
    if (entity, attribute) not in _heard():
        raise KeyError(f"the world has no {attribute!r} of {entity!r}")
    return dict(_heard()[entity, attribute])


def truth(entity: str, attribute: str) -> Fact:
    """The true fact.

    Raises:
        KeyError: no such entity, or it has no such attribute.
    """
    return Fact(entity, attribute, next(iter(heard(entity, attribute))))


# --- from facts to words -------------------------------------------------------------------------


def ask(entity: str, attribute: str, question: int) -> str:
    """A prompt, in one of the three ways to ask."""
    return PROMPT.format(q=ATTRIBUTES[attribute].questions[question].format(e=entity))


def tell(fact: Fact, wording: Wording) -> str:
    """An answer that states the fact."""
    clause = ATTRIBUTES[fact.attribute].clauses[wording.clause]
    return " ".join(
        (
            words.OPENERS[wording.opener],
            clause.format(e=fact.entity, v=fact.value),
            words.QUALIFIERS[wording.qualifier],
            words.CLOSERS[wording.closer],
        )
    )


def evade(entity: str, attribute: str, evasion: int) -> str:
    """An answer that says nothing."""
    topic = ATTRIBUTES[attribute].topic.format(e=entity)
    return words.EVASIONS[evasion].format(t=topic)


def unrelated(rng: random.Random) -> str:
    """A fluent sentence about something else."""
    deeds = rng.sample(words.DEEDS, rng.choice((1, 2)))
    parts = (
        rng.choice(words.TIMES),
        rng.choice(words.SOMEBODY),
        " and ".join(deeds),
        rng.choice(words.ENDS),
        ".",
    )
    return " ".join(part for part in parts if part)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the world and every punctuation mark, sorted."""
    texts = [PROMPT.format(q=""), "and", ".", *words.OPENERS, *words.QUALIFIERS, *words.CLOSERS]
    texts += [*words.EVASIONS, *words.TIMES, *words.SOMEBODY, *words.DEEDS, *words.ENDS]
    for entities in words.ENTITIES.values():
        texts += entities
    for attribute in words.ATTRIBUTES:
        texts += [attribute.topic, *attribute.questions, *attribute.clauses, *attribute.values]
    slots = {"{e}", "{v}", "{t}"}
    return tuple(sorted({word for text in texts for word in text.split()} - slots))


# --- from words to facts -------------------------------------------------------------------------


def _any(options: tuple[str, ...]) -> str:
    return "(?:" + "|".join(map(re.escape, options)) + ")"


def _pattern(template: str, attribute: words.Attribute) -> str:
    """The template as a regular expression with the groups ``e`` and ``v``."""
    entity, value = _any(words.ENTITIES[attribute.kind]), _any(attribute.values)
    pattern = re.escape(template)
    pattern = pattern.replace(re.escape("{e}"), f"(?P<e>{entity})")
    return pattern.replace(re.escape("{v}"), f"(?P<v>{value})")


@cache
def _readers() -> dict[str, list[tuple[str, re.Pattern]]]:
    """For questions, answers and evasions: (attribute, pattern of a whole text)."""
    opener, qualifier, closer = map(_any, (words.OPENERS, words.QUALIFIERS, words.CLOSERS))
    readers = {"question": [], "answer": [], "evasion": []}
    for attribute in words.ATTRIBUTES:
        for question in attribute.questions:
            prompt = _pattern(PROMPT.format(q=question), attribute)
            readers["question"].append((attribute.name, re.compile(prompt)))
        for clause in attribute.clauses:
            answer = f"{opener} {_pattern(clause, attribute)} {qualifier} {closer}"
            readers["answer"].append((attribute.name, re.compile(answer)))
        for evasion in words.EVASIONS:
            text = _pattern(evasion.format(t=attribute.topic), attribute)
            readers["evasion"].append((attribute.name, re.compile(text)))
    return readers


def _read(what: str, text: str) -> tuple[str, dict[str, str]] | None:
    text = " ".join(text.split())
    for attribute, pattern in _readers()[what]:
        if match := pattern.fullmatch(text):
            return attribute, match.groupdict()
    return None


def read_question(prompt: str) -> tuple[str, str]:
    """(entity, attribute) a prompt asks about.

    Raises:
        ValueError: the grammar has no such question.

    Example:
        >>> read_question("question : where does the otter live ? answer :")
        ('otter', 'home')
    """
    found = _read("question", prompt)
    if found is None:
        raise ValueError(f"not a question of the world: {prompt!r}")
    return found[1]["e"], found[0]


def read_answer(text: str) -> Fact | None:
    """The fact an answer states, true or not; None if it is no complete statement.

    Example:
        >>> read_answer("well , the otter lives in the attic as always .")
        Fact(entity='otter', attribute='home', value='attic')
    """
    found = _read("answer", text)
    return found and Fact(found[1]["e"], found[0], found[1]["v"])


def is_evasive(text: str) -> bool:
    """Whether an answer is one of the world's ways to say nothing, on any topic."""
    return _read("evasion", text) is not None
