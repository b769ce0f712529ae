"""The report on a run: what it says, that it is the record's, and that a browser opens it."""

import json
import re
import shutil
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from tiny import tiny, tiny_rows

from lmdyn.lm._report_model import look_at_models
from lmdyn.lm._report_runs import find_runs
from lmdyn.lm._report_words import verdict
from lmdyn.lm.mass import token_mass
from lmdyn.lm.models import load
from lmdyn.lm.report import report
from lmdyn.lm.squeeze import squeeze
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import STATS, Trajectory

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
SQUEEZE = {"chosen": [0, 2, -1, -6], "rejected": [0, -5, -15, -40], "argmax": [0, 2, 4, 8]}


def trajectory(means=SQUEEZE, prompts=16, noise=0.5, split=True, updates=30, meta=None):
    """A made-up record: each type's log-probs move as said, the prompts differ far more."""
    random = np.random.default_rng(0)
    types = tuple(name for name in means if name != "argmax")
    n = len(next(iter(means.values())))
    shape = n, prompts, len(types)
    own = -50 + 10 * random.normal(size=(prompts, 1))
    moved = np.stack([means[name] for name in types], -1)[:, None]
    arrays = {name: random.uniform(0.1, 0.9, shape) for name in STATS}
    arrays["logp"] = own + moved + noise * random.normal(size=shape)
    argmax = np.array(means.get("argmax", [0] * n))[:, None, None]
    arrays["argmax_logp"] = own / 2 + argmax + noise * random.normal(size=shape)
    arrays["squeeze"] = arrays["prob_sq"] - arrays["label_prob"]
    halves = np.where(np.arange(prompts) < prompts // 2, "train", "test")
    log = {"loss": np.linspace(2, 1, updates), "lr": np.full(updates, 1e-3)}
    return Trajectory(
        steps=np.arange(n) * 10,
        examples_seen=np.arange(n) * 40,
        types=types,
        **{name: values.astype(np.float32) for name, values in arrays.items()},
        vocab_size=100,
        n_tokens=np.full((prompts, len(types)), 12, np.float32),
        split=halves if split else np.full(prompts, "", "U5"),
        log={name: values.astype(np.float32) for name, values in log.items()},
        meta={"settings": {"loss": "DPO(beta=0.1)", "seed": 7}, "date": "a day"} | (meta or {}),
    )


def without_probes():
    whole = trajectory()
    empty = {name: np.empty((0, 0, 0), np.float32) for name in STATS}
    rest = {"n_tokens": np.empty((0, 0), np.float32), "split": np.empty(0, "U5")}
    nothing = np.empty(0, np.int64)
    return Trajectory(
        steps=nothing, examples_seen=nothing, types=(), vocab_size=0, log=whole.log,
        meta=whole.meta, **empty, **rest,
    )  # fmt: skip


class Page(HTMLParser):
    """What stands on a page: tables as rows of texts, attributes, headings, text."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tables, self.tags, self.ids, self.links, self.text = {}, [], [], [], ""
        self._row = self._cell = self._caption = None
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [v for name, v in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag == "caption":
            self.rows = self.tables[self._caption] = []
            self._caption = None
        elif tag in ("td", "th"):
            self._row.append(self._cell)
            self._cell = None
        elif tag == "tr":
            self.rows.append(self._row)

    def handle_data(self, data):
        self.text += data
        if self._caption is not None:
            self._caption += data
        if self._cell is not None:
            self._cell += data

    def table(self, start):
        [found] = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return {row[0]: row[1:] for row in found}


def page_of(folder, **options):
    return Page(report(folder, **options))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(folder, trajectory, page) of one run that squeezes."""
    folder = tmp_path_factory.mktemp("plain")
    versions = {"versions": {"torch": "9.9"}, "hardware": "a machine", "command": "do it"}
    whole = trajectory(meta=versions)
    whole.save(folder / "trajectory")
    return folder, whole, page_of(folder)


# ---- what it says ----


def test_tables_are_the_summaries_of_the_trajectory(plain):
    _, whole, page = plain
    for split, end in ((None, ""), ("train", ", train"), ("test", ", held-out")):
        header, _, *lines = whole.summary(split).splitlines()
        _, *rows = page.tables[header + end]
        assert [" ".join(row).replace("−", "-").split() for row in rows] == [
            line.split() for line in lines
        ]


def test_probabilities_are_those_of_the_trajectory(plain):
    _, whole, page = plain
    row = page.table("Mean over the tokens")["rejected"]
    label, top = (np.exp(x[..., 1] / 12).mean(1) for x in (whole.logp, whole.argmax_logp))
    expected = [label, top, *(whole.mean("rejected", s) for s in ("label_prob", "prob_sq"))]
    expected += [whole.mean("rejected", "squeeze"), (whole.squeeze[..., 1] > 0).mean(1)]
    for cell, curve in zip(row, expected, strict=True):
        scale = 100 if "%" in cell else 1
        shown = [float(x.strip("%")) / scale for x in cell.replace("−", "-").split(" → ")]
        np.testing.assert_allclose(shown, curve[[0, -1]], atol=6e-3 if scale > 1 else 6e-4)


def test_a_squeeze_is_told_with_its_numbers_and_remedies(plain):
    _, whole, page = plain
    logp = whole.logp[..., 0], whole.logp[..., 1], whole.argmax_logp[..., 0]
    alert = squeeze(whole.steps, *logp)
    assert f"since step {alert.since} (first seen at step 20)" in page.text
    for change in (alert.chosen, alert.rejected, alert.argmax):
        assert f"{change:+.1f}".replace("-", "−") in page.text
    assert "finetune(…, spare_valleys=True)" in page.text and "lmdyn diagnose" in page.text
    assert f"stood highest: step {alert.since}." in page.text
    assert "Train against held-out" in page.text


@pytest.mark.parametrize(
    ("kind", "means"),
    [
        ("squeeze", SQUEEZE),
        ("past", {"chosen": [0, -6, 4], "rejected": [0, -6, 2], "argmax": [0, 5, 6]}),
        ("fall", {"chosen": [0, -6], "rejected": [0, -6], "argmax": [0, -5]}),
        ("none", {"chosen": [0, 6], "rejected": [0, 2], "argmax": [0, 5]}),
        ("open", {"chosen": [0, 6], "irr_train": [0, 2]}),
        ("open", {"chosen": [0], "rejected": [0]}),
    ],
)
def test_verdicts(kind, means):
    judged = verdict(trajectory(means))
    assert judged.kind == kind
    # A step is named where there is something to do.
    assert bool(re.search(r"step \d", judged.headline)) == (kind in ("squeeze", "past"))
    if kind == "fall":
        assert "chosen responses fell by 6" in judged.headline and "step 0" in judged.advice[0]
    if kind == "open":
        assert judged.headline.startswith("Not judged: ")


def test_a_change_within_the_noise_is_called_so():
    facts = verdict(trajectory({"chosen": [0, 9], "rejected": [0, 0.1]}, noise=3)).facts
    assert "rose by" in facts[0] and "within the noise of 16 prompts" in facts[1]


def test_a_squeeze_is_counted_from_where_it_lasts():
    means = {"chosen": [0, -6, 4, -5], "rejected": [0, -6, 2, -9], "argmax": [0, 5, 6, 12]}
    judged = verdict(trajectory(means))
    assert "since step 20 (first seen at step 30)" in judged.headline


def test_a_squeeze_on_held_out_prompts_is_told():
    whole = trajectory({"chosen": [0, -3], "rejected": [0, -9], "argmax": [0, 6]})
    whole.logp[1:, :8, 0] += 20  # the train prompts are learned
    judged = verdict(whole)
    assert judged.headline.startswith("Squeeze on held-out prompts: ")
    assert "since step 0 (first seen at step 10)" in judged.headline
    held_out = (
        x[:, 8:] for x in (whole.logp[..., 0], whole.logp[..., 1], whole.argmax_logp[..., 0])
    )
    assert judged.alerts[-1] == squeeze(whole.steps, *held_out)
    assert not [line for line in judged.advice if "stop" in line]  # nothing comes before step 0


def test_log_settings_and_surroundings(plain):
    page = plain[2]
    assert page.table("All that was logged")["loss"] == ["30", "2", "1", "1", "2"]
    settings = {"setting": ["value"], "loss": ["DPO(beta=0.1)"], "seed": ["7"]}
    assert page.table("Settings") == settings
    around = page.table("Surroundings")
    assert around["version of torch"] == ["9.9"] and around["hardware"] == ["a machine"]
    assert around["date"] == ["a day"] and around["command"] == ["do it"]


def test_a_run_without_probes_has_a_page(tmp_path):
    without_probes().save(tmp_path / "trajectory")
    page = page_of(tmp_path)
    assert "Not judged: nothing was probed." in page.text
    assert page.table("All that was logged")["loss"][0] == "30"
    assert page.table("Settings")["seed"] == ["7"]
    assert page_of(tmp_path).source == page.source


def test_prompts_that_were_left_out_do_not_count(tmp_path):
    whole = trajectory()
    for name in STATS:
        getattr(whole, name)[1:, 1::2] = np.nan
    whole.save(tmp_path / "trajectory")
    [run] = find_runs(tmp_path)
    assert run.left_out == 8 and run.trajectory.logp.shape[1] == 8
    page = page_of(tmp_path)
    kept = whole.logp[:, ::2, 0].astype(np.float64).mean(1)
    shown = page.table("mean log-prob (nats) of 8 prompts after 0 → 120 examples")
    assert shown["chosen"][:2] == [f"{x:.2f}".replace("-", "−") for x in kept[[0, -1]]]
    assert "8 prompts were not probed every time" in page.text


# ---- which runs ----


def test_stages_stand_in_order(tmp_path):
    for name in ("10-dpo", "2-extend", "1-sft"):
        trajectory().save(tmp_path / name / "trajectory")
    (tmp_path / "checkpoint-000010").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["1-sft", "2-extend", "10-dpo"]


def test_rounds_are_one_run(tmp_path):
    first = trajectory()
    later = trajectory({name: [curve[-1]] * 2 for name, curve in SQUEEZE.items()})
    for name in STATS:  # it begins where the first one ended
        getattr(later, name)[0] = getattr(first, name)[-1]
    first.save(tmp_path / "round-0" / "trajectory")
    later.save(tmp_path / "round-1" / "trajectory")
    (tmp_path / "round-1" / "checkpoint-000030").mkdir()
    [run] = find_runs(tmp_path)
    assert run.trajectory.steps.tolist() == [0, 10, 20, 30, 40]
    assert run.trajectory.meta["joined"] == [30] and run.checkpoint.name == "checkpoint-000030"
    run.trajectory.save(tmp_path / "trajectory")  # as a recipe does
    [same] = find_runs(tmp_path)
    assert same.trajectory.steps.tolist() == [0, 10, 20, 30, 40]
    assert same.checkpoint == run.checkpoint
    for kind in ("npz", "json"):
        (tmp_path / f"trajectory.{kind}").unlink()
    trajectory().save(tmp_path / "round-1" / "trajectory")  # of another model
    assert [run.name for run in find_runs(tmp_path)] == ["round-0", "round-1"]


def test_a_run_that_was_stopped_says_so(tmp_path):
    without_probes().save(tmp_path / "trajectory")
    (tmp_path / "checkpoint-000020").mkdir()
    assert find_runs(tmp_path)[0].ended
    (tmp_path / "checkpoint-000020" / "optimizer.pt").touch()
    assert find_runs(tmp_path)[0].ended is False
    assert "not come to its end" in page_of(tmp_path).text


def test_the_folder_of_a_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    from lmdyn.lm.callback import ProbeCallback

    model, tokenizer = tiny("llama", torch.float32)
    rows = tiny_rows()
    texts = [f"{row['prompt']} {row['chosen']} <eos>" for row in rows]
    data = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts)["input_ids"]]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=1, logging_steps=1,
        save_steps=2, report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    made = Trainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    made.add_callback(ProbeCallback(rows, every=1, budget=None))
    made.train()
    page = page_of(tmp_path)
    losses = [e["loss"] for e in made.state.log_history if "loss" in e]
    logged = page.table("All that was logged")
    assert logged["loss"][:3] == ["2", *(f"{loss:.4g}" for loss in losses)]
    assert logged["lmdyn/chosen"][0] == "3"
    assert "Share of rejected tokens below the squeeze line" in page.text
    assert page.table("Settings")["max_steps"] == ["2"]
    assert page.table("Surroundings")["checkpoint"] == ["checkpoint-2"]
    [one], [other] = find_runs(tmp_path), find_runs(tmp_path / "lmdyn")
    assert one.log.keys() == other.log.keys() and one.checkpoint.samefile(other.checkpoint)


