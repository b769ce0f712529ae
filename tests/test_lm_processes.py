"""Two processes, with a copy of the weights each or half of them, against one."""

import json
import os
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from forked import forked
from runs import WHAT, stopped
from test_lm_callback import trainer
from tiny import tiny, tiny_rows
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import LlamaForCausalLM, TrainerControl, TrainerState, TrainingArguments
from transformers.distributed import DistributedConfig

from lmdyn.lm import processes, train, trajectory
from lmdyn.lm.callback import ProbeCallback
from lmdyn.lm.models import load
from lmdyn.lm.trajectory import Trajectory

pytestmark = pytest.mark.slow
ROWS = tiny_rows()
TRIPLES = [{"irr_train": f"with {row['rejected']}"} | row for row in ROWS]
# 5 rows: an update has a batch of 3 and one of 2, or of 1, of which a process has nothing.
RUN = {"epochs": 2, "lr": 1e-2, "batch_size": 3, "accumulate": 2, "probe_every": 1}
CASES = {
    "adamw": {"family": "llama", "loss": "dpo"},
    "batch": {"family": "llama", "loss": "kto", "rows": TRIPLES},  # whose rows depend on each other
    "rmsprop": {"family": "qwen2", "loss": "sft", "max_steps": 1, "batch_size": 1}
    | {"optimizer": "rmsprop"},
    "checkpointing": {"family": "gpt_neox", "loss": "dpo", "spare_valleys": True}
    | {"optimizer": "sgd", "clip": 0.1},
}


def finetune(case, out, **options):
    """The case's run with all rows as probes."""
    settings = RUN | CASES[case] | {"out": out, "save_every": 9, "progress": False} | options
    model, tokenizer = tiny(settings.pop("family"))
    if case == "checkpointing":
        model.activation_checkpointing_enable({"use_reentrant": False})
    rows, loss = settings.pop("rows", ROWS), settings.pop("loss")
    return train.finetune(model, tokenizer, rows, loss, probes=ROWS, **settings), model, tokenizer


def two_stages(folder):
    """DPO, then SFT of what has come of it."""
    _, model, tokenizer = finetune("adamw", folder / "adamw")
    options = RUN | {"probes": ROWS[:1], "out": folder / "second", "progress": False}
    return train.finetune(model, tokenizer, ROWS, "sft", **options)


def probed_training(kind, folder, probes=ROWS):
    """A trainer with the callback: what the callback has recorded."""
    model, tokenizer = tiny("llama", torch.float32)
    if kind == "fsdp":
        config = DistributedConfig(fsdp_size=2)
        model = LlamaForCausalLM.from_pretrained(folder / "tiny", distributed_config=config)
    ids = tokenizer(f"{ROWS[1]['prompt']} {ROWS[1]['chosen']} <eos>")["input_ids"]
    data = [{"input_ids": ids, "labels": ids}] * 4
    options = {"max_steps": 2, "per_device_train_batch_size": 2 if kind == "one" else 1}
    made = trainer(folder / f"trainer-{kind}", model=model, data=data, logging_steps=1, **options)
    probe = ProbeCallback(probes, every=1, budget=None, trainer=made)
    made.add_callback(probe)
    made.train()
    return probe, made


def in_two(rank, folder):
    """What the two processes do; the tests look at what they leave."""
    warnings.simplefilter("ignore")
    told = {}
    seen = watch_score()
    finetune("adamw", folder / "ddp" / "adamw")
    told["scored"], seen[:] = list(seen), []
    options = RUN | {"max_steps": 1, "probes": ROWS[:1], "progress": False}
    train.finetune(*tiny("llama"), ROWS, **options)  # the second process has no probe
    told["scored, one"] = list(seen)
    finetune("batch", folder / "ddp" / "batch")
    for kind, error in (("value", ValueError("not fit")), ("other", KeyError("lost"))):
        told[kind] = failing(rank, error)
    told["weights"] = spoilt(rank)
    for kind in ("ddp", "fsdp"):
        probe, made = probed_training(kind, folder)
        probe.trajectory.save(folder / f"trainer-{kind}-{rank}")
        told[f"logged {kind}"] = sum("lmdyn/chosen" in e for e in made.state.log_history)
    told["loss"] = losses(made)
    _, made = probed_training("fsdp", folder, [{"prompt": "the " * 200, "chosen": "no"}])
    told["loss with failing probes"] = losses(made)
    told["stepped aside"] = stepping_aside(rank, folder)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for case in CASES:
        if case not in ("adamw", "batch"):
            finetune(case, folder / "fsdp" / case)
    two_stages(folder / "fsdp")
    killed(folder)
    finetune("adamw", folder / "resumed", resume=True)
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


