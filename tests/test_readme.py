"""The README says what is true."""

import re
from pathlib import Path

import pytest
from portable_ops_bench.support import with_tables

README = Path(__file__).parent.parent / "README.md"


def test_table_of_operations_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_tables(text), "run: python -m portable_ops_bench.support README.md"


def test_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("torch", "jax", "dask", "array_api_strict"):
        pytest.importorskip(library, reason="the quickstart shows it beside NumPy")
    examples = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert examples
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0].partition(".")[0] for line in lines] == ["numpy", "torch", "jaxlib", "dask", "array_api_strict"]
    assert len({(line[1][:6], line[2], line[3][:6]) for line in lines}) == 1


def test_links_within_the_project_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
