"""The training loop against a plain one, number by number, and under every kind of accident."""

import json
import os
import shutil
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import launched
from runs import same_runs, same_weights, stopped
from tiny import FAMILIES, first, tiny, tiny_rows
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from lmdyn import losses
from lmdyn.lm.data import as_probes
from lmdyn.lm.models import load
from lmdyn.lm.score import STATS, score
from lmdyn.lm.settings import OPTIMIZERS, Plan
from lmdyn.lm.tokens import Format, encode
from lmdyn.lm.train import finetune
from lmdyn.lm.trajectory import Trajectory

ROWS = tiny_rows()
RUN = {"epochs": 2, "lr": 1e-2, "batch_size": 2}  # 5 rows: 3 updates in an epoch


def run(family="llama", rows=ROWS, dtype=torch.float64, config=None, **options):
    """A fresh model, finetuned: (trajectory, model)."""
    model, tokenizer = tiny(family, dtype, **(config or {}))
    return finetune(model, tokenizer, rows, **RUN | options), model


# --- what it computes --------------------------------------------------------------------------


class Pair(losses.Loss):
    """A preference loss that reads all there is: DPO with a length-weighted SFT term."""

    beta: float = 0.3
    responses = ("chosen", "rejected")
    needs_ref = True

    def value(self, logps, ref=None, lengths=None):
        h = (logps["chosen"] - ref["chosen"]) - (logps["rejected"] - ref["rejected"])
        return -logsigmoid(self.beta * h) - logps["chosen"] / lengths["chosen"]


def log_prob(model, prompt, response):
    """log π(y|x) of one sequence alone."""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].sum()


def plain_loop(family, loss, optimizer="sgd", weight_decay=0.0, warmup=0, clip=1.0):
    """Three steps on the mean loss of all rows, one sequence at a time."""
    model, tokenizer = tiny(family)
    encoded = encode(tokenizer, as_probes(ROWS))
    lengths = [{k: torch.tensor([len(ids)]) for k, ids in e.responses.items()} for e in encoded]

    def log_probs():
        return [
            {name: log_prob(model, e.prompt, e.responses[name])[None] for name in loss.responses}
            for e in encoded
        ]

    with torch.no_grad():
        ref = log_probs()
    step = OPTIMIZERS[optimizer](model.parameters(), lr=1e-2, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(step, lambda u: min(1, (u + 1) / (warmup + 1)))
    log = []
    for _ in range(3):
        mean = sum(map(loss.value, log_probs(), ref, lengths)).squeeze() / len(encoded)
        step.zero_grad()
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        log.append((mean.item(), schedule.get_last_lr()[0], norm.item()))
        step.step()
        schedule.step()
    return model, np.array(log).T


def equal_to_the_plain_loop(family, loss, batches, **settings):
    expected, log = plain_loop(family, loss, **settings)
    settings = {"optimizer": "sgd", "clip": 1.0, "epochs": 3} | batches | settings
    ours, model = run(family, loss=loss, **settings)
    for key, values in zip(("loss", "lr", "grad_norm"), log, strict=True):
        np.testing.assert_allclose(ours.log[key], values, rtol=1e-6, err_msg=key)  # float32
    for (key, x), y in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("family", first(*FAMILIES))
def test_every_family_steps_as_in_a_plain_loop(family):
    # SGD: the others would divide the gradient of a key's bias, which is 0, by its rounding.
    equal_to_the_plain_loop(family, Pair(), {"batch_size": 5})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_steps_as_in_a_plain_loop(optimizer):
    settings = {"optimizer": optimizer, "weight_decay": 0.1, "warmup": 2, "clip": 5.0}
    more_than_there_are = {"batch_size": 7}
    equal_to_the_plain_loop("llama", losses.get("sft"), more_than_there_are, **settings)


def test_accumulated_batches_are_one_bigger_batch():
    equal_to_the_plain_loop("gpt2", Pair(), {"batch_size": 2, "accumulate": 3})  # 2 + 2 + 1


def test_a_loss_can_have_a_reference_of_its_own():
    reference, _ = tiny("llama", initializer_range=0.1)
    other, _ = run(loss=Pair(), ref=reference, max_steps=1)
    own, _ = run(loss=Pair(), max_steps=1)
    assert other.log["loss"] != own.log["loss"]
    assert all(p.grad is None for p in reference.parameters())
    itself, _ = run(loss=Pair(), ref=tiny("llama")[0], max_steps=1)
    same_runs(itself, own)


def test_a_run_can_spare_the_valleys_of_what_is_rejected():
    plain, _ = run(loss=Pair(), max_steps=2)
    spared, _ = run(loss=Pair(), max_steps=2, spare_valleys=True)
    assert plain.log["loss"][0] == spared.log["loss"][0]
    assert plain.log["loss"][1] != spared.log["loss"][1]


def test_an_epoch_is_a_fresh_order_of_all_rows():
    plan = Plan(n_rows=7, epochs=3, lr=1.0, batch_size=2, accumulate=2, seed=3)
    assert (plan.per_epoch, plan.updates) == (2, 6)
    orders = [plan.rows(2 * epoch) + plan.rows(2 * epoch + 1) for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(7))] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert len(plan.rows(1)) == 3
    assert [plan.examples(update) for update in range(7)] == [0, 4, 7, 11, 14, 18, 21]


