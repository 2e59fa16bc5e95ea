"""Making a case on its backend and comparing it, values first and then gradients; many cases in a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import portable_ops as po

from .comparing import GRADIENTS, VALUES, difference
from .drawing import Argument, Case, drawn
from .formulas import COUNTS, FORMULAS
from .layouts import laid_out
from .tape import Var, gradients
from .values import limits

OVERLAPS = ("dice_loss", "tversky_loss", "jaccard_loss")


@dataclass(frozen=True)
class Failure:
    """A case that is not as it should be, and in which way."""

    case: Case
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


def backends() -> dict[str, po.Backend]:
    """Those of which there is a device here."""
    found = {name: po.get_backend(name) for name in po.list_backends()}
    return {name: one for name, one in found.items() if name != "cupy" or one.devices()}


@contextmanager
def surroundings(case: Case, backend: po.Backend) -> Iterator[None]:
    """The modes in which a case is made."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(backend.allowing(case.dtype))
        if case.way == "any size":
            from matrix import kernels_of_any_size

            stack.enter_context(kernels_of_any_size())
        stack.enter_context(po.standard_only() if case.way == "definition" else nullcontext())
        yield


def _name_of(dtype: Any) -> str:
    name = str(dtype).rpartition(".")[2]
    return np.dtype(name).name if name[:1] in "<>" else name  # of the other byte order


class Made:
    """A case as arrays of its backend, and as variables of the formula."""

    def __init__(self, case: Case, backend: po.Backend) -> None:
        self.case, self.backend = case, backend
        self.named = {**case.arrays, **{n: v for n, v in case.options.items() if isinstance(v, Argument)}}
        self.arrays = {name: self.bring(name, argument) for name, argument in self.named.items()}
        self.plain = {name: value for name, value in case.options.items() if not isinstance(value, Argument)}
        self.trained = [
            name for name, one in self.named.items() if one.trained and one.dtype.startswith(("float", "bfloat"))
        ]

    def bring(self, name: str, argument: Argument) -> Any:
        return laid_out(self.backend, argument.values, argument.dtype, None, argument.layout)

    def call(self, **changed: Any) -> Any:
        """The call, with some of its arrays changed."""
        arrays = self.arrays | changed
        options = {name: arrays[name] for name in arrays if name not in self.case.arrays} | self.plain
        positional = [arrays[name] for name in self.case.arrays]
        return getattr(po, self.case.operation)(*positional, *self.case.extra, **options)

    def served_by(self) -> str:
        """What serves the call."""
        options = {name: self.arrays[name] for name in self.arrays if name not in self.case.arrays} | self.plain
        positional = [self.arrays[name] for name in self.case.arrays]
        return str(po.explain(self.case.operation, *positional, *self.case.extra, **options).chosen)

    def formula(self) -> tuple[Any, dict[str, Var]]:
        """What it should be, and the variables of which gradients can be had."""
        leaves = {name: Var(argument.values) for name, argument in self.named.items()}
        exact = self.case.operation in COUNTS
        given = {
            name: argument.values
            if exact or (name not in self.trained and name != next(iter(self.named)))
            else leaves[name]
            for name, argument in self.named.items()
        }
        options = {name: given[name] for name in given if name not in self.case.arrays} | self.plain
        for unknown in ("validate",):
            options.pop(unknown, None)
        with np.errstate(all="ignore"):
            result = FORMULAS[self.case.operation](
                *(given[name] for name in self.case.arrays), *self.case.extra, **options
            )
        return result, leaves


def failure_of(case: Case, backend: po.Backend) -> str:
    """What is wrong with a case, empty if nothing is."""
    with surroundings(case, backend):
        made = Made(case, backend)
        expected, leaves = made.formula()
        before = {name: backend.to_numpy(array).copy() for name, array in made.arrays.items()}
        try:
            got = _compiled(made) if case.way == "compiled" else made.call()
            parts = got if isinstance(got, tuple) else (got,)
            results = [np.asarray(backend.to_numpy(part)) for part in parts]
        except Exception as error:
            return told(error)
        for name, array in made.arrays.items():
            if not np.array_equal(backend.to_numpy(array), before[name], equal_nan=array_has_nan(before[name])):
                return f"{name} was written to"
        if case.operation in COUNTS:
            return _wrong_counts(results, expected)
        dtype = _name_of(parts[0].dtype)
        first = next(iter(case.arrays.values()))
        if first.dtype.startswith(("float", "bfloat")) and dtype != case.dtype:
            return f"dtype {dtype}, expected {case.dtype}"
        wrong = difference(results[0], expected.value, expected.error, dtype, VALUES)
        if wrong or not case.checks_gradients or not made.trained:
            return wrong
        return _wrong_gradients(made, expected, leaves, dtype)


