"""Which pairs would squeeze: what one step on each does, before any training."""

import json
import math
from dataclasses import dataclass, fields
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lmdyn import losses
from lmdyn.checks import check_different, check_number, check_same_vocabulary, trainable
from lmdyn.lm.batches import Batch
from lmdyn.lm.checkpoint import fingerprint, fingerprint_model
from lmdyn.lm.data import Rows, as_probes, with_all
from lmdyn.lm.forward import bar, evaluating, hidden, undisturbed
from lmdyn.lm.influence import Gradients, Step, inner_products
from lmdyn.lm.predict import descent
from lmdyn.lm.records import write_jsonl, write_text
from lmdyn.lm.rows import text_of
from lmdyn.lm.score import STATS, check_logps, coefficients, statistics, token_coefficients
from lmdyn.lm.tokens import encode
from lmdyn.lm.ways import LogProbs, check_kind, ways

HELD_OUT = 16  # rows that stand for held-out ones where none are given
FLAGS = {
    "own": "a step on this pair lowers its own chosen response",
    "held_out": "a step on this pair lowers the chosen responses to other prompts",
    "valley": "most tokens of its rejected response lie in a valley",
}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What one step on each of N pairs alone would do, to first order.

    The pull is the share of the step that raises y+, the push the one that lowers y−. All changes
    are of log π, in nats, at the learning rate that `diagnose` was given.
    """

    squeeze: np.ndarray  #: (N,) mean ‖π‖² − π_y of the tokens of ``rejected``; above 0 in a valley
    valley: np.ndarray  #: (N,) the share of those tokens that lie in a valley
    own_pull: np.ndarray  #: (N,) what the pull does to the pair's own ``chosen``
    own_push: np.ndarray  #: (N,) and the push
    held_out_pull: np.ndarray  #: (N,) what the pull does to ``chosen`` of the held-out rows, mean
    held_out_push: np.ndarray  #: (N,) and the push
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"Diagnosis({len(self)} pairs, {sum(map(bool, self.flags))} of them flagged)"

    @property
    def own(self) -> np.ndarray:
        """(N,) pull and push together."""
        return self.own_pull + self.own_push

    @property
    def held_out(self) -> np.ndarray:
        """(N,) pull and push together."""
        return self.held_out_pull + self.held_out_push

    @property
    def flags(self) -> list[tuple[str, ...]]:
        """Of each pair, which of `FLAGS` hold."""
        holds = np.stack([self.own < 0, self.held_out < 0, self.valley > 0.5], 1)
        return [tuple(compress(FLAGS, of_pair)) for of_pair in holds]

    @property
    def order(self) -> np.ndarray:
        """(N,) the pairs, from the one that lowers held-out answers most to the one that helps."""
        return np.argsort(self.held_out, kind="stable")

    def rows(self) -> list[dict]:
        """One dict a pair, in `order`; ``row`` is its number in those that were given."""
        *names, _ = (f.name for f in fields(self))
        flags, found = self.flags, []
        for i in self.order.tolist():
            numbers = {name: float(getattr(self, name)[i]) for name in names}
            found.append({"row": i, "prompt": self.prompts[i], **numbers, "flags": [*flags[i]]})
        return found

    def table(self, limit: int = 10) -> str:
        """The first pairs of `order`, for a terminal."""
        lines = [f"{'row':>5}{'own y+':>10}{'held-out':>10}{'valley':>8}  flags · prompt"]
        for row in self.rows()[:limit]:
            i, prompt = row["row"], " ".join(row["prompt"].split())[-40:]
            numbers = f"{self.own[i]:>+10.3g}{self.held_out[i]:>+10.3g}{self.valley[i]:>8.0%}"
            lines.append(f"{i:>5}{numbers}  {', '.join(row['flags']) or '-'} · {prompt}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write `rows` as JSONL, whole or not at all."""
        write_jsonl(Path(path), self.rows())


