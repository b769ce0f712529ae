"""The report on a run: what it says, that it is the record's, and that a browser opens it."""

import json
import re
import shutil
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import peft
import pytest
import torch
from tiny import tiny
from transformers import Trainer, TrainingArguments

from lmdyn.lm import ProbeCallback, Trajectory, finetune, load, report, token_mass
from lmdyn.lm.squeeze import squeeze
from lmdyn.lm.trajectory import STATS

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
SQUEEZE = {"chosen": [0, 2, -1, -6], "rejected": [0, -5, -15, -40], "argmax": [0, 2, 4, 8]}


def trajectory(means=SQUEEZE, prompts=16, noise=0.5, split=True, updates=30, meta=None):
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
    log = {"loss": np.linspace(2, 1, updates), "lr": np.full(updates, 1e-3)}
    return Trajectory(
        steps=np.arange(n) * 10,
        examples_seen=np.arange(n) * 40,
        types=types,
        **{name: values.astype(np.float32) for name, values in stats.items()},
        vocab_size=100,
        n_tokens=np.full((prompts, len(types)), 12, np.float32),
        split=np.array(["train", "test"] if split else ["", ""], "U5").repeat(prompts // 2),
        log={name: values.astype(np.float32) for name, values in log.items()},
        meta={"settings": {"loss": "DPO(beta=0.1)", "seed": 7}, "date": "a day"} | (meta or {}),
    )


class Page(HTMLParser):
    """What stands on a page: tables as rows of texts, tags with attributes, text by section."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tables, self.tags, self.sections, self._cells = {}, [], {"": ""}, [""]
        self.feed(self.source)
        self.sections = {" ".join(h.split()): " ".join(t.split()) for h, t in self.sections.items()}
        self.text = " ".join(self.sections.values())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self._rows.append([])
        elif tag in ("h2", "caption", "td", "th"):
            self._cells.append("")

    def handle_endtag(self, tag):
        if tag == "h2":
            self.sections[self._cells.pop()] = ""
        elif tag == "caption":
            self._rows = self.tables.setdefault(self._cells.pop(), [])
        elif tag in ("td", "th"):
            self._rows[-1].append(self._cells.pop())

    def handle_data(self, data):
        self._cells[-1] += data
        self.sections[list(self.sections)[-1]] += data

    def all(self, key):
        """Every value of an attribute."""
        return [attrs[key] for _, attrs in self.tags if key in attrs]

    def table(self, start):
        [found] = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return {row[0]: row[1:] for row in found}


def page_of(folder, *stages, **options):
    """The page of a folder, into which these records are written first, one a stage."""
    for name, record in stages:
        record.save(folder / name / "trajectory")
    return Page(report(folder, **options))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(folder, trajectory, page) of one run that squeezes."""
    versions = {"versions": {"torch": "9.9"}, "hardware": "a machine", "command": "do it"}
    folder, whole = tmp_path_factory.mktemp("plain"), trajectory(meta=versions)
    return folder, whole, page_of(folder, ("", whole))


# ---- what it says ----


def test_tables_are_those_of_the_trajectory(plain):
    _, whole, page = plain
    for split, end in ((None, ""), ("train", ", train"), ("test", ", held-out")):
        header, _, *lines = whole.summary(split).splitlines()
        _, *rows = page.tables[header + end]
        assert [" ".join(row).replace("−", "-").split() for row in rows] == [
            line.split() for line in lines
        ]
    row = page.table("Mean over the tokens")["rejected"]
    label, top = (np.exp(x[..., 1] / 12).mean(1) for x in (whole.logp, whole.argmax_logp))
    expected = [label, top, *(whole.mean("rejected", s) for s in ("label_prob", "prob_sq"))]
    expected += [whole.mean("rejected", "squeeze"), (whole.squeeze[..., 1] > 0).mean(1)]
    for cell, curve in zip(row, expected, strict=True):
        scale = 100 if "%" in cell else 1
        shown = [float(x.strip("%")) / scale for x in cell.replace("−", "-").split(" → ")]
        np.testing.assert_allclose(shown, curve[[0, -1]], atol=6e-3 if scale > 1 else 6e-4)
    assert page.table("All that was logged")["loss"] == ["30", "2", "1", "1", "2"]
    settings = {"setting": ["value"], "loss": ["DPO(beta=0.1)"], "seed": ["7"]}
    assert page.table("Settings") == settings
    around = {"date": ["a day"], "hardware": ["a machine"], "command": ["do it"]}
    around |= {"version of torch": ["9.9"], "checkpoint": ["none in the folder"]}
    assert page.table("Surroundings") == {"what": ["value"], **around}


def test_a_squeeze_is_told_with_its_numbers_and_remedies(plain):
    _, whole, page = plain
    alert = squeeze(whole.steps, *whole.logp.transpose(2, 0, 1), whole.argmax_logp[..., 0])
    assert f"since step {alert.since} (first seen at step 20)" in page.text
    for change in (alert.chosen, alert.rejected, alert.argmax):
        assert f"{change:+.1f}".replace("-", "−") in page.text
    assert "finetune(…, spare_valleys=True)" in page.text and "lmdyn diagnose" in page.text
    assert f"stood highest: step {alert.since}." in page.text
    moved = (whole.logp[-1] - whole.logp[0])[:, 0]
    told = f"chosen {moved[:8].mean():+.1f} on train prompts and {moved[8:].mean():+.1f} on held"
    assert told.replace("-", "−") in page.text


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """The sections of a page of many stages, and the records of the stages."""
    moves = {
        "1-squeeze": SQUEEZE,
        "2-again": {"chosen": [0, -6, 4, -5], "rejected": [0, -6, 2, -9], "argmax": [0, 5, 6, 12]},
        "3-past": {"chosen": [0, -6, 4], "rejected": [0, -6, 2], "argmax": [0, 5, 6]},
        "4-fall": {"chosen": [0, -6], "rejected": [0, -6], "argmax": [0, -5]},
        "5-none": {"chosen": [0, 6], "rejected": [0, 2], "argmax": [0, 5]},
        "6-types": {"chosen": [0, 6], "irr_train": [0, 2]},
        "7-probings": {"chosen": [0], "rejected": [0]},
        "8-probes": {},
        "9-held-out": {"chosen": [0, -3], "rejected": [0, -9], "argmax": [0, 6]},
        "10-noise": {"chosen": [0, 9], "rejected": [0, 0.1]},
        "11-diverged": {"chosen": [0, np.nan], "rejected": [0, np.nan], "argmax": [0, np.nan]},
        "12-budget": SQUEEZE,
    }
    records = {}
    for name, means in moves.items():
        options = {"noise": 3 if "noise" in name else 0.5, "split": name == "9-held-out"}
        updates = 30 if name == "8-probes" else 0  # a figure less is a test sooner
        records[name] = trajectory(means, 16 if means else 0, updates=updates, **options)
    records["9-held-out"].logp[1:, :8, 0] += 20  # the train prompts are learned
    for name in STATS:
        getattr(records["12-budget"], name)[1:, 1::2] = np.nan
    folder = tmp_path_factory.mktemp("stages")
    (folder / "checkpoint-000010").mkdir()
    (folder / "8-probes" / "checkpoint-000020").mkdir(parents=True)
    (folder / "8-probes" / "checkpoint-000020" / "optimizer.pt").touch()
    return page_of(folder, *records.items()), records


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("1-squeeze", "Squeeze: chosen and rejected fall while the likeliest tokens gain, since"),
        ("2-again", r"since step 20 \(first seen at step 30\)"),
        ("3-past", "A squeeze was seen at step 10, and no longer at the end."),
        ("4-fall", r"No squeeze, yet the chosen responses fell by 6.\d nats. .*highest at step 0:"),
        ("5-none", "No squeeze: at no probing had chosen and rejected both fallen"),
        ("6-types", "Not judged: a squeeze shows in chosen and rejected, and the probes lack one"),
        ("7-probings", "Not judged: that takes at least two probings."),
        ("8-probes", "Not judged: nothing was probed. .*The run has not come to its end"),
        ("9-held-out", r"Squeeze on held-out prompts: .* since step 0 \(first seen at step 10\)"),
        (
            "10-noise",
            r"chosen responses rose by .* rejected responses .*within the noise of 16 prom",
        ),
        ("11-diverged", "Not judged: that takes at least two prompts with both"),
        ("12-budget", "8 prompts were not probed every time"),
    ],
)
def test_verdicts(verdicts, stage, said):
    assert re.search(said, verdicts[0].sections[stage])


