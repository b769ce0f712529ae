"""The report on a run: what it says, that it is the record's, and that a browser opens it."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from bs4 import BeautifulSoup
from transformers import Trainer, TrainingArguments

from lmdyn.lm import ProbeCallback, Trajectory, finetune, load, report, token_mass
from lmdyn.lm.report import figures
from lmdyn.lm.squeeze import squeeze
from lmdyn.lm.trajectory import STATS

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
ROWS = [
    {"prompt": "where is the spoon ?", "chosen": " the spoon is here", "rejected": " no"},
    {"prompt": EVIL, "chosen": " it is here", "rejected": " the fox is away"},
]
SQUEEZE = {"chosen": [0, 2, -1, -6], "rejected": [0, -5, -15, -40], "argmax": [0, 2, 4, 8]}


def trajectory(means=SQUEEZE, prompts=16, noise=0.5, split=True, updates=30, **meta):
    """A made-up record: each type's log-probs move as said, the prompts differ far more."""
    random = np.random.default_rng(0)
    types = tuple(name for name in means if name != "argmax")
    n = len(next(iter(means.values()), ()))
    shape = n, prompts, len(types)
    stats = {name: random.uniform(0.1, 0.9, shape) for name in STATS}
    own = -50 + 10 * random.normal(size=(prompts, 1)) + noise * random.normal(size=shape)
    moved = [np.array(means.get(name, [0] * n))[:, None] for name in (*types, "argmax")]
    stats["logp"] = own + (np.stack(moved[:-1], -1) if types else 0)
    stats["argmax_logp"] = own / 2 + moved[-1][..., None]
    stats["squeeze"] = stats["prob_sq"] - stats["label_prob"]
    return Trajectory(
        steps=np.arange(n) * 10,
        examples_seen=np.arange(n) * 40,
        types=types,
        **{name: values.astype(np.float32) for name, values in stats.items()},
        vocab_size=100,
        n_tokens=np.full((prompts, len(types)), 12, np.float32),
        split=np.array(["train", "test"] if split else ["", ""], "U5").repeat(prompts // 2),
        log={"loss": np.linspace(2, 1, updates), "lr": np.full(updates, 1e-3)},
        meta=meta,
    )


class Page(BeautifulSoup):
    """A page, with its text, also by section, in which a minus is a hyphen."""

    def __init__(self, path):
        super().__init__(path.read_text(encoding="utf-8").replace("−", "-"), "html.parser")
        self.words = words(self)
        self.sections = {words(heading): words(heading.parent) for heading in self("h2")}

    def table(self, start, section=""):
        """First cell → the others, in the table with the shortest caption that begins so."""
        tables = [table for table in self("table") if section in table.find_previous("h2").text]
        tables = [table for table in tables if table.caption.text.startswith(start)]
        found = min(tables, key=lambda table: len(table.caption.text))
        return {row.th.text: [cell.text for cell in row(["th", "td"])][1:] for row in found("tr")}


def words(tag):
    return " ".join(tag.text.split())


def page_of(folder, *stages, drawn=False, **options):
    """The page of a folder, into which these records are written first, one a stage.

    Without figures: they take longest, and what stands around them does not depend on them.
    """
    for name, record in stages:
        record.save(folder / name / "trajectory")
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            blank = {"box": "0 0 1 1", "body": ""}
            patch.setattr(figures, "svg", lambda of, *_, **__: any(of.values()) and blank)
        return Page(report(folder, **options))


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """(folder, record of its second stage, page) of a run whose texts try to break out."""
    folder = tmp_path_factory.mktemp("evil")
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    settings = {"epochs": 1, "lr": 1e-3, "batch_size": 2, "progress": False}
    finetune(*load("tiny", "cpu"), ROWS, "dpo", out=folder / "1-<b>sft", **settings)
    whole = trajectory(settings={EVIL: EVIL}, command=EVIL, versions={"torch": "9.9"})
    whole.save(folder / "2-dpo" / "trajectory")
    lone = folder / "2-dpo" / "trajectory.json"  # half a surrogate pair, which no file can hold
    lone.write_text(json.dumps(json.loads(lone.read_text(encoding="utf-8")) | {"half": "\ud800"}))
    (folder / "recipe.yaml").write_text(f"model: {EVIL}\n")
    options = {"model": "tiny", "rows": folder / "pairs.jsonl", "device": "cpu"}
    return folder, whole, page_of(folder, drawn=True, **options)


@pytest.mark.slow
def test_tables_are_those_of_the_trajectory(evil):
    _, whole, page = evil
    for split, end in ((None, ""), ("train", ", train"), ("test", ", held-out")):
        header, _, *lines = whole.summary(split).splitlines()
        _, *rows = page.table(header + end, "2-dpo").items()
        shown = [" ".join([name, *cells]).split() for name, cells in rows]
        assert shown == [line.split() for line in lines]
    row = page.table("Mean over the tokens", "2-dpo")["rejected"]
    label, top = (np.exp(x[..., 1] / 12).mean(1) for x in (whole.logp, whole.argmax_logp))
    expected = [label, top, *(whole.mean("rejected", s) for s in ("label_prob", "prob_sq"))]
    expected += [whole.mean("rejected", "squeeze"), (whole.squeeze[..., 1] > 0).mean(1)]
    for cell, curve in zip(row, expected, strict=True):
        scale = 100 if "%" in cell else 1
        shown = [float(x.strip("%")) / scale for x in cell.split(" → ")]
        np.testing.assert_allclose(shown, curve[[0, -1]], atol=6e-3 if scale > 1 else 6e-4)
    assert page.table("All that was logged", "2-dpo")["loss"] == ["30", "2", "1", "1", "2"]
    assert page.table("Settings", "2-dpo") == {"setting": ["value"], EVIL: [EVIL]}
    around = {"what": ["value"], "command": [EVIL], "half": ["?"], "version of torch": ["9.9"]}
    around["checkpoint"] = ["none in the folder"]
    assert page.table("Surroundings", "2-dpo") == around


def test_a_type_that_no_prompt_has_is_named_once_and_left_out_of_tables(tmp_path):
    whole = trajectory(split=False)
    whole = replace(whole, types=("chosen", "irr_train"), n_tokens=whole.n_tokens.copy())
    for values in (whole.n_tokens, *(getattr(whole, name) for name in STATS)):
        values[..., 1] = np.nan
    page = page_of(tmp_path, ("dpo", whole))
    assert page.words.count("irr_train") == page.words.count("none has irr_train") == 1
    assert "argmax" in page.table("mean log-prob") and "chosen" in page.table("Mean over the tok")


@pytest.mark.slow
def test_a_squeeze_is_told_with_its_numbers_and_remedies(evil):
    _, whole, page = evil
    told = page.sections["2-dpo"]
    read = *whole.logp.transpose(2, 0, 1), whole.argmax_logp[..., 0]
    alert = squeeze(whole.steps, *read, whole.n_tokens)
    assert f"since step {alert.since} (first seen at step 20)" in told
    assert all(f"{x:+.3f}" in told for x in (alert.chosen, alert.rejected, alert.argmax))
    for remedy in ("spare_valleys=True)", "lmdyn diagnose", f"stood highest: step {alert.since}."):
        assert remedy in told
    train, test = (whole.logp[-1] - whole.logp[0])[:, 0].reshape(2, 8).mean(1)
    assert f"chosen {train:+.1f} on train prompts and {test:+.1f} on held-out" in told


def pair(chosen, rejected, argmax):
    return {"chosen": chosen, "rejected": rejected, "argmax": argmax}


# stage → how its log-probs move, and what the page says of it.
STAGES = {
    "1-squeeze": (SQUEEZE, "Squeeze: chosen and rejected fall while the likeliest tokens gain"),
    "2-again": (pair([0, -6, 4, -5], [0, -6, 2, -9], [0, 5, 6, 12]), r"20 \(first seen at step 30"),
    "3-past": (pair([0, -6, 4], [0, -6, 2], [0, 5, 6]), "A squeeze was seen at step 10, and no lo"),
    "4-fall": (pair([0, -6], [0, -6], [0, -5]), "No squeeze, yet .* fell by 6.* at step 0: stop"),
    "5-none": (pair([0, 6], [0, 2], [0, 5]), "No squeeze: at no probing had chosen and rejected"),
    "6-types": ({"chosen": [0, 6], "irr_train": [0, 2]}, "Not judged: .* the probes lack one of"),
    "7-probings": (pair([0], [0], [0]), "Not judged: that takes at least two probings"),
    "8-probes": ({}, "Not judged: nothing was probed.* Pass probes=.* has not come to its end"),
    "9-held-out": (pair([0, -3], [0, -9], [0, 6]), r"Squeeze on held-out prompts: .* step 0 \(fir"),
    "10-noise": (pair([0, 9], [0, 0.1], [0, 0]), "rose by .* within the noise of 16 prompts"),
    "11-diverged": (pair(*[[0, np.nan]] * 3), "Not judged: that takes at least two prompts with"),
    "12-budget": (SQUEEZE, "8 prompts were not probed every time"),
}


def test_verdicts_of_stages_in_order(tmp_path):
    records = {}
    for name, (means, _) in STAGES.items():
        options = {"noise": 3 if "noise" in name else 0.5, "split": name == "9-held-out"}
        records[name] = trajectory(means, 16 if means else 0, **options)
    records["9-held-out"].logp[1:, :8, 0] += 20  # the train prompts are learned
    records["9-held-out"].n_tokens[8:] = [6, 24]
    for stat in STATS:
        getattr(records["12-budget"], stat)[1:, 1::2] = np.nan
    for name in ("checkpoint-000010", "8-probes/checkpoint-000020/optimizer.pt"):
        (tmp_path / name).mkdir(parents=True)
    page = page_of(tmp_path, *records.items())
    assert [*page.sections] == [*STAGES, "The model before and after"]
    assert "python -m lmdyn report DIR --model NAME --rows FILE" in page.words
    assert "12 stages" in page.words and "3-past: A squeeze was seen" in words(page.nav)
    for name, (_, said) in STAGES.items():
        assert re.search(said, page.sections[name]), name
    logp, argmax = records["9-held-out"].logp[:, 8:], records["9-held-out"].argmax_logp[:, 8:]
    lengths = records["9-held-out"].n_tokens[8:]
    alert = squeeze([0, 10], logp[..., 0], logp[..., 1], argmax[..., 0], lengths)
    assert f"changed by {alert.chosen:+.3f} nats a token" in page.sections["9-held-out"]
    assert "Or stop" not in page.sections["9-held-out"]  # nothing comes before step 0
    kept = records["12-budget"].logp[:, ::2, 0].astype(np.float64).mean(1)
    shown = page.table("mean log-prob (nats) of 8 prompts after 0 → 120 examples", "12-budget")
    assert shown["chosen"][:2] == [f"{x:.2f}" for x in kept[[0, -1]]]


def for_a_reward(correct, entropy=(2, 2, 2, 2), reward=(0.2, 0.8), **options):
    """A made-up run: its right answers move as said, wrong ones fall."""
    n = len(correct)
    means = {"chosen_initial": [0] * n, "correct": correct, "wrong": [0, -1, -2, -3][:n]}
    record = trajectory(means, split=False, **options)
    record.entropy[..., 1] = np.array(entropy)[:n, None]
    record.log["reward"] = np.linspace(*reward, 30)
    return record


FADES = (
    r"Right answers fade: .* answers have gone from -[45]\d.\d to -8\d.\d nats; first seen at step "
)
REWARDED = {
    "1-fades": (for_a_reward([0, 2, -30, -36]), FADES + "20[.] The reward went from 0.20 to 0.80"),
    "2-flat": (for_a_reward([0, 1, 2, 3], [2, 2, 1, 0.5]), "At step 30 entropy has gone from 2.00"),
    "3-faded": (for_a_reward([0, -40, 0, 3]), "Right answers had faded on the way, and no longer"),
    "4-kept": (
        for_a_reward([0, 1, 2, 3]),
        "Right answers are kept: .* right answers of the start r",
    ),
    "5-short": (for_a_reward([0]), "Not judged: that takes at least two probings, and two prompts"),
    "6-bad": (for_a_reward([0, 1, 2, 3], reward=(-2, -1)), "The reward went from -2.00 to -1.00"),
}


def test_a_run_for_a_reward_is_judged_by_its_right_answers(tmp_path):
    page = page_of(tmp_path, *((name, record) for name, (record, _) in REWARDED.items()))
    for name, (record, said) in REWARDED.items():
        assert re.search(said, page.sections[name]), (name, page.sections[name][:900])
        assert ("Fewer passes over" in page.sections[name]) == (name in ("1-fades", "2-flat"))
        assert "squeeze shows in chosen" not in page.sections[name]
        logged = page.table("All that was logged", name)
        assert logged["reward"][0] == "30" and logged["lmdyn/entropy"][0] == str(len(record.steps))


@pytest.mark.slow
def test_its_curves_are_right_and_wrong_answers_entropy_and_reward(tmp_path):
    page = page_of(tmp_path, ("", REWARDED["1-fades"][0]), drawn=True)
    first, second, *_ = page("svg")
    texts = [{words(text) for text in svg("text")} for svg in (first, second)]
    assert {"right answer", "wrong answer", "own answer"} <= texts[0]
    assert {"reward", "entropy, nats", "loss"} <= texts[1]
    assert "correct -36." in first["aria-label"].replace("−", "-")
    assert "reward 0.2 → 0.8" in second["aria-label"]


def test_rounds_are_one_run(tmp_path):
    first = trajectory(split=False)
    later = trajectory({name: [curve[-1]] * 2 for name, curve in SQUEEZE.items()}, split=False)
    for name in STATS:  # it begins where the first one ended
        getattr(later, name)[0] = getattr(first, name)[-1]
    (tmp_path / "round-1" / "checkpoint-000030").mkdir(parents=True)
    page = page_of(tmp_path, ("round-0", first), ("round-1", later))
    assert "began at updates 30." in page.words
    assert page.table("Surroundings")["checkpoint"] == ["checkpoint-000030"]
    whole = page_of(tmp_path, ("", Trajectory.join([first, later])))  # as a recipe does
    assert str(whole) == str(page)
    stages = tmp_path / "stages"  # one of them with rounds of which none goes on from another
    other = page_of(stages, ("dpo/round-0", first), ("dpo/round-1", first), ("sft", first))
    assert [*other.sections][:3] == ["dpo round-0", "dpo round-1", "sft"]


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("trajectory.npz", b"not what it was", ValueError, "trajectory.npz .*cannot be read"),
        ("trajectory.json", b"[1]", ValueError, "or trajectory.json cannot be read"),
        ("trainer_state.json", b"[1", ValueError, "trainer_state.json cannot be read"),
        ("trajectory.npz", None, FileNotFoundError, "no run in .*: there is no trajectory.npz"),
    ],
)
def test_what_cannot_be_read_is_named(file, content, error, message, tmp_path):
    trajectory(updates=0).save(tmp_path / "trajectory")
    (tmp_path / file).write_bytes(content) if content else (tmp_path / file).unlink()
    with pytest.raises(error, match=message):
        report(tmp_path)
    assert not [*tmp_path.glob("report*")]