def diagnose(
    model,
    tokenizer,
    rows: Rows,
    loss: str | losses.Loss = "dpo",
    *,
    held_out: Rows | None = None,
    ref: nn.Module | None = None,
    lr: float = 1.0,
    optimizer: torch.optim.Optimizer | None = None,
    keep: str | Path | None = None,
    progress: bool | None = None,
) -> Diagnosis:
    """Tell, before training, which pairs push good answers down.

    Inner products of the gradients of log π(y+) and log π(y−) with each other and with that of the
    mean log π(y+) of held-out rows: equation 5, summed over tokens, for a step on the pair alone.
    As the gradients of the two responses are needed apart, a pair costs up to two steps of
    `finetune` on it, about half a step of TRL's; none is held as a whole.

    Args:
        model, tokenizer, progress: as in `score`. Dropout is off.
        rows: N pairs with ``prompt``, ``chosen``, ``rejected``; what else they hold is not read.
        loss: a loss that reads both, by name or as a `lmdyn.losses.Loss`.
        held_out: rows whose ``chosen`` should not fall; if not given, 16 of ``rows``.
        ref: the reference model of the loss; the model itself if not given, as at the start.
        lr: of SGD, for effects in nats per update; 1 tells them per unit learning rate.
        optimizer: take its next step, as in `influence`, in place of SGD's, at its own learning
            rate. Told is what the pair adds to it, not what the momentum does whatever the pair.
        keep: a JSONL file to which pairs are added as they are done: after an interruption the
            same call goes on from there. ValueError if it is another call's.
    """
    loss = losses.get(loss)
    if not {"chosen", "rejected"} <= set(loss.responses):
        raise ValueError(f"{loss} does not read both chosen and rejected: diagnose a loss of pairs")
    check_kind(model)
    check_number("lr", lr)
    ref, lr = model if ref is None else ref, 1.0 if optimizer else lr
    check_same_vocabulary(model, ref)
    pairs = with_all(as_probes(rows), loss.responses, str(loss))
    encoded, n = encode(tokenizer, pairs), len(pairs)
    check_different(encoded, {name: name for name in loss.responses}, loss)
    if held_out is None:
        held_out = pairs[np.linspace(0, n - 1, min(HELD_OUT, n)).astype(int).tolist()]
    held_out = with_all(as_probes(held_out, where="held_out"), ["chosen"], "diagnose", "held_out")
    theirs = encode(tokenizer, held_out, "held_out")
    call = loss, lr, optimizer, model, ref, encoded, theirs
    found = {} if keep is None else _kept(Path(keep), *call)
    todo, shown = [i for i in range(n) if i not in found], bar("diagnose", "pair", progress, n)
    with undisturbed(model), evaluating(ref), shown:
        shown.update(len(found))
        sft = losses.get("sft")
        c = token_coefficients(model, theirs, {"chosen": "chosen"}, sft, what="held_out")
        goal = descent(model, theirs, c, 1 / len(theirs))
        of_pair = _Pairs(model, encoded, loss, goal, lr, optimizer, ref)
        for i in todo:
            found[i] = of_pair(i)
            shown.update()
            if keep is not None:
                with Path(keep).open("a", encoding="utf-8") as file:
                    file.write(json.dumps([i, found[i]]) + "\n")
    prompts = tuple(text_of(row["prompt"], tokenizer) for row in pairs)
    return Diagnosis(*np.array([found[i] for i in range(n)]).T, prompts)


def _kept(path: Path, loss, lr, optimizer, model, ref, *rows) -> dict[int, list[float]]:
    """The pairs in a file of the same call; it is begun if it is not there, or empty."""
    state = [x for of in optimizer.state.values() for x in of.values()] if optimizer else []
    tensors = nn.ParameterList(filter(torch.is_tensor, state))  # a momentum may be None
    call = [*map(str, (loss, lr, optimizer)), sorted(trainable(model))]
    call += map(fingerprint_model, (model, ref, tensors))
    call += [[vars(row) for row in part] for part in rows]
    call = json.dumps({"call": fingerprint(call)})
    first, *lines = (path.read_text("utf-8") if path.is_file() else "").splitlines() or [call]
    if first != call:
        raise ValueError(f"{path} is of other rows, weights or settings: keep them in another file")
    lines = [line for line in lines if line.endswith("]]")]  # the last may be cut
    write_text(path, "\n".join([first, *lines, ""]))
    return dict(map(json.loads, lines))