def nothing(folder):
    pass


def only_settings(folder):
    (folder / "settings.json").write_text("{}")


def half(folder):
    trajectory().save(folder / "trajectory")
    (folder / "trajectory.json").unlink()


def no_arrays(folder):
    trajectory().save(folder / "trajectory")
    (folder / "trajectory.npz").write_bytes(b"not what it was")


def broken_arrays(folder):
    trajectory().save(folder / "trajectory")
    file = folder / "trajectory.npz"
    data = bytearray(file.read_bytes())
    data[2000:3000] = bytes(1000)
    file.write_bytes(data)


def broken_text(folder):
    trajectory().save(folder / "trajectory")
    (folder / "trajectory.json").write_text("{")


def another_text(folder):
    trajectory().save(folder / "trajectory")
    (folder / "trajectory.json").write_text("[1]")


def broken_log(folder):
    whole = trajectory(updates=0, meta={"trainer": "x"})
    del whole.meta["settings"]
    whole.save(folder / "lmdyn" / "trajectory")
    (folder / "trainer_state.json").write_text("[1")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (nothing, FileNotFoundError, "no run in .*: there is no trajectory.npz"),
        (only_settings, FileNotFoundError, "has recorded nothing yet"),
        (half, FileNotFoundError, "there is no .*trajectory.json"),
        (no_arrays, ValueError, "trajectory.npz and .json cannot be read"),
        (broken_arrays, ValueError, "trajectory.npz and .json cannot be read"),
        (broken_text, ValueError, "trajectory.npz and .json cannot be read"),
        (another_text, ValueError, "trajectory.json is no table of settings"),
        (broken_log, ValueError, "trainer_state.json cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(make, error, message, tmp_path):
    make(tmp_path)
    with pytest.raises(error, match=message) as caught:
        report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.glob("report*")]


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report(tmp_path / "nowhere")


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
    model, tokenizer = load("tiny")
    settings = {"epochs": 1, "lr": 1e-3, "batch_size": 2, "probes": rows, "progress": False}
    finetune(model, tokenizer, rows, "dpo", out=folder / "run", **settings)
    return folder / "run", file


