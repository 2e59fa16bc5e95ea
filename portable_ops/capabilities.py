"""What an operation can do on a backend: one declaration, from which tests, tables and reports are made."""

from __future__ import annotations

from dataclasses import dataclass

from portable_ops.backend import Backend
from portable_ops.dispatch import OPERATIONS


@dataclass(frozen=True)
class Capabilities:
    """What is promised of one operation on one backend.

    Attributes
    ----------
    devices : tuple of str
        Where it runs on this machine, results staying there.
    dtypes : tuple of str
        The floating dtypes that results keep; none for operations on labels.
    jit : bool
        Whether the library's compiler takes it whole.
    grad : bool
        Whether gradients flow through it.
    lazy : bool
        Whether it only plans, and computes when asked to.
    """

    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    jit: bool
    grad: bool
    lazy: bool

    def flags(self) -> tuple[str, ...]:
        """The names of those that are yes or no, and are yes."""
        return tuple(name for name in ("jit", "grad", "lazy") if getattr(self, name))


def capabilities(backend: Backend, operation: str) -> Capabilities:
    """What an operation can do on a backend.

    Parameters
    ----------
    backend : Backend
        One whose library is installed.
    operation : str
        A public name, such as ``"softmax"``.

    Returns
    -------
    Capabilities

    Examples
    --------
    >>> import portable_ops as po
    >>> from portable_ops.capabilities import capabilities
    >>> capabilities(po.get_backend("numpy"), "softmax").dtypes
    ('float16', 'float32', 'float64')
    """
    described = OPERATIONS[operation]
    differentiable = OPERATIONS[described.base or operation].differentiable
    return Capabilities(
        devices=backend.device_names() if backend.is_installed() else (),
        dtypes=backend.dtypes if differentiable else (),
        jit=backend.jit is not None,
        grad=backend.grad is not None and differentiable,
        lazy=backend.lazy,
    )
