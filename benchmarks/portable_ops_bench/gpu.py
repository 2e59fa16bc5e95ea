"""The bars of the GPU kernels, on a machine with an NVIDIA GPU: parity first, then speed against what people use instead.

``python -m portable_ops_bench.gpu`` takes a few minutes and writes a JSON and a Markdown record. Run it from a clone: parity
is its test suite. Without a GPU it says so and ends with exit code 2; it ends with 1 if a test failed, or a bar was missed or
not measured.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import portable_ops as po
from portable_ops.files import write_atomically
from portable_ops_bench import environment
from portable_ops_bench.images import PHOTOGRAPHS, task_of
from portable_ops_bench.model import Environment, Struct

ROUNDS = 20
PIXELS = 10**9
NUM_CLASSES = 19
GIB = 2**30
NOT_INSTALLED = "not installed"
ROOT = Path(__file__).parents[2]


class Measured(Struct, frozen=True):
    """A number held against another.

    Attributes
    ----------
    name : str
    kernel : str
        What `explain` says served the call.
    seconds, against_seconds : float or None
        Medians; None for what could not be measured, with the reason.
    against : str
        What it is held against.
    ratio : float or None
        How many times as fast, or the share of the bandwidth of a copy.
    bar : float
        What the ratio should reach.
    reason : str
    """

    name: str
    against: str
    bar: float
    kernel: str = ""
    seconds: float | None = None
    against_seconds: float | None = None
    ratio: float | None = None
    reason: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the bar was reached; None where there is no number."""
        return None if self.ratio is None else self.ratio >= self.bar


class Suite(Struct, frozen=True):
    """A run of the test suite: its last line, and its exit code."""

    name: str
    summary: str
    exit_code: int


class Record(Struct, frozen=True):
    """All that a run found."""

    created: str
    device: str
    driver: int
    copy_bytes_per_second: float
    environment: Environment
    suites: list[Suite]
    bars: list[Measured]


def seconds_of(cupy: Any, function: Callable[[], Any], *, torch: Any = None) -> float:
    """Median seconds of a call on the device, by its own clock; of many small ones, those of the host that launches them."""
    backend = po.get_backend("cupy" if torch is None else "torch")
    assert backend.device_seconds is not None
    for _ in range(3):
        function()
    cupy.cuda.Device().synchronize()
    device = backend.to_device("cuda:0")
    return statistics.median(backend.device_seconds(function, device) for _ in range(ROUNDS))


