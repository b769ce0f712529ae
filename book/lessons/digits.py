"""Chapter 2: LeNet learns digits by plain gradient descent, and is looked at on the way."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmdyn.digits import Digits, LeNet

LR, BATCH, EPOCHS = 0.1, 32, 3
EVERY = 25  # updates between two looks


class Look(NamedTuple):
    """The network after some updates."""

    updates: int
    accuracy: float
    mean_prediction: Tensor  # (10, 10): mean π over the test images of each true class
    model: nn.Module


class Diary:
    """An update in three parts; after each, what it did to the log π of some images.

    The gradients for the 4s, the 9s and the rest of the minibatch are all taken before anything
    moves, so that their sum is the usual update.

    Attributes:
        entries: (10,) each: the mean log π of the images, first before anything was learned.
    """

    def __init__(self, images: Tensor):
        self.images, self.entries = images, []

    def write(self, model: nn.Module) -> None:
        with torch.no_grad():
            self.entries.append(model(self.images).log_softmax(-1).mean(0))

    def step(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        groups = (y == 4, y == 9, (y != 4) & (y != 9))
        for part in [_gradient(model, x[group], y[group]) for group in groups]:
            _descend(model, part)
            self.write(model)


def sgd_step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One update on a minibatch; a short last one counts by its images."""
    _descend(model, _gradient(model, x, y))


def learn(
    data: Digits, seed: int, step: Callable[[nn.Module, Tensor, Tensor], None], before=None
) -> list[Look]:
    """Train a new LeNet with ``step(model, x, y)`` on every minibatch, and look at it on the way.

    Args:
        data: the digits, on the device to train on.
        seed: of the weights and of the order of the images.
        step: makes an update, in place.
        before: called with the model before the first update.
    """
    torch.manual_seed(seed)
    model = LeNet().to(data.train_x.device)
    if before:
        before(model)
    shuffle = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(data.train_y), generator=shuffle) for _ in range(EPOCHS)]
    batches = [batch for order in orders for batch in order.split(BATCH)]
    looks = []
    for updates, batch in enumerate(batches):
        if updates % EVERY == 0:
            looks.append(_look(model, data, updates))
        step(model, data.train_x[batch], data.train_y[batch])
    return [*looks, _look(model, data, len(batches))]


def settled(looks: list[Look]) -> Look:
    """The first look at which the network reads at least 80 % of the test digits."""
    return next(look for look in looks if look.accuracy >= 0.8)


def median_image(model: nn.Module, x: Tensor, label: int) -> Tensor:
    """The image whose probability of ``label`` is the median."""
    with torch.no_grad():
        return x[model(x).softmax(-1)[:, label].argsort()[len(x) // 2]]


def matrix_after_settling(looks: list[Look]) -> Tensor:
    """(10, 10): the mean prediction for each true class, over the looks since the settled one."""
    since = settled(looks).updates
    return torch.stack([k.mean_prediction for k in looks if k.updates >= since]).mean(0)


def ranked_pairs(matrix: Tensor) -> list[str]:
    """Pairs of classes, the most confused first: by the two off-diagonal entries together."""
    both = {f"{i}–{j}": matrix[i, j] + matrix[j, i] for i in range(10) for j in range(i + 1, 10)}
    return sorted(both, key=both.get, reverse=True)


def _look(model: nn.Module, data: Digits, updates: int) -> Look:
    with torch.no_grad():
        probs = model(data.test_x).softmax(-1)
    mean = torch.stack([probs[data.test_y == c].mean(0) for c in range(10)])
    accuracy = (probs.argmax(-1) == data.test_y).float().mean()
    return Look(updates, accuracy.item(), mean.cpu(), copy.deepcopy(model))


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    loss = cross_entropy(model(x), y, reduction="sum")
    return torch.autograd.grad(loss, list(model.parameters()))


def _descend(model: nn.Module, grads: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter -= LR / BATCH * grad
