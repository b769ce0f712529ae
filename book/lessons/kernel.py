"""What records of training on digits say about the size, the order and the effects of K."""

import numpy as np
import torch
from scipy.stats import pearsonr, rankdata, zscore
from torch import Tensor
from torch.nn.functional import one_hot

from digit_pairs import class_mean, influences
from lmdyn import log_softmax_jacobian
from lmdyn.digits import Record


def pairs(n: int) -> Tensor:
    """(n, n) booleans: an image is never paired with itself."""
    return ~torch.eye(n, dtype=torch.bool)


def adaptation(kernel: Tensor) -> Tensor:
    """Mean relative change of K (S, N, N, V, V) over pairs, from each moment to the next."""
    moved = torch.linalg.matrix_norm(kernel.diff(dim=0))
    return (moved / torch.linalg.matrix_norm(kernel[:-1]))[:, pairs(kernel.shape[1])].mean(-1)


def residual(record: Record) -> Tensor:
    """G = π − e_y, (S, N, V)."""
    return record.log_probs.exp() - one_hot(record.labels, record.log_probs.shape[-1])


def lengths(record: Record) -> tuple[Tensor, ...]:
    """‖A_o‖ (S, N), ‖K_ou‖ (S, N, N), ‖G_u‖ (S, N) and ‖A_o K_ou G_u‖ (S, N, N)."""
    return (
        torch.linalg.matrix_norm(log_softmax_jacobian(record.log_probs)),
        torch.linalg.matrix_norm(record.kernel),
        residual(record).norm(dim=-1),
        influences(record).norm(dim=-1),
    )


def own_label(change: Tensor, labels: Tensor) -> Tensor:
    """(S, N, M, V) changes of all labels to (S, N, M): of each observed image's own label."""
    return change[:, torch.arange(len(labels)), :, labels].movedim(0, 1)


def similarity(norm: Tensor) -> Tensor:
    """(…, N, N) ‖K_ou‖ to the similarity between 0 and 1."""
    own = norm.diagonal(dim1=-2, dim2=-1).sqrt()
    return norm / own[..., :, None] / own[..., None, :]


def rankings(record: Record) -> dict[str, Tensor]:
    """What is ranked: name → (S, N, N)."""
    norm, influence = torch.linalg.matrix_norm(record.kernel), influences(record)
    return {
        "kernel": norm,
        "similarity": similarity(norm),
        "influence": influence.norm(dim=-1),
        "own label": own_label(influence, record.labels),
    }


def spearman(a, b) -> float:
    """Rank correlation over o ≠ u of two (N, N) tables, mean over the columns u."""

    def standard_ranks(table):
        n = len(table)
        others = np.delete(np.asarray(table).T, np.arange(n) * (n + 1)).reshape(n, n - 1)
        return zscore(rankdata(others, axis=1), axis=1)

    return float((standard_ranks(a) * standard_ranks(b)).mean())


def asymmetry(record: Record) -> tuple[Tensor, Tensor]:
    """Median factor between both directions (S,), and the shares of its three causes, (3, S).

    The causes are the energy of G, the direction of G, and A.
    """
    _, K, G, influence = lengths(record)
    KG = torch.einsum("souvw,suw->souv", record.kernel, residual(record)).norm(dim=-1)
    energy = G[:, None, :].expand_as(K)
    logs = torch.stack([energy, KG / K / energy, influence / KG]).log()
    two = pairs(K.shape[-1])
    differences = (logs - logs.mT)[..., two]
    total = (influence.log() - influence.log().mT)[..., two]
    torch.testing.assert_close(differences.sum(0), total, rtol=1e-3, atol=1e-4)
    shares = (differences * total).sum(-1) / total.square().sum(-1)
    return total.abs().median(-1).values.exp(), shares


def accumulated(record: Record) -> Tensor:
    """Accumulated influence of each class on the own label of each class, (S, C, C), nats."""
    own = own_label(record.accumulated, record.labels)
    return torch.stack([own[:, record.labels == c].mean(1) for c in range(10)], dim=1)


def integral(record: Record) -> Tensor:
    """The same from the recorded curves alone, by the trapezoid rule, (S, C, C)."""
    rate = class_mean(own_label(influences(record), record.labels), record.labels)
    area = torch.cumulative_trapezoid(rate, record.steps, dim=0)
    return torch.cat([torch.zeros_like(area[:1]), record.lr / 10 * area])


def tracked(record: Record, per_epoch: int) -> tuple[list[float], list[float]]:
    """Correlation of the two at each epoch's end: of all pairs of classes, of different ones."""
    other, found = pairs(10), ([], [])
    moments = (f(record)[per_epoch::per_epoch] for f in (accumulated, integral))
    for a, b in zip(*moments, strict=True):
        found[0].append(pearsonr(a.flatten(), b.flatten()).statistic)
        found[1].append(pearsonr(a[other], b[other]).statistic)
    return found


def left_out(record: Record) -> Tensor:
    """(S − 1,), what the sum of first-order terms misses, relative to what happened."""
    change = (record.log_probs - record.log_probs[0])[1:]
    missed = (record.accumulated.sum(2)[1:] - change).flatten(1).norm(dim=1)
    return missed / change.flatten(1).norm(dim=1)