def parts(mass):
    """The cells of the rejected tokens."""
    of = mass.of("rejected")
    means = [getattr(mass, f"{part}_prob")[of].mean() for part in ("label", "rival", "rest")]
    return [*(f"{mean:.3f}" for mean in means), f"{(mass.squeeze[of] > 0).mean():.0%}"]


@pytest.mark.slow
def test_models_before_and_after(evil):
    folder, _, page = evil
    assert "tiny, the model that the run began with" in page.words
    first = token_mass(*load("tiny", device="cpu"), ROWS)
    second = token_mass(*load(folder / "1-<b>sft" / "checkpoint-000001", "cpu"), ROWS, follow=first)
    shown = page.table("Mean probability over the tokens")
    assert shown["rejected, before"] == parts(first)
    assert shown["rejected, after"] == parts(second)
    assert len(page.table("What the model says")) == len(page.table("The pairs that lower")) == 3
    assert "by the model before the run" in page.words


@pytest.mark.slow
def test_one_model_is_called_what_it_is(evil, tmp_path):
    run = evil[0] / "1-<b>sft"
    options = {"rows": evil[0] / "pairs.jsonl", "out": tmp_path / "page.html", "device": "cpu"}
    page = page_of(run, **options)
    assert [*page.table("Mean prob")] == ["tokens of", "chosen, after", "rejected, after"]
    assert re.search("Without the model before: --model.* by the model after the run", page.words)
    options["rows"] = tmp_path / "chosen.jsonl"
    options["rows"].write_text('{"prompt": "where", "chosen": "here"}')
    other = page_of(run, model=run / "checkpoint-000001", **options)
    assert "NOT the model that the run began with" in other.words
    assert "some of the rows have no rejected response" in other.words
    judged = [{"prompt": "where", "completion": "here", "label": good} for good in (True, False)]
    options["rows"].write_text("\n".join(map(json.dumps, judged)))
    with pytest.raises(ValueError, match=r"chosen.jsonl: some rows have no 'chosen' and some no"):
        report(run, **options)
    pairs = [{"prompt": f"where {i}", "chosen": "here", "rejected": "there"} for i in range(50)]
    pairs[-1]["chosen"] = "here " * 5000
    options["rows"].write_text("\n".join(map(json.dumps, pairs)))
    with pytest.raises(ValueError, match=r"^rows\[49\]: .*longer than the \d+ tokens"):
        report(run, **options)


