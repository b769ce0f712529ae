"""Influence between images is what one step does, and its mean is over pairs of images."""

import pytest
import torch

from digit_pairs import class_mean, influences
from lmdyn import one_step
from lmdyn.digits import LeNet, load, train


@pytest.fixture(scope="module")
def few():
    return load(n_train=60, n_test=50)


@pytest.fixture(scope="module")
def run(few):
    """An epoch of three updates, in float64, and the model it left."""
    torch.manual_seed(0)
    model = LeNet().double()
    return model, train(model, few, epochs=1, batch_size=25, per_class=2, seed=3)


def test_the_influence_on_the_own_label_is_symmetric(run):
    _, record = run
    influence = influences(record)
    assert influence.shape == (2, 20, 20, 10)
    own = influence[:, torch.arange(20), :, record.labels].movedim(0, 1)
    torch.testing.assert_close(own, own.mT)
    assert not torch.allclose(influence, influence.transpose(1, 2), rtol=0.1)


def test_influence_is_the_prediction_of_one_step(few, run):
    trained, record = run
    x = few.test_x.double()[record.observed]
    for u in (0, 9, 17):
        step = one_step(trained, x, x[u : u + 1], int(record.labels[u]), lr=1e-3)
        torch.testing.assert_close(influences(record)[-1, :, u], step.predicted / 1e-3)


def test_class_mean_leaves_out_every_image_with_itself():
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 1])
    pairs = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.empty(3, 3, 3).double()
    for a in range(3):
        for b in range(3):
            of = (labels[:, None] == a) & (labels == b) & ~torch.eye(7).bool()
            expected[:, a, b] = pairs[:, of].mean(1)
    torch.testing.assert_close(class_mean(pairs, labels), expected)
