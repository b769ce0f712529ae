"""Each claim of chapter 13 can hold and can fail; its lesson and its figures do what they say."""

import json
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import figures.gpu as draw
from audit import gpu as claims
from audit.scale import Moved
from lessons import gpu
from lmdyn.lm.recipes import dry_run


def verdict(rows):
    return [row[-1] for row in rows]


def test_plans_can_be_wrong():
    fits = {"a", "b"}
    assert verdict(claims.of_plans([0, 0.05], [0, 2.3], fits, fits)) == ["guarantee, holds"] * 3
    assert verdict(claims.of_plans([0, -0.06], [0], fits, fits))[0] == "violated"
    assert verdict(claims.of_plans([0], [-0.02, 2], fits, fits))[1] == "violated"
    assert verdict(claims.of_plans([0], [0], {"a"}, fits))[2] == "violated"


def test_a_resumed_run_must_be_equal_and_a_thrifty_one_close():
    assert verdict(claims.of_runs(0, 1e-5, 3)) == ["guarantee, holds"] * 2
    assert verdict(claims.of_runs(1e-7, 1e-3, 3)) == ["violated"] * 2


@pytest.mark.parametrize("whole, half, holds", [(1, 0.01, True), (0.9, 0.01, False), (1, 1, False)])
def test_precision(whole, half, holds):
    said = "guarantee, holds" if holds else "violated"
    assert verdict(claims.of_precision({"float32": whole, "bfloat16": half})) == [said]


def measured(peak, planned):
    return SimpleNamespace(peak_gb=peak, planned_gb=planned)


def test_what_was_measured_can_exceed_its_plan_and_differ_from_the_cpu():
    rows = [measured(1, 2), measured(9, None), measured(2, 2)]
    assert verdict(claims.of_measured(rows, {"score": 1e-5})) == ["found", "found"]
    assert "2 of 2" in claims.of_measured(rows, {"score": 1e-5})[0][2]
    rows.append(measured(3, 2))
    assert verdict(claims.of_measured(rows, {"score": 1e-2})) == ["not found", "not found"]


def test_extend_must_save_more_than_two_errors_of_what_falls():
    after_sft, less, mixed = np.array([[-6.0, -7, -8, -5], [4, 5, 6, 5], [4, -5, 6, -5]])
    assert claims.of_extend(10, after_sft, after_sft + less, "less")[-1] == "found"
    assert claims.of_extend(10, after_sft, after_sft + mixed, "less")[-1] == "not found"
    assert claims.of_extend(10, -after_sft, 5 - after_sft, "less")[-1] == "not found"


AS_IN_PAPER = dict(zip(claims.NUMBERS, (-2.0, -30, -9, -8, 5), strict=True))
AFTER = dict(zip(claims.NUMBERS, (-1.0, -10, -3, -2, 4), strict=True))
WRONG = dict(zip(claims.NUMBERS, (1.0, 3, 2, 8, -5), strict=True))
WRONG_AFTER = dict(zip(claims.NUMBERS, (-1.0, -10, -3, -2, 4), strict=True))


def test_what_the_paper_saw_can_be_seen_or_not():
    seen, not_seen = claims.look(AS_IN_PAPER, AFTER), claims.look(WRONG, WRONG_AFTER)
    assert set(seen.values()) == {True} and set(not_seen.values()) == {False}
    assert verdict(claims.of_dpo({"page": seen})) == ["reproduced"] * 6
    assert verdict(claims.of_dpo({"page": not_seen})) == ["not reproduced"] * 6
    assert verdict(claims.of_dpo({"page": seen, "record": not_seen})) == ["partly"] * 6
    assert claims.look(AS_IN_PAPER)["after extend chosen ends higher beside its start"] is None
    assert claims.look(AS_IN_PAPER | {"argmax": np.nan})["the argmax rises"] is None


def test_logs_that_do_not_hold_a_type_do_not_count():
    told = claims.in_logs()
    assert told["chosen ends lower than it began"] == "in 3 of 4 logs; its repetition: yes"
    assert told["the argmax rises"] == "in 2 of 2 logs; its repetition: yes"
    assert told["after extend rejected falls less"] == "its repetition: yes"


def curves(rejected):
    """Two prompts, three probings: chosen rises by 1 each time, rejected as told."""
    steps = np.arange(3.0)[:, None] * np.ones(2)
    of = {"chosen": steps, "rejected": rejected * steps, "argmax": 0 * steps}
    return of | {claims.HELD_OUT: -2 * steps - 7}


