import pytest

import world
from lmdyn.lm.endpoint import compare
from truth import truth_judge


def test_in_the_world_a_true_answer_beats_any_other():
    rows = world.probes()
    prompts, chosen, reworded, rejected, other = (
        [row[key] for row in rows]
        for key in ("prompt", "chosen", "chosen_gptsemantic", "rejected", "irr_train")
    )
    assert compare(truth_judge, prompts, chosen, rejected).wins == len(rows)
    assert compare(truth_judge, prompts, rejected, chosen).losses == len(rows)
    assert compare(truth_judge, prompts, chosen, reworded).ties == len(rows)  # both true
    assert compare(truth_judge, prompts, rejected, other).ties == len(rows)  # both not
    with pytest.raises(ValueError, match="not a question of the world"):
        truth_judge("what ?", "a", "b")