class Bench:
    """The GPU, what is installed for it, and the numbers so far."""

    def __init__(self) -> None:
        self.cupy: Any = import_module("cupy")
        torch: Any = import_module("torch") if find_spec("torch") is not None else None
        self.torch: Any = torch if torch is not None and torch.cuda.is_available() else None
        self.bars: list[Measured] = []
        self.rng = np.random.default_rng(0)

    def free(self) -> None:
        """Give memory that is not in use back to the device."""
        self.cupy.get_default_memory_pool().free_all_blocks()
        if self.torch is not None:
            self.torch.cuda.empty_cache()

    def copy_bandwidth(self) -> float:
        """Bytes per second of a copy on the device, read and written."""
        source = self.cupy.ones(GIB, dtype=self.cupy.float32)
        target = self.cupy.empty_like(source)
        return 2 * int(source.nbytes) / seconds_of(self.cupy, lambda: self.cupy.copyto(target, source))

    def compare(
        self,
        name: str,
        bar: float,
        call: tuple[Any, ...],
        against: str,
        other: Callable[[], Any] | None,
        *,
        torch: bool = False,
        other_torch: bool | None = None,
        **options: Any,
    ) -> None:
        """Hold an operation's call against another function; both must give the same."""
        operation, *arguments = call
        on, other_on = torch, torch if other_torch is None else other_torch
        if other is None or ((on or other_on) and self.torch is None):
            self.bars.append(Measured(name=name, against=against, bar=bar, reason=NOT_INSTALLED))
            return
        try:
            kernel = po.explain(operation, *arguments, **options).chosen
            require_equal(operation(*arguments, **options), other())
            mine = seconds_of(self.cupy, lambda: operation(*arguments, **options), torch=self.torch if on else None)
            theirs = seconds_of(self.cupy, other, torch=self.torch if other_on else None)
        except Exception as error:  # a number that cannot be had leaves its reason, and the others are still measured
            reason = f"{type(error).__name__}: {error}"[:300]
            self.bars.append(Measured(name=name, against=against, bar=bar, reason=reason))
        else:
            self.bars.append(
                Measured(
                    name=name, against=against, bar=bar, kernel=kernel, seconds=mine, against_seconds=theirs,
                    ratio=theirs / mine,
                )
            )  # fmt: skip
        self.free()

    def tensor(self, array: Any) -> Any:
        """A CuPy array as a tensor, without a copy."""
        return None if self.torch is None else self.torch.from_dlpack(array)

    def counting(self, bandwidth: float) -> None:
        """The confusion matrix of a thousand million pixels, on natural regions and at random."""
        for kind, share, (pred, target) in (
            ("natural", 0.6, self.natural_maps()),
            ("random", 0.4, self.random_maps()),
        ):
            for library in ("cupy", "torch"):
                p, t = (pred, target) if library == "cupy" else (self.tensor(pred), self.tensor(target))
                call = (po.confusion_matrix, p, t, NUM_CLASSES)
                title = f"confusion_matrix of {PIXELS:.0e} pixels, {kind}, {library}"
                self.compare(
                    title, 10.0, call, f"{library}.bincount(t * K + p)", self.bincount(p, t), torch=library == "torch"
                )
                seconds = self.bars[-1].seconds
                if seconds is not None:
                    self.bars.append(
                        Measured(
                            name=title, against="bandwidth of a copy", bar=share, kernel=self.bars[-1].kernel,
                            seconds=seconds, ratio=2 * PIXELS / seconds / bandwidth,
                        )
                    )  # fmt: skip
            self.free()

    def bincount(self, pred: Any, target: Any) -> Callable[[], Any] | None:
        """What people write."""
        if pred is None:
            return None
        xp = self.cupy if hasattr(pred, "get") else self.torch

        def formula() -> Any:
            codes = xp.asarray(target, dtype=xp.int64) * NUM_CLASSES + pred
            return xp.bincount(codes, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)

        return formula

    def natural_maps(self) -> tuple[Any, Any]:
        """Classes of photographs and of their degraded copies, each photograph with classes of its own, repeated."""
        flat = []
        for name in ("pred", "target"):
            maps = [
                getattr(task_of(photograph), name).astype(np.uint8) + 4 * place
                for place, photograph in enumerate(PHOTOGRAPHS)
            ]
            pixels = self.cupy.asarray(np.concatenate([one.ravel() for one in maps]))
            flat.append(self.cupy.resize(pixels, PIXELS))
        return flat[0], flat[1]

    def random_maps(self) -> tuple[Any, Any]:
        """Classes drawn independently."""
        draw = self.cupy.random.default_rng(0).integers
        pred, target = (draw(0, NUM_CLASSES, PIXELS, dtype=self.cupy.uint8) for _ in range(2))
        return pred, target

    def mean_iou(self) -> None:
        """Against torchmetrics, on one image."""
        pred, target = (
            self.tensor(self.cupy.random.default_rng(seed).integers(0, NUM_CLASSES, (1, 1024, 2048)))
            for seed in range(2)
        )
        other = None
        if pred is not None and find_spec("torchmetrics") is not None:
            theirs = import_module("torchmetrics.functional.segmentation").mean_iou
            other = lambda: theirs(pred, target, num_classes=NUM_CLASSES, input_format="index").mean()  # noqa: E731
        call = (po.mean_iou, pred, target, NUM_CLASSES)
        self.compare("mean_iou at 1024 x 2048", 100.0, call, "torchmetrics mean_iou", other, torch=True)

    def normalizers(self) -> None:
        """Softmax and its logarithm along rows and along columns."""
        special = import_module("cupyx.scipy.special")
        draw = self.cupy.random.default_rng(0)
        for shape, axis in (((8, NUM_CLASSES, 1024, 1024), 1), ((16384, 1024), -1), ((8192, 8192), -1)):
            x = draw.standard_normal(shape, dtype=self.cupy.float32)
            tensor = self.tensor(x)
            for operation in (po.softmax, po.log_softmax):
                name = operation.__name__
                title, call = f"{name} of {shape} along {axis}", (operation, x)
                theirs = getattr(special, name)
                self.compare(title, 4.0, call, f"cupyx {name}", partial(theirs, x, axis=axis), axis=axis)
                native = None if tensor is None else getattr(self.torch, name)
                other = None if native is None else partial(native, tensor, axis)
                self.compare(title, 0.9, call, f"torch {name}", other, other_torch=True, axis=axis)

    def cross_entropy(self) -> None:
        """Index targets of a batch of images."""
        draw = self.cupy.random.default_rng(0)
        logits = draw.standard_normal((8, NUM_CLASSES, 1024, 1024), dtype=self.cupy.float32)
        target = draw.integers(0, NUM_CLASSES, (8, 1024, 1024))
        z, t = self.tensor(logits), self.tensor(target)
        other = None
        if z is not None:
            native = self.torch.nn.functional.cross_entropy
            other = partial(native, z, t)
        call = (po.cross_entropy, logits, target)
        self.compare("cross_entropy of (8, 19, 1024, 1024)", 1.5, call, "torch cross_entropy", other, other_torch=True)

    def attention(self) -> None:
        """On CuPy against the formula, on torch against its own."""
        draw = self.cupy.random.default_rng(0)
        for dtype in ("float16", "float32"):
            q, k, v = (draw.standard_normal((1, 16, 8192, 64), dtype=self.cupy.float32).astype(dtype) for _ in range(3))
            call = (po.scaled_dot_product_attention, q, k, v)
            title = f"attention of (1, 16, 8192, 64), {dtype}"
            self.compare(title, 5.0, call, "the formula in CuPy", partial(self.formula, q, k, v))
            tensors = [self.tensor(array) for array in (q, k, v)]
            other = None
            if self.torch is not None:
                native = self.torch.nn.functional.scaled_dot_product_attention
                other = partial(native, *tensors)
            self.compare(f"{title}, torch", 0.95, (call[0], *tensors), "torch's own", other, torch=True)

    def formula(self, q: Any, k: Any, v: Any) -> Any:
        """Attention as it is often written."""
        logits = self.cupy.matmul(q, k.swapaxes(-1, -2)) / q.shape[-1] ** 0.5
        powers = self.cupy.exp(logits - logits.max(-1, keepdims=True))
        return self.cupy.matmul((powers / powers.sum(-1, keepdims=True)).astype(q.dtype), v)


