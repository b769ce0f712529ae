"""Each claim on the paper, with numbers where it holds and numbers where it does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import figures.paper
from audit import paper
from lessons import paper as source

HOLDS, FAILS = "guarantee, holds", "violated"
GOOD, PART, BAD = "reproduced", "partly", "not reproduced"


def run(seed=0, **changes):
    """A run of 12 prompts at 5 probings: type → its mean way, told by the five values."""
    noise = np.random.default_rng(seed).normal(0, 0.1, (5, 12))
    return {kind: np.array(way, float)[:, None] + noise - 50 for kind, way in changes.items()}


UP, DOWN, BELL, FLAT = (0, 1, 2, 3, 4), (0, -2, -4, -6, -8), (0, 2, 4, 3, 2), (0, 0, 0, 0, 0)
STEEP = (0, -5, -10, -15, -20)


def test_rules():
    ways = run(chosen=UP, rejected=DOWN, irr_train=BELL, argmax=FLAT)
    assert paper.rises(ways, "chosen") and not paper.rises(ways, "argmax")
    assert paper.falls(ways, "rejected") and not paper.falls(ways, "chosen")
    assert [paper.bell(ways, kind) for kind in ways] == [False, False, True, False]
    assert paper.to_the_end(ways, "chosen") and not paper.to_the_end(ways, "irr_train")
    assert paper.throughout(ways, "chosen") and not paper.throughout(ways, "irr_train")
    assert paper.told(ways, "irr_train").endswith(f"({paper.curve(ways, 'irr_train').max():.1f})")
    assert paper.sign(np.array([1.0, np.nan, 1.1, 0.9])) == 1
    assert paper.moved({"a": np.array([[0.0, 0.0], [1.0, 3.0]])}, "a") == "+2.0 ± 1.0"
    assert paper.spread([1, 1.02]) == "+1.0" and paper.spread([-1, 2], 0, False) == "-1 to 2"


def test_a_bell_needs_a_sure_fall():
    peaked = np.zeros((3, 12))
    peaked[1], peaked[2] = 5, 5 - np.resize([3.0, -2.6], 12)  # falls by .2 on average, give or take
    assert peaked[1].mean() > peaked[2].mean() and not paper.bell({"y": peaked}, "y")


def test_a_trend_names_the_parts_that_failed():
    parts = [("it", "here", True), ("it", "here", False), ("that", "", False), ("this", "", True)]
    row = paper.judged("a", "b", "c", parts, "d", also="e")
    assert row == ("a", "b", "d", "c; not: it (here) 1 of 2, that; e", "partly")
    assert paper.judged("a", "", "c", [("it", "", True)], word="found").verdict == "found"


def test_step():
    lr = np.logspace(-4, -2, 9)
    assert [paper.slope(lr, lr**k).verdict for k in (2, 1)] == [HOLDS, FAILS]
    ones = torch.ones(4)
    assert [paper.size_of_A(ones * k, ones).verdict for k in (1, 1.1)] == [HOLDS, FAILS]


def test_arrows():
    right = {"sft": {"chosen": -1.0}, "dpo": {"chosen": -1.0, "rejected": 1.0}}
    assert paper.arrows(right).verdict == GOOD
    assert paper.arrows(right | {"dpo": {"chosen": -1.0, "rejected": -1.0}}).verdict == PART
    assert paper.arrows({"sft": {"chosen": 1.0}}).verdict == BAD


@pytest.fixture(scope="module")
def steps():
    p, y, eta = (part[::40] for part in source.random_steps())
    return p, y, eta, source.log_alpha(p, y, eta)


def test_lemma_and_claims_1_to_3(steps):
    p, y, eta, moved = steps
    assert paper.lemma(source.lemma_1(p, y, eta), moved).verdict == HOLDS
    assert paper.lemma(moved + 1e-3, moved).verdict == FAILS
    assert [paper.claim_1(y, of).verdict for of in (moved, -moved)] == [HOLDS, FAILS]
    assert [paper.claim_2(p, y, of).verdict for of in (moved, -moved)] == [HOLDS, FAILS]
    assert [paper.claim_3(p, y, eta, of).verdict for of in (moved, 2 * moved)] == [HOLDS, FAILS]
    assert [paper.claim_3c(p, y, of).verdict for of in (moved, moved.abs())] == [HOLDS, FAILS]


def test_claims_3a_and_3b():
    even = torch.full((9,), 0.1)
    assert [paper.claim_3a(of).verdict for of in (even, -even)] == [HOLDS, FAILS]
    assert paper.claim_3a(even * torch.arange(1, 10)).verdict == FAILS
    assert paper.claim_3b({"likely": even, "rare": even}).verdict == GOOD
    assert paper.claim_3b({"likely": even, "rare": -even}).verdict == PART
    assert paper.claim_3b({"likely": -even, "rare": -even}).verdict == BAD


def test_claims_4_and_5():
    y, p = torch.tensor([0]), torch.tensor([[0.1, 0.6, 0.3]])
    weak, strong = torch.tensor([[-1.0, 0.1, -0.1]]), torch.tensor([[-1.0, 0.3, -0.5]])
    low, high = (p, strong), (torch.tensor([[0.3, 0.4, 0.3]]), weak)
    assert paper.claim_4(y, low, high).verdict == GOOD
    assert paper.claim_4(y, (p, weak), (high[0], strong)).verdict == PART
    assert paper.claim_5(p, y, weak, 2 * weak).verdict == GOOD
    assert paper.claim_5(p, y, weak, torch.tensor([[-2.0, 0.05, -0.2]])).verdict == PART
    assert paper.claim_5(p, y, weak, torch.tensor([[-0.5, 0.05, -0.05]])).verdict == BAD


def test_simulation():
    assert paper.simulation({"flat": 49, "peak": 49, "valley": 1}, 50).verdict == GOOD
    assert paper.simulation({"flat": 49, "peak": 1, "valley": 1}, 50).verdict == PART
    assert paper.simulation({"valley": 7}, 1000).verdict == BAD


KINDS = ("chosen", "chosen_selfr", "chosen_gptsemantic", "rejected", "irr_train", "argmax")
NOISE = ("random_permute", "random_nonhum")


@pytest.mark.parametrize(
    "claim, good, bad",
    [
        (paper.sft_chosen, UP, BELL),
        (paper.sft_rephrases, BELL, UP),
        (paper.sft_rejected, BELL, DOWN),
        (paper.sft_channel, UP, FLAT),
    ],
)
def test_sft(claim, good, bad):
    runs = {label: run(**dict.fromkeys(KINDS, good)) for label in ("HH", "sample")}
    other = {"sample": run(**dict.fromkeys(KINDS, bad))}
    found = [claim(of, "partly") for of in (runs, runs | other, other)]
    assert [row.verdict for row in found] == [GOOD, PART, BAD]
    assert found[0].here.endswith("with the toy world: partly")


def test_sft_of_nonsense_twins_argmax_and_repetition():
    down, up = (run(**dict.fromkeys((*NOISE, "argmax"), way)) for way in (DOWN, UP))
    assert [paper.sft_random({"a": of}).verdict for of in (down, up)] == [GOOD, BAD]
    assert [paper.sft_argmax({"a": of}).verdict for of in (up, down)] == ["found", "not found"]
    twin = run(chosen_gptsemantic=UP, chosen_gptformat=np.array(UP) / 2)
    turned = run(chosen_gptsemantic=UP, chosen_gptformat=DOWN)
    assert [paper.sft_format({"a": of}).verdict for of in (twin, turned)] == [GOOD, BAD]
    ends = ({"a": (0.1, 0.2)}, {"a": (0.1, 0.2), "b": (0.2, 0.1)}, {"a": (0.2, 0.2)})
    assert [paper.sft_repetition(of).verdict for of in ends] == [GOOD, PART, BAD]


def tuned(**changes):
    whole = dict.fromkeys(("chosen_gptsemantic", "irr_train", "random_permute"), DOWN)
    near = dict.fromkeys(("rejected", "reject_gptsemantic", "reject_gptformat"), STEEP)
    return run(**{"chosen": BELL, "argmax": UP} | whole | near | changes)


@pytest.mark.parametrize(
    "claim, spoilt",
    [
        (paper.dpo_rejected, {"rejected": FLAT}),
        (paper.dpo_near, dict.fromkeys(("reject_gptsemantic", "reject_gptformat"), UP)),
        (paper.dpo_chosen, {"chosen": UP}),
        (
            paper.dpo_others,
            dict.fromkeys(("chosen_gptsemantic", "irr_train", "random_permute"), UP),
        ),
        (paper.dpo_argmax, {"argmax": BELL}),
    ],
)
def test_dpo(claim, spoilt):
    good, bad = {"SmolLM2": [tuned()], "world": [tuned()]}, [tuned(**spoilt)]
    verdicts = [claim(of).verdict for of in (good, good | {"world": bad}, {"SmolLM2": bad})]
    assert verdicts == [GOOD, PART, BAD]


def test_dpo_on_a_type_that_the_world_has_not():
    bare = tuned()
    del bare["reject_gptformat"]
    row = paper.dpo_near({"SmolLM2": [tuned()], "world": [bare]})
    assert row.verdict == GOOD and row.here.count("world") == 1


def test_dpo_faster():
    taught, fast, slow = (40.0, 100, 1e-5), (40.0, 100, 5e-6), (4.0, 100, 1e-5)
    rates = ([fast], [fast, slow], [slow])
    assert [paper.dpo_faster(taught, of).verdict for of in rates] == [GOOD, PART, BAD]


def test_dpo_squeezing():
    noise = np.random.default_rng(0).normal(0, 1e-3, (3, 9))
    squeezed = np.array([[-0.2], [0.1], [-0.1]]) + noise
    world = np.array([[-0.2, 0.1, -0.1]])
    cases = ((squeezed, world), (squeezed, -world), (-squeezed, -world))
    assert [paper.dpo_squeezing([a], b).verdict for a, b in cases] == [GOOD, PART, BAD]


@pytest.mark.parametrize(
    "claim, more",
    [
        (paper.dpo_longer, dict.fromkeys(("chosen", "chosen_gptsemantic", "irr_train"), STEEP)),
        (
            paper.dpo_on_policy,
            dict.fromkeys(("chosen", "chosen_gptsemantic", "irr_train"), UP) | {"argmax": DOWN},
        ),
        (paper.extend_rejected, {"rejected": UP}),
        (
            paper.extend_squeeze,
            dict.fromkeys(("chosen", "chosen_gptsemantic", "irr_train"), UP),
        ),
        (paper.extend_argmax, {"argmax": DOWN}),
    ],
)
def test_runs_compared_prompt_by_prompt(claim, more):
    plain = dict.fromkeys(("chosen", "chosen_gptsemantic", "irr_train", "rejected"), DOWN)
    usual, other = tuned(**plain), tuned(**plain | more)
    good, bad = [(other, usual)], [(usual, other)]
    cases = ({"SmolLM2": good}, {"SmolLM2": good, "world": bad}, {"SmolLM2": bad})
    assert [claim(of).verdict for of in cases] == [GOOD, PART, BAD]


def test_extend():
    low, high = tuned(), tuned()
    high["rejected"] = high["rejected"] + np.linspace(5, 6, 12)
    pairs = {"SmolLM2": [(high, low)]}
    assert paper.extend_start(pairs).verdict == GOOD
    assert paper.extend_start(pairs | {"world": [(low, high)]}).verdict == PART
    less, more = (0.1, 0.2), (0.1, 0.3)
    assert paper.extend_generations([(less, more)], [[0.4], [0.2]]).verdict == GOOD
    assert paper.extend_generations([(less, more)], [[0.1], [0.2]]).verdict == PART
    assert paper.extend_generations([(more, less)], [[0.1], [0.2]]).verdict == BAD


def test_scale():
    good, bad = tuned(), tuned(chosen=UP, rejected=FLAT, argmax=BELL)
    for claim in (paper.scale_rejected, paper.scale_chosen, paper.scale_argmax):
        runs = ({"a": good}, {"a": good, "b": bad}, {"b": bad})
        assert [claim(of).verdict for of in runs] == [GOOD, PART, BAD]
    spared = tuned(**dict.fromkeys(("chosen", "chosen_gptsemantic", "irr_train"), UP))
    fallen = tuned(chosen=DOWN)
    assert paper.scale_extend({"a": (spared, fallen)}).verdict == GOOD
    assert paper.scale_extend({"a": (spared, fallen), "b": (fallen, spared)}).verdict == PART
    assert paper.scale_extend({"a": (fallen, spared)}).verdict == BAD


def test_what_does_not_fall_without_extend_cannot_fall_less():
    kinds = ("chosen", "chosen_gptsemantic", "irr_train")
    flat, high = tuned(**dict.fromkeys(kinds, FLAT)), tuned(**dict.fromkeys(kinds, UP))
    rows = paper.scale_extend({"a": (high, flat)}), paper.extend_squeeze({"a": [(high, flat)]})
    assert [row.verdict for row in rows] == [BAD, BAD]
    risen = {"chosen": BELL}  # ends above its start; the other two fall
    assert paper.scale_extend({"a": (high, tuned(**risen))}).verdict == PART


def test_sft_at_scale_is_two_orders_of_the_same_rows(monkeypatch):
    monkeypatch.chdir(Path(source.__file__).parent.parent)
    first, second = map(source.sft_at_scale, (0, 1))
    assert {"chosen", "random_permute", "argmax"} <= {*first} == {*second}
    assert first["chosen"].shape == second["chosen"].shape
    np.testing.assert_allclose(first["rejected"][0], second["rejected"][0], atol=0.1)
    assert np.abs(first["rejected"][-1] - second["rejected"][-1]).max() > 0.5


def test_what_cannot_be_tested_is_neither_right_nor_wrong():
    rows = [paper.extend_wins(), paper.larger_models(), paper.larger_data()]
    assert {row.verdict for row in rows} == {paper.UNTESTED}
    assert paper.Claims(rows)._repr_markdown_().count("○ not testable here") == 3


def test_slips():
    yes, no = "a slip, corrected", "not a slip"
    right = np.array([-30.0, -22.0])
    assert [paper.slip_argmax(right, k * right)[-1] for k in (2, 1)] == [yes, no]
    assert [paper.slip_norm(0.09, of)[-1] for of in (0.02, 0.08)] == [yes, no]
    assert [paper.slip_uniform(of, 50)[-1] for of in (1 / 50, 50**-0.5)] == [yes, no]
    assert [paper.slip_diagonal(*of)[-1] for of in ((0.9, 0), (0, 0.9))] == [yes, no]
    assert [paper.slip_ipo(of)[-1] for of in (16.7, 1)] == [yes, no]
    assert [paper.slip_space("a", of, "7 nats")[-1] for of in ("b", "a")] == [yes, no]
    assert paper.extend_in_logs((18, 14), (0.4, 0.5))[-1] == BAD
    assert paper.extend_in_logs((14, 18), (0.4, 0.5))[-1] == GOOD


def test_topics():
    rows = [paper.Row("a", "", "", "", word) for word in (GOOD, PART, HOLDS, paper.UNTESTED)]
    assert paper.topic("T", rows)[1:] == (
        "4 rows: 1 guaranteed, 1 reproduced, 1 partly, 1 not testable here",
        "found",
    )
    bad = paper.Row("b", "", "", "", BAD)
    assert [paper.topic("T", of)[2] for of in ([*rows, bad], [bad])] == ["partly", "not found"]
    assert paper.failed([paper.Row("b", "", "", "", FAILS)]) == ["b"]
    with pytest.raises(ValueError, match="no such verdict: perhaps"):
        paper.counts([paper.Row("a", "", "", "", "perhaps")])


def test_claims_of_a_chapter_are_read_from_its_tables(tmp_path, monkeypatch):
    table = paper.ClaimTable([("it $|x|$ falls", "yes", "−1.0", PART), ("it rises", "", "no", BAD)])
    output = {"data": {"text/markdown": table._repr_markdown_()}}
    notebook = {"cells": [{}, {"outputs": [{"text": "-"}, output]}]}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "b.ipynb").write_text(json.dumps({"cells": []}))
    monkeypatch.chdir(tmp_path)
    assert source.claim_of("a", "falls") == ("−1.0", PART)
    assert paper.quoted("c", "p", source.claim_of("a", "^it rises")) == ("c", "p", "", "no", BAD)
    with pytest.raises(ValueError, match="2 claims of a match 'it', not one"):
        source.claim_of("a", "it")
    with pytest.raises(ValueError, match=r"b\.ipynb shows no claim table"):
        source.claim_of("b", "it")


def test_the_figure_of_verdicts():
    ax = figures.paper.verdicts({"A": {GOOD: 3, BAD: 1}, "B": {HOLDS: 2}})
    assert [bars.get_label() for bars in ax.containers] == [HOLDS, GOOD, BAD]
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    assert widths == [[0, 2], [3, 0], [1, 0]]
    assert [bar.get_x() for bar in ax.containers[2]] == [3, 2]
    ax.figure.canvas.draw()