def test_changes_are_read_between_the_probings_where_the_margin_is_reached():
    of = curves(rejected=-4)  # margins 0, 5, 10
    assert claims.mean_margin(of).tolist() == [0, 5, 10]
    found = claims.changes_at(7.5, of)
    assert {name: change.tolist() for name, change in found.items()} == {
        "chosen": [1.5] * 2,
        "rejected": [-6] * 2,
        "argmax": [0] * 2,
        claims.HELD_OUT: [-3] * 2,
    }
    with pytest.raises(ValueError, match=r"at most 10\.00, never 11\.00"):
        claims.changes_at(11, of)


def test_the_changes_of_a_run_are_those_of_one_split():
    seen = []

    def mean(name, split):
        seen.append(split)
        return np.array([1.0, 0.5, claims.NUMBERS.index(name)])

    found = claims.changed(SimpleNamespace(mean=mean))
    assert found["rejected"] == 0 and found["argmax"] == 3 and set(seen) == {"train"}


@pytest.mark.parametrize("name", ["pythia-410m", "qwen1.5-0.5b"])
def test_a_plan_tells_what_a_dry_run_tells(name, tmp_path):
    planner, changes = gpu.Planner(tmp_path), [*gpu.T4, "probes.limit=2"]
    plan = planner(name, changes=changes)
    told = dry_run(planner.recipe(name, changes=changes), planner.tokenizer)
    assert f"{plan.parameters / 1e6:,.1f}M parameters" in told
    assert f"about {plan.peak / 1e9:.2f} GB" in told
    assert f"{plan.operations:.2e} operations" in told
    assert plan.parameters == gpu.counted(name)
    rows = dict(gpu.table(told).rows)
    assert list(rows)[:3] == ["rows", "probes", "0-sft"] and "time" in rows


def test_a_disconnect_comes_after_so_many_updates_and_only_inside():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, made = torch.optim.SGD([weight]), 0

    def updates():
        nonlocal made
        for _ in range(5):
            optimizer.step()
            made += 1

    with gpu.disconnect(after=3):
        updates()
    assert made == 2  # the third was made, and then interrupted
    updates()
    assert made == 7


def test_without_a_gpu_a_tiny_model_takes_its_place(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = gpu.choose()
    assert here.recipes == ("tiny-dpo", "tiny-extend") and not here.has_gpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA T4")
    monkeypatch.setattr(gpu, "within_reach", lambda model: True)
    here = gpu.choose()
    assert here.recipes == ("pythia-410m-hh-dpo-t4", "pythia-410m-hh-extend-t4")
    assert here.has_gpu and here.said.startswith("NVIDIA T4")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_curves_share_a_scale_and_mark_where_dpo_begins():
    x, of = np.arange(3), {"chosen": np.array([0, 1, 2.0]), "rejected": np.array([0, -5, -9.0])}
    left, right = draw.curves({"a": (x, of, None), "b": (x, of, 1)})
    assert left.get_ylim() == right.get_ylim()
    lines = [line.get_xdata() for line in right.lines]
    assert [1, 1] in [list(xs) for xs in lines]
    assert sorted(text.get_text() for text in left.texts) == ["chosen $y^+$", "rejected $y^-$"]


def test_bars_are_means_and_rows_have_their_names():
    of = {"chosen": Moved(1, 0.1), claims.HELD_OUT: Moved(-6, 0.5)}
    less = {"chosen": Moved(4, 0.1), claims.HELD_OUT: Moved(-1, 0.5)}
    (ax,) = draw.at_margin({"a": dict(zip(draw.WAYS, (of, less), strict=True))})
    assert [bar.get_width() for bar in ax.patches] == [1, -6, 4, -1]
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "chosen $y^+$",
        "chosen $y^+$\nheld out",
    ]


def test_measurements_are_pairs_of_bars():
    memory, time = draw.measured({"SFT": (7.2, 6.5)}, {"SFT": (0.07, 0.05)})
    assert [bar.get_width() for bar in memory.patches] == [7.2, 6.5]
    assert [bar.get_width() for bar in time.patches] == pytest.approx([70, 50])


def test_stand_in_rows_are_as_many_as_the_papers(tmp_path):
    rows = [json.loads(line) for line in gpu.Planner(tmp_path).rows.read_text().splitlines()]
    assert sum(row["split"] == "train" for row in rows) == 500
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_a_trajectory_gives_training_and_held_out_curves():
    of = {name: np.float32(np.arange(8).reshape(2, 4, 1)) for name in ("logp", "argmax_logp")}
    run = SimpleNamespace(split=np.array(["train", "test", "train", "test"]))
    run.values = lambda name, split: of["logp"][..., 0][:, run.split == split]
    found = claims.curves_of(run)
    assert found["chosen"].tolist() == [[0, 2], [4, 6]]
    assert found[claims.HELD_OUT].tolist() == [[1, 3], [5, 7]]
