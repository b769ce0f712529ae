"""The probes inside transformers' Trainer and TRL's: what they log, and what they disturb."""

import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from tiny import tiny, tiny_rows
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

from lmdyn.lm.callback import ProbeCallback
from lmdyn.lm.data import ProbeSet, as_probes
from lmdyn.lm.generate import generate, repeated
from lmdyn.lm.score import score
from lmdyn.lm.squeeze import Alert, fades
from lmdyn.lm.tokens import encode, prompts_of
from lmdyn.lm.trajectory import Trajectory

disable_progress_bars()
ROWS, PAIR = tiny_rows(), ("prompt", "chosen", "rejected")


def trainer(folder, *callbacks, model=None, data=None, **options):
    """Six updates on a row each."""
    fresh, tokenizer = tiny("llama", torch.float32)
    if data is None:
        texts = [f"{row['prompt']} {row['chosen']} <eos>" for row in ROWS]
        data = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts)["input_ids"]]
    options = {"max_steps": 6, "learning_rate": 1e-2, "logging_steps": 2, "report_to": []} | options
    options = {"per_device_train_batch_size": 1, "save_strategy": "no"} | options
    args = Arguments(str(folder), use_cpu=True, disable_tqdm=True, **options)
    given = {"train_dataset": data, "eval_dataset": data, "processing_class": tokenizer}
    made = Trainer(model or fresh, args=args, **given)
    made.remove_callback(PrinterCallback)
    for callback in callbacks:
        made.add_callback(callback)
    return made


def logged(made, key):
    return {e["step"]: e[key] for e in made.state.log_history if key in e}


class Seen(TrainerCallback):
    """A reporter: what reaches TensorBoard and its like."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append((state.global_step, dict(logs)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Six updates without the callback, with it, and with it and its trainer: (trainer, Seen)."""
    made = {}
    for kind in ("plain", "alone", "told"):
        seen = Seen()
        one = trainer(tmp_path_factory.mktemp(kind), seen)
        if kind != "plain":
            told = {"trainer": one} if kind == "told" else {}
            one.add_callback(ProbeCallback(ROWS, every=2, budget=None, answers=1, **told))
        one.train()
        made[kind] = one, seen
    return made


def test_it_logs_what_score_finds_at_each_step(tmp_path):
    probe = ProbeCallback(ROWS, every=2, budget=None)
    made = trainer(tmp_path, probe, max_steps=3)
    expected = {0: score(made.model, made.processing_class, ROWS)}
    made.train()
    expected[3] = score(made.model, made.processing_class, ROWS, per_token=True)
    assert list(logged(made, "lmdyn/chosen")) == [0, 2, 3]
    for step, scores in expected.items():
        for name in (*scores.types, "argmax"):
            value = logged(made, f"lmdyn/{name}")[step]
            np.testing.assert_allclose(value, scores.mean(name), rtol=1e-5)
    tokens = [row["rejected"] for row in expected[3].tokens]
    valley = [(t.prob_sq > t.label_prob).mean() for t in tokens]
    np.testing.assert_allclose(logged(made, "lmdyn/valley")[3], np.mean(valley))
    saved = Trajectory.load(tmp_path / "lmdyn" / "trajectory")
    np.testing.assert_array_equal(saved.logp, probe.trajectory.logp)
    assert saved.steps.tolist() == [0, 2, 3]


@pytest.mark.slow
def test_reporters_of_the_trainer_get_it_and_it_still_logs_its_own(runs):
    (made, seen), (other, alone) = runs["told"], runs["alone"]
    assert [step for step, logs in seen.logs if "lmdyn/chosen" in logs] == [0, 2, 4, 6]
    assert [step for step, logs in seen.logs if "loss" in logs] == [2, 4, 6]
    assert not any("lmdyn/chosen" in logs for _, logs in alone.logs)
    for one, two in zip(made.state.log_history, other.state.log_history, strict=True):
        times = {"lmdyn/seconds", "train_runtime"}
        same = [key for key in one if key not in times and "per_second" not in key]
        assert list(one) == list(two) and [one[key] for key in same] == [two[key] for key in same]


