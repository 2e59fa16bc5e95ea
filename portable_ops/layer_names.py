"""Parameters of attention layers under the names that other projects give them."""

from __future__ import annotations

from collections.abc import Mapping

from portable_ops.backend import Array
from portable_ops.checks import complaint

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
WEIGHTS = tuple(f"{projection}.weight" for projection in PROJECTIONS)
PARAMETERS = tuple(f"{projection}.{part}" for projection in PROJECTIONS for part in ("weight", "bias"))
PACKED = "in_proj"
"""What holds the projections of query, key and value one below the other, in this order."""

KNOWN: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("q_proj", "query", "attention.query", "to_q"),
    "k_proj": ("k_proj", "key", "attention.key", "to_k"),
    "v_proj": ("v_proj", "value", "attention.value", "to_v"),
    PACKED: ("in_proj", "qkv"),
    "out_proj": ("out_proj", "o_proj", "output.dense", "proj", "to_out.0"),
}
"""The names that are found without being told: SAM's, CLIP's and Whisper's; SAM 2's; ViT's; timm's; diffusers'; torch's."""


def own_parameters(state: Mapping[str, Array], names: Mapping[str, str] | None, prefix: str) -> dict[str, Array]:
    """The parameters of a state dict under this package's names; packed ones are split, missing biases stay so.

    Parameters
    ----------
    state : mapping of str to array
    names : mapping of str to str, optional
        The name of a projection in the state dict for each of this package's, ``"in_proj"`` being the packed one. Those that
        are not among them are looked for under the usual names.
    prefix : str
        What stands before the names; entries without it are passed over.

    Raises
    ------
    ValueError
        A weight is missing, an entry is left over, or there are two of one name.
    """
    left = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    wanted = {projection: (one,) for projection, one in _checked(names).items()}
    found: dict[str, Array] = {}
    for projection, usual in KNOWN.items():
        for part in ("weight", "bias"):
            for name in wanted.get(projection, usual):
                entry = next((one for one in (f"{name}.{part}", f"{name}_{part}") if one in left), None)
                if entry is not None and f"{projection}.{part}" not in found:
                    found[f"{projection}.{part}"] = left.pop(entry)
    split = _split(found, prefix)
    missing = [prefix + name for name in WEIGHTS if name not in split]
    if missing or left:
        also = [prefix + name for name in left]
        got = "; ".join(f"{what} {', '.join(which)}" for what, which in (("no", missing), ("also", also)) if which)
        raise ValueError(complaint("parameters", got, _looked_for(wanted)))
    return {name: split[name] for name in PARAMETERS if name in split}


def _checked(names: Mapping[str, str] | None) -> Mapping[str, str]:
    unknown = [name for name in names or {} if name not in KNOWN]
    if unknown:
        raise ValueError(complaint("names", ", ".join(map(repr, unknown)), "only " + ", ".join(map(repr, KNOWN))))
    return names or {}


def _split(found: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The parameters with those of the packed projection in their places."""
    split = dict(found)
    for part in ("weight", "bias"):
        packed = split.pop(f"{PACKED}.{part}", None)
        if packed is None:
            continue
        own = [f"{projection}.{part}" for projection in PROJECTIONS[:3]]
        if any(name in split for name in own):
            got = f"{PACKED}.{part} and one for query, key or value"
            raise ValueError(complaint("parameters", prefix + got, "one of the two"))
        rows = packed.shape[0]
        if rows % 3:
            raise ValueError(complaint(f"{prefix}{PACKED}.{part}", f"{rows} rows", "as many for query, key and value"))
        for number, name in enumerate(own):
            split[name] = packed[number * rows // 3 : (number + 1) * rows // 3, ...]
    return split


def _looked_for(wanted: Mapping[str, tuple[str, ...]]) -> str:
    shown = {projection: " or ".join(wanted.get(projection, usual)) for projection, usual in KNOWN.items()}
    return (
        "a weight, and a bias unless there is none, for "
        + ", ".join(f"{projection} (named {shown[projection]})" for projection in PROJECTIONS)
        + f"; or for the first three in one (named {shown[PACKED]}); names= tells other names"
    )


def require_own_names(parameters: Mapping[str, Array]) -> None:
    """Raise ValueError unless these are the weights of all projections, and biases or none."""
    missing = [name for name in WEIGHTS if name not in parameters]
    unknown = [name for name in parameters if name not in PARAMETERS]
    if missing or unknown:
        got = "; ".join(f"{what} {', '.join(names)}" for what, names in (("no", missing), ("also", unknown)) if names)
        wanted = f"{', '.join(WEIGHTS)}, and .bias of each that has one"
        raise ValueError(complaint("parameters", got, wanted))
