"""The toy world: a grammar that reads back what it writes, and a model that learned it."""

import hashlib
import json
import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmdyn.lm import TYPES, _grammar, _own_words, _pretrain, _words, world
from lmdyn.lm.data import as_probes
from lmdyn.lm.generate import generate

subjects = st.sampled_from(_grammar.SUBJECTS)
wordings = st.sampled_from(_grammar.WORDINGS)


@pytest.fixture(scope="module")
def rows():
    return world.probes()


@pytest.fixture(scope="module")
def tiny():
    model = AutoModelForCausalLM.from_pretrained(world.TINY)
    return model.eval(), AutoTokenizer.from_pretrained(world.TINY)


# --- grammar -------------------------------------------------------------------------------------


@settings(deadline=None)  # the first call fills caches
@given(subjects, wordings, st.data())
def test_an_answer_is_read_back_as_the_fact_it_tells(subject, wording, data):
    value = data.draw(st.sampled_from(_grammar.ATTRIBUTES[subject[1]].values))
    fact = world.Fact(*subject, value)
    answer = _grammar.tell(fact, wording)
    assert world.read_answer(answer) == fact
    assert not world.is_evasive(answer)
    assert 8 <= len(answer.split()) <= 26


@settings(deadline=None)
@given(subjects, st.integers(0, _grammar.N_QUESTIONS - 1))
def test_a_question_is_read_back_as_its_subject(subject, question):
    assert world.read_question(_grammar.ask(*subject, question)) == subject


@settings(deadline=None)
@given(subjects, st.integers(0, len(_words.EVASIONS) - 1))
def test_an_evasion_is_read_as_such(subject, evasion):
    text = _grammar.evade(*subject, evasion)
    assert world.is_evasive(text)
    assert world.read_answer(text) is None


def test_no_two_wordings_of_a_fact_are_the_same_text():
    for attribute in _words.ATTRIBUTES:
        entity = _words.ENTITIES[attribute.kind][0]
        fact = world.truth(entity, attribute.name)
        texts = {_grammar.tell(fact, w) for w in _grammar.WORDINGS}
        assert len(texts) == len(_grammar.WORDINGS)


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
    for attribute in _words.ATTRIBUTES:
        assert len(attribute.questions) == _grammar.N_QUESTIONS
        assert len(attribute.clauses) == _grammar.CHOICES.clause
        assert len(set(attribute.values)) == len(attribute.values)


def test_the_vocabulary_covers_all_texts_and_is_small(rows):
    words = set(_grammar.vocabulary())
    assert len(words) <= 997  # and three special tokens
    rng = random.Random(0)
    texts = [_pretrain.document(rng) for _ in range(500)]
    texts += [text for row in rows for key, text in row.items() if key != "split"]
    assert {word for text in texts for word in text.split()} <= words


# --- facts ---------------------------------------------------------------------------------------


def test_the_world_never_changes():
    """The shipped model has learned these facts; other ones would make it wrong throughout."""
    heard = [
        (subject, {value: round(share, 12) for value, share in world.heard(*subject).items()})
        for subject in _grammar.SUBJECTS
    ]
    digest = hashlib.sha256(json.dumps(heard).encode()).hexdigest()
    assert digest == "8f2ae6c0c7c05da9b58898ca8a6b01047b1cdc45b1da8bbeeb1d72abeb8396df"


@settings(deadline=None)
@given(subjects)
def test_the_truth_is_one_of_three_values_heard(subject):
    heard = world.heard(*subject)
    assert len(heard) == 3
    assert set(heard) <= set(_grammar.ATTRIBUTES[subject[1]].values)
    assert math.isclose(sum(heard.values()), 1)
    assert world.truth(*subject) == (*subject, next(iter(heard)))
    assert 0.2 <= next(iter(heard.values())) <= 0.6


def test_unknown_subjects_are_named():
    with pytest.raises(KeyError, match="no 'trade' of 'otter'"):
        world.truth("otter", "trade")
    with pytest.raises(ValueError, match="not a question of the world: 'how are you"):
        world.read_question("how are you ?")


# --- probes --------------------------------------------------------------------------------------


def test_probes_have_every_type_and_pass_as_probes(rows):
    assert [row["split"] for row in rows] == ["train"] * 48 + ["test"] * 24
    assert as_probes(rows).types == tuple(TYPES)
    assert len({world.read_question(row["prompt"]) for row in rows}) == len(rows)