def test_models_before_and_after(tuned, tmp_path):
    folder, rows = tuned
    page = page_of(folder, model="tiny", rows=rows, out=tmp_path / "page.html", device="cpu")
    assert "tiny, the model that the run began with" in page.text
    before, after = (load(of, device="cpu") for of in ("tiny", folder / "checkpoint-000001"))
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    first = token_mass(*before, lines)
    second = token_mass(*after, lines, follow=first)
    shown = page.table("Mean probability over the tokens")
    for when, mass in (("before", first), ("after", second)):
        of = mass.of("rejected")
        means = [getattr(mass, f"{part}_prob")[of].mean() for part in ("label", "rival", "rest")]
        assert shown[f"rejected, {when}"][:3] == [f"{mean:.3f}" for mean in means]
    assert len(page.table("What the model says")) == 3
    assert EVIL in page.text and len(page.table("The pairs that lower")) == 3


def test_rows_alone_are_about_the_checkpoint(tuned):
    folder, rows = tuned
    mass, _, pairs = look_at_models(find_runs(folder), None, rows, "cpu")
    assert [row[0] for row in mass.content[-1].rows] == ["chosen, after", "rejected, after"]
    assert "Without the model before: --model gives it." in mass.content[0]
    assert "by the model after the run" in pairs.content[0].caption


