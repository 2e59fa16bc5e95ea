"""What a call does first, written out for each operation's signature, as dataclasses write their methods.

A function of ``*args, **kwargs`` makes a tuple and a dictionary on every call, looks at both, and hands them on. One with
the operation's own parameters has them in variables, and knows how many arrays there are, and which options are left out.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable
from typing import Any

# Parameters have no leading underscore, so that they cannot be taken for variables. Names that nothing here binds are those
# of `portable_ops.dispatch`, in whose namespace this runs.
_SOURCE = """\
def write(in_full, refuse, {defaults}):
    def {name}({parameters}):
        _known = _key = None
        _type = type({first})
        _memory = MEMORY.get(_type)
        if _memory is not None and {plain} and not (_was_used and _mode.standard_only):
            _plans, _is_traced, _device_of = _memory
            if _is_traced is None or not _is_traced():
                try:
                    _key = {key}
                    {options}
                    if _device_of is not None:
                        _key = _key, *map(_device_of, ({arrays},))
                    _known = _plans.get(_key)
                except _NOT_TO_BE_REMEMBERED:
                    _key = None
        if _known is None:
            return in_full(({arrays},), {given}, _key)
        _asked, _certain = _known
        try:
            if _asked:
                for _why_not, _serve in _asked:
                    if _why_not({arrays}) is None:
                        return _serve({arrays})
            return _certain({arrays})
        except RuntimeError:
            refuse({arrays})
            raise
    return {name}
"""


def written(
    name: str,
    signature: inspect.Signature,
    keyword_arrays: tuple[str, ...],
    in_full: Callable[[tuple[Any, ...], dict[str, Any], Any], Any],
    refuse: Callable[..., None],
    namespace: dict[str, Any],
) -> Callable[..., Any]:
    """A function with this signature: what is remembered of calls with the same types, dtypes, shapes and options, done.

    Anything else goes to `in_full`: the arrays, all options, and the key by which the call may be remembered, or None.
    Calls with arrays among the options are never remembered. When what is remembered raises, `refuse` may find a better reason
    in the arrays: a sparse tensor has the type, dtype and shape of a dense one.
    """
    parameters = signature.parameters.values()
    arrays = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]
    options = [one for one in parameters if one.kind is not one.POSITIONAL_ONLY]
    plain = [one for one in options if one.name not in keyword_arrays]
    usual = {one.name: f"usual_{one.name}" for one in options if one.default is not one.empty}
    described = ", ".join(
        f"{one.name}, {'(*map(type, axis),) if type(axis) is tuple else ' * (one.name == 'axis')}type({one.name})"
        for one in plain
    )
    is_usual = " and ".join(f"{one.name} is {usual[one.name]}" for one in plain if one.name in usual)
    source = _SOURCE.format(
        name=name,
        defaults=", ".join(usual.values()),
        parameters=_listed([*parameters], usual),
        first=arrays[0],
        arrays=", ".join(arrays),
        plain=" and ".join([f"{one} is None" for one in keyword_arrays] or ["True"]),
        key=", ".join(
            [f"{name!r}, _type, {arrays[0]}.dtype, {arrays[0]}.shape"]
            + [f"type({one}), {one}.dtype, {one}.shape" for one in arrays[1:]]
        ),
        options=""
        if not plain
        else f"_key = _key, {described}"
        if len(usual) < len(options)
        else f"if not ({is_usual}): _key = _key, {described}",
        given="{" + ", ".join(f"{one.name!r}: {one.name}" for one in options) + "}",
    )
    filename = f"<portable_ops {name}>"
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename  # for tracebacks
    made: dict[str, Any] = {}
    exec(compile(source, filename, "exec"), namespace, made)
    defaults = {usual[one.name]: one.default for one in options if one.name in usual}
    function: Callable[..., Any] = made["write"](in_full, refuse, **defaults)
    return function


def _listed(parameters: list[inspect.Parameter], usual: dict[str, str]) -> str:
    """Parameters as they stand in a definition."""
    bare = [
        one.replace(annotation=one.empty, default=_Named(usual[one.name]) if one.name in usual else one.empty)
        for one in parameters
    ]
    return str(inspect.Signature(bare))[1:-1]


class _Named:
    """A default that is shown as a variable's name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name
