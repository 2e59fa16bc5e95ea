"""How fast stacks of label maps are evaluated, beside `numpy.sum` of their bytes: ``python -m portable_ops_bench.files_speed``.

Both read the files with memory mapped and the page cache warm, in turns; what is told is the best of each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portable_ops.evaluation import evaluate_files

NUM_CLASSES = 19
SIDE = 1000
KINDS = ("regions", "noise")


@dataclass(frozen=True)
class FilesSpeed:
    """Seconds for the same bytes.

    Attributes
    ----------
    kind : str
        ``"regions"``: label maps of connected regions, of which the prediction shifts the borders. ``"noise"``: every
        pixel drawn on its own, as no label map is.
    pixels : int
        Of the prediction, and again of the target; a byte each.
    summed, evaluated, evaluated_per_image : float
        Seconds for `numpy.sum` of both; for the scores of the data set; and with the counts of each image.
    """

    kind: str
    pixels: int
    summed: float
    evaluated: float
    evaluated_per_image: float

    @property
    def share(self) -> float:
        """The speed of evaluating as a share of that of summing."""
        return self.summed / self.evaluated


def write_stacks(folder: Path, pixels: int, kind: str) -> tuple[Path, Path]:
    """Two NPY files of uint8 images of a million pixels each."""
    rng = np.random.default_rng(0)
    images = max(1, pixels // SIDE**2)
    paths = folder / f"{kind}-pred.npy", folder / f"{kind}-target.npy"
    stacks = [np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(images, SIDE, SIDE)) for path in paths]
    for number in range(images):
        if kind == "regions":
            coarse = rng.integers(0, NUM_CLASSES, (SIDE // 25, SIDE // 25), dtype=np.uint8)
            target = np.kron(coarse, np.ones((25, 25), np.uint8))
            pred = np.roll(target, rng.integers(-3, 4, 2), axis=(0, 1))
        else:
            pred, target = rng.integers(0, NUM_CLASSES, (2, SIDE, SIDE), dtype=np.uint8)
        stacks[0][number], stacks[1][number] = pred, target
    for stack in stacks:
        stack.flush()
    return paths


def measure(pixels: int = 10**9, kind: str = "regions", rounds: int = 3, folder: Path | None = None) -> FilesSpeed:
    """Time both in turns.

    Parameters
    ----------
    pixels : int
        Of each stack.
    kind : {"regions", "noise"}
    rounds : int
        The best of so many counts.
    folder : Path, optional
        Where there is room for the two files; a temporary one by default.
    """
    with tempfile.TemporaryDirectory(dir=folder) as room:
        paths = write_stacks(Path(room), pixels, kind)

        def evaluated(per_image: bool) -> None:
            evaluate_files(*paths, num_classes=NUM_CLASSES, per_image=per_image)

        def summed() -> None:
            for path in paths:
                np.sum(np.load(path, mmap_mode="r"))

        ways: tuple[Callable[[], object], ...] = (summed, lambda: evaluated(False), lambda: evaluated(True))
        best = [float("inf")] * len(ways)
        # The first round compiles, and fills the page cache.
        for round_ in range(rounds + 1):
            for place, way in enumerate(ways):
                started = time.perf_counter()
                way()
                if round_:
                    best[place] = min(best[place], time.perf_counter() - started)
    return FilesSpeed(kind, pixels // SIDE**2 * SIDE**2, *best)


def main() -> None:
    """Print a line for each kind of label maps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=float, default=1e9, help="of each of the two stacks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=Path, help="where there is room for the two stacks")
    options = parser.parse_args()
    for kind in options.kinds:
        found = measure(int(options.pixels), kind, options.rounds, options.folder)
        rate = 2 * found.pixels / 1e9
        print(
            f"{kind}: numpy.sum {found.summed:.3f} s ({rate / found.summed:.2f} GB/s), "
            f"evaluate {found.evaluated:.3f} s ({found.share:.0%} of its speed), "
            f"with counts of each image {found.evaluated_per_image:.3f} s ({found.summed / found.evaluated_per_image:.0%})"
        )


if __name__ == "__main__":
    main()
