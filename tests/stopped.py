"""A run that something stops in the middle of an update."""

from contextlib import contextmanager
from itertools import count

from torch.optim.optimizer import register_optimizer_step_pre_hook


@contextmanager
def stopped(at: int, error: type[BaseException] = KeyboardInterrupt):
    """Raise as any optimizer is about to make its update number ``at``, counted from 1."""
    updates = count(1)

    def stop(*_):
        if next(updates) == at:
            raise error

    hook = register_optimizer_step_pre_hook(stop)
    try:
        yield
    finally:
        hook.remove()
