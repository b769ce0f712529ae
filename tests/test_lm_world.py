"""The toy world: a grammar that reads back what it writes, and a model that learned it."""

import hashlib
import json
import math
import random
from collections import Counter

import pytest

from lmdyn.lm import TYPES, load, world
from lmdyn.lm.data import as_probes
from lmdyn.lm.generate import generate


@pytest.fixture(scope="module")
def rows():
    return world.probes()


def digest(what):
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


# --- grammar -------------------------------------------------------------------------------------


def test_whatever_is_told_or_asked_is_read_back():
    rng = random.Random(0)
    facts = [world.Fact(*s, v) for s in world.SUBJECTS for v in world.ATTRIBUTES[s[1]]["values"]]
    assert len(facts) == 4128
    wordings = world.WORDINGS + rng.choices(world.WORDINGS, k=len(facts) - len(world.WORDINGS))
    for fact, wording in zip(facts, wordings, strict=True):
        answer = world.tell(fact, wording)
        assert world.read_answer(answer) == fact and not world.is_evasive(answer)
        assert 8 <= len(answer.split()) <= 26
    for subject in world.SUBJECTS:
        for question in range(world.N_QUESTIONS):
            assert world.read_question(world.ask(*subject, question)) == subject
        for evasion in range(len(world.WORDS["evasions"])):
            text = world.evade(*subject, evasion)
            assert world.is_evasive(text) and world.read_answer(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "well , the otter eats moss as always",  # no closer
        "the otter eats moss as always .",  # no opener
        "well , the otter eats brass as always .",  # not a food
        "well , the otter sells salt as always .",  # not a town
        "well , the otter eats moss as always . .",
    ],
)
def test_what_the_grammar_cannot_say_states_nothing(text):
    assert world.read_answer(text) is None
    assert not world.is_evasive(text)


def test_reading_does_not_mind_how_words_are_spaced():
    read = world.read_answer(" well ,  the otter eats moss as always .\n")
    assert read == world.Fact("otter", "food", "moss")


def test_every_attribute_can_be_put_in_as_many_ways():
    for name, attribute in world.ATTRIBUTES.items():
        assert len(attribute["questions"]) == world.N_QUESTIONS
        assert len(attribute["clauses"]) == world.N_CLAUSES
        assert len(set(attribute["values"])) == len(attribute["values"])
        fact = world.truth(world.ENTITIES[attribute["kind"]][0], name)
        assert len({world.tell(fact, w) for w in world.WORDINGS}) == len(world.WORDINGS) == 2400


# --- facts ---------------------------------------------------------------------------------------


def test_the_world_never_changes(rows):
    """The shipped model has learned these facts; other ones would make it wrong throughout."""
    heard = [(s, {v: round(p, 12) for v, p in world.heard(*s).items()}) for s in world.SUBJECTS]
    assert digest(heard) == "8f2ae6c0c7c05da9b58898ca8a6b01047b1cdc45b1da8bbeeb1d72abeb8396df"
    assert digest(rows) == "1571f9bc53608cab3a67ace70d61f4d6442e6eb610507bcbfc9d805db7518f57"
    assert (
        digest(world.probes(150, 66, seed=7))
        == "01ff5b82d9b91287e2e52b9a339a0200b61e1b353dfbb1ba3cccbab64041dfc3"
    )


def test_the_truth_is_one_of_three_values_heard():
    for subject in world.SUBJECTS:
        heard = world.heard(*subject)
        assert len(heard) == 3 and set(heard) <= set(world.ATTRIBUTES[subject[1]]["values"])
        assert math.isclose(sum(heard.values()), 1)
        assert world.truth(*subject) == (*subject, next(iter(heard)))
        assert 0.2 <= next(iter(heard.values())) <= 0.6


def test_unknown_subjects_are_named():
    with pytest.raises(KeyError, match="no 'trade' of 'otter'"):
        world.truth("otter", "trade")
    with pytest.raises(ValueError, match="not a question of the world: 'how are you"):
        world.read_question("how are you ?")


# --- probes --------------------------------------------------------------------------------------


def test_probes_have_every_type_different_questions_and_follow_the_seed(rows):
    assert [row["split"] for row in rows] == ["train"] * 48 + ["test"] * 24
    assert as_probes(rows).types == tuple(TYPES)
    assert world.probes() == rows and world.probes(seed=1)[0] != rows[0]
    for some, n in ((rows, 72), (world.probes(150, 66), 216)):
        assert len({world.read_question(row["prompt"]) for row in some}) == n


def test_chosen_and_its_rephrases_state_the_true_fact_and_its_twin_another(rows):
    for row in rows:
        fact = world.truth(*world.read_question(row["prompt"]))
        for name in ("chosen", "chosen_selfr", "chosen_gptsemantic"):
            assert world.is_true(row["prompt"], row[name])
        twin = world.read_answer(row["chosen_gptformat"])
        assert twin == world.truth(twin.entity, twin.attribute)
        assert twin.entity != fact.entity and twin.value != fact.value
        swapped = {fact.entity: twin.entity, fact.value: twin.value}
        words = [swapped.get(word, word) for word in row["chosen"].split()]
        assert " ".join(words) == row["chosen_gptformat"]
        for options in (world.OPENERS, world.CLOSERS):
            used = [
                {o for o in options if text.startswith(f"{o} ") or text.endswith(f" {o}")}
                for text in (row["chosen"], row["chosen_gptsemantic"])
            ]
            assert used[0] != used[1]


