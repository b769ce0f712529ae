"""What the chapter "Who squeezes whom" measures: runs, tokens, one step on one pair."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import world
from lmdyn import lm, losses, squeeze_line
from lmdyn.lm.tokens import Encoded, encode

N_TRAIN, N_TEST = 48, 24
COMMON = {"batch_size": 4, "optimizer": "adamw", "clip": 10.0}
SFT = COMMON | {"lr": 3e-4}
DPO = COMMON | {"loss": "dpo", "lr": 1e-4, "epochs": 2}
PER_EPOCH = 12  # updates
WATCHED = ("chosen", "chosen_gptsemantic", "rejected", "irr_train")
N_OWN, N_HELD_OUT = 12, 6  # prompts to watch
LR_PAIR = 1e-2  # of SGD, a step on one pair


def recorded(name):
    """The numbers of a record, and its settings."""
    with np.load(f"recorded/{name}.npz") as file:
        numbers = {key: file[key] for key in file.files}
    return numbers, json.loads(Path(f"recorded/{name}.json").read_text("utf-8"))["settings"]


class Run(NamedTuple):
    """A run: its pairs, the prompts to watch, and three models."""

    pairs: lm.ProbeSet
    probes: lm.ProbeSet
    short: torch.nn.Module  # after two epochs of SFT
    start: torch.nn.Module  # after six, where DPO starts
    later: torch.nn.Module  # after one epoch of DPO
    ref: dict  # response → (48,) log-probs where DPO starts, nats


def begin(base, tokenizer, seed) -> Run:
    """SFT, then an epoch of DPO, in the world of a seed."""
    rows = world.probes(n_train=N_TRAIN, n_test=N_TEST, seed=seed)
    train = rows[:N_TRAIN]
    pairs = train.only("chosen", "rejected")
    probes = rows[[*range(N_OWN), *range(N_TRAIN, N_TRAIN + N_HELD_OUT)]].only(*WATCHED)
    model, sft = copy.deepcopy(base), []
    for epochs in (2, 4):
        lm.finetune(model, tokenizer, train, epochs=epochs, **SFT, seed=seed)
        sft.append(copy.deepcopy(model))
    lm.finetune(model, tokenizer, pairs, **DPO, seed=seed, max_steps=PER_EPOCH)
    return Run(pairs, probes, *sft, model, log_probs(sft[-1], tokenizer, pairs))


def log_probs(model, tokenizer, pairs) -> dict:
    """Response → (N,) log-probs, nats."""
    found = lm.score(model, tokenizer, pairs, stats=False).logp.T
    return dict(zip(pairs.types, found, strict=True))


def coefficients(model, tokenizer, pairs, ref):
    """Response → (N,) c of DPO for each pair."""
    logps, ref = (
        {name: torch.from_numpy(values.copy()) for name, values in of.items()}
        for of in (log_probs(model, tokenizer, pairs), ref)
    )
    return losses.get("dpo").coefficients(logps, ref)


def total(directions):
    """The sum of directions in weight space."""
    directions = list(directions)
    return {name: sum(d[name] for d in directions) for name in directions[0]}


def split_errors(run, tokenizer, pull, push, batch, eta=1e-3):
    """How far pull and push are from DPO's step, from `influence`, and from what a step does."""
    model, few = run.later, run.probes[:4]
    pairs, ref = run.pairs[:batch], {name: values[:batch] for name, values in run.ref.items()}
    whole = lm.sgd_direction(model, tokenizer, pairs, "dpo", lr=1 / batch, ref=ref)
    largest, both = max(move.abs().max() for move in whole.values()), total([pull, push])
    gap = max((both[n] - move).abs().max() for n, move in whole.items()) / largest
    predicted = [lm.predict_change(model, tokenizer, few, d).logp for d in (pull, push)]
    again = lm.influence(
        model, tokenizer, pairs, few, "dpo", ref=ref, by_response=True, progress=False
    )
    agree = np.abs(again.mean(0) - predicted).max() / np.abs(predicted).max()
    step = {name: eta * move for name, move in whole.items()}
    measured = lm.measure_change(model, tokenizer, few, step).logp
    off = np.linalg.norm(eta * np.sum(predicted, axis=0) - measured) / np.linalg.norm(measured)
    return float(gap), agree, off


