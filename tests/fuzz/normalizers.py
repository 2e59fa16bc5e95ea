"""Softmax and its logarithms as steps, along the last axis: sums leave out the largest, beside which digits are lost."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tape import REAL, Real, Var, times


class _Rows:
    """What the three share: exponentials of what is shifted by the maximum, and sums of all of them but one."""

    def __init__(self, x: Var, where: Any) -> None:
        self.x = x
        taken = np.ones(x.shape, bool) if where is None else np.broadcast_to(np.asarray(where, bool), x.shape)
        z = np.where(taken, x.value, -np.inf)
        self.taken = taken
        self.occupied = taken.any(axis=-1, keepdims=True)
        self.peak = z.max(axis=-1, keepdims=True)
        self.finite = np.isfinite(self.peak)
        self.top = np.zeros(x.shape, bool)
        np.put_along_axis(self.top, z.argmax(axis=-1)[..., None], True, axis=-1)
        self.shifted = np.where(self.finite, z - np.where(self.finite, self.peak, 0), REAL(0))
        self.powers = np.where(taken, np.exp(self.shifted), REAL(0))
        self.rest = np.where(self.top, REAL(0), self.powers).sum(
            axis=-1, keepdims=True
        )  # of the sum, without its largest
        self.total = 1 + self.rest
        self.p = self.powers / self.total
        # Of an exponential, the relative error: its own, that of the difference, and what came with both.
        moved = np.where(taken, x.error, REAL(0))
        at_peak = np.where(self.top, moved, REAL(0)).sum(axis=-1, keepdims=True)
        self.relative = 2 + np.where(np.isfinite(self.shifted), np.abs(self.shifted), REAL(0)) / 2 + moved + at_peak
        self.relative = np.where(self.top, REAL(0), self.relative)
        self.moved = times(self.p, self.relative).sum(axis=-1, keepdims=True)  # of the sum, relatively

    def others(self, y: Real) -> Real:
        """For each element the sum of all others in its row."""
        y = np.where(self.taken, y, REAL(0))
        largest = np.where(self.top, y, REAL(0)).sum(axis=-1, keepdims=True)
        small = np.where(self.top, REAL(0), y).sum(axis=-1, keepdims=True)
        return np.where(self.top, small, largest + (small - y))


def softmax(x: Var, where: Any = None, *, cancels: bool = False) -> Var:
    """Exponentials, divided by their sum; 0 for what takes no part, nan in a row without a finite maximum.

    Whether its gradient may be the difference of what comes back and its mean, which loses a gradient far below either.
    """
    rows = _Rows(x, where)
    value = np.where(rows.finite, rows.p, np.where(rows.taken, REAL(np.nan), REAL(0)))
    error = rows.p * (rows.relative + rows.moved + 2)

    def back(g: Real, a: Real, b: Real) -> tuple[Real, Real, Real]:
        p, left = rows.p, rows.others(rows.p)
        lost = 6 + rows.relative + rows.moved
        made = p * (times(g, left) - rows.others(times(p, g)))
        size = p * (times(a, left) + rows.others(times(p, a)))
        gone = p * (times(b, left) + rows.others(times(p, b)) + rows.others(times(p * lost, a))) + size * lost
        if cancels:
            gone = gone + lost * (times(p, a) + p * times(p, a).sum(axis=-1, keepdims=True))
        return _kept(rows, made), _kept(rows, size), _kept(rows, gone)

    return Var(value, error, [(x, back)])


def log_softmax(x: Var, where: Any = None) -> Var:
    """The logarithm of it; -inf for what takes no part."""
    rows = _Rows(x, where)
    logs = np.log1p(rows.rest)
    finite = rows.shifted - logs
    value = np.where(rows.taken, np.where(rows.finite, finite, REAL(np.nan)), -np.inf)
    some = np.isfinite(rows.shifted)
    shifted = np.where(some, np.abs(rows.shifted), REAL(0))
    # The largest loses nothing when it is shifted by itself.
    error = shifted / 2 + rows.moved + 2 * logs + np.abs(np.where(some, finite, 0))
    error = error + np.where(rows.top, REAL(0), rows.relative - 2 - shifted / 2).clip(0)

    def back(g: Real, a: Real, b: Real) -> tuple[Real, Real, Real]:
        p, left = rows.p, rows.others(rows.p)
        lost = 4 + rows.relative + rows.moved
        made = times(g, left) - times(p, rows.others(g))
        size = times(a, left) + times(p, rows.others(a))
        gone = times(b, left) + times(p, rows.others(b)) + times(a, rows.others(p * lost)) + lost * size
        return _kept(rows, made), _kept(rows, size), _kept(rows, gone)

    return Var(value, error, [(x, back)])


def logsumexp(x: Var, where: Any = None) -> Var:
    """The logarithm of the sum of the exponentials."""
    rows = _Rows(x, where)
    logs = np.log1p(rows.rest)
    value = np.where(rows.finite, rows.peak + logs, rows.peak)[..., 0]
    at_peak = np.where(rows.top, rows.x.error, REAL(0)).sum(axis=-1)
    error = (rows.moved + 2 * logs)[..., 0] + np.where(np.isfinite(value), np.abs(value), REAL(0)) + at_peak

    def back(g: Real, a: Real, b: Real) -> tuple[Real, Real, Real]:
        p, lost = rows.p, 4 + rows.relative + rows.moved
        # Of a row of which nothing takes part, and of one of -inf, nothing depends on an element.
        made = times(g[..., None], p), times(a[..., None], p), times(b[..., None], p) + times(a[..., None], p * lost)
        return tuple(_kept(rows, one) for one in made)  # type: ignore[return-value]

    return Var(value, error, [(x, back)])


def _kept(rows: _Rows, x: Real) -> Real:
    """Nothing where an element takes no part."""
    return np.where(rows.taken & rows.occupied, x, REAL(0))