class _Pairs:
    """What a step on a pair alone does, and how its rejected tokens lie."""

    def __init__(self, model, encoded, loss, goal, lr, optimizer, ref):
        self.encoded, self.loss, self.lr = encoded, loss, lr
        self.step = optimizer and Step(optimizer, model, goal)
        self.goal = {p: goal.get(n, torch.zeros_like(p)) for n, p in trainable(model).items()}
        self.keys = {name: name for name in loss.responses}
        self.reference = None if ref is model else LogProbs(ref, encoded, self.keys)
        self.gradients = Gradients(model, encoded)
        self.gradients.watch = self._watch

    def __call__(self, i: int) -> list[float]:
        """The numbers of `Diagnosis`, in order."""
        (block,) = self.gradients.blocks([self.encoded[i]], math.inf)
        at = {name: number for number, (_, name) in enumerate(block.logps)}
        check_logps({(i, name): logp for (_, name), logp in block.logps.items()})
        own = {k: torch.tensor([block.logps[0, k]], dtype=torch.float64) for k in at}
        ref = self.reference and self.reference.all([i], 1)
        c = coefficients([self.encoded[i]], self.keys, self.loss, own, None, ref, None)
        share = torch.cat([c[name] for name in at])

        def left(param: Tensor, rows: range, a: Tensor) -> Tensor:
            gain, *_ = self.step.parts(param, rows, share.to(a) @ a)  # of the pair's own gradient
            return a * gain

        products = inner_products(block, block, self.step and left, self.goal)
        products *= -self.lr * share.unsqueeze(1)
        seen, line = (at["chosen"], -1), self.line
        up = [i for name, i in at.items() if name != "rejected"]  # a loss may pull at others too
        moved = [products[part, to].sum() for to in seen for part in (up, at["rejected"])]
        return [*map(float, (line.mean(), (line > 0).double().mean(), *moved))]

    @torch.no_grad()
    def _watch(self, logits: Tensor, batch: Batch) -> None:
        """Keep ‖π‖² − π_y at the tokens of the rejected response, float64."""
        for (_, name), places in batch.split(torch.arange(len(logits))).items():
            if name == "rejected":
                found = statistics(logits[places], batch, places, True)
                self.line = found[:, STATS.index("squeeze")]


def ches(model, tokenizer, pairs, normalise: bool = False) -> np.ndarray:
    """Centered hidden embedding similarity, ⟨Σ h⁺, Σ h⁻⟩ − ‖Σ h⁺‖², (N,) float64.

    A guess, from a forward pass, at how far a pair lowers its own chosen response: the higher, the
    further (Razin et al., arXiv 2410.08847, definition 2). h are the final hidden states that
    predict the tokens of ``chosen`` and ``rejected``; with ``normalise`` means take the place of
    the sums. Arguments and errors are those of `diagnose`.
    """
    names = ("chosen", "rejected")
    probes, states = with_all(as_probes(pairs), names, "ches"), {}
    encoded = encode(tokenizer, probes)
    found = ways(model, encoded)
    found.required_head(model)  # that it reads these hidden states
    with undisturbed(model), torch.no_grad():
        for batch in found.batches(model, encoded):
            for key, h in batch.split(hidden(model, batch).double().cpu()).items():
                states[key] = h.mean(0) if normalise else h.sum(0)
    plus, minus = (torch.stack([states[i, name] for i in range(len(probes))]) for name in names)
    return ((minus - plus) * plus).sum(1).numpy()