def test_probes_are_deterministic_and_follow_the_seed(rows):
    assert world.probes() == rows
    assert world.probes(seed=1)[0] != rows[0]


def test_chosen_and_its_rephrases_state_the_true_fact(rows):
    for row in rows:
        fact = world.truth(*world.read_question(row["prompt"]))
        for name in ("chosen", "chosen_selfr", "chosen_gptsemantic"):
            assert world.is_true(row["prompt"], row[name])
            assert world.states_fact_of(row[name], {"chosen": row["chosen"]})
        twin = world.read_answer(row["chosen_gptformat"])
        assert twin == world.truth(twin.entity, twin.attribute)
        assert twin.entity != fact.entity and twin.value != fact.value


def test_a_semantic_rephrase_differs_in_every_place_and_a_format_twin_in_the_fact_alone(rows):
    for row in rows:
        chosen, semantic = row["chosen"], row["chosen_gptsemantic"]
        fact, twin = world.read_answer(chosen), world.read_answer(row["chosen_gptformat"])
        for options in (_words.OPENERS, _words.CLOSERS):
            used = [
                {o for o in options if text.startswith(f"{o} ") or text.endswith(f" {o}")}
                for text in (chosen, semantic)
            ]
            assert used[0] != used[1]
        swapped = [
            {fact.entity: twin.entity, fact.value: twin.value}.get(word, word)
            for word in chosen.split()
        ]
        assert " ".join(swapped) == row["chosen_gptformat"]


def test_rejected_is_evasive_or_the_commoner_rumour(rows):
    kinds = Counter()
    for row in rows:
        subject = world.read_question(row["prompt"])
        said, again, twin = (
            row[name] for name in ("rejected", "reject_gptsemantic", "reject_gptformat")
        )
        assert len({said, again, twin}) == 3
        if world.is_evasive(said):
            assert world.is_evasive(again) and world.is_evasive(twin)
            assert subject[0] in said.split() and subject[0] in again.split()
            assert subject[0] not in twin.split()
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


def test_text_without_meaning_is_as_long_as_chosen(rows):
    for row in rows:
        chosen = row["chosen"].split()
        shuffled, random_words = row["random_permute"].split(), row["random_nonhum"].split()
        assert sorted(shuffled) == sorted(chosen) and shuffled != chosen
        assert len(random_words) == len(chosen)
        assert abs(len(row["irr_hum"].split()) - len(chosen)) <= 3
        for name in ("irr_hum", "random_permute", "random_nonhum"):
            assert world.read_answer(row[name]) is None and not world.is_evasive(row[name])


def test_all_facts_can_be_asked_at_once():
    rows = world.probes(150, 66)
    assert len({world.read_question(row["prompt"]) for row in rows}) == 216


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
    free = set(_grammar.ATTRIBUTES[attribute].values) - {world.truth(*s).value for s in asked}
    unasked = next(s for s in _grammar.SUBJECTS if s not in asked)

    def rates(fact):
        answer = _grammar.tell(world.Fact(*fact), _grammar.WORDINGS[7])
        return nonzero(answer)

    def nonzero(answer):
        found = world.hallucination([row], [answer], rows)
        return {name for name, rate in found.items() if rate == 1}

    assert nonzero(row["chosen"]) == {"true"}
    assert nonzero(_grammar.evade(entity, attribute, 0)) == {"evasive"}
    assert nonzero(row["random_permute"]) == {"unparsable"}
    assert nonzero(row["irr_train"]) == {"off_topic", "borrowed_fact"}
    assert rates(world.truth(*unasked)) == {"off_topic"}
    assert rates((entity, attribute, value)) == {"false", "borrowed_value"}
    assert rates((entity, attribute, sorted(free)[0])) == {"false"}


def test_rates_are_shares_of_all_answers(rows):
    answers = [
        row["chosen" if i % 2 else "irr_train" if i % 4 else "random_permute"]
        for i, row in enumerate(rows)
    ]
    found = world.hallucination(rows, answers)
    assert found["true"] == 0.5 and found["unparsable"] == found["borrowed_fact"] == 0.25
    names = ("true", "false", "off_topic", "evasive", "unparsable")
    assert math.isclose(sum(found[name] for name in names), 1)


