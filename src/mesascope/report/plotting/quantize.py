"""One byte for each number: little enough to stand in a page, near enough to be read under the pointer."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np

CODES = 255  # code 0 says that there is no number
TAIL = 4.0  # where values reach so many times farther than all but one in fifty, the middle is kept finer


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Numbers as codes into a list of levels.

    Attributes:
        codes: one byte for each number, 0 where there is none, else the place of its level counted from 1.
        levels: what the codes stand for, in rising order, at most 255.
        exact: whether every number is a level, rather than near one.
        ends: where colours begin and end; beyond them lie at most one number in fifty.
    """

    codes: np.ndarray
    levels: np.ndarray
    exact: bool
    ends: tuple[float, float]

    @property
    def text(self) -> str:
        """The codes in base64, in the order of C."""
        return b64encode(np.ascontiguousarray(self.codes).tobytes()).decode("ascii")

    def json(self) -> dict[str, Any]:
        """What the script decodes."""
        return {"bytes": self.text, "levels": [float(f"{v:.5g}") for v in self.levels], "exact": self.exact}


def pack(values: np.ndarray, log: bool = False) -> Packed:
    """Pack numbers into bytes.

    Where there are few distinct numbers, each is kept. Else levels are spread evenly, or evenly in the logarithm, or,
    where a few numbers reach far beyond all others, evenly in the inverse hyperbolic sine about the median.

    Args:
        values: numbers of any shape; what is not finite counts as missing.
        log: whether they are read on a logarithmic scale; all must then be 0 or more.
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    found = values[known]
    if not found.size:
        return Packed(codes=np.zeros(values.shape, np.uint8), levels=np.zeros(1), exact=True, ends=(0.0, 1.0))
    distinct = np.unique(found)
    exact = len(distinct) <= CODES
    levels = distinct if exact else _levels(found, log)
    between = (levels[1:] + levels[:-1]) / 2
    codes = np.zeros(values.shape, np.uint8)
    codes[known] = np.searchsorted(between, found) + 1
    return Packed(codes=codes, levels=levels, exact=exact, ends=_ends(found, log))


def _levels(found: np.ndarray, log: bool) -> np.ndarray:
    """Where the levels lie."""
    low, high = float(found.min()), float(found.max())
    if log:
        positive = float(found[found > 0].min())
        zero = [0.0] if low <= 0 else []
        return np.concatenate([zero, np.geomspace(positive, high, CODES - len(zero))])
    near, far = _ends(found)
    if (near, far) == (low, high):
        return np.linspace(low, high, CODES)
    middle, size = float(np.median(found)), (far - near) / 4 or 1.0
    first, last = np.arcsinh((low - middle) / size), np.arcsinh((high - middle) / size)
    return middle + size * np.sinh(np.linspace(first, last, CODES))


def _ends(found: np.ndarray, log: bool = False) -> tuple[float, float]:
    """Least and greatest; where these lie far out, what all but one in fifty lie between. Of logarithms if asked."""
    if log and (found > 0).any():
        low, high = _ends(np.log10(found[found > 0]))
        return 10.0**low, 10.0**high
    low, high = float(found.min()), float(found.max())
    near, far = (float(v) for v in np.quantile(found, [0.01, 0.99]))
    return (near, far) if high - low > TAIL * (far - near) > 0 else (low, high)
