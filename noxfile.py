"""The matrix: every backend tested for parity and for speed, then lint, types, docs and the wheel.

``nox`` runs all of it; ``nox -s report`` runs the main job: every operation on real photographs, on every backend.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2024.10.9"
# pip finds the CPU build of torch that constraints.txt pins; uv would resolve to several GB of CUDA packages.
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

# Most of what is installed is never imported: not compiling it halves the time.
PINS = ("--no-compile", "-c", "constraints.txt")
BACKENDS = {
    "numpy": "numba,bench",
    "torch": "torch,numba,bench",
    "jax": "jax,numba,bench",
    "dask": "dask,torch,bench",
    # CuPy imports without a GPU; what needs one skips with that reason.
    "cupy": "cupy-cuda12x,bench",
    "array-api-strict": "strict,bench",
}
TOOLS = ("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "mpmath")
# Beside the extras: schedulers, compilers and libraries that tests alone need.
MORE = {"dask": ("distributed",), "cupy": ("nvidia-cuda-nvrtc-cu12",)}
STRANGERS = ("sparse", "ndonnx")
# Neighbouring tests share what is compiled, so that each worker starts with a half of its own.
WORKERS = ("-n", "2", "--dist", "worksteal")
# Where every shape is compiled, random ones take minutes.
ENVIRONMENT = {"jax": {"HYPOTHESIS_PROFILE": "few"}}

# Sessions that share an environment are neighbours, the one that needs the least first: it finds nothing more.
nox.options.sessions = [
    "lint", "types", "core", "docs",
    *(f"{session}(backend={backend!r})" for backend in BACKENDS for session in ("speed", "parity")),
    "stranger", "wheel", "browser",
]  # fmt: skip
MADE: dict[Path, set[str]] = {}  # the shared environments of this run, and what was installed there
# What pip does not compile is kept as it is imported, else dozens of processes would compile torch.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def session(function: Callable[..., None]) -> Any:
    """A session; where CI is set, its environment goes once it has passed: all of them together would fill a disk."""

    @nox.session
    @functools.wraps(function)
    def run(session: nox.Session, *args: Any, **kwargs: Any) -> None:
        function(session, *args, **kwargs)
        if os.environ.get("CI"):
            shutil.rmtree(session.virtualenv.location, ignore_errors=True)

    return run


def shared(session: nox.Session, name: str, extras: str, *tools: str) -> Callable[..., Any]:
    """What runs the commands of an environment that sessions share: the first makes it, each adds what it needs."""
    place = Path(".nox", name).resolve()
    commands = place / ("Scripts" if sys.platform == "win32" else "bin")
    if place not in MADE:
        while os.environ.get("CI") and MADE:
            shutil.rmtree(MADE.popitem()[0], ignore_errors=True)
        session.run(sys.executable, "-m", "virtualenv", "--clear", str(place))
        MADE[place] = set()
    missing = [each for each in (f"--editable=.[{extras}]", *tools) if each not in MADE[place]]
    if missing:
        session.run(str(commands / "python"), "-m", "pip", "install", *PINS, *missing)
        MADE[place].update(missing)
    return lambda command, *args, **options: session.run(str(commands / command), *args, **options)


def install(session: nox.Session, extras: str, *tools: str) -> None:
    """Install the project, editable, with some extras."""
    session.install(*PINS, "-e", f".[{extras}]" if extras else ".", *tools)


@session
def lint(session: nox.Session) -> None:
    """Style, formatting, and what is likely a mistake."""
    session.install(*PINS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Strict types."""
    run = shared(session, "all", "all", "mypy")
    run("mypy", "--num-workers", "2")


@nox.session(venv_backend="none")
@nox.parametrize("backend", list(BACKENDS))
def parity(session: nox.Session, backend: str) -> None:
    """One backend against the float64 oracles, with kernels and by the definitions alone."""
    run = shared(session, backend, BACKENDS[backend], *TOOLS, *MORE.get(backend, ()))
    run("pytest", "--backend", backend, *WORKERS, *session.posargs, env=ENVIRONMENT.get(backend))