def sequence(tokenizer, row, name):
    """The tokens of prompt and response, and the places where the response is predicted."""
    x = tokenizer(row["prompt"], add_special_tokens=False).input_ids
    y = [*tokenizer(row[name], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return x + y, list(range(len(x) - 1, len(x) + len(y) - 1))


def words(tokenizer, ids, places):
    """What is predicted at these places, as text."""
    ids = [ids[place + 1] for place in places]
    return ["⟨end⟩" if i == tokenizer.eos_token_id else tokenizer.decode([i]) for i in ids]


def strongest_push(model, tokenizer, run, push):
    """The strongest push of one pair's y− on another prompt's y+, cut into pairs of tokens.

    ``push`` is (48, N_OWN). The row that pushes and the row that is pushed; their words; the terms,
    (T of the pushed, T of the pusher); and how far their sum is from the push, relative to it.
    """
    push = push.copy()
    push[np.arange(N_OWN), np.arange(N_OWN)] = 0
    pusher, pushed = np.unravel_index(push.argmin(), push.shape)
    (ids_o, at_o), (ids_u, at_u) = (
        sequence(tokenizer, run.pairs[row], name)
        for row, name in ((pushed, "chosen"), (pusher, "rejected"))
    )
    c = coefficients(model, tokenizer, run.pairs, run.ref)["rejected"][pusher]
    found = lm.token_influence(model, ids_o, ids_u, positions_o=at_o, positions_u=at_u)
    terms = -c.item() / len(run.pairs) * found.cpu().numpy()
    off = abs(terms.sum() / push[pusher, pushed] - 1)
    said = words(tokenizer, ids_o, at_o), words(tokenizer, ids_u, at_u)
    return run.pairs[pusher], run.pairs[pushed], said, terms, off


def parts(
    model, row: Encoded, weights: Mapping[str, float]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """A pair's pull, and its push by tokens: how many, and what they add to a step of SGD.

    Four: all tokens of chosen; of rejected those that open the answer and lie in a valley, later
    ones in a valley, all others. ``weights``: of the two log-probs, DPO's coefficients.
    """
    names, params = zip(*model.named_parameters(), strict=True)
    for name, weight in weights.items():
        y = torch.tensor(row.responses[name], device=model.device)
        ids = torch.tensor([[*row.prompt, *y.tolist()]], device=model.device)
        logits = model(ids).logits[0, -len(y) - 1 : -1]
        label = logits.log_softmax(-1).gather(1, y[:, None]).squeeze(1)
        valley = squeeze_line(logits.detach().softmax(-1), y) > 0
        opening = torch.arange(len(y), device=model.device) == 0
        cut = (valley & opening, valley & ~opening, ~valley)
        for some in cut if name == "rejected" else (torch.ones_like(opening),):
            loss = -(weight * label * some).sum()
            grads = torch.autograd.grad(loss, params, retain_graph=True)
            yield int(some.sum()), dict(zip(names, grads, strict=True))


def weighted(model, tokenizer, pairs, ref) -> list[tuple[Encoded, dict[str, float]]]:
    """What `parts` asks of each pair, in a step of SGD on the mean over all; DPO began at ref."""
    c = coefficients(model, tokenizer, pairs, ref)
    return [
        (row, {name: float(of[i]) / len(pairs) for name, of in c.items()})
        for i, row in enumerate(encode(tokenizer, pairs))
    ]


def summed(model, rows) -> tuple[np.ndarray, list[dict[str, Tensor]]]:
    """Of the `parts` of `weighted` pairs: (4,) tokens, and what each part adds to the step."""
    count, moves = np.zeros(4, int), [None] * 4
    for row in rows:
        for part, (n, move) in enumerate(parts(model, *row)):
            count[part] += n
            moves[part] = total([moves[part], move]) if moves[part] else move
    return count, moves


def push_by_token(model, tokenizer, run):
    """The push on chosen, (3, prompts), and (3,) how many tokens do it, as `parts` cut it."""
    count, moves = summed(model, weighted(model, tokenizer, run.pairs, run.ref))
    probes = run.probes[:N_OWN].only("chosen")
    changes = [lm.predict_change(model, tokenizer, probes, move).logp[:, 0] for move in moves[1:]]
    return np.stack(changes), count[1:]


@torch.no_grad()
def _forward(model, tokenizer, row, name):
    """Last hidden states (T, d), probabilities (T, V) and labels (T,) along a response."""
    ids, places = sequence(tokenizer, row, name)
    h = model.model(torch.tensor([ids], device=model.device)).last_hidden_state[0, places]
    labels = torch.tensor([ids[place + 1] for place in places], device=model.device)
    return h.double(), model.lm_head(h).double().softmax(-1), labels


def one_pair(model, tokenizer, pair):
    """What one DPO step on this pair does, measured, and predicted from first order to valleys."""
    (h_plus, p_plus, y_plus), (h_minus, p_minus, y_minus) = (
        _forward(model, tokenizer, pair, name) for name in ("chosen", "rejected")
    )
    at, device = torch.arange(len(y_minus), device=model.device), model.device
    others = p_minus.clone()
    others[at, y_minus] = -1
    rival = others.argmax(1)
    p_rival, p_label = p_minus[at, rival], p_minus[at, y_minus]
    line = p_minus.square().sum(1) - p_label

    alone = world.probe_set([pair], "chosen", "rejected")
    step = lm.sgd_direction(model, tokenizer, alone, "dpo", lr=LR_PAIR)
    first = lm.predict_change(model, tokenizer, alone, step, vocab=True)
    real = lm.measure_change(model, tokenizer, alone, step, vocab=True)
    gain, moved = (
        change.vocab[0]["rejected"].to(device).double()[at, rival] for change in (first, real)
    )
    real_label = real.vocab[0]["rejected"].to(device).double()[at, y_minus]

    g_plus, g_minus = -p_plus, -p_minus  # e_y − π
    g_plus[torch.arange(len(y_plus), device=device), y_plus] += 1
    g_minus[at, y_minus] += 1
    dz_plus = (h_plus @ h_plus.T) @ g_plus - (h_plus @ h_minus.T) @ g_minus
    dz_minus = (h_minus @ h_plus.T) @ g_plus - (h_minus @ h_minus.T) @ g_minus
    a_dz = dz_minus[at, rival] - (p_minus * dz_minus).sum(1)
    return {
        "fall": -real.logp[0, 0],
        "handed": float((p_rival * moved.expm1()).sum()),
        "taken": -float((p_label * real_label.expm1()).sum()),
        "fall, first order": -first.logp[0, 0],
        "handed, first order": float((p_rival * gain).sum()),
        "fall, output layer": -float((g_plus * dz_plus).sum()),
        "handed, output layer": float((p_rival * a_dz).sum()),
        "squeeze line": float((p_rival * (p_rival - line)).sum()),
        "valley tokens": float((line > 0).sum()),
    }