def test_learning_moves_what_is_learned():
    trajectory, _ = run(probes=ROWS, dtype=torch.float32)
    assert trajectory.log["loss"][3:].mean() < trajectory.log["loss"][:3].mean() - 5
    assert (np.diff(trajectory.mean("chosen")) > 0).all()
    np.testing.assert_allclose(trajectory.log["logp_chosen"], -trajectory.log["loss"], rtol=1e-6)
    swapped = [{"prompt": row["prompt"], "chosen": row["rejected"]} for row in ROWS]
    a, rejected = run(response="rejected", max_steps=2)  # another response can be learned
    b, chosen = run(rows=swapped, max_steps=2)
    same_weights(rejected, chosen)
    np.testing.assert_array_equal(a.log["logp_rejected"], b.log["logp_chosen"])


# --- what it records ---------------------------------------------------------------------------


def test_probes_are_scored_at_the_start_on_the_way_and_at_the_end():
    model, tokenizer = tiny("llama")
    first = score(model, tokenizer, ROWS)
    trajectory = finetune(model, tokenizer, ROWS, **RUN, probes=ROWS, probe_every=4)
    last = score(model, tokenizer, ROWS)
    assert trajectory.steps.tolist() == [0, 4, 6]
    assert trajectory.examples_seen.tolist() == [0, 7, 10]
    assert trajectory.types == first.types
    for stat in STATS:
        for scores, moment in ((first, 0), (last, -1)):
            expected = getattr(scores, stat).astype(np.float32)
            np.testing.assert_array_equal(getattr(trajectory, stat)[moment], expected)
    assert trajectory.updates == 6
    assert trajectory.vocab_size == first.vocab_size


def test_probing_does_not_change_the_run():
    (with_probes, a), (without, b) = run(probes=ROWS[:1]), run()
    assert with_probes.steps.tolist() == [0, 3, 6]  # after each epoch by default
    same_weights(a, b)
    np.testing.assert_array_equal(with_probes.log["loss"], without.log["loss"])
    short, _ = run(probes=ROWS[:1], max_steps=4)
    assert short.steps.tolist() == [0, 3, 4]
    np.testing.assert_array_equal(short.logp[:2], with_probes.logp[:2])