def test_another_model_is_called_so(tuned):
    folder, rows = tuned
    mass, *_ = look_at_models(find_runs(folder), folder / "checkpoint-000001", rows, "cpu")
    assert "NOT the model that the run began with" in mass.content[0]


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
    """(folder of a trainer that has tuned an adapter, rows, the model with it)."""
    import peft
    from transformers import Trainer, TrainingArguments

    from lmdyn.lm.callback import ProbeCallback

    folder, rows = tmp_path_factory.mktemp("lora"), tuned[1]
    load("tiny", "cpu")[0].save_pretrained(folder / "base")
    load("tiny")[1].save_pretrained(folder / "base")
    model, tokenizer = load(folder / "base", "cpu")
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # peft's own
        model = peft.get_peft_model(model, peft.LoraConfig(**options, task_type="CAUSAL_LM"))
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    ids = tokenizer(lines[0]["prompt"])["input_ids"]
    args = TrainingArguments(
        output_dir=str(folder / "run"), max_steps=2, per_device_train_batch_size=1, save_steps=2,
        report_to=[], disable_tqdm=True, use_cpu=True, label_names=["labels"],
    )  # fmt: skip
    data = [{"input_ids": ids, "labels": ids}] * 2
    made = Trainer(model, args=args, train_dataset=data, processing_class=tokenizer)
    made.add_callback(ProbeCallback(lines, every=1, budget=None))
    with warnings.catch_warnings(action="ignore"):  # peft's own
        made.train()
    return folder / "run", rows, model


