"""What a typed program sees of the public names: checked by `make types`, never run."""

from typing import assert_type

import numpy as np
import torch
from torch import Tensor

import lmdyn
from lmdyn import lm, losses
from lmdyn.lm.influence import Shares

model = torch.nn.Linear(2, 3)
x = torch.ones(1, 2)

# The core.
assert_type(lmdyn.one_step(model, x, x, y_u=2, lr=1e-3), lmdyn.OneStep)
step = lmdyn.one_step(model, x, x, y_u=2, lr=1e-3)
assert_type(step.predicted, Tensor)
assert_type(step.measured, Tensor)
assert_type(lmdyn.entk(model, x, x), Tensor)
assert_type(lmdyn.softmax_step(x, 1, 0.1), Tensor)
assert_type(lmdyn.squeeze_line(x, 1), Tensor)
assert_type(losses.get("dpo"), losses.Loss)
assert_type(losses.names(), list[str])

# Language models.
net, tokenizer = lm.load("tiny")
rows = lm.load_probes("world", limit=8)
assert_type(rows, lm.ProbeSet)
scores = lm.score(net, tokenizer, rows)
assert_type(scores, lm.Scores)
assert_type(scores.logp, np.ndarray)
direction = lm.sgd_direction(net, tokenizer, rows, "sft", lr=1e-4)
assert_type(direction, dict[str, Tensor])
assert_type(lm.predict_change(net, tokenizer, rows, direction), lm.Change)
assert_type(lm.influence(net, tokenizer, rows, rows), np.ndarray | Shares)  # with an optimizer
run = lm.finetune(net, tokenizer, rows, "sft", epochs=1, lr=1e-4, batch_size=2, probes=rows)
assert_type(run, lm.Trajectory)
assert_type(lm.diagnose(net, tokenizer, rows), lm.Diagnosis)
lm.ProbeCallback(rows, every=50)

# A slip that a type checker should find.
lm.score(net, tokenizer, rows, stats="yes")  # type: ignore[arg-type]
