"""Quantization of numbers to one byte each, so that many fit into a page."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_LEVELS = 255  # code 0 means missing
MAX_TAIL_RATIO = 4.0  # if the full range exceeds the central 98% by this factor, the middle is resolved more finely


@dataclass(frozen=True, kw_only=True)
class QuantizedArray:
    """Numbers as codes into a table of levels.

    Attributes:
        codes: one byte per number: 0 if missing, else the index of its level plus one.
        levels: the values of the codes, ascending, at most 255.
        exact: whether every number equals its level.
        colour_range: both ends of the colour scale; at most 2% of the numbers lie beyond them.
    """

    codes: np.ndarray
    levels: np.ndarray
    exact: bool
    colour_range: tuple[float, float]

    @property
    def encoded(self) -> str:
        """The codes in base64, in C order."""
        return b64encode(np.ascontiguousarray(self.codes).tobytes()).decode("ascii")

    def to_json(self) -> dict[str, Any]:
        """Return the values that the script decodes.

        Returns:
            Codes, levels and the flag ``exact``, ready for JSON.
        """
        return {"bytes": self.encoded, "levels": [float(f"{v:.5g}") for v in self.levels], "exact": self.exact}


def quantize_array(values: np.ndarray, log: bool = False) -> QuantizedArray:
    """Quantize numbers to one byte each.

    Up to 255 distinct numbers are stored exactly. Otherwise levels are evenly spaced, on the scale of `_choose_levels`.

    Args:
        values: numbers of any shape; non-finite values count as missing.
        log: whether levels are logarithmically spaced; values must then be non-negative.

    Returns:
        The quantized numbers.
    """
    finite = np.isfinite(values := np.asarray(values, dtype=np.float64))
    present = values[finite]
    codes = np.zeros(values.shape, np.uint8)
    if not present.size:
        return QuantizedArray(codes=codes, levels=np.zeros(1), exact=True, colour_range=(0.0, 1.0))
    distinct = np.unique(present)
    exact = len(distinct) <= MAX_LEVELS
    levels = distinct if exact else _choose_levels(present, log)
    between = (levels[1:] + levels[:-1]) / 2
    codes[finite] = np.searchsorted(between, present) + 1
    return QuantizedArray(codes=codes, levels=levels, exact=exact, colour_range=_find_colour_range(present, log))


def _choose_levels(values: np.ndarray, log: bool) -> np.ndarray:
    """Space levels evenly: on a linear or logarithmic scale, or, if a few outliers would dominate the range, in the
    inverse hyperbolic sine about the median.
    """
    low, high = float(values.min()), float(values.max())
    if log:
        positive = float(values[values > 0].min())
        zero = [0.0] if low <= 0 else []
        return np.concatenate([zero, np.geomspace(positive, high, MAX_LEVELS - len(zero))])
    near, far = _find_colour_range(values)
    if (near, far) == (low, high):
        return np.linspace(low, high, MAX_LEVELS)
    middle, size = float(np.median(values)), (far - near) / 4 or 1.0
    first, last = np.arcsinh((low - middle) / size), np.arcsinh((high - middle) / size)
    return middle + size * np.sinh(np.linspace(first, last, MAX_LEVELS))


def _find_colour_range(values: np.ndarray, log: bool = False) -> tuple[float, float]:
    """Return the range of the values, or the 1% and 99% quantiles if outliers extend it far."""
    if log and (values > 0).any():
        low, high = _find_colour_range(np.log10(values[values > 0]))
        return 10.0**low, 10.0**high
    low, high = float(values.min()), float(values.max())
    near, far = (float(v) for v in np.quantile(values, [0.01, 0.99]))
    return (near, far) if high - low > MAX_TAIL_RATIO * (far - near) > 0 else (low, high)