def test_the_training_is_the_same_with_and_without(runs):
    (plain, _), (probed, _) = runs["plain"], runs["alone"]
    assert logged(plain, "loss") == logged(probed, "loss")
    for x, y in zip(plain.model.parameters(), probed.model.parameters(), strict=True):
        assert torch.equal(x, y)
    assert probed.model.training == plain.model.training


def test_reporters_that_would_not_get_it_are_named(tmp_path):
    probe = ProbeCallback(ROWS, every=2, budget=None)
    made = trainer(tmp_path, probe, max_steps=1)
    made.args.report_to = ["tensorboard"]
    with pytest.warns(UserWarning, match="pass trainer=trainer for tensorboard to get the logs"):
        made.train()
    assert list(probe.trajectory.steps) == [0, 1]


def test_a_failing_probe_warns_once_and_steps_aside_until_the_next_training(tmp_path, monkeypatch):
    calls = []

    def broken(*args, **kwargs):
        calls.append(1)
        raise RuntimeError("out of everything")

    probe = ProbeCallback(ROWS, every=1, budget=None)
    assert probe.trajectory.logp.shape == (0, 5, 4)  # before it has begun
    made = trainer(tmp_path, probe, max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("lmdyn.lm.trajectory.score", broken)
        with pytest.warns(UserWarning, match="RuntimeError: out of everything.*without them"):
            made.train()
    assert made.state.global_step == 2 and len(calls) == 1
    trainer(tmp_path, probe, max_steps=2).train()
    assert probe.trajectory.steps.tolist() == [0, 1, 2]


def test_the_default_budget_bears_a_first_probing_that_failed(tmp_path):
    probe = ProbeCallback(ROWS, every=1)
    made = trainer(tmp_path, probe, max_steps=2)
    made.callback_handler.processing_class = None
    with pytest.warns(UserWarning, match="not be scored after update 0 .*training goes on without"):
        made.train()
    assert made.state.global_step == 2 and not probe.trajectory.steps.size


@pytest.mark.filterwarnings("ignore")  # the Trainer's own, and of probing fewer prompts
def test_the_default_budget_bears_a_resumed_training_whose_step_was_probed(tmp_path):
    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, ProbeCallback(ROWS, every=2, budget=None), **saving).train()
    probe = ProbeCallback(ROWS, every=2)
    made = trainer(tmp_path, probe, **saving)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert probe.trajectory.steps.tolist() == [0, 2, 4]


def test_a_small_budget_scores_fewer_prompts_less_often(tmp_path, monkeypatch):
    rows = [dict(row) for row in ROWS * 4]
    probe = ProbeCallback(rows, every=2, budget=0.05)
    made = trainer(tmp_path, probe, max_steps=8)
    clock = iter(range(10**6))  # each look at the clock takes a second: probing costs one
    monkeypatch.setattr("lmdyn.lm.callback.time.perf_counter", lambda: next(clock))
    with pytest.warns(UserWarning, match="probing 4 of 20 prompts, every 2 updates or less often"):
        made.train()
    trajectory = probe.trajectory
    assert not np.isnan(trajectory.logp[0, :, 0]).any()
    kept = ~np.isnan(trajectory.logp[1:, :, 0])
    assert (kept.sum(1) == 4).all() and (kept == kept[0]).all()
    chosen = trajectory.values("chosen")  # means change as those four do, not by who is in them
    expected = chosen[0].mean() + (chosen[-1] - chosen[0])[kept[0]].mean()
    logged = [log["lmdyn/chosen"] for log in made.state.log_history if "lmdyn/chosen" in log]
    assert logged == pytest.approx(trajectory.mean("chosen"))
    assert logged[-1] == pytest.approx(expected)
    assert expected != pytest.approx(np.nanmean(chosen[-1]), abs=1e-3)
    assert "of 20 prompts, their change that of 4, after" in trajectory.summary()


