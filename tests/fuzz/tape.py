"""Numbers that know how far rounding may move them, and their gradients: in long double, by what each step does.

Each step adds to its error what the arithmetic of the same step in another precision would lose, in units of that precision's
machine epsilon: the error of its arguments times the derivative, and its own rounding. Backwards, three things are passed on:
the gradient, the sum of the magnitudes of what it was added up from, and the error. So a tolerance is what the arithmetic can
do at this place, and not one number for all; and a small result beside large ones must be right in its own digits where no
step cancels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

REAL = np.longdouble
Real = Any  # an array of long doubles

_order = itertools.count()


class Var:
    """An array with its error, in units of machine epsilon, and what it was made of."""

    def __init__(self, value: Any, error: Any = 0.0, parents: Sequence[tuple[Var, Any]] = ()) -> None:
        self.value: Real = np.asarray(value, REAL)
        self.error: Real = np.broadcast_to(np.asarray(error, REAL), self.value.shape)
        self.parents = parents
        self.order = next(_order)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    def __add__(self, other: Any) -> Var:
        a, b = lift(self), lift(other)
        return elementwise(a.value + b.value, (a, 1.0, 0.0), (b, 1.0, 0.0))

    def __sub__(self, other: Any) -> Var:
        return self + -lift(other)

    def __rsub__(self, other: Any) -> Var:
        return lift(other) + -self

    def __neg__(self) -> Var:
        return elementwise(-self.value, (self, -1.0, 0.0), rounding=0)

    def __mul__(self, other: Any) -> Var:
        """The product, in which what is 0 does not count, however large the other factor is."""
        a, b = lift(self), lift(other)
        return elementwise(times(a.value, b.value), (a, b.value, b.error), (b, a.value, a.error))

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> Var:
        a, b = lift(self), lift(other)
        inverse = 1 / b.value
        quotient = a.value * inverse
        lost = np.abs(inverse**2) * b.error
        slope = -quotient * inverse
        return elementwise(quotient, (a, inverse, lost), (b, slope, np.abs(slope) + a.error * inverse**2))


def lift(x: Any) -> Var:
    """A number or an array as a constant."""
    return x if isinstance(x, Var) else Var(x)


def times(a: Any, b: Any) -> Real:
    """The product, 0 where a factor is 0."""
    a, b = np.asarray(a, REAL), np.asarray(b, REAL)
    return np.where((a == 0) | (b == 0), REAL(0), a * b)


def elementwise(value: Any, *parents: tuple[Var, Any, Any], rounding: float = 1.0) -> Var:
    """A step of which each parent comes with the derivative with respect to it, and the error of that derivative."""
    value = np.asarray(value, REAL)
    error = rounding * np.abs(value)
    for parent, slope, _ in parents:
        error = error + times(np.abs(slope), parent.error)

    def backwards(slope: Any, lost: Any, shape: tuple[int, ...]) -> Any:
        size = np.abs(slope)

        def back(g: Real, a: Real, b: Real) -> tuple[Real, Real, Real]:
            made = times(g, slope), times(a, size), times(b, size) + times(a, size + lost)
            return tuple(_summed_to(one, shape) for one in made)  # type: ignore[return-value]

        return back

    return Var(value, error, [(parent, backwards(slope, lost, parent.shape)) for parent, slope, lost in parents])


def product(x: Any, y: Any) -> Var:
    """The product of what counts either way: nan times 0 is nan."""
    a, b = lift(x), lift(y)
    return elementwise(a.value * b.value, (a, b.value, b.error), (b, a.value, a.error))


def _summed_to(x: Real, shape: tuple[int, ...]) -> Real:
    """The sum over what was broadcast."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape)))) if x.ndim > len(shape) else x
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and x.shape[axis] != 1)
    return np.broadcast_to(x.sum(axis=axes, keepdims=True) if axes else x, shape)