def array_has_nan(array: Any) -> bool:
    """Whether nan is to be taken for equal to itself: integers have none."""
    return bool(array.dtype.kind == "f")


def _compiled(made: Made) -> Any:
    names = list(made.arrays)

    def call(*arrays: Any) -> Any:
        return made.call(**dict(zip(names, arrays, strict=True)))

    jit = made.backend.jit
    assert jit is not None
    return jit(call)(*made.arrays.values())


def _wrong_counts(results: list[Any], expected: Any) -> str:
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for got, one in zip(results, wanted, strict=True):
        one = np.asarray(one)
        if one.dtype.kind in "iu":
            if not np.array_equal(got, one):
                return f"got {got.tolist()}, expected {one.tolist()}"[:400]
        elif wrong := difference(got, one, 2 * np.abs(one) + 1, str(got.dtype), VALUES):
            return wrong
    return ""


def _wrong_gradients(made: Made, expected: Var, leaves: dict[str, Var], result: str) -> str:
    """The first array whose gradient is not as it should be; where a value is not finite, none is looked at.

    Gradients in halves are rounded twice: by what torch's functions return, and by the product with what comes back.
    """
    case, backend = made.case, made.backend
    largest = np.finfo(np.float16 if case.dtype == "float16" else np.float32).max
    if not expected.value.size or not (np.abs(expected.value) < largest).all():
        return ""
    mix = np.random.default_rng((case.seed, case.number, 1)).choice([-1.5, -1, -0.5, 0.5, 1, 2], size=expected.shape)
    fixed = laid_out(backend, mix, case.dtype, None, "plain")
    with np.errstate(all="ignore"):
        wanted = gradients(expected, mix, [leaves[name] for name in made.trained])
    found = _gradients(made, fixed)
    for name, (value, error) in zip(made.trained, wanted, strict=True):
        try:
            got = np.asarray(backend.to_numpy(next(found)))
        except Exception as problem:
            return f"gradient by {name}: {told(problem)}"
        # Of what is nan or infinite itself there is no slope, unless it does not count.
        known = np.isfinite(value) & (np.isfinite(leaves[name].value) | (value == 0) | (leaves[name].value == -np.inf))
        got = np.where(known, got, 0.0) if got.shape == value.shape else got
        dtype = made.named[name].dtype
        value, error = (np.where(known, one, 0) for one in (value, error))
        wrong = difference(got, value, error, dtype, GRADIENTS, computed=result, roundings=2, **_allowances(case))
        if wrong:
            return f"gradient by {name} {wrong}"
    return ""


def _allowances(case: Case) -> dict[str, Any]:
    """What gradients may be off beside errors of rounding."""
    if case.operation == "scaled_dot_product_attention":
        return {"in_halves": True}  # torch's attention rounds the gradient of the weights to the dtype of the arrays
    if case.options.get("activation") is not None and case.operation in OVERLAPS:
        # A probability is at least a number whose square is one, of which nothing depends on the logits.
        dtype = case.dtype if case.dtype == "float64" else "float32"
        return {"least": 16 * limits(dtype)[1] ** 0.5}
    return {}


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _gradients(made: Made, fixed: Any) -> Iterator[Any]:
    """The gradient by each array; where calls are compiled, by all of them in one."""
    grad, jit = made.backend.grad, made.backend.jit
    assert grad is not None

    def loss(arrays: dict[str, Any]) -> Any:
        return (made.call(**arrays) * fixed).sum()

    if made.backend.compiles:
        assert jit is not None
        every = jit(grad(loss))({name: made.arrays[name] for name in made.trained})
        yield from (every[name] for name in made.trained)
    else:
        for name in made.trained:
            yield grad(lambda array, name=name: loss({name: array}))(made.arrays[name])


@dataclass
class Report:
    """How many cases were made, of which operations, and those that failed."""

    seed: int
    made: int
    failures: list[Failure]


def fuzz(
    seed: int,
    *,
    seconds: float = float("inf"),
    cases: int | None = None,
    first: int = 0,
    only: Any = (),
    on: Any = (),
    tell: Callable[[Failure], None] = lambda failure: None,
    most: int = 1000,
) -> Report:
    """Make cases one after the other, until the time is over."""
    found = backends()
    report = Report(seed, 0, [])
    end = time.monotonic() + seconds
    number = first
    while time.monotonic() < end and (cases is None or number < first + cases) and len(report.failures) < most:
        case = drawn(seed, number, found, only, on)
        number += 1
        if case is None:
            continue
        report.made += 1
        if what := failure_of(case, found[case.backend]):
            report.failures.append(Failure(case, what))
            tell(report.failures[-1])
    return report