@pytest.mark.slow
def test_the_budget_holds_where_fewer_prompts_are_hardly_faster(tmp_path, monkeypatch):
    """Each update takes a second, and each probing four, whatever it scores."""

    class Clock(TrainerCallback):
        now = 0.0

        def on_step_begin(self, *args, **kwargs):
            self.now += 1

        def score(self, *args, **kwargs):
            self.now += 4
            return score(*args, **kwargs)

    clock, probe = Clock(), ProbeCallback(ROWS, every=2, budget=0.05)
    monkeypatch.setattr("lmdyn.lm.callback.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr("lmdyn.lm.trajectory.score", clock.score)
    with pytest.warns(UserWarning, match="probing 4 of 5 prompts, every 2 updates or less often"):
        trainer(tmp_path, clock, probe, max_steps=200).train()
    n = len(probe.trajectory.steps)
    assert probe.seconds == 4 * n
    first_and_last = 2
    assert 0.03 < 4 * (n - first_and_last) / (clock.now - 4 * first_and_last) <= 0.05


def test_an_alert_warns_and_can_stop_the_run(tmp_path, monkeypatch):
    alert, asked = Alert(2, 0, -1.0, -2.0, 3.0), []

    def squeeze(steps, *given):
        asked.append(given)
        return alert if len(steps) > 1 else None

    monkeypatch.setattr("lmdyn.lm.callback.squeeze", squeeze)
    probe = ProbeCallback(ROWS, every=2, budget=None, stop=True)
    made = trainer(tmp_path, probe)
    with pytest.warns(UserWarning, match="squeeze at step 2: since step 0"):
        made.train()
    assert made.state.global_step == 2
    assert logged(made, "lmdyn/alert") == {0: 0.0, 2: 1.0}
    assert probe.alerts == [alert]
    done, (*curves, n_tokens) = probe.trajectory, asked[-1]
    for name, curve in zip(("chosen", "rejected", "argmax"), curves, strict=True):
        np.testing.assert_array_equal(curve, done.values(name))
    for name, lengths in zip(("chosen", "rejected"), n_tokens.T, strict=True):
        np.testing.assert_array_equal(lengths, done.values(name, "n_tokens"))
    assert (n_tokens[:, 0] != n_tokens[:, 1]).any()


def test_a_squeeze_is_told_where_right_answers_are_probed_too(tmp_path, monkeypatch):
    alert = Alert(2, 0, -1.0, -2.0, 3.0)
    monkeypatch.setattr("lmdyn.lm.callback.squeeze", lambda *a: alert)
    rows = as_probes([row | {"correct": row["chosen"]} for row in ROWS], [*PAIR[1:], "correct"])
    probe = ProbeCallback(rows, every=2, budget=None)
    made = trainer(tmp_path, probe, max_steps=1)
    with pytest.warns(UserWarning, match="squeeze at step 2"):
        made.train()
    assert probe.alerts == [alert] * 2 and logged(made, "lmdyn/alert") == {0: 1.0, 1: 1.0}


def frozen():
    """Probes as a reward sorts them, of which one prompt has no right answer."""
    rows = [
        {"prompt": r["prompt"], "chosen_initial": r["rejected"], "wrong": r["rejected"]}
        | ({} if r["chosen"] == " words" else {"correct": r["chosen"]})
        for r in ROWS
    ]
    return as_probes(rows, ["chosen_initial", "correct", "wrong"])


def learning(folder, probe, answers, **options):
    """Six updates on these answers to the prompts."""
    texts = [f"{row['prompt']} {said} <eos>" for row, said in zip(ROWS, answers, strict=True)]
    data = [{"input_ids": ids, "labels": ids} for ids in tiny("llama")[1](texts)["input_ids"]]
    return trainer(folder, probe, data=data, **options)


@pytest.mark.slow
def test_answers_sorted_by_a_reward_give_entropy_and_kl(tmp_path):
    probe = ProbeCallback(frozen(), every=3, budget=None)
    made = learning(tmp_path, probe, [row["chosen"] for row in ROWS])
    start = score(made.model, made.processing_class, frozen())
    with warnings.catch_warnings(action="error", category=UserWarning):
        made.train()  # what it learns is right
    now = score(made.model, made.processing_class, frozen())
    for step, scores in ((0, start), (6, now)):
        expected = {name: scores.mean(name) for name in scores.types}
        expected["entropy"] = scores.mean("correct", "entropy")
        expected["kl"] = (start.column("chosen_initial", "logp") - scores.logp[:, 0]).mean()
        for name, value in expected.items():
            found = logged(made, f"lmdyn/{name}")[step]
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
    assert logged(made, "lmdyn/kl")[0] == 0 != logged(made, "lmdyn/kl")[6]
    assert logged(made, "lmdyn/correct")[6] > logged(made, "lmdyn/correct")[0]
    assert logged(made, "lmdyn/alert") == {0: 0.0, 3: 0.0, 6: 0.0} and not probe.alerts
    assert not logged(made, "lmdyn/argmax_gain") and not logged(made, "lmdyn/chosen")


def test_right_answers_that_fade_warn_and_can_stop_the_run(tmp_path):
    probe = ProbeCallback(frozen(), every=2, budget=None, stop=True)
    made = learning(tmp_path, probe, ["people have water"] * 5, learning_rate=0.1)
    with pytest.warns(UserWarning, match=r"^at step 4 .* from .*or KL$"):
        made.train()
    assert logged(made, "lmdyn/alert") == {0: 0.0, 2: 0.0, 4: 1.0}
    assert made.state.global_step == 4
    done = probe.trajectory
    curves = done.values("correct"), done.values("correct", "entropy")
    assert probe.alerts == [fades(done.steps, *curves)]


@pytest.mark.filterwarnings("ignore:at step")  # what it learns is wrong
@pytest.mark.slow
def test_it_answers_a_few_prompts_and_tells_how_it_repeats_itself(tmp_path, monkeypatch):
    probe = ProbeCallback(frozen(), every=3, budget=None, answers=3)
    made = learning(tmp_path, probe, ["people have water"] * 5, learning_rate=0.1)
    fresh, tokenizer = tiny("llama", torch.float32)
    asked = prompts_of(tokenizer, frozen()[:3], frozen().format)
    before, now = generate(fresh, tokenizer, asked), [0.0]
    made.train()
    found = logged(made, "lmdyn/repeats")
    assert list(found) == [0, 3, 6] and found[0] == repeated(before) > 0
    assert found[6] == repeated(generate(made.model, tokenizer, asked)) != found[0]

    def slowly(*given):
        now[0] += 4
        return [" a b c a b c", " a b c d"]

    monkeypatch.setattr("lmdyn.lm.callback.generate", slowly)
    monkeypatch.setattr("lmdyn.lm.callback.time.perf_counter", lambda: now[0])
    for n in (0, 2):
        probe = ProbeCallback(frozen(), every=3, budget=None, answers=n)
        made = learning(tmp_path, probe, ["words"] * 5)
        made.train()
        found = logged(made, "lmdyn/repeats")
        assert list(found.values()) == ([1 / 6] * 3 if n else [])  # of 4 and 2, one again
        assert probe.seconds == (12 if n else 0)  # so that its budget counts them


def test_without_answers_sorted_by_a_reward_entropy_is_of_chosen(runs):
    made, _ = runs["alone"]
    before = score(*tiny("llama", torch.float32), ROWS)
    found = logged(made, "lmdyn/entropy")
    np.testing.assert_allclose(found[0], before.mean("chosen", "entropy"), rtol=1e-5)
    assert list(found) == [0, 2, 4, 6] and not logged(made, "lmdyn/kl")


@pytest.mark.parametrize("ends", ["max_steps", "epochs", "early"])
def test_the_last_probing_is_of_the_last_step_where_the_best_model_is_loaded(tmp_path, ends):
    """The first evaluation finds the best one, and the fourth after it stops the training early."""
    saving = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    saving |= {"load_best_model_at_end": True, "metric_for_best_model": "loss"}
    saving |= {"max_steps": {"max_steps": 5, "epochs": -1, "early": 6}[ends], "num_train_epochs": 1}
    last = []

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            last[:] = [score(model, made.processing_class, ROWS).mean("chosen")]

    def evaluate(*given, **named):
        metrics, told = {"eval_loss": made.state.global_step}, (made.args, made.state, made.control)
        made.control = made.callback_handler.on_evaluate(*told, metrics)
        return metrics

    probe = ProbeCallback(ROWS, every=2, budget=None)
    made = trainer(tmp_path, probe, Looks(), **saving)
    made.evaluate = evaluate
    if ends == "early":
        made.add_callback(EarlyStoppingCallback(4))
    made.train()
    best = score(made.model, made.processing_class, ROWS).mean("chosen")
    assert probe.trajectory.steps.tolist() == [0, 2, 4, 5]
    assert probe.trajectory.mean("chosen")[-1] == pytest.approx(last[0], rel=1e-5)
    assert best != pytest.approx(last[0], rel=1e-3)


def test_a_trainer_without_a_tokenizer_is_told_what_it_lacks(tmp_path):
    probe = ProbeCallback(ROWS, every=2, budget=None)
    made = trainer(tmp_path, probe, max_steps=1)
    made.callback_handler.processing_class = None
    what = r"not be scored after update 0 .*the trainer has no tokenizer: ProbeCallback\(…, tokeni"
    with pytest.warns(UserWarning, match=what):
        made.train()
    assert made.state.global_step == 1 and not probe.trajectory.steps.size
    own = ProbeCallback(ROWS, every=2, budget=None, tokenizer=tiny("llama")[1])
    made = trainer(tmp_path, own, max_steps=1)
    made.callback_handler.processing_class = None
    made.train()
    assert own.trajectory.steps.tolist() == [0, 1]


def test_a_folder_that_cannot_be_written_costs_the_file_alone(tmp_path):
    (tmp_path / "file").write_text("in the way")
    made = trainer(tmp_path / "out", ProbeCallback(ROWS, 2, budget=None, out=tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be written") as caught:
        made.train()
    assert len([w for w in caught if "could not be written" in str(w.message)]) == 1
    assert list(logged(made, "lmdyn/chosen")) == [0, 2, 4, 6]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_goes_on_with_its_trajectory(tmp_path):
    def probed(folder, rows=ROWS, **options):
        probe = ProbeCallback(rows, every=2, budget=None)
        return probe, trainer(tmp_path / folder, probe, **options)

    whole, made = probed("a")
    made.train()
    probed("b", save_strategy="steps", save_steps=2)[1].train()
    second, again = probed("b")
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert second.trajectory.steps.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(second.trajectory.logp, whole.trajectory.logp, rtol=1e-4)
    others, again = probed("b", ROWS[::-1])  # as many, and not the same
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert others.trajectory.steps.tolist() == [4, 6]


# --- TRL ------------------------------------------------------------------------------------------

PAIRS = [{key: " " * (key != "prompt") + r[key].strip() for key in PAIR} for r in ROWS]
GIVEN = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS]
RL = {"num_generations": 2, "max_completion_length": 4}
# trainer → its rows, its settings, and what it logs itself.
TRL = {
    "DPO": (PAIRS, {"precompute_ref_log_probs": True}, "rewards/margins"),
    "KTO": (
        [row | {"label": i % 2 == 0} for i, row in enumerate(GIVEN)],
        {"precompute_ref_log_probs": True},
        "kl",
    ),
    "SFT": (GIVEN, {}, "mean_token_accuracy"),
    "GRPO": ([{"prompt": r["prompt"]} for r in PAIRS], RL, "reward"),
    "RLOO": ([{"prompt": r["prompt"]} for r in PAIRS], RL | {"beta": 0.0}, "reward"),
    "Distillation": (
        [{"prompt": r["prompt"]} for r in PAIRS],
        {"max_completion_length": 4},
        "loss",
    ),
}


def made_by_trl(kind, folder, lora):
    """A trainer of TRL on its rows, and the prompts that it has generated from."""
    import peft
    import trl

    rows, settings, _ = TRL[kind]
    model, tokenizer = tiny("llama", torch.float32)
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    sizes = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 2, "bf16": False}
    args = getattr(trl, f"{kind}Config")(
        str(folder), learning_rate=1e-2 if lora else 1e-3, **quiet, **sizes, **settings
    )
    asked, parent = [], getattr(trl, f"{kind}Trainer")

    class Telling(parent):
        def _generate_single_turn(self, prompt_ids, *others, **named):
            asked.extend(prompt_ids)
            return super()._generate_single_turn(prompt_ids, *others, **named)

    given = {"args": args, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
    if lora:
        given["peft_config"] = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    if kind == "Distillation":
        given["teacher_model"] = tiny("llama", torch.float32, initializer_range=0.3)[0]
    if kind in ("GRPO", "RLOO"):
        given["reward_funcs"] = lambda completions, **_: [float(len(c) % 3) for c in completions]
    return Telling(model, **given), asked


def learned_by_trl(made, kind):
    """(prompt, response …) of each row, as the trainer's own data set has them."""
    for row in made.train_dataset:
        if kind == "SFT":
            first = next(i for i, label in enumerate(row["labels"]) if label != -100)
            yield row["input_ids"][:first], row["input_ids"][first:]
        else:
            names = [name for name in row if name.endswith("_ids") and "KL" not in name]
            yield tuple(row[name] for name in sorted(names, key=lambda n: n != "prompt_ids"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TRL's own
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", TRL)
def test_it_runs_in_the_trainers_of_trl(tmp_path, kind, lora):
    rows, _, own = TRL[kind]
    (made, asked), seen = made_by_trl(kind, tmp_path, lora), Seen()
    tokenizer, samples = made.processing_class, "prompt" in rows[0] and len(rows[0]) == 1
    options = {"model": made.model, "reward": lambda row, said: len(said) % 2, "max_new_tokens": 4}
    options = options if samples else {"types": ["chosen", "rejected"][: 1 + (kind != "SFT")]}
    probes = ProbeSet.from_dataset(rows, tokenizer, **options)
    before = score(made.model, tokenizer, probes)
    probe = ProbeCallback(probes, every=1, budget=None, trainer=made, answers=2)
    made.add_callback(seen)
    made.add_callback(probe)
    encoded = encode(tokenizer, probes)
    if not samples:
        expected = [*learned_by_trl(made, kind)]
        assert [(row.prompt, *row.responses.values()) for row in encoded] == expected
    made.train()
    if samples:  # what the trainer has generated from is what the probes are asked
        assert asked and {*map(tuple, asked)} <= {tuple(row.prompt) for row in encoded}
        assert not any(row.own for row in encoded)
    after = score(made.model, tokenizer, probes)
    for name in probes.types:
        found = logged(made, f"lmdyn/{name}")
        assert list(found) == [0, 1, 2]
        ends = before.mean(name), after.mean(name)
        np.testing.assert_allclose([found[0], found[2]], ends, rtol=1e-5)
        assert found[0] != found[2]
    assert np.isfinite([*logged(made, "lmdyn/entropy").values()]).all()
    assert (list(logged(made, "lmdyn/kl")) == [0, 1, 2]) == samples
    assert list(logged(made, "lmdyn/repeats")) == [0, 1, 2]
    assert [step for step, logs in seen.logs if "lmdyn/entropy" in logs] == [0, 1, 2]
    assert list(logged(made, own)) == [2]  # over all updates, as without the callback


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="every must be an integer of at least 1"):
        ProbeCallback(ROWS, every=0)
    with pytest.raises(ValueError, match="answers must be an integer of at least 0"):
        ProbeCallback(ROWS, answers=-1)
    with pytest.raises(ValueError, match="budget must be a share"):
        ProbeCallback(ROWS, budget=2)


def test_an_alert_that_cannot_ring_is_not_told(tmp_path):
    one_each = [{"prompt": r["prompt"], k: r[k]} for r, k in zip(ROWS, PAIR[1:] * 2, strict=False)]
    for probes in (one_each, as_probes(ROWS).only("chosen"), as_probes(ROWS)[:1]):
        made = trainer(tmp_path, ProbeCallback(probes, budget=None), max_steps=1)
        made.train()
        assert list(logged(made, "lmdyn/chosen")) == [0, 1]
        assert not logged(made, "lmdyn/alert")
        with pytest.raises(ValueError, match="stop needs two probes with chosen and rejected, or"):
            ProbeCallback(probes, stop=True)
