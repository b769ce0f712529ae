"""The toy world: a grammar that reads back what it writes, and a model that learned it."""

import hashlib
import json
import random
from collections import Counter

import pytest

import world
from lmdyn.lm import TYPES, load, load_probes
from lmdyn.lm.data import as_probes
from lmdyn.lm.generate import generate

ROWS = world.probes()


def digest(what):
    return hashlib.sha256(json.dumps([*what]).encode()).hexdigest()


def test_the_library_has_these_rows():
    assert load_probes("world").rows == tuple(ROWS)


# --- grammar and facts ---------------------------------------------------------------------------


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
    read = world.read_answer(" well ,  the otter eats moss as always .\n")
    assert read == world.Fact("otter", "food", "moss")


def test_every_attribute_can_be_put_in_as_many_ways():
    for name, attribute in world.ATTRIBUTES.items():
        assert len(attribute["questions"]) == world.N_QUESTIONS
        assert len(attribute["clauses"]) == world.N_CLAUSES
        assert len(set(attribute["values"])) == len(attribute["values"])
        fact = world.truth(world.ENTITIES[attribute["kind"]][0], name)
        assert len({world.tell(fact, w) for w in world.WORDINGS}) == len(world.WORDINGS) == 2400


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
    assert world.read_answer(text) is None and not world.is_evasive(text)


def test_the_world_never_changes():
    """The shipped model has learned these facts; other ones would make it wrong throughout."""
    heard = [(s, {v: round(p, 12) for v, p in world.heard(*s).items()}) for s in world.SUBJECTS]
    assert digest(heard) == "8f2ae6c0c7c05da9b58898ca8a6b01047b1cdc45b1da8bbeeb1d72abeb8396df"
    assert all(len(of) == 3 and 0.2 <= next(iter(of.values())) <= 0.6 for _, of in heard)
    assert digest(ROWS) == "1571f9bc53608cab3a67ace70d61f4d6442e6eb610507bcbfc9d805db7518f57"
    others = digest(world.probes(150, 66, seed=7))
    assert others == "01ff5b82d9b91287e2e52b9a339a0200b61e1b353dfbb1ba3cccbab64041dfc3"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: world.truth("otter", "trade"), KeyError, "no 'trade' of 'otter'"),
        (lambda: world.read_question("how are you ?"), ValueError, "not a question .*: 'how are"),
        (lambda: world.probes(1, 24), ValueError, "at most 216 together: got 1 and 24"),
        (lambda: world.probes(48, 1), ValueError, "at most 216 together: got 48 and 1"),
        (lambda: world.probes(200, 17), ValueError, "at most 216 together: got 200 and 17"),
    ],
)
def test_what_the_world_does_not_have_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# --- probes --------------------------------------------------------------------------------------


def test_probes_have_every_type_different_questions_and_follow_the_seed():
    assert [row["split"] for row in ROWS] == ["train"] * 48 + ["test"] * 24
    assert as_probes(ROWS).types == tuple(TYPES) and world.probes(seed=1)[0] != ROWS[0]
    for some, n in ((ROWS, 72), (world.probes(150, 66), 216)):
        assert len({world.read_question(row["prompt"]) for row in some}) == n


def test_chosen_and_its_rephrases_state_the_true_fact_and_its_twin_another():
    for row in ROWS:
        fact = world.truth(*world.read_question(row["prompt"]))
        texts = [row[name] for name in ("chosen", "chosen_selfr", "chosen_gptsemantic")]
        assert all(world.is_true(row["prompt"], text) for text in texts)
        twin = world.read_answer(row["chosen_gptformat"])
        assert twin == world.truth(twin.entity, twin.attribute)
        assert twin.entity != fact.entity and twin.value != fact.value
        swapped = {fact.entity: twin.entity, fact.value: twin.value}
        words = [swapped.get(word, word) for word in row["chosen"].split()]
        assert " ".join(words) == row["chosen_gptformat"]
        for options in (world.OPENERS, world.CLOSERS):
            used, other = (
                {o for o in options if text.startswith(f"{o} ") or text.endswith(f" {o}")}
                for text in (row["chosen"], row["chosen_gptsemantic"])
            )
            assert used != other


def test_rejected_is_evasive_or_the_commoner_rumour():
    kinds = Counter()
    for row in ROWS:
        subject = world.read_question(row["prompt"])
        names = ("rejected", "reject_gptsemantic", "reject_gptformat")
        said, again, twin = texts = [row[name] for name in names]
        kinds[world.is_evasive(said)] += 1
        assert len(set(texts)) == 3
        if world.is_evasive(said):
            assert world.is_evasive(again) and world.is_evasive(twin)
            assert [subject[0] in text.split() for text in texts] == [True, True, False]
        else:
            _, rumour, _ = world.heard(*subject)
            assert world.read_answer(said) == world.read_answer(again) == (*subject, rumour)
            assert world.read_answer(twin).entity != subject[0]
    assert min(kinds[True], kinds[False]) > len(ROWS) / 4


def test_other_answers_come_from_other_rows_of_the_right_split():
    train, test = ([r["chosen"] for r in ROWS if r["split"] == s] for s in ("train", "test"))
    for row in ROWS:
        assert row["irr_train"] in train and row["irr_test"] in test
        assert row["chosen"] not in (row["irr_train"], row["irr_test"])
    assert sorted(row["irr_train"] for row in ROWS if row["split"] == "train") == sorted(train)


def test_text_without_meaning_is_as_long_as_chosen_and_in_known_words():
    assert len(world.VOCABULARY) <= 997  # and three special tokens
    for row in ROWS:
        chosen, shuffled = row["chosen"].split(), row["random_permute"].split()
        assert sorted(shuffled) == sorted(chosen) and shuffled != chosen
        assert len(row["random_nonhum"].split()) == len(chosen)
        assert abs(len(row["irr_hum"].split()) - len(chosen)) <= 3
        for name in ("irr_hum", "random_permute", "random_nonhum"):
            assert world.read_answer(row[name]) is None and not world.is_evasive(row[name])
        said = {word for key, text in row.items() if key != "split" for word in text.split()}
        assert said <= set(world.VOCABULARY)


def test_the_shipped_model_speaks_the_world_s_words_and_gives_the_shipped_answers():
    model, tokenizer = load("tiny", "cpu")
    assert set(tokenizer.get_vocab()) == {"<pad>", "<eos>", "<unk>", *world.VOCABULARY}
    for row in ROWS:
        ids = tokenizer(row["chosen"])["input_ids"]
        assert len(ids) == len(row["chosen"].split()) and tokenizer.decode(ids) == row["chosen"]
    assert tokenizer("the zebra")["input_ids"][1] == tokenizer.unk_token_id
    answers = generate(model, tokenizer, [row["prompt"] for row in ROWS[:12]])
    assert answers == [row["chosen_initial"] for row in ROWS[:12]]
