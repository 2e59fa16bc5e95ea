"""Every test that takes `target` runs on every backend, device and float dtype, known through the backend contract alone.

``--backend NAME`` (repeatable) keeps the tests of these backends; ``--backend none`` those that depend on no backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import hypothesis
import pytest
from matrix import Target, targets

hypothesis.settings.register_profile("matrix", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("few", deadline=None, max_examples=6, derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "matrix"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", default=[], help="keep the tests of this backend; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: opens a page in a real browser")
    config.addinivalue_line("markers", "many_shapes: calls with so many shapes that compiling each takes long")
    config.addinivalue_line("markers", "gradients: of float64 on backends with gradients")
    config.addinivalue_line("markers", "one_dtype: asks what no floating dtype changes, as all of labels alone")
    config.addinivalue_line(
        "markers", "compiles_definitions: as one where that is quicker, so that float64 is tested, too"
    )
    config.addinivalue_line("markers", "of_backend(name): depends on this backend although it takes no target")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        marks = {
            name: metafunc.definition.get_closest_marker(name) is not None
            for name in ("many_shapes", "gradients", "one_dtype")
        }
        found = list(targets(**marks))
        chosen = metafunc.config.getoption("--backend")
        # Of others, one at most, which is deselected: pytest would make a skipped test of none.
        kept = [each for each in found if not chosen or each.values[0].name in chosen] or found[:1]
        metafunc.parametrize("target", kept, indirect=True, scope="session")


def is_said_already(item: pytest.Item) -> bool:
    """Whether a test asks a definition what another test asks it.

    Where kernels are made to serve any size, the definition is what it is elsewhere. And where definitions are compiled, the
    kernel says the same, in all dtypes but float32: to compile each step of a definition takes five times as long.
    """
    callspec = getattr(item, "callspec", None)
    target = callspec.params.get("target") if callspec else None
    if target is None or "definition" not in callspec.id.split("-"):
        return False
    if target.special == "compiled":
        return True
    if not target.backend.compiles:
        return False
    cheap = any(map(item.get_closest_marker, ("gradients", "compiles_definitions")))
    return target.dtype not in (("float32", "float64") if cheap else ("float32",))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if is_said_already(item)])
    items[:] = [item for item in items if not is_said_already(item)]
    chosen = config.getoption("--backend")
    if not chosen:
        return

    def backend(item: pytest.Item) -> str:
        callspec = getattr(item, "callspec", None)
        target = callspec.params.get("target") if callspec else None
        mark = item.get_closest_marker("of_backend")
        return target.name if target is not None else mark.args[0] if mark else "none"

    kept = [item for item in items if backend(item) in chosen]
    config.hook.pytest_deselected(items=[item for item in items if backend(item) not in chosen])
    items[:] = kept


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """Where the test runs."""
    return request.param


@pytest.fixture(autouse=True)
def _surroundings(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a target needs around it: a dtype allowed, or array-api-strict with everything optional switched off."""
    chosen = getattr(request.node, "callspec", None)
    target = chosen.params.get("target") if chosen else None
    with target.surroundings() if target is not None else nullcontext():
        yield
