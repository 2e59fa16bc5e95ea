"""The attention layer: projections, heads, attention and the output projection."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from portable_ops.attention import scaled_dot_product_attention
from portable_ops.backend import Array, get_backend
from portable_ops.broadcasting import with_axes
from portable_ops.checks import complaint, require_integer, require_number
from portable_ops.dispatch import operation
from portable_ops.layer_names import PARAMETERS, PROJECTIONS, own_parameters, require_own_names
from portable_ops.routes import Namespace, backend_of, namespace_of


def _check_linear(xp: Namespace, x: Array, weight: Array, bias: Array, /) -> None:
    """The layer has checked their shapes."""


@operation(_check_linear, public=False)
def linear(xp: Namespace, x: Array, weight: Array, bias: Array, /) -> Array:
    """A projection of the last axis; weights are (out, in)."""
    return xp.matmul(x, xp.matrix_transpose(weight)) + with_axes(xp, bias, x.ndim)


@dataclass(frozen=True, eq=False, repr=False)
class MultiHeadAttention:
    """Multi-head attention with projections of query, key, value and output.

    Parameters
    ----------
    embedding_dim : int
        Channels of the query and of the result.
    num_heads : int
        It must divide the inner width.
    downsample_rate : int
        The inner width is ``embedding_dim // downsample_rate``.
    kv_in_dim : int, optional
        Channels of key and value; `embedding_dim` if None.
    dropout_p : float
        Chance that an attention weight is dropped, in calls that are given a generator.
    parameters : mapping of str to array, optional
        As `state_dict` returns them: ``q_proj.weight`` ... ``out_proj.bias``, weights of shape (out, in). A projection without
        a bias adds none. Without parameters, `init` or `from_state_dict` makes a layer that has them.

    Raises
    ------
    ValueError
        Numbers do not divide, or a parameter is missing, unknown or of the wrong shape.

    Notes
    -----
    A layer is not changed once made. Its arrays may be of any backend and take part in whatever gradients that offers.

    References
    ----------
    A. Vaswani et al., "Attention is all you need", NeurIPS 2017. The layout of the parameters is that of the
    attention of A. Kirillov et al., "Segment anything", ICCV 2023.

    Examples
    --------
    >>> import numpy as np, portable_ops as po
    >>> layer = po.MultiHeadAttention(8, 2, downsample_rate=2).init(0)
    >>> x = np.ones((1, 5, 8), dtype=np.float32)
    >>> layer(x, x, x).shape
    (1, 5, 8)
    """

    embedding_dim: int
    num_heads: int
    downsample_rate: int = field(default=1, kw_only=True)
    kv_in_dim: int | None = field(default=None, kw_only=True)
    dropout_p: float = field(default=0.0, kw_only=True)
    parameters: Mapping[str, Array] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "num_heads", "downsample_rate"):
            require_integer(name, getattr(self, name), minimum=1)
        if self.kv_in_dim is not None:
            require_integer("kv_in_dim", self.kv_in_dim, minimum=1)
        require_number("dropout_p", self.dropout_p, minimum=0.0, below=1.0)
        if self.embedding_dim % self.downsample_rate:
            wanted = f"a divisor of embedding_dim, {self.embedding_dim}"
            raise ValueError(complaint("downsample_rate", self.downsample_rate, wanted))
        if self.internal_dim % self.num_heads:
            wanted = f"a divisor of embedding_dim // downsample_rate, {self.internal_dim}"
            raise ValueError(complaint("num_heads", self.num_heads, wanted))
        if self.parameters is not None:
            self._check_parameters(self.parameters)
            register = backend_of(self.parameters["q_proj.weight"]).register_container
            if register is not None:
                register(type(self), _flatten, _unflatten)

    @property
    def internal_dim(self) -> int:
        """Channels of all heads together."""
        return self.embedding_dim // self.downsample_rate

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by name; weights are (out, in)."""
        inner, outer = self.internal_dim, self.embedding_dim
        inputs = outer if self.kv_in_dim is None else self.kv_in_dim
        weights = ((inner, outer), (inner, inputs), (inner, inputs), (outer, inner))
        shapes: dict[str, tuple[int, ...]] = {}
        for projection, shape in zip(PROJECTIONS, weights, strict=True):
            shapes |= {f"{projection}.weight": shape, f"{projection}.bias": shape[:1]}
        return shapes

    def _check_parameters(self, parameters: Mapping[str, Array]) -> None:
        shapes = self.parameter_shapes()
        require_own_names(parameters)
        for name, array in parameters.items():
            if tuple(array.shape) != shapes[name]:
                raise ValueError(complaint(name, f"shape {tuple(array.shape)}", f"shape {shapes[name]}"))

    def init(self, rng: Any = 0, *, backend: str = "numpy", device: Any = None, dtype: str = "float32") -> Self:
        """A layer with random parameters, uniform within ``1 / sqrt(channels in)``.

        Parameters
        ----------
        rng : int or generator
            A seed, or a generator of the backend.
        backend : str
            The array library of the parameters.
        device : optional
            One of the backend's devices; its default if None.
        dtype : str
            Name of the floating dtype.

        Returns
        -------
        MultiHeadAttention
        """
        chosen = get_backend(backend)
        if chosen.rng is None or chosen.uniform is None:
            raise ValueError(
                complaint("backend", repr(backend), "a backend with random numbers; or init and .to(backend)")
            )
        place = chosen.to_device(device) if isinstance(device, str) else device
        generator = chosen.rng(rng, place) if isinstance(rng, int) else rng
        xp = namespace_of(chosen)
        parameters = {}
        fan_in = 1
        for name, shape in self.parameter_shapes().items():
            fan_in = shape[1] if len(shape) == 2 else fan_in
            draws = chosen.uniform(generator, shape, getattr(xp, dtype, dtype), place)
            parameters[name] = (2 * draws - 1) / math.sqrt(fan_in)
        return replace(self, parameters=parameters)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Array],
        /,
        num_heads: int,
        *,
        dropout_p: float = 0.0,
        prefix: str = "",
        names: Mapping[str, str] | None = None,
    ) -> Self:
        """A layer with the parameters of a state dict, which are not copied; all widths are read off their shapes.

        Parameters
        ----------
        state_dict : mapping of str to array
            ``q_proj.weight`` ... ``out_proj.bias``, weights of shape (out, in), of any array library. Found as well are the
            names of `torch.nn.MultiheadAttention`, SAM 2, ViT, timm and diffusers, and projections of query, key and value that
            are packed into one weight. A bias that is not there is none.
        num_heads : int
            It cannot be read off the shapes.
        dropout_p : float
            As in the constructor.
        prefix : str
            What stands before the names; entries without it are passed over.
        names : mapping of str to str, optional
            Other names of projections, such as ``{"q_proj": "wq", "out_proj": "wo"}``; ``"in_proj"`` is the packed one.

        Returns
        -------
        MultiHeadAttention
            Its `state_dict` has this package's names.

        Raises
        ------
        ValueError
            A parameter is missing, unknown or of the wrong shape.
        """
        own = own_parameters(state_dict, names, prefix)
        for name, array in own.items():
            axes = 2 if name.endswith("weight") else 1
            if array.ndim != axes:
                raise ValueError(complaint(prefix + name, f"shape {tuple(array.shape)}", f"{axes} axes"))
        inner, outer = own["q_proj.weight"].shape
        inputs = own["k_proj.weight"].shape[1]
        if inner == 0 or outer % inner:
            raise ValueError(complaint("q_proj.weight", f"shape ({inner}, {outer})", "(out, in) with out dividing in"))
        return cls(
            outer,
            num_heads,
            downsample_rate=outer // inner,
            kv_in_dim=None if inputs == outer else inputs,
            dropout_p=dropout_p,
            parameters=own,
        )

    def state_dict(self) -> dict[str, Array]:
        """The parameters by name, not copied; empty for a layer without."""
        return dict(self.parameters or {})

    def to(self, backend: str, *, device: Any = None, dtype: str | None = None) -> Self:
        """A layer with copies of the parameters on another backend, device or dtype; gradients do not cross.

        Parameters
        ----------
        backend : str
            Name of the backend.
        device : optional
            One of its devices; its default if None.
        dtype : str, optional
            Name of a floating dtype; the present one if None.

        Returns
        -------
        MultiHeadAttention
        """
        chosen = get_backend(backend)
        place = chosen.to_device(device) if isinstance(device, str) else device
        moved = {
            name: chosen.from_numpy(backend_of(array).to_numpy(array), device=place, dtype=dtype)
            for name, array in self.state_dict().items()
        }
        return replace(self, parameters=moved or None)

    def __call__(
        self,
        q: Array,
        k: Array,
        v: Array,
        /,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        is_causal: bool = False,
        rng: Any = None,
    ) -> Array:
        """Attend.

        Parameters
        ----------
        q : array of shape (..., N, embedding_dim)
        k, v : arrays of shape (..., M, kv_in_dim)
            The leading axes broadcast.
        mask, bias, is_causal
            As in `scaled_dot_product_attention`; the weights have shape (..., heads, N, M).
        rng : generator, optional
            With it, attention weights are dropped with chance `dropout_p`; without, none are.

        Returns
        -------
        array of shape (..., N, embedding_dim)

        Raises
        ------
        ValueError
            The layer has no parameters, or shapes do not fit.
        TypeError
            Arrays and parameters are of different libraries.
        """
        if self.parameters is None:
            raise ValueError("parameters: got None; expected a layer made by init() or from_state_dict()")
        inputs = self.embedding_dim if self.kv_in_dim is None else self.kv_in_dim
        library = backend_of(self.parameters["q_proj.weight"])
        for name, array, width in (("q", q, self.embedding_dim), ("k", k, inputs), ("v", v, inputs)):
            other = backend_of(array)
            if other is not library:
                raise TypeError(
                    complaint(name, f"a {other.name} array", f"a {library.name} array, as the parameters are")
                )
            if array.ndim < 2 or array.shape[-1] != width:
                raise ValueError(complaint(name, f"shape {tuple(array.shape)}", f"shape (..., tokens, {width})"))
        xp = namespace_of(library)
        heads = (
            self._heads(xp, self._project(projection, array))
            for projection, array in zip(PROJECTIONS, (q, k, v), strict=False)
        )
        attended = scaled_dot_product_attention(
            *heads,
            mask=mask,
            bias=bias,
            is_causal=is_causal,
            dropout_p=0.0 if rng is None else self.dropout_p,
            rng=rng,
        )
        merged = _swap_heads_and_tokens(xp, attended)
        return self._project("out_proj", xp.reshape(merged, (*merged.shape[:-2], self.internal_dim)))

    def _project(self, projection: str, x: Array) -> Array:
        assert self.parameters is not None
        weight, bias = self.parameters[f"{projection}.weight"], self.parameters.get(f"{projection}.bias")
        if bias is not None:
            return linear(x, weight, bias)
        xp = namespace_of(backend_of(weight))
        return xp.matmul(x, xp.matrix_transpose(weight))

    def _heads(self, xp: Namespace, x: Array) -> Array:
        split = xp.reshape(x, (*x.shape[:-1], self.num_heads, self.internal_dim // self.num_heads))
        return _swap_heads_and_tokens(xp, split)

    def __repr__(self) -> str:
        shown = f"{self.embedding_dim}, {self.num_heads}, downsample_rate={self.downsample_rate}"
        shown += f", kv_in_dim={self.kv_in_dim}, dropout_p={self.dropout_p}"
        if self.parameters is None:
            return f"MultiHeadAttention({shown})"
        weight = self.parameters["q_proj.weight"]
        return f"MultiHeadAttention({shown}) with {backend_of(weight).name} parameters, {weight.dtype}"


def _swap_heads_and_tokens(xp: Namespace, x: Array) -> Array:
    """(..., tokens, heads, dim) <-> (..., heads, tokens, dim)."""
    lead = tuple(range(x.ndim - 3))
    return xp.permute_dims(x, (*lead, x.ndim - 2, x.ndim - 3, x.ndim - 1))


def _flatten(layer: MultiHeadAttention) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
    """The arrays of a layer and, comparable and hashable, the rest of it: what transforms over containers ask for."""
    assert layer.parameters is not None
    names = tuple(name for name in PARAMETERS if name in layer.parameters)
    rest = (layer.embedding_dim, layer.num_heads, layer.downsample_rate, layer.kv_in_dim, layer.dropout_p, names)
    return tuple(layer.parameters[name] for name in names), rest


def _unflatten(rest: tuple[Any, ...], arrays: Iterable[Array]) -> MultiHeadAttention:
    embedding_dim, num_heads, downsample_rate, kv_in_dim, dropout_p, names = rest
    layer = MultiHeadAttention(
        embedding_dim, num_heads, downsample_rate=downsample_rate, kv_in_dim=kv_in_dim, dropout_p=dropout_p
    )
    # Not through the constructor, which checks shapes: transforms put placeholders where arrays were.
    object.__setattr__(layer, "parameters", dict(zip(names, arrays, strict=True)))
    return layer
