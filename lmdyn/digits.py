"""MNIST digits, LeNet, and a training run that records its dynamics.

`train` is plain SGD. What it adds is bookkeeping: who moved whom, and by how much.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.functional import nll_loss, one_hot

from lmdyn._mnist import N_CLASSES, Digits, LeNet, load
from lmdyn.kernel import entk
from lmdyn.softmax import log_softmax_jacobian

__all__ = ["Digits", "LeNet", "Record", "class_mean", "load", "train"]


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
        mean_prediction: (S, C, V) mean π over the test images of each true class.
        observed: (N,) where the observed images lie in ``digits.test_x``.
        labels: (N,) their classes.
        log_probs: (S, N, V) log π of the observed images; ``log_probs - log_probs[0]`` is their
            accumulated change.
        accumulated: (S, N, C, V) the part of that change which is due to learning class u, to
            first order: the sum over all updates so far of −η/B · A_o Σ K_ou G_u over the
            images of class u among the B of the minibatch. Its sum over C is the whole
            accumulated change, up to O(η²) per update.
        kernel: (S, N, N, V, V) empirical NTK K_ou among the observed images (rows o, columns u).

    `kernel_norm` and `influence` follow from these.
    """

    lr: float
    steps: Tensor
    accuracy: Tensor
    loss: Tensor
    mean_prediction: Tensor
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

        It is the first-order effect on each observed image o of learning each observed image u with
        its true label (Proposition 1). These are test images: the run never learned them.
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

    Each update is taken apart by class: the gradient of the minibatch is the sum of ten, one for
    the images of each class, and one forward-mode pass along each of them gives what that class
    did to the observed images in this very update. It costs about three times a plain step.

    Args:
        model: (N, 1, 28, 28) images to (N, 10) logits, on the device of ``digits``.
        digits: what `load` returns.
        epochs: passes over the training images.
        lr: the step size η.
        batch_size: images per update.
        per_class: how many test images of each class are observed, at least two.
        record_every: updates between records, None for an epoch; the end is always recorded.
        seed: the order in which the images are learned.

    Returns:
        Record: see there for the shapes.

    Raises:
        ValueError: an option out of range, too few test images, or a loss that is not finite.

    Example:
        >>> record = train(LeNet(), load(n_train=200, n_test=100), epochs=1)
        >>> record.steps, record.mean_prediction.shape
        (tensor([0, 2]), torch.Size([2, 10, 10]))
    """
    _check(digits, epochs, lr, batch_size, per_class, record_every)
    n = len(digits.train_y)
    dtype = next(model.parameters()).dtype
    train_x, test_x = digits.train_x.to(dtype), digits.test_x.to(dtype)
    observed = torch.cat([(digits.test_y == c).nonzero()[:per_class, 0] for c in range(N_CLASSES)])
    # These share their memory with the model: updating them in place trains it.
    params = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def log_probs(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, params, (x,)).log_softmax(-1)

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return nll_loss(log_probs(params, image[None]), label[None])

    gradients = vmap(grad(loss), (None, 0, 0))  # one for each image of a minibatch

    def change(direction: dict[str, Tensor]) -> Tensor:
        """First-order change (N, V) of the observed log-probs when the parameters move."""
        return jvp(lambda p: log_probs(p, test_x[observed]), (params,), (direction,))[1]

    accumulated = torch.zeros(len(observed), N_CLASSES, N_CLASSES).to(test_x)
    moments: list[dict[str, Tensor]] = []
    shuffle = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=shuffle) for _ in range(epochs)]
    batches = [batch for order in orders for batch in order.split(batch_size)]
    record_every = record_every or math.ceil(n / batch_size)

    def record(step: int) -> None:
        with torch.no_grad():
            test = log_probs(params, test_x)
        test_loss = nll_loss(test, digits.test_y)
        if not test_loss.isfinite():
            raise ValueError(f"the loss is {test_loss.item()} after {step} updates: lower lr")
        moments.append(
            {
                "steps": torch.tensor(step),
                "accuracy": (test.argmax(-1) == digits.test_y).float().mean(),
                "loss": test_loss,
                "mean_prediction": torch.stack(
                    [test[digits.test_y == c].exp().mean(0) for c in range(N_CLASSES)]
                ),
                "log_probs": test[observed],
                "accumulated": accumulated.clone(),
                "kernel": entk(model, test_x[observed]),
            }
        )

    record(0)
    for step, batch in enumerate(batches, 1):
        x, y = train_x[batch], digits.train_y[batch]
        share = one_hot(y, N_CLASSES).T.to(x) / len(y)  # (C, B): which image is of which class
        # Each class's part (C, …) of the SGD step −η · ∂L/∂θ.
        parts = {
            name: -lr * torch.tensordot(share, g, 1) for name, g in gradients(params, x, y).items()
        }
        accumulated += vmap(change, out_dims=1)(parts)
        for name, part in parts.items():
            params[name] += part.sum(0)
        if step % record_every == 0 or step == len(batches):
            record(step)

    stacked = {name: torch.stack([m[name] for m in moments]).cpu() for name in moments[0]}
    return Record(lr=lr, observed=observed.cpu(), labels=digits.test_y[observed].cpu(), **stacked)


def _check(
    digits: Digits,
    epochs: int,
    lr: float,
    batch_size: int,
    per_class: int,
    record_every: int | None,
) -> None:
    if epochs and not len(digits.train_y):
        raise ValueError("there are no training images: load some, or train for 0 epochs")
    if epochs < 0 or not 0 < lr < math.inf:
        raise ValueError(f"epochs must be 0 or more and lr positive, got {epochs} and {lr}")
    if batch_size < 1 or (record_every is not None and record_every < 1):
        raise ValueError(
            f"batch_size and record_every must be 1 or more, got {batch_size} and {record_every}"
        )
    fewest = int(digits.test_y.bincount(minlength=N_CLASSES).min())
    if not 2 <= per_class <= fewest:
        raise ValueError(
            f"per_class must be between 2 and {fewest}, the number of test images of the rarest "
            f"class, got {per_class}"
        )