def test_bad_answers_and_rows_are_named(rows):
    with pytest.raises(ValueError, match="got 1 answers and 72 rows"):
        world.hallucination(rows, ["well ."])
    with pytest.raises(ValueError, match="'chosen' states no fact of the world: 'no'"):
        world.hallucination(rows[:1], ["well ."], [{"chosen": "no"}])


# --- the shipped model ---------------------------------------------------------------------------


def test_the_shipped_tokenizer_is_the_one_of_the_grammar_and_loses_nothing(tiny, rows):
    _, tokenizer = tiny
    assert tokenizer.get_vocab() == _pretrain.make_tokenizer().get_vocab()
    for row in rows:
        ids = tokenizer(row["chosen"])["input_ids"]
        assert len(ids) == len(row["chosen"].split())
        assert tokenizer.decode(ids) == row["chosen"]
    assert tokenizer("the zebra")["input_ids"][1] == tokenizer.unk_token_id
    assert tokenizer.eos_token_id is not None and tokenizer.pad_token_id is not None


def test_the_shipped_answers_are_the_models_own(tiny, rows):
    model, tokenizer = tiny
    answers = generate(model, tokenizer, [row["prompt"] for row in rows[:12]])
    assert answers == [row["chosen_initial"] for row in rows[:12]]


def test_the_shipped_model_is_competent_but_not_certain(rows):
    found = world.hallucination(rows, [row["chosen_initial"] for row in rows])
    assert found["unparsable"] == 0
    assert 0.25 < found["true"] < 0.75
    assert found["false"] > 0.2


# --- rebuilding ----------------------------------------------------------------------------------

SMALL = {"steps": 60, "lr": 1e-2, "batch_size": 16, "width": 32, "layers": 1}


def test_a_small_twin_learns_and_comes_out_the_same_again(tmp_path, monkeypatch):
    # To ask it everything would take most of the time.
    monkeypatch.setattr(_own_words, "SUBJECTS", _grammar.SUBJECTS[:2])
    state = torch.get_rng_state()
    losses = _pretrain.rebuild(tmp_path / "a", **SMALL)
    again = _pretrain.rebuild(tmp_path / "b", **SMALL)
    assert losses == again
    assert torch.equal(torch.get_rng_state(), state)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert "model.safetensors" in files and not any(name.startswith(".") for name in files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    rng = random.Random(1)
    texts = [f"{_pretrain.document(rng)} {_pretrain.EOS}" for _ in range(1000)]
    counts = Counter(word for text in texts for word in text.split())
    n = counts.total()
    unigram_entropy = -sum(c / n * math.log(c / n) for c in counts.values())
    assert sum(losses[-10:]) / 10 < unigram_entropy - 0.5


def test_a_rebuild_that_fails_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"the one before")
    monkeypatch.setattr(_own_words, "SUBJECTS", _grammar.SUBJECTS[:2])
    monkeypatch.setattr(_pretrain.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _pretrain.rebuild(tmp_path, **SMALL | {"steps": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"the one before"


@pytest.mark.parametrize("option", [{"steps": 0}, {"width": 48}])
def test_a_rebuild_refuses_what_makes_no_model(tmp_path, option):
    with pytest.raises(ValueError, match="steps must be 1 or more and width a multiple of 32"):
        _pretrain.rebuild(tmp_path / "out", **SMALL | option)
    assert not (tmp_path / "out").exists()


def test_a_diverging_run_names_its_step(tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower the learning rate"):
        _pretrain.rebuild(tmp_path / "out", **SMALL | {"lr": float("inf")})
    assert not (tmp_path / "out").exists()


def test_the_command_rebuilds_or_shows_a_row(tmp_path, monkeypatch, capsys):
    called = {}
    monkeypatch.setattr(
        _pretrain, "rebuild", lambda out, **options: called.update(out=out, **options)
    )
    world.main(["--rebuild", "--out", str(tmp_path), "--steps", "7", "--seed", "3"])
    assert called == {"out": tmp_path, "steps": 7, "seed": 3}
    world.main(["--rebuild"])
    record = json.loads((world.TINY / "rebuild.json").read_text())
    assert called == {"out": world.TINY, "steps": record["steps"], "seed": record["seed"]}
    world.main([])
    assert "chosen_gptsemantic" in capsys.readouterr().out