def test_stages_stand_in_order_with_the_numbers_of_their_records(verdicts):
    page, records = verdicts
    assert [*page.sections] == ["", *records, "The model before and after"]
    assert "12 stages" in page.sections[""]
    assert "3-past: A squeeze was seen at step 10" in page.sections[""]
    logp, argmax = records["9-held-out"].logp[:, 8:], records["9-held-out"].argmax_logp[:, 8:]
    alert = squeeze([0, 10], logp[..., 0], logp[..., 1], argmax[..., 0])
    told = f"changed by {alert.chosen:+.1f} nats and the rejected ones by {alert.rejected:+.1f}"
    assert told.replace("-", "−") in page.sections["9-held-out"]
    assert "Or stop" not in page.sections["9-held-out"]  # nothing comes before step 0
    kept = records["12-budget"].logp[:, ::2, 0].astype(np.float64).mean(1)
    [_, chosen, *_] = page.tables["mean log-prob (nats) of 8 prompts after 0 → 120 examples"]
    assert chosen[1:3] == [f"{x:.2f}".replace("-", "−") for x in kept[[0, -1]]]


# ---- which runs ----


def test_rounds_are_one_run(tmp_path):
    first = trajectory(split=False)
    later = trajectory({name: [curve[-1]] * 2 for name, curve in SQUEEZE.items()}, split=False)
    for name in STATS:  # it begins where the first one ended
        getattr(later, name)[0] = getattr(first, name)[-1]
    (tmp_path / "round-1" / "checkpoint-000030").mkdir(parents=True)
    page = page_of(tmp_path, ("round-0", first), ("round-1", later))
    assert "began at updates 30." in page.text
    assert page.table("Surroundings")["checkpoint"] == ["checkpoint-000030"]
    whole = page_of(tmp_path, ("", Trajectory.join([first, later])))  # as a recipe does
    assert whole.source == page.source
    for kind in ("npz", "json"):
        (tmp_path / f"trajectory.{kind}").unlink()
    other = page_of(tmp_path, ("round-1", first))  # it does not go on from the one before
    assert [*other.sections][1:3] == ["round-0", "round-1"]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("trajectory.npz", lambda data: b"not what it was", "trajectory.npz .*cannot be read"),
        ("trajectory.npz", lambda data: data[:2000] + bytes(1000) + data[3000:], "cannot be read"),
        ("trajectory.json", lambda data: b"{", "trajectory.json cannot be read"),
        ("trajectory.json", lambda data: b"[1]", "trajectory.json is no table of settings"),
        ("trainer_state.json", lambda data: b"[1", "trainer_state.json cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(file, damage, message, tmp_path):
    whole = trajectory(updates=0)
    del whole.meta["settings"]
    whole.save(tmp_path / "trajectory")
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes() if path.exists() else b""))
    with pytest.raises(ValueError, match=message) as caught:
        report(tmp_path)
    assert "\n" not in str(caught.value) and not [*tmp_path.glob("report*")]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no run in .*: there is no trajectory.npz"):
        report(tmp_path)
    trajectory().save(tmp_path / "trajectory")
    (tmp_path / "trajectory.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*trajectory.json"):
        report(tmp_path)
    assert not [*tmp_path.glob("report*")]


