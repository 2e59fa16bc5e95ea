"""In what the machines of two reports differ, and what else is not the same about two runs."""

from __future__ import annotations

from portable_ops_bench.model import Environment, Report


def machine_differences(a: Environment, b: Environment) -> list[str]:
    """In what two machines differ, as far as a report tells."""
    found = []
    for name, one, other in (
        ("CPU", a.cpu, b.cpu),
        ("CPUs", f"{a.usable_cpus} of {a.logical_cpus}", f"{b.usable_cpus} of {b.logical_cpus}"),
        ("system", a.system.partition(" ")[0], b.system.partition(" ")[0]),
        ("devices", ", ".join(a.devices), ", ".join(b.devices)),
    ):
        # Of devices that no library of a run looked at, nothing is known.
        if one != other and one and other:
            found.append(f"{name} {one} and {other}")
    if abs(a.memory_bytes - b.memory_bytes) > 0.1 * max(a.memory_bytes, b.memory_bytes):
        found.append(f"memory {a.memory_bytes / 2**30:.0f} GiB and {b.memory_bytes / 2**30:.0f} GiB")
    return found


def other_differences(a: Report, b: Report) -> list[str]:
    """What else is not the same: it may be what is to be compared, or explain a difference."""
    one, other = a.environment, b.environment
    found = [
        f"{name} {one.packages.get(name, 'not installed')} -> {other.packages.get(name, 'not installed')}"
        for name in sorted({*one.packages, *other.packages})
        if one.packages.get(name) != other.packages.get(name)
    ]
    if one.python != other.python:
        found.append(f"Python {one.python} -> {other.python}")
    if one.threads != other.threads:
        found.append("numbers of threads differ")
    if one.governor != other.governor:
        found.append(f"governor {one.governor} -> {other.governor}")
    found += [
        f"{name} {value} -> {other.precision[name]}"
        for name, value in one.precision.items()
        if other.precision.get(name, value) != value
    ]
    for report, which in ((a, "first"), (b, "second")):
        if report.interrupted:
            found.append(f"the {which} run was interrupted")
        if report.quick:
            found.append(f"the {which} run was a quick one")
    return found