def require_equal(mine: Any, theirs: Any) -> None:
    """What is compared for speed does the same; how exactly is for the parity suite to say."""
    one, other = (
        np.asarray(x.get() if hasattr(x, "get") else x.cpu().numpy()).astype(np.float64) for x in (mine, theirs)
    )
    if one.shape != other.shape or not np.allclose(one, other, rtol=5e-3, atol=5e-3):
        raise AssertionError(f"the results differ: shapes {one.shape} and {other.shape}")


def suites() -> Iterator[Suite]:
    """The parity suite and the tests of the GPU alone, on every library that has a CUDA device."""
    for name in ("cupy", "torch", "jax"):
        backend = po.get_backend(name) if name in po.list_backends() else None
        if backend is None or not any(device.startswith("cuda") for device in backend.device_names()):
            yield Suite(name=name, summary="no CUDA device of this library", exit_code=0)
            continue
        chosen = ["-k", "cuda or gpu"] if name == "torch" else []
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "--backend", name, *chosen]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr[-300:]]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        yield Suite(name=name, summary="\n".join([lines[-1], *failed[:20]]), exit_code=done.returncode)


def markdown(record: Record) -> str:
    """The record as a page."""
    lines = [
        f"# {record.device}, {record.created}",
        "",
        f"A copy on the device moves {record.copy_bytes_per_second / 1e9:.0f} GB/s, read and written.",
        "",
        "| tests | result |",
        "|---|---|",
        *(f"| {suite.name} | {suite.summary.replace(chr(10), '<br>')} |" for suite in record.suites),
        "",
        "| what | kernel | ms | against | ms | ratio | bar | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in record.bars:
        mine, theirs = (
            "" if seconds is None else f"{seconds * 1e3:.3f}" for seconds in (one.seconds, one.against_seconds)
        )
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        reached = {None: one.reason, True: "yes", False: "**no**"}[one.passed]
        cells = (one.name, one.kernel, mine, one.against, theirs, ratio, f"{one.bar:g}", reached)
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{name} {version}  " for name, version in record.environment.packages.items())]
    return "\n".join(lines) + "\n"


def has_gpu() -> bool:
    """Whether CuPy is there and finds a device."""
    return "cupy" in po.list_backends() and bool(po.get_backend("cupy").device_names())


def main() -> int:
    """Run it all; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the record")
    parser.add_argument("--only-speed", action="store_true", help="leave the tests out")
    options = parser.parse_args()
    if not has_gpu():
        print("no CUDA device on this machine, or no CuPy: nothing was measured", file=sys.stderr)
        return 2
    load = environment.load()
    ran = [] if options.only_speed else list(suites())
    bench = Bench()
    bandwidth = bench.copy_bandwidth()
    bench.free()
    bench.counting(bandwidth)
    for measure in (bench.mean_iou, bench.normalizers, bench.cross_entropy, bench.attention):
        measure()
    runtime = bench.cupy.cuda.runtime
    record = Record(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=runtime.getDeviceProperties(0)["name"].decode(),
        driver=runtime.driverGetVersion(),
        copy_bytes_per_second=bandwidth,
        environment=environment.describe(load),
        suites=ran,
        bars=bench.bars,
    )
    stem = f"{record.created[:10]}-{'-'.join(record.device.lower().split())}-kernels"
    write_atomically(options.output / f"{stem}.json", msgspec.json.format(msgspec.json.encode(record)))
    write_atomically(options.output / f"{stem}.md", markdown(record))
    print(markdown(record))
    missed = [one for one in record.bars if not one.passed and one.reason != NOT_INSTALLED]
    return 1 if missed or any(suite.exit_code for suite in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
