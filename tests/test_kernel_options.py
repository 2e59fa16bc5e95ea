"""What dispatch declines by itself: options a kernel does not declare, numbers that are arrays, several labels to ignore."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matrix import Target

import portable_ops as po
from portable_ops.backend import Kernel
from portable_ops.checks import require_ignore_index, require_number
from portable_ops.dispatch import OPERATIONS, why_beyond
from portable_ops.labels import ignored_labels
from portable_ops.routes import route_of

X = np.eye(3)


def beyond(kernel: Kernel, **given: Any) -> str | None:
    route = route_of(X)
    assert route is not None
    return why_beyond(OPERATIONS["cross_entropy"], route, kernel, (X, X), given)


def test_a_kernel_is_declined_for_options_that_it_does_not_declare() -> None:
    kernel = Kernel(name="own", function="nowhere:own", options=("reduction", "ignore_index"))
    assert beyond(kernel, reduction="sum") is None
    assert beyond(kernel, weight=X[0]) == "no weight="
    assert beyond(Kernel(name="all", function="nowhere:all"), weight=X[0]) is None


def test_a_kernel_takes_several_labels_to_ignore_only_if_it_says_so() -> None:
    assert beyond(Kernel(name="one", function="nowhere:one"), ignore_index=(1, 2)) == "several labels in ignore_index="
    assert beyond(Kernel(name="one", function="nowhere:one"), ignore_index=1) is None
    assert beyond(Kernel(name="both", function="nowhere:both", ignores_several=True), ignore_index=(1, 2)) is None


def test_a_kernel_is_not_asked_for_fewer_elements_than_it_declares() -> None:
    assert beyond(Kernel(name="large", function="nowhere:large", smallest=10)) == "fewer than 10 elements"


@pytest.mark.one_dtype
def test_labels_to_ignore_may_be_several(target: Target) -> None:
    labels = np.asarray([0, 1, 2, 255], np.uint8)
    found = ignored_labels(target.xp, target.array(labels, "uint8"), (2, 255, -1))
    np.testing.assert_array_equal(target.numpy(found), [False, False, True, True])
    assert ignored_labels(target.xp, target.array(labels, "uint8"), (-1, 300)) is None


def test_what_may_be_ignored() -> None:
    for fine in (None, 3, -100, (2, 255)):
        require_ignore_index(fine)
    with pytest.raises(TypeError, match=r"ignore_index: got 'x'; expected an integer"):
        require_ignore_index((1, "x"))
    with pytest.raises(TypeError, match=r"ignore_index: got \[1\]; expected an integer"):
        require_ignore_index([1])
    with pytest.raises(ValueError, match=r"ignore_index: got \(\); expected a label, a tuple of labels, or None"):
        require_ignore_index(())


def test_numbers_may_be_arrays_without_axes() -> None:
    require_number("scale", np.asarray(0.5), minimum=0.0)
    with pytest.raises(ValueError, match=r"scale: got -1\.0; expected a number at least 0"):
        require_number("scale", np.asarray(-1.0), minimum=0.0)
    with pytest.raises(ValueError, match=r"scale: got shape \(3,\); expected a number, or an array of shape \(\)"):
        require_number("scale", X[0])
    with pytest.raises(TypeError, match="scale: got 'x'; expected a number"):
        require_number("scale", "x")
    with pytest.raises(ValueError, match="scale: got nan; expected a number that is not nan"):
        require_number("scale", float("nan"))


@pytest.mark.parametrize("given", [np.float32(0.5), np.asarray(0.5)])
def test_numbers_of_numpy_are_pythons(given: Any) -> None:
    q = np.ones((1, 2, 4))
    np.testing.assert_array_equal(
        po.scaled_dot_product_attention(q, q, q, scale=given), po.scaled_dot_product_attention(q, q, q, scale=0.5)
    )