@nox.session(venv_backend="none")
@nox.parametrize("backend", list(BACKENDS))
def speed(session: nox.Session, backend: str) -> None:
    """A smoke of speed on one backend: every operation is timed once, guarded, in under a minute."""
    run = shared(session, backend, BACKENDS[backend])
    run("portable-ops", "bench", "--quick", "--backends", backend, *session.posargs)


@nox.session(venv_backend="none")
def core(session: nox.Session) -> None:
    """What depends on no single backend: dispatch, mixed libraries, the harness, the command line."""
    run = shared(session, "all", "all", *TOOLS, *STRANGERS)
    documented = ("--ignore", "tests/test_readme.py", "--ignore", "tests/test_docs.py")  # the session docs runs these
    run("pytest", "--backend", "none", "-n", "2", "--dist", "loadfile", *documented, *session.posargs)


@nox.session(venv_backend="none")
def stranger(session: nox.Session) -> None:
    """A made-up array library with a backend of its own: found, tested and timed like the others."""
    run = shared(session, "array-api-strict", BACKENDS["array-api-strict"], *TOOLS)
    run("python", "-m", "pip", "install", *PINS, "--no-deps", "./tests/stranger")
    run("pytest", "--backend", "quaint", *WORKERS)
    run("portable-ops", "bench", "--quick", "--backends", "quaint")


@session
def toolkits(session: nox.Session) -> None:
    """Conventions against the toolkits that they are named after; not in the default run, as some are heavy to install."""
    install(session, "all", "scikit-learn", *TOOLS)
    session.install("--no-deps", "-r", "requirements-toolkits.txt")
    session.run(
        "pytest", "tests/test_conventions.py", "tests/test_results.py", "tests/test_losses.py", *session.posargs
    )
    # In a process of its own: Keras has one backend for each, here torch and above NumPy.
    session.run("pytest", "tests/test_bench_peers.py", *session.posargs)


@session
def lowest(session: nox.Session) -> None:
    """The lower bounds that pyproject.toml states, but torch's; not in the default run, whose time it does not fit."""
    extras = ".[numba,jax,dask,strict,bench,scores,files]"
    session.install("-c", "constraints-lowest.txt", "-e", extras, "pytest", "pytest-xdist", "hypothesis", "mpmath")
    chosen = ("--backend", "numpy", "--backend", "jax", "--backend", "dask")
    session.run("pytest", *chosen, "-n", "2", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The examples in docstrings, README and docs."""
    run = shared(session, "all", "all", *TOOLS)
    run("pytest", "--doctest-modules", "portable_ops")
    run("pytest", "tests/test_readme.py", "tests/test_docs.py", *WORKERS)


@session
def wheel(session: nox.Session) -> None:
    """The wheel holds exactly the three packages, and works with the hard dependencies alone."""
    session.install(*PINS, "build", "hatchling")
    dist = Path(session.create_tmp()) / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), ".")
    (built,) = dist.glob("*.whl")
    session.run("python", "tests/wheel/check_contents.py", str(built))
    # A bare environment of its own: this one holds the build tools.
    bare = Path(session.create_tmp()) / "bare"
    shutil.rmtree(bare, ignore_errors=True)
    session.run("python", "-m", "venv", str(bare))
    python = str(bare / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    session.run(python, "-m", "pip", "install", *PINS, str(built), external=True)
    session.run(python, "-I", "tests/wheel/check_bare.py", external=True)


@session
def browser(session: nox.Session) -> None:
    """The pages of the report and of an evaluation in a real browser, with the network blocked."""
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.skip("no Chromium on this machine")
    install(session, "bench,numba,files", "playwright", *TOOLS)
    session.run("pytest", "-m", "browser", "--backend", "none", *session.posargs)


@session
def report(session: nox.Session) -> None:
    """The main job: real photographs, every operation, every backend; writes report.json and report.html.

    Three processes for each backend, which take ten minutes on two CPUs; ``nox -s report -- --replicates 1`` takes four.
    """
    install(session, "all")
    files = ("--json", "report.json", "--html", "report.html")
    session.run("portable-ops", "bench", "--real", *files, *session.posargs)