def test_rejected_is_evasive_or_the_commoner_rumour(rows):
    kinds = Counter()
    for row in rows:
        subject = world.read_question(row["prompt"])
        names = ("rejected", "reject_gptsemantic", "reject_gptformat")
        said, again, twin = texts = [row[name] for name in names]
        assert len(set(texts)) == 3
        if world.is_evasive(said):
            assert world.is_evasive(again) and world.is_evasive(twin)
            assert [subject[0] in text.split() for text in texts] == [True, True, False]
            kinds["evasive"] += 1
        else:
            _, rumour, _ = world.heard(*subject)
            assert world.read_answer(said) == world.read_answer(again) == (*subject, rumour)
            assert world.read_answer(twin).entity != subject[0]
            kinds["rumour"] += 1
    assert min(kinds.values()) > len(rows) / 4


def test_other_answers_come_from_other_rows_of_the_right_split(rows):
    train = [row["chosen"] for row in rows if row["split"] == "train"]
    test = [row["chosen"] for row in rows if row["split"] == "test"]
    for row in rows:
        assert row["irr_train"] in train and row["irr_test"] in test
        assert row["chosen"] not in (row["irr_train"], row["irr_test"])
    assert sorted(row["irr_train"] for row in rows if row["split"] == "train") == sorted(train)


def test_text_without_meaning_is_as_long_as_chosen_and_in_known_words(rows):
    assert len(world.VOCABULARY) <= 997  # and three special tokens
    for row in rows:
        chosen = row["chosen"].split()
        shuffled, random_words = row["random_permute"].split(), row["random_nonhum"].split()
        assert sorted(shuffled) == sorted(chosen) and shuffled != chosen
        assert len(random_words) == len(chosen)
        assert abs(len(row["irr_hum"].split()) - len(chosen)) <= 3
        for name in ("irr_hum", "random_permute", "random_nonhum"):
            assert world.read_answer(row[name]) is None and not world.is_evasive(row[name])
        said = {word for key, text in row.items() if key != "split" for word in text.split()}
        assert said <= set(world.VOCABULARY)


@pytest.mark.parametrize("n_train, n_test", [(1, 24), (48, 1), (200, 17)])
def test_too_few_or_too_many_rows_are_refused(n_train, n_test):
    with pytest.raises(ValueError, match=f"at most 216 together.*got {n_train} and {n_test}"):
        world.probes(n_train, n_test)


# --- hallucination -------------------------------------------------------------------------------


def test_each_kind_of_answer_is_counted_where_it_belongs(rows):
    rows = [row for row in rows if row["split"] == "train"]
    asked = {world.read_question(row["prompt"]): row for row in rows}
    # A row whose attribute is asked of another entity too, with another answer.
    row, value = next(
        (row, world.truth(*other).value)
        for subject, row in asked.items()
        for other in asked
        if other[1] == subject[1] and world.truth(*other).value != world.truth(*subject).value
    )
    entity, attribute = world.read_question(row["prompt"])
    free = set(world.ATTRIBUTES[attribute]["values"]) - {world.truth(*s).value for s in asked}
    unasked = next(s for s in world.SUBJECTS if s not in asked)

    def kinds(answer):
        answer = answer if isinstance(answer, str) else world.tell(answer, world.WORDINGS[7])
        return {n for n, rate in world.hallucination([row], [answer], rows).items() if rate == 1}

    assert kinds(row["chosen"]) == {"true"}
    assert kinds(world.evade(entity, attribute, 0)) == {"evasive"}
    assert kinds(row["random_permute"]) == {"unparsable"}
    assert kinds(row["irr_train"]) == {"off_topic", "borrowed_fact"}
    assert kinds(world.truth(*unasked)) == {"off_topic"}
    assert kinds(world.Fact(entity, attribute, value)) == {"false", "borrowed_value"}
    assert kinds(world.Fact(entity, attribute, sorted(free)[0])) == {"false"}


def test_rates_are_shares_of_all_answers(rows):
    answers = [
        row["chosen" if i % 2 else "irr_train" if i % 4 else "random_permute"]
        for i, row in enumerate(rows)
    ]
    found = world.hallucination(rows, answers)
    assert found["true"] == 0.5 and found["unparsable"] == found["borrowed_fact"] == 0.25
    assert found["false"] == found["evasive"] == 0 and found["off_topic"] == 0.25


def test_bad_answers_and_rows_are_named(rows):
    with pytest.raises(ValueError, match="got 1 answers and 72 rows"):
        world.hallucination(rows, ["well ."])
    with pytest.raises(ValueError, match="'chosen' states no fact of the world: 'no'"):
        world.hallucination(rows[:1], ["well ."], [{"chosen": "no"}])


# --- the shipped model ---------------------------------------------------------------------------


def test_the_shipped_model_speaks_the_world_s_words_and_gives_the_shipped_answers(rows):
    model, tokenizer = load("tiny", "cpu")
    assert set(tokenizer.get_vocab()) == {"<pad>", "<eos>", "<unk>", *world.VOCABULARY}
    for row in rows:
        ids = tokenizer(row["chosen"])["input_ids"]
        assert len(ids) == len(row["chosen"].split()) and tokenizer.decode(ids) == row["chosen"]
    assert tokenizer("the zebra")["input_ids"][1] == tokenizer.unk_token_id
    answers = generate(model, tokenizer, [row["prompt"] for row in rows[:12]])
    assert answers == [row["chosen_initial"] for row in rows[:12]]


def test_the_shipped_model_is_competent_but_not_certain(rows):
    found = world.hallucination(rows, [row["chosen_initial"] for row in rows])
    assert found["unparsable"] == 0
    assert 0.25 < found["true"] < 0.75
    assert found["false"] > 0.2
