"""The claims of chapter 1: the equation, and the properties of its letters."""

from collections.abc import Mapping

from audit import guarantee, slip

EXACT = 1e-12  # the largest error, in float64, of what should be equal


def rows(
    slopes: Mapping[str, float],
    by_hand: float,
    kernel: float,
    norm: float,
    diagonal: tuple[float, float],
    uniform: tuple[int, float],
) -> list[tuple[str, ...]]:
    """All claims of the chapter, in the order of their table."""
    return [
        first_order(slopes),
        made_by_hand(by_hand),
        kernel_of_softmax_regression(kernel),
        norm_of_a(norm),
        softmax_diagonal(*diagonal),
        uniform_collision(*uniform),
    ]


def first_order(slopes: Mapping[str, float]) -> tuple[str, ...]:
    """The error of −ηAKG falls with the square of η: its slope on log-log axes, for each model."""
    return (
        "Proposition 1: the change is $-\\eta A K G + O(\\eta^2)$",
        "error of slope 2",
        ", ".join(f"{slope:.3f} ({name})" for name, slope in slopes.items()),
        guarantee(all(abs(slope - 2) < 0.1 for slope in slopes.values())),
    )


def made_by_hand(error: float) -> tuple[str, ...]:
    """The largest difference, in nats, between `one_step` and autograd Jacobians multiplied out."""
    return (
        "`one_step` equals the equation made by hand",
        "",
        f"largest difference {error:.1g} nats",
        guarantee(error < EXACT),
    )


def kernel_of_softmax_regression(error: float) -> tuple[str, ...]:
    """The largest error of an entry of K."""
    return (
        "softmax regression: $K = (x_o^\\top x_u) I$",
        "the same",
        f"largest error {error:.1g}",
        guarantee(error < EXACT),
    )


def norm_of_a(error: float) -> tuple[str, ...]:
    """The largest relative error of the formula."""
    return (
        "$\\lVert A \\rVert_F^2 = V \\lVert\\pi\\rVert^2 + V - 2$",
        "the same",
        f"largest relative error {error:.1g}",
        guarantee(error < EXACT),
    )


def softmax_diagonal(ours: float, printed: float) -> tuple[str, ...]:
    """The largest error, against autograd, of our diagonal and of the paper's."""
    return (
        "diagonal of $\\nabla_z \\pi$ below the first row",
        "$1 - \\pi_i \\pi_i$",
        f"$\\pi_i (1 - \\pi_i)$, to {ours:.1g}; the printed one is off by {printed:.2f}",
        slip(printed > 1e-3 and ours < EXACT),
    )


def uniform_collision(v: int, collision: float) -> tuple[str, ...]:
    """The collision probability of the uniform prediction over ``v`` labels."""
    return (
        "$\\lVert\\pi\\rVert^2$ of the uniform prediction",
        f"$1/\\sqrt V$: {v**-0.5:.4f} at $V = {v}$",
        f"$1/V$: {collision:.4f}",
        slip(abs(collision - v**-0.5) > 1e-3 and abs(collision - 1 / v) < EXACT),
    )
