"""Recipes: what is read, what is refused, and that a run is the one that the recipe describes."""

import dataclasses
import json
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from forked import launched
from runs import same_runs, same_weights
from tiny import FAMILIES, tiny, tiny_rows
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch.nn.modules.module import register_module_forward_hook
from transformers import GPTNeoXConfig, PreTrainedTokenizerFast

from lmdyn import losses
from lmdyn.lm import Format, Trajectory, finetune, finetune_on_policy, load, load_probes
from lmdyn.lm.batches import pack
from lmdyn.lm.data import as_probes
from lmdyn.lm.forward import hidden
from lmdyn.lm.recipes import catalogue, dry_run, extend, read, run
from lmdyn.lm.recipes.running import lengths, memory, operations
from lmdyn.lm.settings import Plan
from lmdyn.lm.tokens import encode
from lmdyn.lm.trajectory import STATS

# A few updates on a few rows, in float64.
QUICK = ["dtype=float64", "device=cpu", "data.limit=6", "probes.limit=2"]
QUICK += ["probes.types=[chosen, rejected]", "defaults.probe_every=1", "defaults.max_steps=2"]
KINDS = {"sft": 1, "dpo": 2, "extend": 2}  # → stages
AGAIN = ["stages.1.probe_every=1"]  # which tiny-dpo sets for itself


def quick(name="tiny-dpo", *changes):
    return read(name, [*QUICK, *AGAIN[name == "tiny-sft" :], *changes])


def close(a, b):
    for name in STATS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), 1e-5, 1e-6, err_msg=name)
    for name, values in a.log.items():
        np.testing.assert_allclose(values, b.log[name], 1e-5, 1e-6, err_msg=name)


def written(file, rows):
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


# --- reading ------------------------------------------------------------------------------------


def test_the_catalogue_has_the_papers_models_and_datasets_and_small_ones():
    names = [f"{small}-{kind}" for small in ("tiny", "smollm2") for kind in ("dpo", "extend")]
    names += ["smollm2-first", "tiny-sft", "tiny-on-policy"]
    names += ["paper-sft", "paper-dpo", "paper-extend"]
    models = ["pythia-410m", "pythia-1b", "pythia-1.4b", "pythia-2.8b"]
    models += ["qwen1.5-0.5b", "qwen1.5-1.8b"]
    names += [f"{m}-{d}-{k}" for m in models for d in ("hh", "ultrafeedback") for k in KINDS]
    on_t4 = {name for name in catalogue() if name.endswith("-t4")}
    assert set(catalogue()) == {*names, *on_t4} and len(on_t4) == 12
    fit = {"pythia-410m", "qwen1.5-0.5b"}  # chapter 13 holds it against the estimates
    assert {name.split("-hh-")[0].split("-ultra")[0] for name in on_t4} == fit
    # The command that lists them reads them all.
    for number, model in enumerate(models):
        kind, data = [*KINDS][number % 3], ("hh", "ultrafeedback")[number % 2]
        recipe = read(f"{model}-{data}-{kind}")
        assert recipe.name == f"{model}-{data}-{kind}" and recipe.about
        assert recipe.model.lower().endswith(model) and len(recipe.stages) == KINDS[kind]
        assert recipe.data.source == recipe.probes.source == data


def test_paper_settings_and_the_same_updates_on_a_t4_in_less_memory():
    plain, t4 = read("pythia-410m-hh-dpo"), read("pythia-410m-hh-dpo-t4")
    for stage in plain.stages:
        assert (stage.optimizer, stage.lr, stage.warmup) == ("rmsprop", 5e-7, 150)
        assert (stage.batch_size, stage.accumulate, stage.clip) == (4, 1, 10.0)
    sft, dpo = plain.stages
    assert sft.get_loss() == losses.get("sft") and (sft.epochs, dpo.epochs) == (8, 6)
    assert dpo.get_loss() == losses.get("dpo", beta=0.1)
    extended = read("qwen1.5-1.8b-hh-extend").stages[0]
    assert extended.both and extended.epochs == 4
    assert t4.gradient_checkpointing and t4.dtype == "float32"
    halves = [dataclasses.replace(stage, batch_size=2, accumulate=2) for stage in plain.stages]
    assert halves == t4.stages and sft.mixed_precision == "no"


