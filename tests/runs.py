"""Runs that are the same, and one that something stops in the middle of an update."""

from contextlib import contextmanager
from itertools import count

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lmdyn.lm.score import STATS

WHAT = ("steps", "examples_seen", "types", "split", "vocab_size", "n_tokens", *STATS)


def same_runs(a, b):
    """Two trajectories, bit for bit."""
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in WHAT}
    assert list(a.log) == list(b.log)
    pairs |= {name: (values, b.log[name]) for name, values in a.log.items()}
    for name, (x, y) in pairs.items():
        np.testing.assert_array_equal(x, y, err_msg=name)
        assert getattr(x, "dtype", None) == getattr(y, "dtype", None), name


def same_weights(a, b):
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


@contextmanager
def stopped(at: int):
    """Interrupt as any optimizer is about to make its update number ``at``, counted from 1."""
    updates = count(1)

    def stop(*_):
        if next(updates) == at:
            raise KeyboardInterrupt

    hook = register_optimizer_step_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()
