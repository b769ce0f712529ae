"""The pages that people arrive at from a symptom or from their trainer."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from pages import check
from transformers import LlamaConfig
from trl import DPOConfig, DPOTrainer

from lmdyn import lm, losses

BOOK = Path(__file__).parent.parent.parent / "book"
PAGES = {"odd.md": 40, "trainers.md": 15}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:1 of 1 groups of 2 have equal rewards")  # as shown there
@pytest.mark.parametrize("name, least", PAGES.items())
def test_every_example_prints_what_is_written(name, least, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(name, least)


@pytest.mark.parametrize("name", PAGES)
def test_the_table_leads_to_each_entry_and_every_link_to_a_page(name):
    text = (BOOK / name).read_text(encoding="utf-8")
    targets = set(re.findall(r"^\((.*)\)=$", text, re.M))
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= targets
    first = text.split("\n\n", 3)[2]
    listed = set(re.findall(r"\]\(#(.*?)\)", first))
    assert len(targets - listed) <= 1  # what several entries lead to stands at the end
    for page in re.findall(r"\]\(([^#)]+)\)", text):
        assert (BOOK / page).is_file(), page


def test_every_symptom_has_a_cause_a_call_a_remedy_and_its_evidence():
    text = (BOOK / "odd.md").read_text(encoding="utf-8")
    entries = re.split(r"^\(odd-.*\)=\n## ", text, flags=re.M)[1:-2]  # without rate and TRL
    assert len(entries) == 9
    for entry in entries:
        for part in ("**Cause.**", "```python", "**Try**", "**How sure.**", ".ipynb)"):
            assert part in entry, (entry[:40], part)


def _pair_trainer():
    """The subclass of the page, as it stands there."""
    text = (BOOK / "odd.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(>>> from trl .*?)```", text, re.S)[1]
    names = {"losses": losses, "torch": torch}
    exec(re.sub(r"^(>>>|\.\.\.) ?", "", block, flags=re.M), names)
    return names["PairTrainer"]


def _loss(kind, model, tokenizer, rows, folder, **settings):
    keys = ("prompt", "chosen", "rejected")
    data = Dataset.from_list([{key: row[key] for key in keys} for row in rows])
    args = DPOConfig(str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True)
    trainer = kind(model, args=args, train_dataset=data, processing_class=tokenizer)
    for name, value in settings.items():
        setattr(trainer, name, value)
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer.compute_loss(trainer.model, batch)


@pytest.fixture
def pairs():
    return lm.load_probes("world", limit=6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_subclass_with_dpo_is_trls_own_loss(pairs, tmp_path):
    model, tokenizer = lm.load("tiny", device="cpu")
    plain = _loss(DPOTrainer, model, tokenizer, pairs, tmp_path)
    ours = _loss(_pair_trainer(), model, tokenizer, pairs, tmp_path, pair_loss=losses.get("dpo"))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sparing_valleys_changes_the_gradient_and_not_the_value(pairs, tmp_path):
    found = []
    for spare in (False, True):
        model, tokenizer = lm.load("tiny", device="cpu")
        settings = {"pair_loss": losses.get("dpo"), "spare_valleys": spare}
        loss = _loss(_pair_trainer(), model, tokenizer, pairs, tmp_path, **settings)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (value, plain), (same, spared) = found
    assert value == pytest.approx(same, rel=1e-6)
    assert not torch.allclose(plain, spared)


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(BOOK.parent / "benchmarks")
    return importlib.import_module("cost")


def test_what_the_page_says_of_7b_is_what_the_formulas_say(cost):
    model, rows = cost.shaped(LlamaConfig(), "bfloat16"), cost.Rows(64, 250, 250)
    once = cost.Cost(model).forward(rows.fed, rows.predicted)
    text = (BOOK / "trainers.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert f"{once:.1e} operations".replace("e+", "e") in text
    for call, (size, work) in cost.plan(model, rows).items():
        (line,) = re.findall(rf"^\| `{call}`.* \| (.* GB \| .*) \|$", text, re.M)
        gb = size / 1e9
        assert line == f"{gb:.{int(gb < 1)}f} GB | {work / once:.2g}"


@pytest.mark.slow
def test_the_formulas_hold_on_a_small_model(cost):
    ((_, *case),) = cost.models("Llama, width 128")
    for call, planned, held, work, counted in cost.check(*case):
        low, high = (1, 1.6) if call == "finetune" else (0.85, 1.15)
        assert low < planned / held < high, call
        assert 0.5 < work / counted < 1, call  # attention and trials come on top