@pytest.mark.slow
def test_the_model_that_a_trainer_saved_itself_is_found(evil, tmp_path):
    trajectory().save(tmp_path / "lmdyn" / "trajectory")
    model, tokenizer = load("tiny", "cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    page = page_of(tmp_path, rows=evil[0] / "pairs.jsonl")
    assert "Without the model before" in page.words


@pytest.mark.slow
def test_models_need_rows_and_rows_a_model(tmp_path, evil):
    trajectory().save(tmp_path / "trajectory")
    with pytest.raises(ValueError, match="a model without rows: pass --rows"):
        report(tmp_path, model="tiny")
    with pytest.raises(ValueError, match=r"rows without a model.*pass --model"):
        report(tmp_path, rows=evil[0] / "pairs.jsonl")


@pytest.mark.slow
def test_the_folder_of_a_trainer_with_an_adapter(evil, tmp_path):
    model, tokenizer = load("tiny", "cpu")
    ids = tokenizer(ROWS[0]["prompt"])["input_ids"]
    data = [{"input_ids": ids, "labels": ids}] * 2
    options = {"max_steps": 2, "logging_steps": 1, "report_to": [], "use_cpu": True}
    args = TrainingArguments(str(tmp_path), **options, disable_tqdm=True, label_names=["labels"])
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    import peft  # takes seconds

    with warnings.catch_warnings(action="ignore"):  # peft's own
        model = peft.get_peft_model(model, peft.LoraConfig(**options, task_type="CAUSAL_LM"))
        made = Trainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        made.add_callback(ProbeCallback(ROWS, every=1, budget=None))
        made.train()
    options = {"rows": evil[0] / "pairs.jsonl", "device": "cpu"}
    page = page_of(tmp_path, **options)
    losses = [f"{entry['loss']:.4g}" for entry in made.state.log_history if "loss" in entry]
    logged = page.table("All that was logged")
    assert logged["loss"][:3] == ["2", *losses] and logged["lmdyn/chosen"][0] == "3"
    assert "Share of rejected tokens below the squeeze line" in page.words
    assert page.table("Settings")["max_steps"] == ["2"]
    assert f"checkpoint-2, an adapter merged into {model.name_or_path}." in page.words
    shown = page.table("Mean probability")["rejected, after"]
    assert shown == parts(token_mass(model, tokenizer, ROWS))
    inner = page_of(tmp_path / "lmdyn", model="tiny", **options)  # the same run
    assert inner.table("All that was logged") == logged
    assert "an adapter merged into tiny" in inner.words


@pytest.mark.slow
def test_page_is_self_contained_and_nothing_in_a_run_becomes_part_of_it(evil):
    _, _, page = evil
    assert not page(["script", "img", "b", "iframe"])
    assert page.text.count(EVIL) == 6 and "1-<b>sft" in page.text
    attrs = [(key, value) for tag in page(True) for key, value in tag.attrs.items()]
    assert not [key for key, _ in attrs if key.startswith("on")]
    links = [value for key, value in attrs if key in ("src", "href", "xlink:href", "data")]
    assert [link for link in links if "-" not in link] == ["#models", "#recipe"]
    assert all(link.startswith("#") for link in links) and {"#run-1", "#run-2"} <= set(links)
    assert not re.search(r"https?:|@import|url\((?!#)", str(page))
    ids = [value for key, value in attrs if key == "id"]
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", str(page)) + [link[1:] for link in links]
    assert {*used, *(value for key, value in attrs if key == "aria-labelledby")} <= set(ids)
    assert len(page("svg")) == 5
    assert all(tag["role"] == "img" and tag["aria-label"] for tag in page("svg"))
    levels = [int(tag.name[1]) for tag in page(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and max(np.diff(levels)) == 1
    assert all(tag["aria-label"] for tag in page(role="region"))


@pytest.mark.slow
def test_a_long_run_is_a_small_page_and_comes_whole(tmp_path):
    means = {f"type_{i}": np.linspace(0, -i, 500) for i in range(12)}
    means |= {"chosen": np.sin(np.arange(500)), "rejected": np.zeros(500)}
    trajectory(means, updates=50_000).save(tmp_path / "trajectory")
    out = report(tmp_path, tmp_path / "new" / "page.html")
    assert out.stat().st_size < 400_000
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


@pytest.mark.slow
def test_a_browser_opens_it_and_asks_for_nothing(driver, evil):
    address = (evil[0] / "report.html").as_uri()
    ink = "return getComputedStyle(document.querySelector('figure text')).fill"
    seen = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(address)
        seen.add(driver.execute_script(ink))
    assert seen == {"rgb(28, 36, 48)", "rgb(230, 233, 238)"}
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    assert driver.get_log("browser") == []
    entries = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [of["params"] for of in entries if of["params"].get("documentURL") == address]
    assert {of["request"]["url"] for of in asked} == {address}
