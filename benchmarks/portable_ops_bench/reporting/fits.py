"""How time grows with size: a cost per call, a rate, and an exponent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import theilslopes

from portable_ops_bench.model import Struct

LINEAR = 0.25
"""The misfit up to which the straight line is said to hold."""


class Fit(Struct, frozen=True):
    """Time against size: ``t(n) = t0 + n / rate``, after Hockney's r_infinity and n_1/2.

    Attributes
    ----------
    t0 : float
        Seconds that a call costs before it does anything.
    rate : float
        Elements per second of a call so large that `t0` does not count.
    n_half : float
        Elements at which half of the rate is reached, ``t0 * rate``.
    exponent : float or None
        Of the size, where the size counts more than `t0`: 1 if time is proportional to it. None if too few sizes lie there.
    misfit : float
        By how much the line misses, as a share of the time: the median over sizes.
    """

    t0: float
    rate: float
    n_half: float
    exponent: float | None
    misfit: float

    def seconds(self, size: float) -> float:
        """What the line says."""
        return self.t0 + size / self.rate

    @property
    def is_linear(self) -> bool:
        """Whether the line is worth reading."""
        return self.misfit <= LINEAR


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Fit | None:
    """Fit the line to relative errors, so that every size counts alike, and so that single outliers pull little.

    None where fewer than three sizes, or sizes that differ by less than a factor of ten, say nothing about a line.
    """
    n, t = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    if np.unique(n).size < 3 or n.max() < 10 * n.min():
        return None
    small, large = int(np.argmin(n)), int(np.argmax(n))
    start = np.log([t[small], max(t[large] - t[small], t[large] / 2) / n[large]])

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.logaddexp(parameters[0], parameters[1] + np.log(n)) - np.log(t)

    # From a ten-thousandth of the smallest time on: below, the cost of a call cannot be told from none.
    bounds = ([np.log(t.min()) - 9.2, -np.inf], [np.log(t.max()), np.inf])
    found = least_squares(residuals, start, bounds=bounds, loss="soft_l1", f_scale=0.05)
    t0, per_element = (float(value) for value in np.exp(found.x))
    work = n >= t0 / per_element
    exponent = float(theilslopes(np.log(t[work]), np.log(n[work]))[0]) if np.unique(n[work]).size >= 2 else None
    return Fit(
        t0=t0,
        rate=1 / per_element,
        n_half=t0 / per_element,
        exponent=exponent,
        misfit=float(np.median(np.abs(np.expm1(residuals(found.x))))),
    )