def test_meta_says_how_it_was_made(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/record.py", "--rows", "my rows.jsonl"])
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    trajectory, _ = run(seed=3, max_steps=1, response="rejected")
    meta = json.loads(json.dumps(trajectory.meta))
    settings = meta["settings"]
    assert [settings[key] for key in ("lr", "seed", "response")] == [RUN["lr"], 3, "rejected"]
    assert settings["loss"] == "SFT()"
    book = Path(__file__).parents[1] / "book"
    recorded = json.loads((book / "recorded" / "dpo-hh-seed1.json").read_text())
    assert set(settings) == set(recorded["settings"])  # a run of then could go on today
    assert set(meta) <= set(recorded)
    assert meta["model"].startswith("LlamaForCausalLM, ")
    assert meta["command"] == "record.py --rows 'my rows.jsonl'"
    assert meta["versions"]["torch"] == torch.__version__
    assert "CPU" in meta["hardware"]
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert run(max_steps=1)[0].meta["command"] == "in a notebook"


# --- the same again ----------------------------------------------------------------------------

DROPOUT = {"config": {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run():
    options = {"family": "gpt2", "dtype": torch.float32, "probes": ROWS, "max_steps": 4} | DROPOUT
    torch.manual_seed(1)
    first, a = run(**options)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, b = run(**options)
    same_runs(first, again)
    same_weights(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = run(**options, seed=1)
    assert (other.logp[-1] != first.logp[-1]).any()
    without, _ = run(**options | {"config": None})
    np.testing.assert_array_equal(first.logp[0], without.logp[0])  # off for probes
    assert first.log["loss"][0] != without.log["loss"][0]


def test_the_model_is_left_with_nothing_but_new_weights():
    model, tokenizer = tiny("llama")
    fresh, _ = tiny("llama")
    model.train()
    model.model.norm.eval()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)  # of the caller's
    frozen = model.model.norm.weight.clone()
    keys = set(vars(model))
    for each in (model, fresh):
        each.model.norm.weight.requires_grad_(False)
        finetune(each, tokenizer, ROWS, **RUN, max_steps=2)
    assert model.training and not model.model.norm.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model.model.norm.weight, frozen)
    assert set(vars(model)) == keys
    same_weights(model, fresh)  # the gradient that was there had no part


# --- a run folder ------------------------------------------------------------------------------

SAVED = {"probes": ROWS[:2], "probe_every": 4, "save_every": 2}


def files(folder):
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("family", first("llama", "gpt_neox"))  # tied, and not
@pytest.mark.slow
def test_a_finished_run_is_a_model_and_a_trajectory_and_resuming_gives_them(tmp_path, family):
    trajectory, model = run(family, out=tmp_path, **SAVED)
    with pytest.raises(ValueError, match="holds a run already: pass resume=True"):
        run(family, out=tmp_path, **SAVED)
    names = {"config.json", "generation_config.json", "model.safetensors"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    last = {f"checkpoint-000006/{name}" for name in names}
    assert files(tmp_path) == {"settings.json", "trajectory.npz", "trajectory.json", *last}
    same_runs(Trajectory.load(tmp_path / "trajectory"), trajectory)
    same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-000006"), model)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("checkpoint*/*")}
    again, loaded = run(family, out=tmp_path, resume=True, **SAVED)
    same_runs(again, trajectory)
    same_weights(loaded, model)
    assert again.meta == trajectory.meta
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("checkpoint*/*")} == before


def goes_on_as_if_never_stopped(out, build, **options):
    """The run, stopped in its last epoch and resumed, is that of the model in one go."""
    settings = RUN | {"probes": ROWS[:1], "save_every": 2} | options
    (whole, tokenizer), (part, _), (again, _), (last, _) = (build() for _ in range(4))
    expected = finetune(whole, tokenizer, ROWS, **settings, out=out / "whole")
    with stopped(at=5), pytest.raises(KeyboardInterrupt):
        finetune(part, tokenizer, ROWS, **settings, out=out / "part")
    (kept,) = (out / "part").glob("checkpoint*/optimizer.pt")
    assert kept.parent.name == "checkpoint-000004"
    for model in (again, last):  # and once more, when it is finished
        found = finetune(model, tokenizer, ROWS, **settings, out=out / "part", resume=True)
        same_runs(found, expected)
        same_weights(model, whole)
        assert not model.training


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_of_any_optimizer_goes_on(tmp_path, optimizer):
    goes_on_as_if_never_stopped(tmp_path, partial(tiny, "llama"), optimizer=optimizer)


@pytest.mark.parametrize("optimizer", first("adamw", "rmsprop"))
def test_a_run_goes_on_where_a_weight_never_gets_a_gradient(tmp_path, optimizer):
    def build():
        model, tokenizer = tiny("llama")
        model.model.layers[1].mlp.register_forward_hook(lambda mlp, given, made: made.detach())
        return model, tokenizer

    goes_on_as_if_never_stopped(tmp_path, build, optimizer=optimizer, weight_decay=0.1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Could not find a config file")
@pytest.mark.parametrize("name", first("default", "mine"))
def test_a_run_on_an_adapter_goes_on(tmp_path, name):
    peft = pytest.importorskip("peft")

    def build():
        model, tokenizer = tiny("llama", torch.bfloat16)
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        options = {"adapter_name": name, "autocast_adapter_dtype": False}
        return peft.get_peft_model(model, config, **options).eval(), tokenizer

    goes_on_as_if_never_stopped(tmp_path, build)


@pytest.fixture(scope="module")
def two_updates(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    run(out=out, max_steps=2, **SAVED)
    return out


def test_numbers_of_numpy_are_numbers(two_updates):
    numbers = {"max_steps": np.int64(2), "seed": np.int32(0), "clip": np.float32(1)}
    again, _ = run(out=two_updates, resume=True, **SAVED | numbers)
    same_runs(again, Trajectory.load(two_updates / "trajectory"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 2e-2}, r"lr \(was 0.01, now 0.02\)"),
        ({"loss": Pair()}, r"loss \(was 'SFT\(\)', now 'Pair"),
        ({"seed": 1, "epochs": 4}, r"epochs .*, seed "),
        ({"rows": ROWS[:4]}, "n_rows .*, rows "),
        ({"rows": [ROWS[1], ROWS[0], *ROWS[2:]]}, "recipe: rows "),
        ({"probes": ROWS[1:3]}, "recipe: probes "),
        ({"family": "qwen2"}, "recipe: model "),
        ({"config": {"initializer_range": 0.1}}, "recipe: model "),
    ],
)
def test_resuming_another_recipe_is_refused(two_updates, change, named):
    before = {path: path.read_bytes() for path in two_updates.rglob("*.*")}
    with pytest.raises(ValueError, match=f"is a run of another recipe: .*{named}|{named}"):
        run(out=two_updates, max_steps=2, resume=True, **SAVED | change)
    assert {path: path.read_bytes() for path in two_updates.rglob("*.*")} == before


def test_resuming_with_other_advantages_is_refused(tmp_path):
    rows = [row | {"advantage": a} for row, a in zip(ROWS, (1.0, -1.0, 0.5, 0.0, 2.0), strict=True)]
    again = partial(run, loss="reinforce", out=tmp_path, max_steps=1)
    first, _ = again(rows=rows)
    same_runs(again(rows=rows, resume=True)[0], first)
    with pytest.raises(ValueError, match=r"is a run of another recipe: rows "):
        again(rows=[row | {"advantage": -row["advantage"]} for row in rows], resume=True)


def test_resuming_with_a_response_to_another_prompt_is_refused(tmp_path):
    row = {"prompt": "question : where ? answer :", "chosen": "the room .", "rejected": [5]}
    model, tokenizer = load("tiny", "cpu")
    with pytest.warns(UserWarning, match="changes the last tokens of its prompt"):
        (merged,) = encode(tokenizer, as_probes([row]))
        finetune(model, tokenizer, [row], "dpo", **RUN, max_steps=1, out=tmp_path)
    apart = row | {"chosen": merged.responses["chosen"]}  # after the whole prompt
    (other,) = encode(tokenizer, as_probes([apart]))
    assert (merged.prompt, merged.responses) == (other.prompt, other.responses)
    model, _ = load("tiny", "cpu")
    with pytest.raises(ValueError, match=r"is a run of another recipe: rows "):
        finetune(model, tokenizer, [apart], "dpo", **RUN, max_steps=1, out=tmp_path, resume=True)


def test_a_folder_of_another_program_is_refused_as_it_is(tmp_path):
    for name in ("checkpoint-500", "checkpoint-best"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="it has checkpoint-500, checkpoint-best, but no settings"):
        run(out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-500", "checkpoint-best"}


class Killed(BaseException):
    """Stops the process at once, as far as the code can tell: nothing catches it."""


@pytest.mark.slow
def test_a_kill_before_any_write_loses_nothing(tmp_path, monkeypatch):
    options = {"probes": ROWS[:1], "save_every": 1, "max_steps": 2, "dtype": torch.float32}
    options |= {"family": "gpt2"} | DROPOUT
    _, expected = run(out=tmp_path / "whole", **options)
    rmtree, at, writes = shutil.rmtree, 0, 1

    def fatal(function, *args, **kwargs):
        """The function, but for the call that is write number ``at``."""
        nonlocal writes
        writes += 1
        if writes > at:
            if function is rmtree:  # dies halfway
                next(iter(Path(args[0]).glob("*")), args[0]).unlink(missing_ok=True)
            raise Killed
        return function(*args, **kwargs)

    while writes >= at:
        out, writes = tmp_path / str(at), 0
        with monkeypatch.context() as patch, suppress(Killed):
            for module, name in (
                (os, "replace"), (os, "rename"), (shutil, "rmtree"), (torch, "save")
            ):  # fmt: skip
                patch.setattr(module, name, partial(fatal, getattr(module, name)))
            run(out=out, **options)
        _, model = run(out=out, resume=True, **options)
        same_weights(model, expected)
        assert files(out) == files(tmp_path / "whole"), at
        recorded = [
            (folder / "trajectory.npz").read_bytes() for folder in (out, tmp_path / "whole")
        ]
        assert recorded[0] == recorded[1], at
        at += 1
    assert at > 10  # settings, and twice trajectory, meta, checkpoint and what it replaces


KILLED = """
import os, random, signal, sys, time
import accelerate, torch
from pathlib import Path
from test_lm_train import SAVED, run

torch.set_num_threads(1)
here = Path(sys.argv[1])
random.seed(int(sys.argv[2]))

def child(out):
    pid = os.fork()
    if pid == 0:
        run(out=out, resume=True, **SAVED | {"save_every": 1})
        os._exit(0)
    return pid

child(here / "warm"), os.wait()
began = time.perf_counter()
assert os.waitpid(child(here / "whole"), 0)[1] == 0
takes, kills, number = time.perf_counter() - began, 0, 0
while kills < 20:
    pid = child(here / f"killed-{number}")
    time.sleep(random.uniform(0, takes / 2))
    os.kill(pid, signal.SIGKILL)
    killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
    kills, number = kills + killed, number + (not killed)  # a run at its end: the next one
assert os.waitpid(child(here / f"killed-{number}"), 0)[1] == 0
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_and_resumed_is_the_run_never_killed(tmp_path):
    """20 times kill -9, over as many runs as that takes."""
    launched(["-c", KILLED, str(tmp_path), "0"])
    runs = list(tmp_path.glob("killed-*"))
    assert runs
    for out in runs:
        assert files(out) == files(tmp_path / "whole")
        for name in ("trajectory.npz", "checkpoint-000006/model.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


# --- accidents ---------------------------------------------------------------------------------


def test_a_nan_stops_the_run_before_the_update_and_names_the_row(tmp_path):
    model, tokenizer = tiny("gpt_neox")  # input and output embeddings are two
    with torch.no_grad():
        word = tokenizer.convert_tokens_to_ids("long")  # rows[1] alone reads it
        model.get_input_embeddings().weight[word] = torch.nan
    before = model.get_output_embeddings().weight.clone()
    reason = r"update 3 is not made: the loss of rows\[1\] is not finite; lower lr"
    with pytest.raises(FloatingPointError, match=reason):
        finetune(model, tokenizer, ROWS, **RUN, out=tmp_path, save_every=1)
    # The one that has been seen to give finite losses.
    assert [p.name for p in tmp_path.glob("checkpoint*")] == ["checkpoint-000001"]
    assert model.get_output_embeddings().weight.isfinite().all()
    assert (model.get_output_embeddings().weight != before).any()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_weights_whose_optimizer_would_divide_by_zero_are_refused(optimizer):
    with pytest.raises(ValueError, match=f"{optimizer} divides by zero in float16.*: load the"):
        run(dtype=torch.float16, optimizer=optimizer)


def test_a_gradient_that_is_not_finite_stops_the_run():
    model, tokenizer = tiny("llama")
    model.model.norm.weight.register_hook(lambda grad: grad * torch.inf)
    before = model.lm_head.weight.clone()
    with pytest.raises(FloatingPointError, match=r"the gradient of rows\[\d\], rows\[\d\] is not"):
        finetune(model, tokenizer, ROWS, **RUN)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.slow
def test_weights_that_diverge_are_not_kept(tmp_path):
    options = {"optimizer": "sgd", "clip": None, "dtype": torch.float32, "save_every": 1}
    with pytest.raises(FloatingPointError, match="update 2 is not made"):
        run(out=tmp_path / "a", lr=1e38, **options)
    with pytest.raises(FloatingPointError, match="update 1 made weights not finite"):
        run(out=tmp_path / "b", lr=1e38, max_steps=1, **options)
    with pytest.raises(FloatingPointError, match="after update 1: the model's predictions are not"):
        run(out=tmp_path / "c", lr=1e38, max_steps=1, probes=ROWS, **options)
    for name in "abc":
        assert not list((tmp_path / name).glob("checkpoint*"))


def test_long_rows_are_cut_counted_and_end_without_eos():
    rows = as_probes(ROWS, format=Format("paper", max_length=12, max_prompt=8))
    with pytest.warns(UserWarning, match="of 5 responses were cut"):
        trajectory, _ = run(rows=rows, epochs=1)
    _, tokenizer = tiny("llama")
    with pytest.warns(UserWarning):
        cut = sum(len(e.truncated) for e in encode(tokenizer, rows.only("chosen")))
    assert trajectory.meta["truncated"] == cut > 0


def test_padding_with_eos_changes_nothing():
    model, tokenizer = tiny("llama")
    tokenizer.pad_token = tokenizer.eos_token
    finetune(model, tokenizer, ROWS, **RUN, max_steps=2)
    same_weights(model, run(max_steps=2)[1])


def test_half_precision_learns_about_the_same():
    options = {"optimizer": "sgd", "lr": 1e-3, "max_steps": 3}
    exact, _ = run(**options, dtype=torch.float32)
    mixed = run(**options, dtype=torch.float32, mixed_precision="bf16")
    whole = run(**options, dtype=torch.bfloat16)
    for (half, model), dtype in ((mixed, torch.float32), (whole, torch.bfloat16)):
        assert model.dtype == dtype
        np.testing.assert_allclose(half.log["loss"], exact.log["loss"], rtol=0.05)
        assert (half.log["loss"] != exact.log["loss"]).all()  # it was another arithmetic


def test_the_bar_shows_loss_and_log_prob_on_a_terminal_or_on_request(capfd):
    run(max_steps=2)
    assert capfd.readouterr().err == ""
    loss = run(max_steps=2, progress=True)[0].log["loss"][-1]
    shown = capfd.readouterr().err
    assert "2/2" in shown and f"loss={loss:.3g}, logp_chosen={-loss:.3g}" in shown


# --- what it refuses ---------------------------------------------------------------------------


EQUAL = [ROWS[0], ROWS[1] | {"rejected": ROWS[1]["chosen"]}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "stf"}, "unknown loss 'stf': did you mean 'sft'"),
        ({"response": "choosen"}, "unknown response type 'choosen': did you mean 'chosen'"),
        ({"response": "irr_train"}, r"rows\[3\] has no 'irr_train', which the loss SFT reads"),
        ({"rows": []}, "there is no row"),
        ({"loss": Pair(), "rows": EQUAL}, r"rows\[1\]: chosen and rejected are the same tokens"),
        ({"spare_valleys": True}, "reads no rejected response: leave spare_valleys out"),
        ({"ref": tiny("llama")[0]}, r"SFT\(\) needs no reference model"),
        ({"loss": Pair(), "ref": tiny("llama", vocab_size=500)[0]}, "ref knows 500 tokens and the"),
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0"),
        ({"probes_every": 2}, "unknown setting 'probes_every': did you mean 'probe_every'"),
        ({"save_every": 2}, "save_every needs a folder: pass out"),
        ({"resume": True}, "resume needs a folder: pass out"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer", "adam", "unknown optimizer 'adam': did you mean 'adamw'"),
        ("mixed_precision", "bf-16", "unknown mixed_precision 'bf-16': did you mean 'bf16'"),
        ("epochs", 0, "epochs must be an integer of at least 1, got 0"),
        ("epochs", 1.5, "epochs must be an integer of at least 1, got 1.5"),
        ("batch_size", True, "batch_size must be an integer"),
        ("accumulate", 0, "accumulate must be"),
        ("max_steps", 0, "max_steps must be"),
        ("warmup", -1, "warmup must be an integer of at least 0, got -1"),
        ("seed", -1, "seed must be"),
        ("lr", float("nan"), "lr must be"),
        ("lr", "1e-3", "lr must be a finite number above 0, got '1e-3'"),
        ("lr", True, "lr must be a finite number above 0, got True"),
        ("clip", 0.0, "clip must be"),
        ("weight_decay", -0.1, "weight_decay must be a finite number of at least 0"),
        ("probe_every", 0, "probe_every must be an integer of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        Plan(n_rows=5, **RUN | {name: value})


def test_a_model_without_trainable_weights_is_refused():
    model, tokenizer = tiny("llama")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to learn"):
        finetune(model, tokenizer, ROWS, **RUN)