def test_a_recipe_reads_its_own_yaml_and_changes_reach_stages(tmp_path):
    changes = ["seed=2", "mixed_precision=no", "stages.0.lr=1e-5", "defaults.batch_size=2"]
    recipe, file = quick("tiny-on-policy", *changes), tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read(file) == recipe and "\nseed: 2\n" in recipe.to_yaml()
    again = read(file, ["seed=5", "stages.1.seed=4"])
    for name, values in {"seed": [5, 4], "lr": [1e-5, 1e-4], "batch_size": [2, 2]}.items():
        assert [getattr(stage, name) for stage in again.stages] == values


def test_a_file_extends_others_by_name_and_by_path(tmp_path):
    mine, more = tmp_path / "mine.yaml", tmp_path / "more.yaml"
    mine.write_text("extends: tiny-dpo\nname: first\nseed: 3\nstages.1: {lr: 1e-5}")
    more.write_text("extends: mine.yaml\nabout: x")
    assert read(mine).name == "first"
    recipe = read(more)
    assert (recipe.name, recipe.stages[1].seed, recipe.stages[1].lr) == ("more", 3, 1e-5)
    assert recipe.stages[0] == dataclasses.replace(read("tiny-dpo").stages[0], seed=3)


WRONG = {
    "sed=1": "sed: Key 'sed' not in 'Recipe'",
    "stages.0.lrr=1": "stages.0.lrr: Key 'lrr' not in 'Stage'. Did you mean: 'lr'?",
    "data.sorce=hh": "data.sorce: Key 'sorce' not in 'Data'. Did you mean: 'source'?",
    "stages.7.lr=1": "stages.7: there are 2 of them, counted from 0",
    "seed": "seed: a change is key=value",
    "seed=x": "seed: Value 'x' of type 'str' could not be converted to Integer",
    "seed=-1": "seed must be an integer of at least 0",
    "stages.0.epochs=1.5": "stages.0.epochs: Value '1.5' of type 'float' could not be",
    "stages.1.lr=-1": "stages.1: lr must be a finite number above 0",
    "stages.1.loss=dop": "stages.1: unknown loss 'dop': did you mean 'dpop'?",
    "stages.1.hyper.bet=1": "did you mean 'beta'?",
    "stages.1.both=true": "stages.1: both is for a loss of one response",
    "stages.0.spare_valleys=true": "stages.0: sft reads no rejected response",
    "stages=[]": "stages must be at least one",
    "stages=sft": "stages: Invalid value",
    "stages.x.lr=1": "stages.x.lr=1: ",
    "stages.0=sft": "stages.0: Invalid input",
    "stages=[{loss: sft}]": "stages.0.epochs: Structured config of type `Stage` has missing",
    "data.split=dev": "data.split: Invalid value 'dev', expected one of ['train', 'test']",
    "dtype=float23": "dtype: Invalid value 'float23', expected one of ['float32', ",
    "probes=null": "stages.1.probe_every without probes",
    "seed=[1": "seed=[1: not YAML",
}


