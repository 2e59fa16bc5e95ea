"""``python -m tests.fuzz --seed 1 --seconds 60 [--only softmax] [--backend torch] [--case 17]``."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from .running import fuzz

sys.path.insert(0, str(Path(__file__).parents[1]))  # matrix.py, by which kernels serve any size


def main() -> int:
    """Run it, and return 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="what all draws follow from; a fresh one by default")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cases", type=int, default=None, help="stop after so many numbers")
    parser.add_argument("--case", type=int, default=None, help="make this case alone")
    parser.add_argument("--only", action="append", default=[], help="an operation; repeatable")
    parser.add_argument("--backend", action="append", default=[], help="repeatable")
    parser.add_argument("--most", type=int, default=1000, help="stop after so many failures")
    given = parser.parse_args()
    seed = secrets.randbelow(2**31) if given.seed is None else given.seed
    print(f"--seed {seed}", flush=True)
    report = fuzz(
        seed,
        seconds=given.seconds,
        cases=1 if given.case is not None else given.cases,
        first=given.case or 0,
        only=given.only,
        on=given.backend,
        tell=lambda failure: print(failure, flush=True),
        most=given.most,
    )
    print(f"{report.made} cases, {len(report.failures)} failures")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