def gradients(result: Var, mix: Any, leaves: Sequence[Var]) -> list[tuple[Real, Real]]:
    """The gradient of the sum of `mix` times the result with respect to each leaf, with its error."""
    mix = np.asarray(mix, REAL)
    found = {id(result): (mix, np.abs(mix), np.zeros_like(mix))}
    seen: dict[int, Var] = {}
    pending = [result]
    while pending:
        var = pending.pop()
        if id(var) not in seen:
            seen[id(var)] = var
            pending += [parent for parent, _ in var.parents]
    for var in sorted(seen.values(), key=lambda one: -one.order):
        if id(var) not in found:
            continue
        for parent, back in var.parents:
            made = back(*found[id(var)])
            before = found.get(id(parent))
            found[id(parent)] = made if before is None else tuple(map(np.add, before, made))  # type: ignore[assignment]
    nothing = REAL(0)
    return [
        (np.broadcast_to(g, leaf.shape), np.broadcast_to(b + np.abs(a), leaf.shape))
        for leaf in leaves
        for g, a, b in [found.get(id(leaf), (nothing, nothing, nothing))]
    ]


# --- steps of one element each


def where(mask: Any, x: Any, other: float) -> Var:
    """`x` where the mask is True, else a number, on which nothing depends."""
    x = lift(x)
    mask = np.asarray(mask, bool)
    slope = mask.astype(REAL)
    value = np.where(mask, x.value, REAL(other))
    error = np.where(mask, x.error, 0.0)
    made = elementwise(value, (x, slope, 0.0), rounding=0)
    made.error = np.broadcast_to(error, value.shape)
    return made


def exp(x: Var) -> Var:
    """The exponential."""
    value = np.exp(x.value)
    return elementwise(value, (x, value, times(value, 1 + x.error)), rounding=2)


def log(x: Var) -> Var:
    """The logarithm; -inf of 0."""
    slope = 1 / x.value
    return elementwise(np.log(x.value), (x, slope, x.error * slope**2), rounding=2)


def softplus(x: Var) -> Var:
    """``log(1 + exp(x))``."""
    z = x.value
    small = np.exp(-np.abs(z))
    slope = np.where(z < 0, small, 1.0) / (1 + small)
    other = np.where(z < 0, 1.0, small) / (1 + small)
    return elementwise(np.maximum(z, 0) + np.log1p(small), (x, slope, times(slope * other, x.error)), rounding=3)


def sigmoid(x: Var) -> Var:
    """``1 / (1 + exp(-x))``."""
    z = x.value
    small = np.exp(-np.abs(z))
    value = np.where(z < 0, small, 1.0) / (1 + small)
    slope = small / (1 + small) ** 2
    return elementwise(value, (x, slope, slope * (3 + x.error)), rounding=3)


def power(x: Var, exponent: Any) -> Var:
    """A power of what is at least 0: the gradient of a power of 0 is 0."""
    n = lift(exponent)
    value = np.where(~(x.value <= 0), np.maximum(x.value, 0) ** n.value, np.where(n.value == 0, REAL(1), REAL(0)))
    some = x.value > 0
    base = np.where(some, x.value, REAL(1))
    slope = np.where(some, n.value * base ** (n.value - 1), np.where(n.value == 1, REAL(1), REAL(0)))
    by_exponent = np.where(some, value * np.log(base), REAL(0))
    relative = np.where(some, x.error / base, REAL(0)) * np.abs(n.value - 1) + np.abs(n.value * np.log(base)) + 2
    return elementwise(
        value,
        (x, slope, np.abs(slope) * relative),
        (n, by_exponent, np.abs(by_exponent) * relative),
        rounding=2 + np.abs(n.value * np.log(base)),  # type: ignore[arg-type]
    )


def focused(missed: Var, exponent: Any) -> Var:
    """``(1 - exp(-m)) ** n * m``: the focal loss of ``m = -log p``."""
    n = lift(exponent)
    m = missed.value
    wrong = -np.expm1(-m)
    some = ~(wrong <= 0)  # nan is some
    base = np.where(some, wrong, REAL(1))
    weight = np.where(n.value == 0, REAL(1), np.where(some, base**n.value, REAL(0)))
    value = times(weight, m)
    inner = np.where(some, times(times(m, n.value), base ** (n.value - 1) * np.exp(-m)), REAL(0))
    slope = weight + inner
    by_exponent = np.where(some, times(value, np.log(base)), REAL(0))
    # How far a relative error of m moves both: m / (exp(m) - 1) is at most 1.
    relative = 4 + 4 * n.value + np.where(m > 0, missed.error / np.where(m > 0, m, REAL(1)), REAL(0)) * (2 + n.value)
    relative = np.where(np.isfinite(relative), relative, REAL(4))
    return elementwise(
        value,
        (missed, slope, times(slope, relative)),
        (n, by_exponent, times(np.abs(by_exponent), relative)),
        rounding=4 + 2 * n.value,
    )


