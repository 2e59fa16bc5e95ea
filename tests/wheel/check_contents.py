"""Check that a wheel's top level is exactly the three packages, and that what they need is in it."""

import sys
import zipfile

EXPECTED = {"portable_ops", "portable_ops_backends", "portable_ops_bench"}

with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = wheel.namelist()

top = {name.partition("/")[0] for name in names}
packages = {name for name in top if not name.endswith(".dist-info")}
if packages != EXPECTED:
    sys.exit(f"top level of the wheel: got {sorted(packages)}; expected {sorted(EXPECTED)}")
# What is no Python, but read at run time.
NEEDED = {f"{package}/py.typed" for package in EXPECTED}
NEEDED |= {f"portable_ops_backends/cuda/{name}" for name in ("common.cuh", "counting.cu", "softmax.cu", "losses.cu")}
NEEDED |= {f"portable_ops_bench/reporting/{name}" for name in ("report.schema.json", "templates/report.html.j2")}
NEEDED |= {"portable_ops/evaluation/templates/evaluation.html.j2"}
missing = NEEDED - set(names)
if missing:
    sys.exit(f"not in the wheel: {sorted(missing)}")
strays = [name for name in names if name.endswith((".nbi", ".nbc", ".pyc")) or "/tests/" in name]
if strays:
    sys.exit(f"should not be in the wheel: {strays}")
print(f"{len(names)} files in {', '.join(sorted(packages))}")
