"""What a report says: speed-ups, sentences and formatted numbers, for every renderer alike."""

from __future__ import annotations

from collections.abc import Iterable

from portable_ops.backend import registered_backends
from portable_ops_bench.inputs import OVERHEAD, TILED_NAME, drawn_input
from portable_ops_bench.model import Report, Result, Status
from portable_ops_bench.run import BASELINE


def seconds(value: float) -> str:
    """Seconds with three digits and a unit."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def times(ratio: float) -> str:
    """A ratio with two or three digits."""
    return f"{ratio:.2g}×" if ratio < 9.95 else f"{ratio:.0f}×"


def measured(report: Report, way: str = "dispatched") -> list[Result]:
    """The results with numbers, called in one way."""
    return [result for result in report.results if result.timing is not None and result.cell.way == way]


class Baseline:
    """Times of the standard definition on NumPy arrays, which speed-ups are against."""

    def __init__(self, report: Report) -> None:
        self._medians = {
            (r.cell.case, r.cell.input, r.cell.dtype): r.timing.median
            for r in measured(report, "definition")
            if r.timing is not None and r.cell.backend == BASELINE
        }

    def speedup(self, result: Result) -> float | None:
        """How many times as fast as the baseline; None where either has no number."""
        median = self._medians.get((result.cell.case, result.cell.input, result.cell.dtype))
        return median / result.timing.median if median and result.timing else None


def main_input(report: Report) -> str | None:
    """The input that headlines are about: a tiled photograph, else the largest."""
    names = list(dict.fromkeys(result.cell.input for result in measured(report)))
    tiled = [name for name in names if name.endswith(TILED_NAME)]
    return tiled[0] if tiled else names[-1] if names else None


def fastest(results: Iterable[Result]) -> list[Result]:
    """Results by median time."""
    return sorted(results, key=lambda result: result.timing.median if result.timing else float("inf"))


def verdicts(report: Report) -> list[str]:
    """A sentence for each operation on the main input, and one about what has no number."""
    baseline, name = Baseline(report), main_input(report)
    sentences = []
    operations = list(dict.fromkeys(result.cell.operation for result in report.results))
    for operation in operations:
        found = fastest(
            result
            for result in measured(report)
            if result.cell.operation == operation and result.cell.input == name and not is_reference(result)
        )
        if not found or found[0].timing is None:
            continue
        best = found[0]
        speedup = baseline.speedup(best)
        gain = "" if speedup is None else f", {times(speedup)} the standard definition on NumPy"
        sentence = f"{operation}: {place(best)} ({best.kernel}), {seconds(found[0].timing.median)}{gain}"
        if len(found) > 1 and found[1].timing is not None:
            behind = found[1].timing.median / found[0].timing.median
            sentence += f"; next {place(found[1])}, {times(behind)} the time"
        sentences.append(sentence + ".")
    return sentences


def is_reference(result: Result) -> bool:
    """Whether the cell's backend is there to check conformance, not to be used for speed."""
    backend = registered_backends().get(result.cell.backend)
    return backend is not None and backend.is_reference


def place(result: Result) -> str:
    """Backend and, where it is not the CPU, device."""
    device = result.cell.device
    return result.cell.backend if device in ("cpu", "CPU_DEVICE", "-") else f"{result.cell.backend} on {device}"


def gaps(report: Report) -> list[tuple[str, str, str, int]]:
    """What has no number, why, and how many cells: (backend, status, reason, count)."""
    counts: dict[tuple[str, str, str], int] = {}
    for result in report.results:
        if result.status is not Status.OK:
            key = (result.cell.backend, result.status.value, result.reason)
            counts[key] = counts.get(key, 0) + 1
    return [(*key, count) for key, count in counts.items()]


def overheads(report: Report) -> list[tuple[str, str, float, float]]:
    """On a few elements: (operation, backend, seconds of the call, seconds of the native call)."""
    small = drawn_input(OVERHEAD)
    native = {
        (r.cell.operation, r.cell.backend): r.timing.median for r in measured(report, "native") if r.timing is not None
    }
    return [
        (r.cell.operation, r.cell.backend, r.timing.median, native[r.cell.operation, r.cell.backend])
        for r in measured(report)
        if r.timing is not None and r.cell.input == small and (r.cell.operation, r.cell.backend) in native
    ]
