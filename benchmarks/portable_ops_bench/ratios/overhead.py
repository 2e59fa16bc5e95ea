"""The rows of what a call costs beside its work: on 4 elements, and in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import portable_ops as po
from portable_ops.backend import load
from portable_ops.dispatch import OPERATIONS
from portable_ops.routes import namespace_of
from portable_ops.segmentation import divided, mean_of_areas
from portable_ops_bench.ratios.torch_tensors import NATIVE, native_of
from portable_ops_bench.ratios.work import SMALL_CALLS, Against, Runs, Unit, Work

SECTION = "call overhead on 4 elements"
ONE_ARRAY, SEVERAL = 1.0, 2.0
CLASSES = 4


def small_inputs(operation: str) -> tuple[Any, ...]:
    """NumPy arrays of 4 elements, and the number of classes where one is taken."""
    x = np.asarray([0.5, -1.0, 2.0, 0.25], np.float32)
    if operation in ("cross_entropy", "focal_loss"):
        return x[None], np.asarray([1])
    if operation == "scaled_dot_product_attention":
        return (x.reshape(1, 1, 2, 2),) * 3
    if operation in ("confusion_matrix", "intersection_and_union", "class_iou", "mean_iou"):
        labels = np.asarray([0, 1, 2, 3])
        return labels, labels[::-1].copy(), CLASSES
    if len(OPERATIONS[operation].arrays) == 1:
        return (x,)
    return abs(x) / 2, np.asarray([1, 0, 1, 0], np.float32)


BARE = "what serves it, bare"
DEFINITION = "the definition, bare"


def bare(operation: str, library: str, inputs: tuple[Any, ...]) -> dict[str, Callable[..., Any]]:
    """What does the work with nothing around it: torch's own function, or the definition and what serves instead of it."""
    if library == "torch" and operation in NATIVE:
        return {NATIVE[operation]: native_of(operation)}
    described = OPERATIONS[operation]
    if described.base is not None:
        score = partial(mean_of_areas, first=0, absent="skip")
        if operation == "class_iou":
            score = partial(divided, absent=np.nan)
        return {name: partial(_scored, score, areas) for name, areas in bare(described.base, library, inputs).items()}
    backend = po.get_backend(library)
    found: dict[str, Callable[..., Any]] = {DEFINITION: partial(described.definition, namespace_of(backend))}
    chosen = po.explain(operation, *inputs).chosen
    for kernel in backend.kernels.get(operation, ()):
        if kernel.name == chosen:
            return found | {BARE: load(kernel.function)}
    return found


def _scored(score: Callable[[Any, Any], Any], areas_of: Callable[..., po.Areas], *inputs: Any) -> Any:
    areas = areas_of(*inputs)
    return score(areas.intersection, areas.union)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch in one thread, as 4 elements need no second.

    `F.logsigmoid`, and what uses it, enters OpenMP with any number of elements, and there waits for a thread that is asleep or
    has lost its CPU: milliseconds were seen.
    """
    torch = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(operation: str, library: str) -> Runs:
    convert = po.get_backend(library).from_numpy
    inputs = tuple(convert(x) if isinstance(x, np.ndarray) else x for x in small_inputs(operation))
    options = {"dim": -1} if library == "torch" and operation in ("softmax", "log_softmax", "logsumexp") else {}
    others = tuple(partial(function, *inputs, **options) for function in bare(operation, library, inputs).values())
    return Runs(partial(getattr(po, operation), *inputs), others)


def overhead_works() -> Iterator[Work]:
    """Every operation, on NumPy and on torch."""
    for library in ("numpy", "torch"):
        for operation in sorted(OPERATIONS):
            bar = ONE_ARRAY if len(OPERATIONS[operation].arrays) == 1 else SEVERAL
            name = NATIVE.get(operation, DEFINITION) if library == "torch" else DEFINITION
            against = [Against(name, bar, Unit.MICROSECONDS, needs=library)]
            kernels = po.get_backend(library).kernels.get(OPERATIONS[operation].base or operation, ())
            serving = {kernel.name for kernel in kernels if not kernel.adapts}
            if name == DEFINITION and serving - {"numba"}:  # which is for larger arrays
                against.append(Against(BARE, None, Unit.MICROSECONDS, needs=library))
            yield Work(
                section=SECTION,
                name=f"`{operation}`, {library}",
                against=tuple(against),
                make=partial(_make, operation, library),
                timing=SMALL_CALLS,
                context=one_torch_thread if library == "torch" else nullcontext,
            )
