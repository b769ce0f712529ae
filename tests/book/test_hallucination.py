"""What answers to questions of the toy world are, and what they borrow."""

import pytest

import world
from hallucination import hallucination

ROWS = world.probes()


def test_each_kind_of_answer_is_counted_where_it_belongs():
    rows = [row for row in ROWS if row["split"] == "train"]
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
        return {n for n, rate in hallucination([row], [answer], rows).items() if rate == 1}

    assert kinds(row["chosen"]) == {"true"}
    assert kinds(world.evade(entity, attribute, 0)) == {"evasive"}
    assert kinds(row["random_permute"]) == {"unparsable"}
    assert kinds(row["irr_train"]) == {"off_topic", "borrowed_fact"}
    assert kinds(world.truth(*unasked)) == {"off_topic"}
    assert kinds(world.Fact(entity, attribute, value)) == {"false", "borrowed_value"}
    assert kinds(world.Fact(entity, attribute, sorted(free)[0])) == {"false"}


def test_rates_are_shares_of_all_answers():
    names = ("random_permute", "chosen", "irr_train", "chosen")
    answers = [row[names[i % 4]] for i, row in enumerate(ROWS)]
    found = hallucination(ROWS, answers)
    assert found == dict.fromkeys(found, 0.0) | {"true": 0.5, "off_topic": 0.25} | {
        "unparsable": 0.25,
        "borrowed_fact": 0.25,
    }
    with pytest.raises(ValueError, match="got 1 answers and 72 rows"):
        hallucination(ROWS, ["well ."])
    with pytest.raises(ValueError, match="'chosen' states no fact of the world: 'no'"):
        hallucination(ROWS[:1], ["well ."], [{"chosen": "no"}])


def test_the_shipped_model_is_competent_but_not_certain():
    found = hallucination(ROWS, [row["chosen_initial"] for row in ROWS])
    assert found["unparsable"] == 0 and 0.25 < found["true"] < 0.75 and found["false"] > 0.2
