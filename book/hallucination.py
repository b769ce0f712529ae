"""What a model's answers to questions of the toy world are, and what they borrow from training."""

from collections import Counter
from collections.abc import Mapping, Sequence

import world

KINDS = ("true", "false", "off_topic", "evasive", "unparsable", "borrowed_fact", "borrowed_value")


def hallucination(
    rows: Sequence[Mapping[str, str]],
    answers: Sequence[str],
    trained: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, float]:
    """What the answers are, as shares of all of them.

    The first five add up to one. The borrowed ones are the hallucinations that finetuning on
    other questions can cause; compare ``borrowed_value`` with its rate before, as a false value
    may coincide with a trained one by chance.

    Args:
        rows: the N questions asked, as `world.probes` gives them.
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
    """
    if not len(rows) or len(rows) != len(answers):
        raise ValueError(
            f"each row needs one answer, got {len(answers)} answers and {len(rows)} rows"
        )
    if trained is None:
        trained = [row for row in rows if row.get("split") == "train"]
    facts = {world.read_answer(row["chosen"]): row["chosen"] for row in trained}
    if None in facts:
        raise ValueError(f"'chosen' states no fact of the world: {facts[None]!r}")
    counts = Counter()
    for row, answer in zip(rows, answers, strict=True):
        subject, said = world.read_question(row["prompt"]), world.read_answer(answer)
        if said is None:
            counts["evasive" if world.is_evasive(answer) else "unparsable"] += 1
        elif said == world.truth(*subject):
            counts["true"] += 1
        elif said[:2] != subject:
            counts["off_topic"] += 1
            counts["borrowed_fact"] += said in facts
        else:
            counts["false"] += 1
            counts["borrowed_value"] += any(f[1:] == said[1:] and f != said for f in facts)
    return {kind: counts[kind] / len(rows) for kind in KINDS}