def losses(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def watch_score():
    """A list that gets how many prompts `finetune` scores, each time."""
    seen, score = [], trajectory.score

    def watched(model, tokenizer, probes, **options):
        seen.append(len(probes))
        return score(model, tokenizer, probes, **options)

    trajectory.score = watched
    return seen


def failing(rank, error):
    """What a process hears when scoring fails in the second one."""

    def work(rows):
        if rank == 1:
            raise error
        return {"logp": np.zeros(len(rows))}

    try:
        processes.together(torch.nn.Module(), np.arange(5), work, 5)
    except (ValueError, RuntimeError) as heard:
        return [type(heard).__name__, str(heard)]


def spoilt(rank):
    """What a process hears when the last update spoils the weights of the first one."""

    def spoil(optimizer, *_):
        if rank == 0:
            optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    hook = register_optimizer_step_post_hook(spoil)
    try:
        return refusal()
    finally:
        hook.remove()


def refusal():
    """What `finetune` raises in this process."""
    model, tokenizer = tiny("llama")
    try:
        train.finetune(model, tokenizer, ROWS[3:4], epochs=1, lr=1e-2, batch_size=3)
    except (ValueError, FloatingPointError) as heard:
        return str(heard)


def stepping_aside(rank, folder):
    """How often each process probes when the log of the first one fails."""
    no_trainer = object()
    probe = ProbeCallback(ROWS, every=1, budget=None, trainer=None if rank else no_trainer)
    model, tokenizer = tiny("llama", torch.float32)
    args = TrainingArguments(output_dir=str(folder), report_to=[], use_cpu=True)
    state = TrainerState(is_world_process_zero=rank == 0)
    for event, step in ((probe.on_train_begin, 0), (probe.on_step_end, 1), (probe.on_train_end, 2)):
        state.global_step = step
        event(args, state, TrainerControl(), model=model, processing_class=tokenizer)
    return len(probe.trajectory.steps)


def killed(folder):
    """A run that ends after its first checkpoint."""
    with stopped(at=2), suppress(KeyboardInterrupt):
        finetune("adamw", folder / "resumed", save_every=1)
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        shutil.copytree(folder / "resumed", folder / "killed")
    torch.distributed.barrier()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    tiny("llama", torch.float32)[0].save_pretrained(folder / "tiny")
    forked("test_lm_processes", "in_two", folder)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    two_stages(folder)
    return folder


def told(two, what):
    return [json.loads((two / f"told-{rank}.json").read_text())[what] for rank in (0, 1)]


def same_runs(folder, expected):
    """Both trajectories, and the weights as `load` reads them, up to rounding in float64."""
    found, whole = (Trajectory.load(path / "trajectory") for path in (folder, expected))
    same_up_to_rounding(found, whole)
    assert found.meta["model"] == whole.meta["model"]
    (ours,), (theirs,) = (list(path.glob("checkpoint-*")) for path in (folder, expected))
    assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}
    ours, theirs = (load(path, "cpu", torch.float64)[0] for path in (ours, theirs))
    for (name, x), y in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-9, msg=name)


def same_up_to_rounding(found, whole, **tolerance):
    tolerance = tolerance or {"rtol": 1e-6, "atol": 1e-7}  # a trajectory is in float32
    for name in set(WHAT) - {"types", "split"}:
        ours, theirs = getattr(found, name), getattr(whole, name)
        np.testing.assert_allclose(ours, theirs, err_msg=name, **tolerance)
    for name, values in whole.log.items():
        np.testing.assert_allclose(found.log[name], values, err_msg=name, **tolerance)


def test_each_process_scores_its_share_and_gets_all(two, one):
    assert told(two, "scored") == [[3] * 3, [2] * 3]  # of 5 prompts, 3 times
    assert told(two, "scored, one") == [[1] * 2, []]  # the other waits for nobody
    same_runs(two / "ddp" / "adamw", one / "adamw")


def test_a_loss_of_the_batch_reads_the_rows_of_all_processes(two, one):
    finetune("batch", one / "batch")
    same_runs(two / "ddp" / "batch", one / "batch")


def test_an_error_in_one_process_reaches_the_others(two):
    said = "process 1, which has every 2th row from 1 on: "
    assert told(two, "value") == [["ValueError", f"{said}ValueError: not fit"]] * 2
    assert told(two, "other") == [["RuntimeError", f"{said}KeyError: 'lost'"]] * 2


def test_weights_that_are_spoilt_in_one_process_stop_all(two):
    assert told(two, "weights") == ["update 1 made weights not finite: lower lr"] * 2


@pytest.mark.parametrize("case", [case for case in CASES if case != "batch"])
def test_sharded_weights_give_the_run_of_one_process(two, one, case):
    if case != "adamw":
        finetune(case, one / case)
    same_runs(two / "fsdp" / case, one / case)


def test_sharded_weights_go_through_a_second_stage(two, one):
    same_runs(two / "fsdp" / "second", one / "second")


def test_a_killed_run_of_two_processes_goes_on_in_two_or_in_one(two, one):
    assert [p.name for p in (two / "killed").glob("checkpoint-*")] == ["checkpoint-000001"]
    same_runs(two / "resumed", one / "adamw")
    finetune("adamw", two / "killed", resume=True)
    same_runs(two / "killed", one / "adamw")


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_the_callback_finds_in_two_processes_what_it_finds_in_one(two, tmp_path, kind):
    expected = probed_training("one", tmp_path)[0].trajectory
    assert told(two, f"logged {kind}") == [3, 3]
    for rank in (0, 1):
        found = Trajectory.load(two / f"trainer-{kind}-{rank}")
        same_up_to_rounding(found, expected, rtol=1e-4, atol=1e-5)
    assert list(two.glob(f"trainer-{kind}/lmdyn/*"))


def test_processes_step_aside_together(two):
    assert told(two, "stepped aside") == [1, 1]


def test_a_probing_that_fails_leaves_sharded_weights_as_they_were(two):
    assert told(two, "loss") == told(two, "loss with failing probes")


def test_deepspeed_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"DeepSpeed, .*launch with --multi_gpu, or"):
        train.finetune(*tiny("llama"), ROWS, epochs=1, lr=1e-2, batch_size=2)