def refused(message, name, changes=()):
    with pytest.raises(ValueError) as error:
        read(name, changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change", WRONG)
def test_what_is_wrong_is_named(change):
    refused(WRONG[change], "tiny-dpo", [change])


WRONG_FILES = {
    "- sft\n- dpo": "bad.yaml: a list, where a recipe is a mapping",
    "": "about: Structured config of type `Recipe` has missing mandatory value",
    "a: 1\nb: [": "bad.yaml: not YAML: while parsing a flow node",
    "a: !!python/object:os.system {}": "bad.yaml: not YAML: could not determine a constructor",
    "extends: bad.yaml": "bad.yaml: it extends itself",
    "extends: tiny-dqo": "unknown recipe 'tiny-dqo': did you mean 'tiny-dpo'?",
    "extends: 3": "unknown recipe '3': There is paper-dpo",
    "extends: tiny-dpo\nstages: {1: {lr: 1}}": "stages: Cannot merge",
    "extends: tiny-dpo\nstages.5: {lr: 1}": "stages.5: there are 2 of them, counted from 0",
    "extends: nowhere.yaml": "unknown recipe 'nowhere.yaml'",
}


@pytest.mark.parametrize("text", WRONG_FILES)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    refused(WRONG_FILES[text], tmp_path / "bad.yaml")


# --- running ------------------------------------------------------------------------------------


def probed():
    world = load_probes("world", ["chosen", "rejected"])
    return as_probes(
        [*world.split("train")[:2], *world.split("test")[:2]], world.types, world.format
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A recipe, the folder of its run, what it gave and what it told."""
    recipe, out, told = quick("tiny-extend"), tmp_path_factory.mktemp("runs") / "run", []
    return recipe, out, run(recipe, out, tell=told.append), told


@pytest.mark.slow
def test_stages_go_on_from_each_other_as_calls_of_finetune_do(extended):
    recipe, out, found, told = extended
    model, tokenizer = load("tiny", "cpu", "float64")
    rows = load_probes("world", split="train", limit=6)
    both = [{"prompt": r["prompt"], "chosen": r[k]} for k in ("chosen", "rejected") for r in rows]
    both = as_probes(both, format=rows.format)
    shared = {"probes": probed(), "probe_every": 1, "max_steps": 2, "batch_size": 4, "clip": 10}
    for number, (stage, learn) in enumerate(zip(recipe.stages, (both, rows), strict=True)):
        settings = {**shared, "epochs": stage.epochs, "lr": stage.lr}
        expected = finetune(model, tokenizer, learn, stage.loss, **settings)
        same_runs(found[number], expected)
        same_runs(Trajectory.load(out / f"{number}-{stage.name}" / "trajectory"), expected)
    last, _ = load(out / "1-dpo" / "checkpoint-000002", "cpu", "float64")
    same_weights(last, model)
    assert told[0] == "0-extend: SFT()" and told[3].startswith("mean log-prob (nats) of 4 prompts")
    assert read(out / "recipe.yaml") == recipe


@pytest.mark.slow
def test_a_run_goes_on_at_the_right_stage_and_only_itself(extended, tmp_path):
    recipe, out, whole, _ = extended
    shutil.copytree(out, tmp_path / "run")
    out, first = tmp_path / "run", tmp_path / "run" / "0-extend" / "trajectory.npz"
    shutil.rmtree(out / "1-dpo")  # killed between the stages
    before = first.stat().st_mtime_ns
    for _ in range(2):  # the second time it is finished
        for a, b in zip(whole, run(recipe, out, resume=True), strict=True):
            same_runs(a, b)
    assert first.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds a run already: pass resume=True"):
        run(recipe, out)
    other = quick("tiny-extend", "stages.0.lr=1e-3", "stages.0.seed=1")
    with pytest.raises(ValueError) as error:
        run(other, out, resume=True)
    assert "stages.0.lr (was 0.0003, now 0.001), stages.0.seed (was 0, now 1)" in str(error.value)
    (out / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"another recipe: .*lr"):
        run(other, out, resume=True)


def test_extended_rows_begin_alike_where_the_paper_s_do():
    row = {"prompt": "a", "chosen": " b", "rejected": "c", "split": "test"}
    for form, third in ((Format("paper"), " c"), (Format("paper", as_written=True), "c")):
        found = extend(as_probes([row, {**row, "prompt": "d"}], format=form))
        said = [("a", " b"), ("d", " b"), ("a", third), ("d", third)]
        assert [(row["prompt"], row["chosen"]) for row in found] == said
        assert {row["split"] for row in found} == {"test"} and found.format == form
    turns = [{"role": "assistant", "content": "c"}]
    tools = {"prompt": [{"role": "user", "content": "a"}], "tools": "[]"}
    (_, other) = extend(as_probes([tools | {"chosen": turns, "rejected": turns}]))
    assert other == tools | {"chosen": turns}


@pytest.mark.slow
def test_rounds_are_those_of_finetune_on_policy(tmp_path):
    changes = ["stages.1.rounds=2", "stages.1.max_new_tokens=4", "stages.1.max_steps=1"]
    recipe, out = quick("tiny-on-policy", *changes, "stages.0.max_steps=1"), tmp_path / "run"
    found = run(recipe, out)[1]
    model, tokenizer = load(out / "0-sft" / "checkpoint-000001", "cpu", "float64")
    settings = {"lr": 1e-4, "batch_size": 4, "clip": 10.0, "max_steps": 1, "probe_every": 1}
    settings |= {"rounds": 2, "max_new_tokens": 4, "probes": probed()}
    rows = load_probes("world", split="train", limit=6)
    same_runs(found, finetune_on_policy(model, tokenizer, rows, **settings))
    same_runs(Trajectory.load(out / "1-on-policy" / "trajectory"), found)


@pytest.mark.slow
def test_what_a_later_stage_would_refuse_stops_the_first(tmp_path):
    file, out = tmp_path / "rows.jsonl", tmp_path / "run"

    def stops(row, message, name="tiny-dpo"):
        written(file, [{"prompt": "question :", "chosen": " yes", "rejected": " no"}, row])
        with pytest.raises(ValueError, match=message):
            run(quick(name, f"data.source={file}"), out)
        assert not list(out.iterdir())

    row = {"prompt": "question :", "chosen": " yes"}
    stops(row, r"stages\.1 \(dpo\): rows\[1\] has no 'rejected'")
    stops({**row, "rejected": " yes"}, r"stages\.1 \(dpo\): rows\[1\]: chosen and rejected are")
    row["chosen"] = " yes" * 200
    stops(row, r"stages\.0 \(sft\): rows\[1\].* max_length=128", "tiny-sft")
    short = quick("tiny-sft", f"data.source={file}", "data.max_length=20")
    with pytest.warns(UserWarning, match="responses were cut"):
        run(short, out)


def test_a_file_has_the_format_that_it_is_given(tmp_path):
    file = written(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": " b", "rejected": " c"}])
    for changes, form in (
        ([], Format()),
        (["data.max_length=9"], Format(max_length=9)),
        (["data.format=paper"], Format("paper")),
        (["data.format=paper", "data.max_prompt=9"], Format("paper", max_prompt=9)),
    ):
        recipe = read("tiny-dpo", [f"data.source={file}", f"probes.source={file}", *changes])
        assert recipe.load(recipe.data).format == recipe.load(recipe.probes).format == form
    world = read("tiny-dpo")
    assert world.load(world.data).format == Format("paper")
    with pytest.raises(ValueError, match=r"max_prompt, .* are settings of the paper's format"):
        recipe = read("tiny-dpo", [f"data.source={file}", "data.max_prompt=9"])
        recipe.load(recipe.data)


def test_a_blank_response_in_the_papers_files_costs_its_row_alone(monkeypatch):
    rows = [{"prompt": "question :", "chosen": "yes", "rejected": said} for said in ("no", " ")]
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": rows, "test": []})
    recipe = read("pythia-410m-hh-dpo")
    assert [row["rejected"] for row in recipe.load(recipe.data)] == ["no"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_activations_give_the_same_run(family, tmp_path):
    """Also with the prompt shared by a mask, and with dropout."""
    dropout = {"gpt2": "resid_pdrop", "gpt_neox": "hidden_dropout"}.get(family)
    for part in tiny(family, **({dropout: 0.1} if dropout else {})):
        part.save_pretrained(tmp_path / "model")
    rows = written(tmp_path / "rows.jsonl", tiny_rows())
    changes = [f"model={tmp_path}/model", f"data.source={rows}", "dtype=float64", "device=cpu"]
    changes += ["stages=[{loss: dpo, epochs: 1, lr: 1e-2, batch_size: 3, optimizer: sgd}]"]
    found, calls = [], []

    # The number of the backward pass, -1 outside of it.
    hook = register_module_forward_hook(lambda *_: calls.append(torch._C._current_graph_task_id()))
    for checkpointing in ("false", "true"):
        assert not any(task != -1 for task in calls)
        recipe = read("tiny-dpo", [*changes, f"gradient_checkpointing={checkpointing}"])
        found.append(run(recipe, tmp_path / checkpointing)[0])
    hook.remove()
    close(*found)
    assert any(task != -1 for task in calls)  # the layers did run again


LAUNCHERS = {
    "copies": "torch.distributed.run --standalone --nproc-per-node=2",
    "shards": "accelerate.commands.launch --use_fsdp --fsdp_version=2 --num_processes=2 "
    "--num_machines=1 --mixed_precision=no --dynamo_backend=no --main_process_port=0",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_run_of_one(launcher, tmp_path):
    changes = [*QUICK, *AGAIN, "data.limit=7", "defaults.batch_size=3"]
    changes += ["gradient_checkpointing=true"]
    command = ["-m", *LAUNCHERS[launcher].split(), "-m", "lmdyn", "run", "tiny-dpo"]
    command += ["--out", str(tmp_path / "two")]
    command += [part for change in changes for part in ("--set", change)]
    assert launched(command).count("1-dpo: DPO(") == 1  # one process tells
    one = run(read("tiny-dpo", changes), tmp_path / "one")
    for name, expected in zip(("0-sft", "1-dpo"), one, strict=True):
        close(Trajectory.load(tmp_path / "two" / name / "trajectory"), expected)


# --- estimates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_estimated_activations_are_those_that_autograd_keeps(family):
    model, tokenizer = tiny(family, torch.float32, hidden_size=64, intermediate_size=160)
    model.train()
    rows = as_probes(tiny_rows(), ["chosen", "rejected"])
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage  # which also keeps its address taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [hidden(model, batch) for batch in pack(encode(tokenizer, rows), shared=True)]
    assert outputs
    stage = quick("tiny-dpo", "stages.1.batch_size=5").stages[1]
    found = memory(model, stage, lengths(tokenizer, rows))["activations"]
    assert 0.7 < found / sum(storage.nbytes() for storage in kept.values()) < 1.3


def test_weights_gradients_and_states_are_counted():
    model, tokenizer = load("tiny", "cpu")
    rows = lengths(tokenizer, load_probes("world", limit=4))
    found = memory(model, read("tiny-sft").stages[0], rows)
    step = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    step.step()
    states = [s for state in step.state.values() for s in state.values() if s.ndim]
    assert found["weights"] == found["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert found["optimizer"] == sum(s.nbytes for s in states)


def test_operations_are_those_of_the_matrices():
    model, tokenizer = load("tiny", "cpu")
    stage = dataclasses.replace(quick("tiny-sft").stages[0], max_steps=None, epochs=1)
    encoded = encode(tokenizer, rows := stage.rows(load_probes("world", limit=6)))
    fed = sum(len(e.prompt) + len(e.responses["chosen"]) - 1 for e in encoded)
    predicted = sum(len(e.responses["chosen"]) for e in encoded)
    head = model.lm_head.weight.numel()
    body = model.num_parameters() - model.get_input_embeddings().weight.numel()
    body -= 0 if model.config.tie_word_embeddings else head
    once = 3 * 2 * (body * fed + head * predicted)
    size = lengths(tokenizer, rows)
    assert operations(model, stage, size, []) == once
    assert operations(model, stage, size, [], checkpointing=True) == once + 2 * body * fed


@pytest.mark.slow
def test_a_dry_run_tells_updates_memory_and_time(tmp_path):
    """Of a model of which the configuration is there, on rows as long as can be."""
    shape = {"vocab_size": 50304, "num_hidden_layers": 24, "num_attention_heads": 16}
    GPTNeoXConfig(hidden_size=1024, intermediate_size=4096, **shape).save_pretrained(tmp_path)
    row = {"prompt": "word", "chosen": "word " * 500, "rejected": "other " * 500}
    rows = written(tmp_path / "rows.jsonl", [row] * 8)
    changes = [f"model={tmp_path}", f"data.source={rows}", "data.format=paper"]
    changes.append("probes.source=null")
    pieces = Tokenizer(WordLevel({"?": 0, "": 1}, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.FixedLength(4)
    four = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="?", eos_token="")
    text = dry_run(read("pythia-410m-hh-dpo", changes), four)
    parts = [": 8\n", ": 8 prompts × 2 types", "; 405.3M parameters", "1-dpo     DPO(beta=0.1"]
    parts += ["16 updates of 4 rows (64 examples of 8 rows), scored 2 times", "12 updates of 4"]
    parts += ["memory    about 15.36 GB (weights 1.62", "optimizer 1.62, activations 8.03"]
    parts += [
        "disk      about 3.24 GB a checkpoint, 1.62 GB a",
        "time      about ",
        "e+14 operations",
    ]
    assert not [part for part in parts if part not in text]
    text = dry_run(read("pythia-410m-hh-dpo-t4", changes), four)
    assert "memory    about 6.4" in text and "activations 0.1" in text


def test_the_first_look_reads_whatever_pairs_and_stays_small(tmp_path):
    rows = [{"prompt": f"{i}?", "chosen": f" {i}.", "rejected": " no"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = read("smollm2-first", [f"data.source={tmp_path / 'pairs.jsonl'}"])
    learn, probes = recipe.load(recipe.data), recipe.load(recipe.probes)
    assert (len(learn), len(probes), probes.types) == (12, 6, ("chosen", "rejected"))
    assert all(set(probes.types) <= row.keys() for row in probes)  # none is absent from its table
    (stage,) = recipe.stages
    assert Plan(n_rows=12, **stage.settings()).probings == 4 and stage.loss == "dpo"


def test_a_dry_run_says_what_it_cannot_know(tmp_path, monkeypatch):
    text = dry_run(read("tiny-dpo", [f"model={tmp_path}"]))
    assert "1-dpo" in text and "unknown from here on: " in text
    assert "there is no such file" in dry_run(read("tiny-dpo", ["data.source=nowhere.jsonl"]))
    assert "cuda:77" in dry_run(read("tiny-dpo", ["device=cuda:77"]))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    away = dry_run(read("tiny-dpo", ["model=nobody/nothing"]))
    assert "unknown from here on" in away and "; without the hub there is tiny" in away
