"""Judges that are functions, and win rates."""

import pytest
from scipy.stats import binomtest

from lmdyn.lm import world
from lmdyn.lm.endpoint import EndpointNonsense
from lmdyn.lm.judge import Comparison, TruthJudge, compare

PROMPTS = [f"prompt {i}" for i in range(6)]
A = ["long answer", "ok", "a longer one", "fine", "same", "yes indeed"]
B = ["short", "much longer", "mid", "nice", "same", "no"]


class Longer:
    """Prefers the longer answer; counts, and fails where told to."""

    def __init__(self, name="longer", fail_at=None):
        self.description, self.seen, self.fail_at = {"name": name}, [], fail_at

    def __call__(self, prompt, first, second):
        if len(self.seen) == self.fail_at:
            raise KeyboardInterrupt
        self.seen.append((prompt, first, second))
        difference = len(first) - len(second)
        return "tie" if not difference else "first" if difference > 0 else "second"


def test_each_pair_is_asked_in_both_orders_and_equal_answers_never():
    judge = Longer()
    result = compare(judge, PROMPTS, A, B)
    pairs = [(p, a, b) for p, a, b in zip(PROMPTS, A, B, strict=True) if a != b]
    assert sorted(judge.seen) == sorted(pairs + [(p, b, a) for p, a, b in pairs])
    assert result.outcomes == ("a", "b", "a", "tie", "tie", "a")
    assert (result.wins, result.ties, result.losses, result.n) == (3, 2, 1, 6)
    assert result.win_rate == pytest.approx(4 / 6)
    assert result.consistency == 1 and result.first_share == 0.5


def test_a_judge_that_always_likes_the_first_place_decides_nothing():
    result = compare(lambda prompt, first, second: "first", PROMPTS, A, B)
    assert result.ties == 6 and result.win_rate == 0.5
    assert result.first_share == 1 and result.consistency == pytest.approx(1 / 6)


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    assert Comparison((("a", "tie"), ("tie", "b"), ("b", "a"))).ties == 3


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (3, 10), (10, 10), (71, 90)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_wilson_s(wins, n, level):
    result = Comparison((("a", "a"),) * wins + (("b", "b"),) * (n - wins))
    expected = binomtest(wins, n).proportion_ci(level, method="wilson")
    assert result.interval(level) == pytest.approx(tuple(expected), abs=1e-12)
    with pytest.raises(ValueError, match="level"):
        result.interval(95)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("hi", A, B), "prompts must be a list"),
        (([], [], []), "prompts must be a list"),
        ((PROMPTS, A[:-1], B), "a must be 6 texts, got 5"),
        ((PROMPTS, A, [*B[:-1], None]), r"b\[5\] must be a text, got NoneType"),
    ],
)
def test_bad_texts_are_named(texts, message):
    with pytest.raises(ValueError, match=message):
        compare(Longer(), *texts)


def test_a_verdict_that_is_none_is_refused():
    with pytest.raises(EndpointNonsense, match=r"prompts\[0\].*'maybe'.*pass out to keep them"):
        compare(lambda *_: "maybe", PROMPTS, A, B)


def test_pairs_without_a_verdict_can_be_left_out(tmp_path):
    def judge(prompt, first, second):
        if prompt == PROMPTS[0] or (prompt == PROMPTS[1] and first == B[1]):
            raise EndpointNonsense("no comment")
        return Longer()(prompt, first, second)

    judge.description = {}
    out = tmp_path / "judged.jsonl"
    with pytest.raises(EndpointNonsense, match=r"prompts\[0\]: no comment"):
        compare(judge, PROMPTS, A, B, out=out)
    for _ in range(2):  # asked again, they are left out again
        result = compare(judge, PROMPTS, A, B, out=out, skip_nonsense=True)
        assert result.outcomes == (None, None, "a", "tie", "tie", "a")
        assert result.n == 4 and result.win_rate == 0.75
    with pytest.raises(EndpointNonsense, match="none of the pairs"):
        compare(judge, PROMPTS[:1], A[:1], B[:1], skip_nonsense=True)


def test_in_the_world_a_true_answer_beats_any_other():
    rows = world.probes()
    prompts, chosen, reworded, rejected, other = (
        [row[key] for row in rows]
        for key in ("prompt", "chosen", "chosen_gptsemantic", "rejected", "irr_train")
    )
    judge = TruthJudge()
    assert compare(judge, prompts, chosen, rejected).wins == len(rows)
    assert compare(judge, prompts, rejected, chosen).losses == len(rows)
    assert compare(judge, prompts, chosen, reworded).ties == len(rows)  # both true
    assert compare(judge, prompts, rejected, other).ties == len(rows)  # both not
    with pytest.raises(ValueError, match="not a question of the world"):
        judge("what ?", "a", "b")


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path):
    out = tmp_path / "judged.jsonl"
    first, second = Longer(fail_at=4), Longer()
    with pytest.raises(KeyboardInterrupt):
        compare(first, PROMPTS, A, B, out=out)
    assert out.read_text().count("\n") == 1 + 4
    assert compare(second, PROMPTS, A, B, out=out) == compare(Longer(), PROMPTS, A, B)
    assert len(second.seen) == 6 and not {*first.seen} & {*second.seen}
    with pytest.raises(ValueError, match=r"judged\.jsonl holds no answers of this model"):
        compare(Longer("other"), PROMPTS, A, B, out=out)
    swapped = Longer()  # the file serves these pairs too: both orders are there
    assert compare(swapped, PROMPTS, B, A, out=out).losses == 3 and not swapped.seen
