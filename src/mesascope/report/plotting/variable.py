"""One variable, made ready for a view: seeds in front, its control beside it, its labels at hand."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import replicates
from mesascope.report.text import plain, sentence, several, stopped

NAMES = frozenset({"predictor", "stat", "component", "sublayer", "map"})  # dims whose labels are names, in no order
SHAPELESS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb]")
LABELS = ("token", "value")  # variables that name positions, used on axes rather than drawn themselves


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A variable as a view sees it.

    Attributes:
        name: its name in the file.
        array: its numbers; ``seed`` is always the first dim, of length 1 where the run had none.
        seeded: whether the run had seeds at all.
        controls: variables that say what it looks like where there is nothing to find, replicates along ``seed``.
        labels: the token or the value at each (batch, pos), if the file has one.
    """

    name: str
    array: xr.DataArray
    seeded: bool
    controls: tuple[xr.DataArray, ...] = ()
    labels: xr.DataArray | None = None

    @property
    def title(self) -> str:
        """A heading: the attribute ``title``, else the name with spaces."""
        return str(self.array.attrs.get("title") or self.name.replace("_", " "))

    @property
    def units(self) -> str:
        """The unit of its numbers; ``1`` for a pure number."""
        return str(self.array.attrs.get("units", "1"))

    @cached_property
    def log(self) -> bool:
        """Whether it is drawn on a logarithmic scale: where it asks for that and has a positive value."""
        return self.array.attrs.get("scale") == "log" and bool((self.array.values > 0).any())

    @cached_property
    def center(self) -> float | None:
        """The value that diverging colours start from: as given, or 0 where both signs occur."""
        given = self.array.attrs.get("center")
        if given is not None:
            return float(given)
        return 0.0 if not self.log and float(self.array.min()) < 0 < float(self.array.max()) else None

    @property
    def seeds(self) -> int:
        """How many seeds."""
        return self.array.sizes["seed"]

    @property
    def rest(self) -> tuple[str, ...]:
        """The dims that decide how it is drawn."""
        return tuple(str(d) for d in self.array.dims if d not in ("seed", "step"))

    def at(self, step: int = -1) -> xr.DataArray:
        """The numbers at one step, the last unless told; all of them where nothing was trained."""
        return self.array.isel(step=step) if "step" in self.array.dims else self.array

    def names(self, dim: str) -> list[str]:
        """The labels along a dim, as text."""
        return names(self.array, dim)

    def caption(self, *more: str) -> str:
        """What its author says it is, then what is drawn here."""
        return " ".join(filter(None, [sentence(self.array.attrs.get("about")), *map(sentence, more)]))

    @property
    def tautology(self) -> str:
        """Why this number cannot fail, where its author says so: an identity is evidence of nothing."""
        return stopped(self.array.attrs.get("tautology"))

    @property
    def over_seeds(self) -> str:
        """The number of seeds, in words."""
        return several(self.seeds, "seed") if self.seeded else "one model"

    def moment(self) -> str:
        """The step that is shown, in words; nothing where nothing was trained."""
        return f"at step {int(self.array['step'][-1]):,}" if "step" in self.array.dims else ""


def prepare(data: xr.Dataset, name: str) -> Shown:
    """A variable of a file with its controls and labels."""
    array = data[name]
    belonging = [data[c] for c in data.data_vars if data[c].attrs.get("control_of") == name]
    controls = tuple(replicates(_seeds_first(one)) for one in belonging)
    labels = next((data[one] for one in LABELS if one in data.variables and data[one].ndim), None)
    return Shown(name=name, array=_seeds_first(array), seeded="seed" in array.dims, controls=controls, labels=labels)


def names(array: xr.DataArray, dim: str) -> list[str]:
    """The labels along a dim as text; whole numbers without a decimal point."""
    if dim not in array.coords:
        return [str(k) for k in range(array.sizes[dim])]
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in array[dim].values.tolist()]


def position_names(shown: Shown, dim: str, example: int | None = None) -> list[str]:
    """Labels of positions with their token, where the file has tokens and the example is known.

    Raises nothing: where labels do not fit, positions are numbers.
    """
    plain_names, labels = shown.names(dim), shown.labels
    if labels is None or dim not in ("pos", "query", "key") or "pos" not in labels.dims:
        return plain_names
    labels = labels.isel(step=-1) if "step" in labels.dims else labels
    labels = labels.isel(seed=0) if "seed" in labels.dims else labels
    if "batch" in labels.dims and (example is not None or labels.sizes["batch"] == 1):
        labels = labels.isel(batch=example or 0)
    if labels.dims != ("pos",) or labels.sizes["pos"] < len(plain_names):
        return plain_names
    return [visible(v) for v in labels.values[: len(plain_names)]]


def visible(value: Any) -> str:
    """A token or value as text in which blanks can be seen, as can signs without a shape of their own.

    >>> visible(" the"), visible(0.123456), visible("a\\u202eb\\x07")
    ('␣the', '0.123', 'a⟨202E⟩b␇')
    """
    if isinstance(value, float | np.floating):
        return f"{value:.3g}"
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return SHAPELESS.sub(lambda sign: _picture(ord(sign[0])), text) or "∅"


def _picture(code: int) -> str:
    """What stands for a sign that cannot be seen, or that turns other text round."""
    return chr(0x2400 + code) if code < 0x20 else f"⟨{code:04X}⟩"


def numeric(array: xr.DataArray) -> bool:
    """Whether a variable holds real numbers (or truth values, counted as 0 and 1)."""
    return array.dtype.kind in "fiub" and array.size > 0


def escaped(labels: Sequence[str]) -> list[str]:
    """Labels for plotly."""
    return [plain(one) for one in labels]


def _seeds_first(array: xr.DataArray) -> xr.DataArray:
    """The same numbers as floats with ``seed`` as the first dim."""
    attrs = array.attrs
    array = array.astype(float) if numeric(array) else array
    array = array if "seed" in array.dims else array.expand_dims("seed")
    return array.transpose("seed", ...).assign_attrs(attrs)


COMPANIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "causes": ("role", "mark", "low", "high", "caused"),
        "ranking": ("named", "low", "high", "null", "apart", "called", "iterations", "fitted", "numbers"),
    }
)
NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"causes": ("role", "caused"), "ranking": ("named", "null", "apart", "called", "iterations", "numbers")}
)


def companions(data: xr.Dataset) -> list[str]:
    """The variables that belong to the view which a variable of the file asks for; none if it cannot be drawn so."""
    asked = {str(data[name].attrs.get("view")) for name in data.data_vars}
    whole = [view for view in COMPANIONS if view in asked and {*NEEDED[view]} <= {*map(str, data.data_vars)}]
    return [name for view in whole for name in COMPANIONS[view] if name in data.data_vars]


def beside(data: xr.Dataset, shown: Shown) -> Shown:
    """The variable with those beside it, as coordinates; ``seed`` in front, as it has it."""
    array = shown.array
    here = [data[name] for name in companions(data) if {*data[name].dims} <= {*array.dims}]
    known = {
        one.name: (one if "seed" in one.dims else one.expand_dims(seed=array.sizes["seed"])).variable for one in here
    }
    return replace(shown, array=array.assign_coords(known))
