"""The worst images as small pictures: prediction, target, and where they differ."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import Any

import numpy as np

Host = np.ndarray[Any, Any]

LONGEST = 320
"""Pixels of the longer side."""

COLOURS = 255
_NEITHER = (128, 128, 128)
_WRONG = np.asarray((214, 39, 40))
_PAPER = 235


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of a class. Neighbours in number are far apart in hue."""
    lightness = (0.42, 0.62, 0.3)[number % 3]
    red, green, blue = colorsys.hls_to_rgb(number % COLOURS * 0.381966 % 1, lightness, 0.6)
    return round(red * 255), round(green * 255), round(blue * 255)


def palette() -> Host:
    """The colours of classes, and grey for what is none."""
    return np.asarray([*(colour_of(number) for number in range(COLOURS)), _NEITHER], np.uint8)


def pictures(pred: Host, target: Host, num_classes: int, ignore_index: int | None) -> dict[str, str]:
    """Prediction, target and difference as addresses that hold a PNG. Of a volume, the slice in its middle."""
    pred, target = _flat(pred), _flat(target)
    step = max(1, -(-max(target.shape) // LONGEST))
    small = target[::step, ::step]
    codes = _codes(small, num_classes)
    ignored = np.zeros(target.shape, bool) if ignore_index is None else target == ignore_index
    wrong = _shares((pred != target) & ~ignored, step)[..., None]
    base = 0.75 * _PAPER + 0.25 * palette()[codes]
    base[ignored[::step, ::step]] = 160
    # A block that is a little wrong shows: mistakes are often thin.
    weight = np.sqrt(wrong)
    difference = (base * (1 - weight) + _WRONG * weight).astype(np.uint8)
    return {
        "pred": _of_labels(_codes(pred[::step, ::step], num_classes)),
        "target": _of_labels(codes),
        "difference": _of_colours(difference),
    }


def _flat(labels: Host) -> Host:
    while labels.ndim > 2:
        labels = labels[len(labels) // 2]
    return labels.reshape(1, -1) if labels.ndim < 2 else labels


def _codes(labels: Host, num_classes: int) -> Host:
    inside = (labels >= 0) & (labels < num_classes)
    return np.where(inside, labels % np.asarray(COLOURS, labels.dtype), COLOURS).astype(np.uint8)


def _shares(mask: Host, step: int) -> Host:
    """The share of each block of step × step."""
    rows, columns = (np.arange(0, size, step) for size in mask.shape)
    sums = np.add.reduceat(np.add.reduceat(mask.astype(np.float64), rows, axis=0), columns, axis=1)
    number = np.add.reduceat(np.ones(mask.shape[0]), rows)[:, None] * np.add.reduceat(np.ones(mask.shape[1]), columns)
    return sums / number


def _of_labels(codes: Host) -> str:
    from PIL import Image

    picture = Image.fromarray(codes)
    picture.putpalette(palette().tobytes())
    return _address(picture)


def _of_colours(colours: Host) -> str:
    from PIL import Image

    return _address(Image.fromarray(colours).quantize(128))


def _address(picture: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
