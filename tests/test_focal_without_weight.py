"""Focal loss: what has weight 0 counts neither in the loss nor in gradients, whatever its logits are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matrix import Target

import portable_ops as po

INF = math.inf


@pytest.mark.gradients
@pytest.mark.parametrize("row", [(-INF, -INF, -INF), (math.nan, 0.0, 0.0), (INF, 0.0, 0.0)], ids=str)
def test_gradient_of_an_element_without_weight(target: Target, row: tuple[float, ...]) -> None:
    labels, weight = target.array(np.asarray([1, 1])), target.array(np.asarray([0.0, 1.0]))

    def loss(z: Any) -> Any:
        return po.focal_loss(z, labels, sample_weight=weight, reduction="sum")

    found = target.numpy(target.grad(loss)(target.array(np.asarray([row, (0.0, 1.0, 2.0)]))))
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1], [0.098204, -0.823842, 0.725637], atol=1e-6)


@pytest.mark.parametrize(("alpha", "z", "t"), [(0.0, -INF, 1.0), (1.0, INF, 0.0)])
def test_an_infinite_loss_that_alpha_leaves_out(target: Target, alpha: float, z: float, t: float) -> None:
    logits, answers = target.array(np.asarray([z])), target.array(np.asarray([t]))
    loss = po.focal_loss(logits, answers, activation="sigmoid", alpha=alpha)
    assert float(target.numpy(loss)) == 0