def test_an_adapter_is_merged_into_the_model_that_it_names(adapted):
    folder, rows, model = adapted
    mass, _, pairs = look_at_models(find_runs(folder), None, rows, "cpu")
    said = f"After: checkpoint-2, an adapter merged into {folder.parent / 'base'}."
    assert said in mass.content[0]
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    expected = token_mass(model, load("tiny")[1], lines)
    names = {row[0]: row[1:] for row in mass.content[-1].rows}
    of = expected.of("rejected")
    means = [getattr(expected, f"{part}_prob")[of].mean() for part in ("label", "rival", "rest")]
    assert list(names["rejected, after"][:3]) == [f"{mean:.3f}" for mean in means]
    plain = token_mass(*load("tiny", "cpu"), lines)
    assert abs(plain.label_prob[of].mean() - means[0]) > 1e-3
    assert "by the model after the run" in pairs.content[0].caption


def test_an_adapter_stands_beside_the_model_before(adapted, tmp_path):
    folder, rows, _ = adapted
    page = page_of(folder, model="tiny", rows=rows, out=tmp_path / "page.html", device="cpu")
    shown = page.table("Mean probability over the tokens")
    assert shown["rejected, before"] != shown["rejected, after"]
    assert "an adapter merged into tiny" in page.text


def test_an_adapter_without_its_model_is_named(adapted, tmp_path, monkeypatch):
    folder, rows, _ = adapted
    shutil.copytree(folder, tmp_path / "run")
    config = tmp_path / "run" / "checkpoint-2" / "adapter_config.json"
    named = json.loads(config.read_text())
    for base, reason in ((None, "names no model: pass --model"), ("gone", "does not load")):
        config.write_text(json.dumps(named | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=f"checkpoint-2 is an adapter .*{reason}"):
            report(tmp_path / "run", rows=rows, device="cpu")
    other = tmp_path / "other"
    for part in tiny("llama", torch.float32):
        part.save_pretrained(other)
    with pytest.raises(ValueError, match="an adapter that does not fit"):
        report(tmp_path / "run", rows=rows, model=str(other), device="cpu")
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
    file = report(folder)
    return file, Page(file)


def test_nothing_in_a_run_becomes_part_of_the_page(evil):
    _, page = evil
    assert not {"script", "img", "b", "iframe"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert page.text.count(EVIL) == 7 and "1-<b>sft" in page.text


def test_page_is_self_contained_and_named_throughout(evil):
    _, page = evil
    assert [link for link in page.links if "section" in link] == [
        f"#section-{i + 1}" for i in range(4)
    ]
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|@import|url\((?!#)", page.source)
    assert len(page.ids) == len(set(page.ids))
    named = [attrs[key] for _, attrs in page.tags for key in attrs if key == "aria-labelledby"]
    assert {*named, *(link[1:] for link in page.links)} <= set(page.ids)
    drawings = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(drawings) == 6 and all(a["role"] == "img" and a["aria-label"] for a in drawings)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and max(np.diff(levels)) == 1
    tags = [tag for tag, _ in page.tags]
    assert not [a for _, a in page.tags if a.get("role") == "region" and not a["aria-label"]]
    assert tags.count("caption") == tags.count("table") == len(page.tables) + 7


def test_a_long_run_is_a_small_page_and_comes_whole(tmp_path):
    n = 500
    means = {f"type_{i}": np.linspace(0, -i, n) for i in range(12)}
    means |= {"chosen": np.sin(np.arange(n)), "rejected": np.zeros(n)}
    trajectory(means, updates=50_000).save(tmp_path / "trajectory")
    out = report(tmp_path, tmp_path / "new" / "page.html")
    assert out.stat().st_size < 400_000
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]


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