def minimum(x: Var, y: Var) -> Var:
    """The smaller; where both are the same, the gradient is half of either's."""
    share = np.where(x.value == y.value, REAL(0.5), (x.value < y.value).astype(REAL))
    return elementwise(np.minimum(x.value, y.value), (x, share, 0.0), (y, 1 - share, 0.0), rounding=0)


# --- steps that change the shape


def _moved(x: Var, forwards: Any, backwards: Any) -> Var:
    parents = [(x, lambda g, a, b: (backwards(g), backwards(a), backwards(b)))]
    return Var(forwards(x.value), forwards(x.error), parents)


def reshape(x: Var, shape: tuple[int, ...]) -> Var:
    """The same in another shape."""
    return _moved(x, lambda y: np.reshape(y, shape), lambda y: np.reshape(y, x.shape))


def moveaxis(x: Var, source: Any, target: Any) -> Var:
    """The same with axes elsewhere."""
    return _moved(x, lambda y: np.moveaxis(y, source, target), lambda y: np.moveaxis(y, target, source))


def broadcast(x: Any, shape: tuple[int, ...]) -> Var:
    """The same, broadcast."""
    x = lift(x)
    return x if x.shape == shape else _moved(x, lambda y: np.broadcast_to(y, shape), lambda y: _summed_to(y, x.shape))


def total(x: Var, axis: Any = None, keepdims: bool = False) -> Var:
    """The sum, of terms that a library adds in any order: in pairs, by pieces."""
    axes = tuple(range(x.ndim)) if axis is None else axis
    kept = x.value.sum(axis=axes, keepdims=True)
    size = np.abs(x.value).sum(axis=axes, keepdims=True)
    error = x.error.sum(axis=axes, keepdims=True) + 3 * size

    def back(g: Real, a: Real, b: Real) -> tuple[Real, Real, Real]:
        made = (g, a, b) if keepdims else tuple(np.reshape(one, kept.shape) for one in (g, a, b))
        return tuple(np.broadcast_to(one, x.shape) for one in made)  # type: ignore[return-value]

    shape = kept.shape if keepdims else x.value.sum(axis=axes).shape
    return Var(kept.reshape(shape), error.reshape(shape), [(x, back)])


def matmul(x: Var, y: Var) -> Var:
    """The matrix product, whose leading axes broadcast."""
    value = times_matrix(x.value, y.value)
    xs, ys = np.abs(x.value), np.abs(y.value)
    error = times_matrix(x.error, ys) + times_matrix(xs, y.error) + 3 * times_matrix(xs, ys)
    xt, yt = np.swapaxes(x.value, -1, -2), np.swapaxes(y.value, -1, -2)
    xst, yst = np.swapaxes(xs, -1, -2), np.swapaxes(ys, -1, -2)
    xet, yet = np.swapaxes(x.error, -1, -2), np.swapaxes(y.error, -1, -2)

    def to_x(g: Real, a: Real, b: Real) -> tuple[Real, ...]:
        made = times_matrix(g, yt), times_matrix(a, yst), times_matrix(b, yst) + times_matrix(a, 3 * yst + yet)
        return tuple(_summed_to(one, x.shape) for one in made)

    def to_y(g: Real, a: Real, b: Real) -> tuple[Real, ...]:
        made = times_matrix(xt, g), times_matrix(xst, a), times_matrix(xst, b) + times_matrix(3 * xst + xet, a)
        return tuple(_summed_to(one, y.shape) for one in made)

    return Var(value, error, [(x, to_x), (y, to_y)])


def times_matrix(x: Real, y: Real) -> Real:
    """The matrix product of long doubles."""
    return np.matmul(x, y)