# ---- the models ----


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A short run of the shipped model, and its rows, one of which tries to break the page."""
    folder = tmp_path_factory.mktemp("runs")
    words = "question : where is the spoon ?"
    rows = [
        {"prompt": words, "chosen": "the spoon is here", "rejected": "no"},
        {"prompt": f"{words} {EVIL}", "chosen": "it is here", "rejected": "the fox is away"},
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"epochs": 1, "lr": 1e-3, "batch_size": 2, "probes": rows, "progress": False}
    finetune(*load("tiny"), rows, "dpo", out=folder / "run", **settings)
    return folder / "run", file, rows


def parts(mass):
    """The cells of the rejected tokens."""
    of = mass.of("rejected")
    means = [getattr(mass, f"{part}_prob")[of].mean() for part in ("label", "rival", "rest")]
    return [*(f"{mean:.3f}" for mean in means), f"{(mass.squeeze[of] > 0).mean():.0%}"]


def test_models_before_and_after(tuned, tmp_path):
    folder, file, rows = tuned
    page = page_of(folder, model="tiny", rows=file, out=tmp_path / "page.html", device="cpu")
    assert "tiny, the model that the run began with" in page.text
    first = token_mass(*load("tiny", device="cpu"), rows)
    second = token_mass(*load(folder / "checkpoint-000001", device="cpu"), rows, follow=first)
    shown = page.table("Mean probability over the tokens")
    assert shown["rejected, before"] == parts(first)
    assert shown["rejected, after"] == parts(second)
    assert len(page.table("What the model says")) == len(page.table("The pairs that lower")) == 3
    assert EVIL in page.text and "by the model before the run" in page.text


def test_one_model_is_called_what_it_is(tuned, tmp_path):
    folder, file, _ = tuned
    options = {"rows": file, "out": tmp_path / "page.html", "device": "cpu"}
    page = page_of(folder, **options)
    assert [*page.table("Mean prob")] == ["tokens of", "chosen, after", "rejected, after"]
    assert "Without the model before: --model gives it." in page.text
    assert "by the model after the run" in page.text
    other = page_of(folder, model=folder / "checkpoint-000001", **options)
    assert "NOT the model that the run began with" in other.text


def test_models_need_rows_and_rows_a_model(plain, tuned):
    folder, _, page = plain
    assert "python -m lmdyn report DIR --model NAME --rows FILE" in page.text
    with pytest.raises(ValueError, match="a model without rows: pass --rows"):
        report(folder, model="tiny")
    with pytest.raises(ValueError, match=r"rows without a model.*pass --model"):
        report(folder, rows=tuned[1])
    with pytest.raises(ValueError, match="there is no such file"):
        report(folder, model="tiny", rows="nowhere.jsonl")


@pytest.fixture(scope="module")
def adapted(tuned, tmp_path_factory):
    """(folder of a trainer that has tuned an adapter, rows, the model with it, its logs)."""
    folder, (_, file, rows) = tmp_path_factory.mktemp("lora"), tuned
    for part in load("tiny", "cpu"):
        part.save_pretrained(folder / "base")
    model, tokenizer = load(folder / "base", "cpu")
    ids = tokenizer(rows[0]["prompt"])["input_ids"]
    args = TrainingArguments(
        output_dir=str(folder / "run"), max_steps=2, per_device_train_batch_size=1, save_steps=2,
        logging_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, label_names=["labels"],
    )  # fmt: skip
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # peft's own
        model = peft.get_peft_model(model, peft.LoraConfig(**options, task_type="CAUSAL_LM"))
        data = [{"input_ids": ids, "labels": ids}] * 2
        made = Trainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        made.add_callback(ProbeCallback(rows, every=1, budget=None))
        made.train()
    return folder / "run", file, model, made.state.log_history


def test_the_folder_of_a_trainer_with_an_adapter(adapted, tuned):
    folder, file, model, history = adapted
    page = page_of(folder, rows=file, device="cpu")
    losses = [f"{entry['loss']:.4g}" for entry in history if "loss" in entry]
    logged = page.table("All that was logged")
    assert logged["loss"][:3] == ["2", *losses] and logged["lmdyn/chosen"][0] == "3"
    assert "Share of rejected tokens below the squeeze line" in page.text
    assert page.table("Settings")["max_steps"] == ["2"]
    assert page.table("Surroundings")["checkpoint"] == ["checkpoint-2"]
    assert f"checkpoint-2, an adapter merged into {folder.parent / 'base'}." in page.text
    shown = page.table("Mean probability")["rejected, after"]
    assert shown == parts(token_mass(model, load("tiny")[1], tuned[2]))
    assert shown != parts(token_mass(*load("tiny", "cpu"), tuned[2]))
    inner = page_of(folder / "lmdyn", rows=file, device="cpu", model="tiny")  # the same run
    assert inner.table("All that was logged") == logged
    assert "an adapter merged into tiny" in inner.text
    shown = inner.table("Mean probability")
    assert shown["rejected, before"] != shown["rejected, after"]


def test_an_adapter_without_its_model_is_named(adapted, tmp_path, monkeypatch):
    folder, rows, *_ = adapted
    shutil.copytree(folder, tmp_path / "run")
    config = tmp_path / "run" / "checkpoint-2" / "adapter_config.json"
    named = json.loads(config.read_text())
    for base, reason in ((None, "names no model: pass --model"), ("gone", "does not fit 'gone'")):
        config.write_text(json.dumps(named | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=f"checkpoint-2 is an adapter .*{reason}"):
            report(tmp_path / "run", rows=rows, device="cpu")
    for part in tiny("llama", torch.float32):
        part.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="an adapter that does not fit"):
        report(tmp_path / "run", rows=rows, model=str(tmp_path / "other"), device="cpu")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        report(tmp_path / "run", rows=rows, device="cpu")


# ---- the page ----


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """(file, page) of a run of two stages whose texts try to break out."""
    folder = tmp_path_factory.mktemp("evil")
    meta = {"settings": {EVIL: EVIL, "loss": "DPO"}, "command": EVIL}
    for name in ("1-<b>sft", "2-dpo"):
        trajectory(meta=meta).save(folder / name / "trajectory")
    lone = folder / "2-dpo" / "trajectory.json"  # half a surrogate pair, which no file can hold
    lone.write_text(json.dumps(json.loads(lone.read_text(encoding="utf-8")) | {"half": "\ud800"}))
    (folder / "recipe.yaml").write_text(f"model: {EVIL}\n")
    return folder / "report.html", page_of(folder)


def test_nothing_in_a_run_becomes_part_of_the_page(evil):
    _, page = evil
    assert not {"script", "img", "b", "iframe"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(EVIL) == 7 and "1-<b>sft" in page.text


def test_page_is_self_contained_and_named_throughout(evil):
    _, page = evil
    links = [link for key in ("src", "href", "xlink:href", "data") for link in page.all(key)]
    assert [link for link in links if "-" not in link] == ["#models", "#recipe"]
    assert all(link.startswith("#") for link in links) and {"#run-1", "#run-2"} <= set(links)
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]*)\)", page.source) + [link[1:] for link in links]
    assert {*used, *page.all("aria-labelledby")} <= set(ids)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 6 and all(a["role"] == "img" and a["aria-label"] for a in drawings)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and max(np.diff(levels)) == 1
    assert all(a["aria-label"] for _, a in page.tags if a.get("role") == "region")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == len(page.tables) + 7


def test_a_long_run_is_a_small_page_and_comes_whole(tmp_path):
    n = 500
    means = {f"type_{i}": np.linspace(0, -i, n) for i in range(12)}
    means |= {"chosen": np.sin(np.arange(n)), "rejected": np.zeros(n)}
    trajectory(means, updates=50_000).save(tmp_path / "trajectory")
    out = report(tmp_path, tmp_path / "new" / "page.html")
    assert out.stat().st_size < 400_000
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


@pytest.mark.slow
def test_a_browser_opens_it_and_asks_for_nothing(driver, evil):
    path, _ = evil
    ink = "return getComputedStyle(document.querySelector('figure text')).fill"
    seen = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        driver.get(path.as_uri())
        assert driver.title.startswith("Report: ")
        seen.add(driver.execute_script(ink))
    assert seen == {"rgb(28, 36, 48)", "rgb(230, 233, 238)"}
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = {r["request"]["url"] for r in requests if r["documentURL"] == path.as_uri()}
    assert asked == {path.as_uri()}
