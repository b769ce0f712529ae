"""Recipes: what is read, what is refused, and that a run is the one that the recipe describes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from forked import launched
from tiny import FAMILIES, tiny, tiny_rows
from transformers import GPTNeoXConfig, Qwen2Config

from lmdyn import losses
from lmdyn.lm import _estimate as estimate
from lmdyn.lm._dry_run import dry_run
from lmdyn.lm.data import as_probes, load_probes
from lmdyn.lm.forward import hidden, pack
from lmdyn.lm.models import load
from lmdyn.lm.on_policy import finetune_on_policy
from lmdyn.lm.recipe import Data, Recipe, catalogue, read
from lmdyn.lm.run import checkpoint_activations, load_probe_rows, load_rows, run, stage_rows
from lmdyn.lm.tokens import encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import STATS, Trajectory

# A few updates on a few rows, in float64.
QUICK = ["dtype=float64", "device=cpu", "data.limit=6", "probes.limit=2"]
QUICK += ["probes.types=[chosen, rejected]", "defaults.probe_every=1", "defaults.max_steps=2"]

AGAIN = ["stages.1.probe_every=1"]  # which tiny-dpo sets for itself


def quick(name="tiny-dpo", *changes):
    return read(name, [*QUICK, *AGAIN[name == "tiny-sft" :], *changes])


def same(a, b):
    for name in ("steps", "examples_seen", *STATS):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name, values in a.log.items():
        np.testing.assert_array_equal(values, b.log[name], err_msg=name)


# --- reading ------------------------------------------------------------------------------------


def test_every_recipe_in_the_catalogue_can_be_read():
    for name in catalogue():
        recipe = read(name)
        assert recipe.name == name and recipe.about


def test_the_papers_models_and_datasets_are_there():
    models = ["pythia-410m", "pythia-1b", "pythia-1.4b", "pythia-2.8b"]
    for model in [*models, "qwen1.5-0.5b", "qwen1.5-1.8b"]:
        for data in ("hh", "ultrafeedback"):
            for kind, stages in (("sft", 1), ("dpo", 2), ("extend", 2)):
                recipe = read(f"{model}-{data}-{kind}")
                assert recipe.model.lower().endswith(model)
                assert recipe.data.source == recipe.probes.source == data
                assert len(recipe.stages) == stages


def test_paper_settings():
    sft, dpo = read("pythia-410m-hh-dpo").stages
    for stage in (sft, dpo):
        assert (stage.optimizer, stage.lr, stage.warmup) == ("rmsprop", 5e-7, 150)
        assert (stage.batch_size, stage.clip) == (4, 10.0)
    assert sft.get_loss() == losses.get("sft") and sft.epochs == 8
    assert dpo.get_loss() == losses.get("dpo", beta=0.1)
    extend = read("qwen1.5-1.8b-hh-extend").stages[0]
    assert extend.both and extend.epochs == 4


def test_t4_makes_the_same_updates_in_less_memory():
    plain, t4 = read("pythia-410m-hh-dpo"), read("pythia-410m-hh-dpo-t4")
    assert t4.gradient_checkpointing and (t4.dtype, t4.mixed_precision) == ("float32", "no")
    for a, b in zip(plain.stages, t4.stages, strict=True):
        assert a.batch_size * a.accumulate == b.batch_size * b.accumulate
        same_batch = {"batch_size": b.batch_size, "accumulate": b.accumulate}
        assert dataclasses.replace(a, **same_batch) == b


def test_a_recipe_reads_its_own_yaml(tmp_path):
    recipe = quick("tiny-on-policy")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert read(tmp_path / "recipe.yaml") == recipe


def test_changes_reach_stages_and_defaults():
    recipe = read("tiny-dpo", ["defaults.batch_size=2", "stages.1.lr=1e-5"])
    assert [stage.batch_size for stage in recipe.stages] == [2, 2]
    assert [stage.lr for stage in recipe.stages] == [3e-4, 1e-5]


def test_a_file_extends_others_by_name_and_by_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: tiny-dpo\nseed: 3\nstages: {1: {lr: 1e-5}}")
    (tmp_path / "more.yaml").write_text("extends: [mine.yaml]\nabout: x")
    with (tmp_path / "mine.yaml").open("a") as file:
        file.write("\nname: first")
    assert read(tmp_path / "mine.yaml").name == "first"
    recipe = read(tmp_path / "more.yaml")
    assert (recipe.name, recipe.seed, recipe.stages[1].lr) == ("more", 3, 1e-5)
    assert recipe.stages[0] == read("tiny-dpo").stages[0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny-dqo", [], "unknown recipe 'tiny-dqo': did you mean 'tiny-dpo'?"),
        ("nowhere.yaml", [], "no recipe nowhere.yaml"),
        ("tiny-dpo", ["sed=1"], "unknown recipe key 'sed': did you mean 'seed'?"),
        ("tiny-dpo", ["stages.0.lrr=1"], "'stages.0.lrr': did you mean 'stages.0.lr'?"),
        ("tiny-dpo", ["data.sorce=hh"], "did you mean 'data.source'?"),
        ("tiny-dpo", ["stages.2.lr=1"], "stages has no entry '2': there is 0 to 1"),
        ("tiny-dpo", ["seed"], "a change is key=value"),
        ("tiny-dpo", ["seed=x"], "seed must be an integer, got 'x'"),
        ("tiny-dpo", ["seed=-1"], "seed must be an integer of at least 0"),
        ("tiny-dpo", ["stages.0.epochs=1.5"], "stages.0.epochs must be an integer, got 1.5"),
        ("tiny-dpo", ["stages.0.epochs=true"], "stages.0.epochs must be an integer, got True"),
        ("tiny-dpo", ["stages.1.lr=fast"], "stages.1.lr must be a number, got 'fast'"),
        ("tiny-dpo", ["stages.1.lr=-1"], "stages.1: lr must be a finite number above 0"),
        ("tiny-dpo", ["stages.1.loss=dop"], "stages.1: unknown loss 'dop': did you mean 'dpop'?"),
        ("tiny-dpo", ["stages.1.hyper.bet=1"], "did you mean 'beta'?"),
        ("tiny-dpo", ["stages.1.both=true"], "stages.1: both is for a loss of one response"),
        ("tiny-dpo", ["stages.1.name=sft"], "stages must differ in name, got sft, sft"),
        ("tiny-dpo", ["stages.0.name=../x"], "stages.0: name must be of letters"),
        ("tiny-dpo", ["stages=[]"], "stages is empty"),
        ("tiny-dpo", ["stages=sft"], "stages must be a list, got 'sft'"),
        ("tiny-dpo", ["stages.0=sft"], "stages.0 must be a mapping, got 'sft'"),
        ("tiny-dpo", ["stages=[{loss: sft}]"], "the recipe has no 'stages.0.epochs'"),
        ("tiny-dpo", ["data.split=dev"], "data: split must be 'train', 'test' or null"),
        ("tiny-dpo", ["dtype=float23"], "unknown dtype 'float23': did you mean 'float32'?"),
        ("tiny-dpo", ["probes=null"], "stages.1.probe_every without probes"),
        ("tiny-dpo", ["seed=[1"], "seed=[1, line 1 is not YAML"),
    ],
)
def test_what_is_wrong_is_named(name, changes, message):
    with pytest.raises(ValueError) as error:
        read(name, changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- sft\n- dpo", "bad.yaml is one list: a recipe is a mapping"),
        ("", "bad.yaml is empty: a recipe is a mapping"),
        ("a: 1\nb: [", "bad.yaml, line 2 is not YAML"),
        ("a: !!python/object:os.system {}", "bad.yaml, line 1 is not YAML"),
        ("extends: bad.yaml", "bad.yaml extends itself"),
        ("extends: {a: 1}", "extends must be a name or a list"),
        ("about: no model", "the recipe has no 'model'"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read(tmp_path / "bad.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


# --- running ------------------------------------------------------------------------------------


def by_hand(recipe, rows_of):
    """The stages of a recipe, each a call of finetune."""
    model, tokenizer = load("tiny", "cpu", "float64")
    rows = load_probes("world", split="train", limit=6)
    world = load_probes("world", ["chosen", "rejected"])
    probes = as_probes([*world.split("train")[:2], *world.split("test")[:2]], world.types)
    shared = {"probes": probes, "probe_every": 1, "max_steps": 2, "batch_size": 4, "clip": 10}
    found = []
    for stage, make in zip(recipe.stages, rows_of, strict=True):
        settings = {**shared, "epochs": stage.epochs, "lr": stage.lr}
        found.append(finetune(model, tokenizer, make(rows), stage.loss, **settings))
    return found, model


def test_stages_go_on_from_each_other_as_calls_of_finetune_do(tmp_path):
    recipe = quick("tiny-extend")
    told = []
    found = run(recipe, tmp_path / "run", tell=told.append)

    def both(rows):
        return [
            {"prompt": row["prompt"], "chosen": row[name]}
            for name in ("chosen", "rejected")
            for row in rows
        ]

    expected, model = by_hand(recipe, [both, lambda rows: rows])
    for a, b in zip(found, expected, strict=True):
        same(a, b)
    for number, name in enumerate(["extend", "dpo"]):
        same(Trajectory.load(tmp_path / "run" / f"{number}-{name}" / "trajectory"), found[number])
    last, _ = load(tmp_path / "run" / "1-dpo" / "checkpoint-000002", "cpu", "float64")
    for a, b in zip(last.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert told[0] == "0-extend: SFT()" and told[3].startswith("mean log-prob (nats) of 4 prompts")
    assert read(tmp_path / "run" / "recipe.yaml") == recipe


def test_a_run_goes_on_at_the_right_stage(tmp_path):
    recipe, out = quick(), tmp_path / "run"
    whole = run(recipe, out)
    shutil.rmtree(out / "1-dpo")  # killed between the stages
    before = (out / "0-sft" / "trajectory.npz").stat().st_mtime_ns
    again = run(recipe, out, resume=True)
    for a, b in zip(whole, again, strict=True):
        same(a, b)
    assert (out / "0-sft" / "trajectory.npz").stat().st_mtime_ns == before
    for a, b in zip(whole, run(recipe, out, resume=True), strict=True):  # finished
        same(a, b)


def test_rounds_are_those_of_finetune_on_policy(tmp_path):
    changes = ["stages.1.rounds=2", "stages.1.max_new_tokens=4", "stages.1.max_steps=1"]
    recipe, out = quick("tiny-on-policy", *changes, "stages.0.max_steps=1"), tmp_path / "run"
    found = run(recipe, out)[1]
    model, tokenizer = load(out / "0-sft" / "checkpoint-000001", "cpu", "float64")
    world = load_probes("world", ["chosen", "rejected"])
    probes = as_probes([*world.split("train")[:2], *world.split("test")[:2]], world.types)
    settings = {"lr": 1e-4, "batch_size": 4, "clip": 10.0, "max_steps": 1, "probe_every": 1}
    rows = load_probes("world", split="train", limit=6)
    expected = finetune_on_policy(
        model, tokenizer, rows, rounds=2, max_new_tokens=4, probes=probes, **settings
    )
    same(found, expected)
    same(Trajectory.load(out / "1-on-policy" / "trajectory"), found)
    same(run(recipe, out, resume=True)[1], found)


def test_a_folder_of_another_run_is_refused(tmp_path):
    recipe, out = quick("tiny-sft", "stages.0.max_steps=1"), tmp_path / "run"
    run(recipe, out)
    with pytest.raises(ValueError, match="holds a run already: add --resume"):
        run(recipe, out)
    other = quick("tiny-sft", "stages.0.max_steps=1", "stages.0.lr=1e-3", "seed=1")
    with pytest.raises(ValueError) as error:
        run(other, out, resume=True)
    assert "stages.0.lr (was 0.0003, now 0.001), seed (was 0, now 1)" in str(error.value)
    (out / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match=r"no recipe\.yaml to go on with"):
        run(recipe, out, resume=True)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    recipe = quick("tiny-sft", "model=nowhere/at-all")
    with pytest.raises(OSError, match=r"cannot write to .*; choose another --out"):
        run(recipe, tmp_path / "file" / "run")


def test_what_a_later_stage_would_refuse_stops_the_first(tmp_path):
    rows = [{"prompt": "question :", "chosen": "yes", "rejected": "no"}]
    rows.append({"prompt": "question :", "chosen": "yes", "rejected": "yes"})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"stages\.1 \(dpo\): rows\[1\]: chosen and rejected are"):
        run(quick("tiny-dpo", f"data.source={file}"), tmp_path / "run")
    assert not (tmp_path / "run" / "0-sft").exists()
    with pytest.raises(ValueError, match=r"stages\.0 \(sft\): rows\[0\].* max_length=128"):
        long = [{**rows[0], "chosen": "yes " * 200}]
        file.write_text(json.dumps(long[0]), encoding="utf-8")
        run(quick("tiny-sft", f"data.source={file}"), tmp_path / "run")
    short = quick("tiny-sft", f"data.source={file}", "data.max_length=20", "data.max_prompt=4")
    with pytest.warns(UserWarning, match="responses were cut"):
        run(short, tmp_path / "run")


def test_a_blank_response_in_the_papers_files_costs_its_row_alone(tmp_path, monkeypatch):
    rows = [{"prompt": "question :", "chosen": "yes", "rejected": said} for said in ("no", " ")]
    monkeypatch.setattr("lmdyn.lm.data._fetch", lambda source: [dict(row) for row in rows])
    assert [row["rejected"] for row in load_rows(Data("hh"))] == ["no"]
    file = tmp_path / "own.jsonl"
    del rows[1]["rejected"]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"stages\.1 \(dpo\): rows\[1\] has no 'rejected'"):
        run(quick("tiny-dpo", f"data.source={file}"), tmp_path / "run")


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_activations_give_the_same_run(family):
    """As `run` asks for it; also with the prompt shared by a mask, and with dropout."""
    found = []
    for checkpointing in (False, True):
        dropout = {"gpt2": "resid_pdrop", "gpt_neox": "hidden_dropout"}.get(family)
        model, tokenizer = tiny(family, **({dropout: 0.1} if dropout else {}))
        if checkpointing:
            checkpoint_activations(model)
            calls = count_forwards(model)
        rows = as_probes(tiny_rows())
        settings = {"epochs": 2, "lr": 1e-2, "batch_size": 2, "optimizer": "sgd", "probes": rows}
        found.append(finetune(model, tokenizer, rows, "dpo", **settings))
    same_up_to_rounding(*found)
    assert calls["backward"] > 0  # the layers did run again


def count_forwards(model):
    """How often the first layer runs while gradients are computed backward."""
    calls = {"backward": 0}
    layer = next(m for n, m in model.named_modules() if n.endswith((".layers.0", ".h.0")))
    inner = next(layer.children())
    inner.register_forward_hook(
        lambda *_: calls.__setitem__(
            "backward", calls["backward"] + (torch._C._current_graph_task_id() != -1)
        )
    )
    return calls


def same_up_to_rounding(a, b):
    for name in STATS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6)
    for name, values in a.log.items():
        np.testing.assert_allclose(values, b.log[name], rtol=1e-5, atol=1e-6, err_msg=name)


LAUNCHERS = {
    "copies": "torch.distributed.run --standalone --nproc-per-node=2",
    "shards": "accelerate.commands.launch --use_fsdp --num_processes=2 --num_machines=1 "
    "--mixed_precision=no --dynamo_backend=no --main_process_port=0",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_run_of_one(launcher, tmp_path):
    changes = [*QUICK, *AGAIN, "data.limit=7", "defaults.batch_size=3"]
    changes += ["gradient_checkpointing=true"]
    command = ["-m", *LAUNCHERS[launcher].split(), "-m", "lmdyn", "run", "tiny-dpo"]
    command += ["--out", str(tmp_path / "two")]
    for change in changes:
        command += ["--set", change]
    assert launched(command).count("1-dpo: DPO(") == 1  # one process tells
    one = run(read("tiny-dpo", changes), tmp_path / "one")
    for name, expected in zip(("0-sft", "1-dpo"), one, strict=True):
        same_up_to_rounding(Trajectory.load(tmp_path / "two" / name / "trajectory"), expected)


# --- estimates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_estimated_activations_are_those_that_autograd_keeps(family):
    model, tokenizer = tiny(family, torch.float32, hidden_size=64, intermediate_size=160)
    model.train()
    rows = as_probes(tiny_rows(), ["chosen", "rejected"])
    batches = list(pack(encode(tokenizer, rows), shared=True))
    ours = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage  # which also keeps its address taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = [hidden(model, batch) for batch in batches]
    assert len(outputs) == len(batches)
    measured = sum(storage.nbytes() for storage in kept.values())
    size = estimate.lengths(tokenizer, rows)
    recipe = quick("tiny-dpo", "stages.1.batch_size=5", "dtype=float32")
    found = estimate.memory(recipe.stages[1], estimate.shape(model), size, recipe)
    assert 0.7 < found.activations / measured < 1.3


def test_weights_gradients_and_states_are_counted(tmp_path):
    model, tokenizer = load("tiny", "cpu")
    rows = load_probes("world", limit=4)
    recipe = read("tiny-sft")
    found = estimate.memory(
        recipe.stages[0], estimate.shape(model), estimate.lengths(tokenizer, rows), recipe
    )
    step = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    step.step()
    states = [s for state in step.state.values() for s in state.values() if s.ndim]
    assert found.weights == sum(p.nbytes for p in model.parameters())
    assert found.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert found.optimizer == sum(s.nbytes for s in states)


def configured(name, folder):
    """A folder with the configuration alone, as on the hub."""
    pythia = {"num_attention_heads": 16, "vocab_size": 50304}
    config = {
        "pythia-410m": lambda: GPTNeoXConfig(
            hidden_size=1024, num_hidden_layers=24, intermediate_size=4096, **pythia
        ),
        "pythia-1b": lambda: GPTNeoXConfig(
            hidden_size=2048, num_hidden_layers=16, intermediate_size=8192, **pythia
        ),
        "qwen1.5-0.5b": lambda: Qwen2Config(
            vocab_size=151936,
            hidden_size=1024,
            num_hidden_layers=24,
            intermediate_size=2816,
            num_attention_heads=16,
            num_key_value_heads=16,
            tie_word_embeddings=True,
        ),
    }[name]()
    config.save_pretrained(folder)
    return folder


def long_rows(file):
    """As long as can be: each response fills 512 tokens almost alone."""
    row = {"prompt": "word", "chosen": "word " * 500, "rejected": "other " * 500}
    file.write_text("\n".join([json.dumps(row)] * 8), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("model", "parameters", "fits"),
    [
        ("pythia-410m", 405_334_016, True),
        ("qwen1.5-0.5b", 463_987_712, True),
        ("pythia-1b", 1_011_781_632, False),
    ],
)
def test_what_fits_16_gb(model, parameters, fits, tmp_path):
    changes = [f"model={configured(model, tmp_path / 'model')}", "probes=null"]
    changes += [f"data.source={long_rows(tmp_path / 'rows.jsonl')}", "defaults.probe_every=null"]
    recipe = read("pythia-410m-hh-dpo-t4", changes)
    shape = estimate.shape(estimate.empty(recipe.model, recipe.dtype)[0])
    assert shape.parameters == parameters
    dpo = recipe.stages[1]
    size = estimate.lengths(None, stage_rows(dpo, load_rows(recipe.data)))
    found = estimate.memory(dpo, shape, size, recipe)
    assert (found.peak < 12e9) == fits and (found.peak > 15.6e9) != fits
    assert (f"{model}-hh-dpo-t4" in catalogue()) == fits
    kept = dataclasses.replace(recipe, gradient_checkpointing=False)
    assert estimate.memory(dpo, shape, size, kept).activations > 8 * found.activations


def test_a_dry_run_knows_a_model_by_its_configuration(tmp_path):
    changes = [f"model={configured('pythia-410m', tmp_path / 'pythia')}"]
    changes += [f"data.source={long_rows(tmp_path / 'rows.jsonl')}", "probes.source=null"]
    plan = dry_run(read("pythia-410m-hh-dpo", changes)).splitlines()
    assert "405.3M parameters" in plan[1] and plan[2].endswith(": 8")
    assert "16 updates of 4 rows (64 examples of 8 rows), scored 2 times" in plan[4]
    assert "DPO(beta=0.1" in plan[5] and "12 updates" in plan[5]
    assert plan[6].startswith("memory    about 1") and "optimizer 1.62" in plan[6]
    assert plan[8].startswith("time      about ") and " GFLOP/s that a matrix product" in plan[8]
    assert "a token is taken for 4 characters. Nothing was trained." in plan[9]


def test_a_dry_run_tells_the_operations_of_all_stages():
    recipe = quick("tiny-dpo")
    model, tokenizer = estimate.empty(recipe.model, recipe.dtype)
    rows, probes = (
        load_rows(recipe.data),
        estimate.lengths(tokenizer, load_probe_rows(recipe)),
    )
    shape = estimate.shape(model)
    work = sum(
        estimate.operations(
            stage, shape, estimate.lengths(tokenizer, stage_rows(stage, rows)), probes, recipe
        )
        for stage in recipe.stages
    )
    assert f": {work:.2e} operations at 50% of the " in dry_run(recipe)


def test_a_dry_run_refuses_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = read("tiny-dpo", [f"model={tmp_path}", "data.source=nowhere.jsonl", "device=cuda:77"])
    plan = dry_run(recipe)
    assert "unknown: " in plan and "there is no such file" in plan and "cuda:77" in plan
    assert "0-sft" in plan and "1-dpo" in plan


def test_operations_are_those_of_the_matrices():
    model, tokenizer = load("tiny", "cpu")
    recipe = quick("tiny-sft")
    rows = stage_rows(recipe.stages[0], load_probes("world", limit=6))
    size = estimate.lengths(tokenizer, rows)
    shape = estimate.shape(model)
    fed = sum(len(e.prompt) + len(e.responses["chosen"]) - 1 for e in encode(tokenizer, rows))
    predicted = sum(len(e.responses["chosen"]) for e in encode(tokenizer, rows))
    one = 2 * (shape.body * fed + shape.head * predicted)
    once = dataclasses.replace(recipe.stages[0], max_steps=None, epochs=1)
    assert estimate.operations(once, shape, size, [], recipe) == 3 * one
    again = dataclasses.replace(recipe, gradient_checkpointing=True)
    more = 2 * shape.body * fed
    assert estimate.operations(once, shape, size, [], again) == 3 * one + more


def test_recipes_are_plain_yaml():
    for files in catalogue().values():
        for file in files:
            assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)
    assert isinstance(read("tiny-dpo"), Recipe)
