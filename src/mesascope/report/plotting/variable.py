"""A variable prepared for plotting, with its controls, position labels and auxiliary variables."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from mesascope.formulas import escape_dollars, render_plain
from mesascope.report.plotting.controls import stack_replicates
from mesascope.report.text import add_full_stop, escape_plotly, format_count, format_sentence

CATEGORICAL_DIMS = frozenset(
    {"predictor", "stat", "component", "sublayer", "map"}
)  # axes whose labels are unordered names
INVISIBLE_CHARACTERS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ufff9-\\ufffb]"
)
LABEL_VARIABLES = ("token", "value")  # variables that label positions on axes and have no panel of their own


@dataclass(frozen=True, kw_only=True)
class PlotVariable:
    """A variable as a view receives it.

    Attributes:
        name: its name in the file.
        array: its numbers; ``seed`` is always the first axis, of length 1 if the run has no seeds.
        has_seeds: whether the run has seeds.
        controls: control variables (the same quantity under a null), replicates along ``seed``.
        labels: the token or value at each (batch, pos), if the file has one.
    """

    name: str
    array: xr.DataArray
    has_seeds: bool
    controls: tuple[xr.DataArray, ...] = ()
    labels: xr.DataArray | None = None

    @property
    def title(self) -> str:
        """The heading and the name on axes: the attribute ``title`` as plain text, else the name with spaces."""
        return render_plain(str(self.array.attrs.get("title") or self.name.replace("_", " ")))

    @property
    def units(self) -> str:
        """The units of its numbers; ``1`` for a pure number."""
        return str(self.array.attrs.get("units", "1"))

    @cached_property
    def is_log(self) -> bool:
        """True if the scale is logarithmic: requested, and at least one value is positive."""
        return self.array.attrs.get("scale") == "log" and bool((self.array.values > 0).any())

    @cached_property
    def center(self) -> float | None:
        """The middle of a diverging colour scale: as given, or 0 if both signs occur."""
        given = self.array.attrs.get("center")
        if given is not None:
            return float(given)
        return 0.0 if not self.is_log and float(self.array.min()) < 0 < float(self.array.max()) else None

    @property
    def num_seeds(self) -> int:
        """The number of seeds."""
        return self.array.sizes["seed"]

    @property
    def plot_dims(self) -> tuple[str, ...]:
        """The axes other than seed and step, which determine the view."""
        return tuple(str(d) for d in self.array.dims if d not in ("seed", "step"))

    def select_step(self, step: int = -1) -> xr.DataArray:
        """Return the numbers at one training step.

        Args:
            step: the index of the step; the last by default.

        Returns:
            The numbers without the axis ``step``; unchanged if there is none.
        """
        return self.array.isel(step=step) if "step" in self.array.dims else self.array

    def list_labels(self, dim: str) -> list[str]:
        """Return the labels along an axis as text.

        Args:
            dim: the name of the axis.

        Returns:
            One label per index.
        """
        return read_labels(self.array, dim)

    def build_caption(self, *notes: str) -> str:
        """Build the caption: the variable's description, then notes on the figure.

        Args:
            *notes: notes without formulas; empty ones are skipped.

        Returns:
            Sentences, with the formulas of the description.
        """
        sentences = [self.array.attrs.get("description"), *map(escape_dollars, notes)]
        return " ".join(filter(None, map(format_sentence, sentences)))

    @property
    def tautology(self) -> str:
        """The reason why the value holds by construction, a text with formulas; empty if there is none."""
        return add_full_stop(self.array.attrs.get("tautology"))

    @property
    def seed_count(self) -> str:
        """The number of seeds in words."""
        return format_count(self.num_seeds, "seed") if self.has_seeds else "one model"

    def describe_step(self) -> str:
        """Describe the training step that is drawn.

        Returns:
            A phrase; empty if there is no axis ``step``.
        """
        return f"at step {int(self.array['step'][-1]):,}" if "step" in self.array.dims else ""


def prepare_variable(data: xr.Dataset, name: str) -> PlotVariable:
    """Prepare a variable of a file for plotting.

    Args:
        data: the variables of the file.
        name: the name of the variable.

    Returns:
        The variable with its controls and position labels.
    """
    array = data[name]
    controls_of_variable = [
        data[c]
        for c in data.data_vars
        if data[c].attrs.get("control_of") == name and not array.attrs.get("categorical")  # a mean has no meaning
    ]
    controls = tuple(stack_replicates(_move_seeds_first(one)) for one in controls_of_variable)
    labels = next((data[one] for one in LABEL_VARIABLES if one in data.variables and data[one].ndim), None)
    return PlotVariable(
        name=name, array=_move_seeds_first(array), has_seeds="seed" in array.dims, controls=controls, labels=labels
    )


def read_labels(array: xr.DataArray, dim: str) -> list[str]:
    """Return the labels along an axis as text; integers are written without a decimal point.

    Args:
        array: the labelled array.
        dim: the name of the axis.

    Returns:
        One label per index; the index itself if there are no labels.
    """
    if dim not in array.coords:
        return [str(k) for k in range(array.sizes[dim])]
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in array[dim].values.tolist()]


def label_positions(variable: PlotVariable, dim: str, example: int | None = None) -> list[str]:
    """Return labels of positions with their tokens, if the file has tokens and the example is known.

    Args:
        variable: the variable.
        dim: the axis of positions.
        example: the index of the example along ``batch``.

    Returns:
        One label per position; the position's number if tokens are unknown or do not fit.
    """
    dim_labels, labels = variable.list_labels(dim), variable.labels
    if labels is None or dim not in ("pos", "query", "key") or "pos" not in labels.dims:
        return dim_labels
    labels = labels.isel(step=-1) if "step" in labels.dims else labels
    labels = labels.isel(seed=0) if "seed" in labels.dims else labels
    if "batch" in labels.dims and (example is not None or labels.sizes["batch"] == 1):
        labels = labels.isel(batch=example or 0)
    if labels.dims != ("pos",) or labels.sizes["pos"] < len(dim_labels):
        return dim_labels
    return [make_visible(v) for v in labels.values[: len(dim_labels)]]


def make_visible(value: Any) -> str:
    """Return a token or value as text in which spaces and invisible characters are visible.

    Args:
        value: a token or a number.

    Returns:
        The text.

    >>> make_visible(" the"), make_visible(0.123456), make_visible("a\\u202eb\\x07")
    ('␣the', '0.123', 'a⟨202E⟩b␇')
    """
    if isinstance(value, float | np.floating):
        return f"{value:.3g}"
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    text = text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return INVISIBLE_CHARACTERS.sub(lambda sign: _choose_symbol(ord(sign[0])), text) or "∅"


def _choose_symbol(code: int) -> str:
    """Return the visible replacement of a control or formatting character."""
    return chr(0x2400 + code) if code < 0x20 else f"⟨{code:04X}⟩"


def is_numeric(array: xr.DataArray) -> bool:
    """Return whether a variable contains real numbers (booleans count as 0 and 1).

    Args:
        array: the variable.

    Returns:
        True if it is numeric and not empty.
    """
    return array.dtype.kind in "fiub" and array.size > 0


def is_uncertainty(data: xr.Dataset, name: str) -> bool:
    """Return whether a variable is the standard error or an interval end of another variable of the file.

    Args:
        data: the variables of the file.
        name: the name of the variable.

    Returns:
        True if it is no result of its own.
    """
    return data[name].attrs.get("uncertainty_of") in data.data_vars


def escape_labels(labels: Sequence[str]) -> list[str]:
    """Escape labels for plotly.

    Args:
        labels: the labels.

    Returns:
        Labels that plotly displays literally.
    """
    return [escape_plotly(one) for one in labels]


def _move_seeds_first(array: xr.DataArray) -> xr.DataArray:
    attrs = array.attrs
    array = array.astype(float) if is_numeric(array) else array
    array = array if "seed" in array.dims else array.expand_dims("seed")
    return array.transpose("seed", ...).assign_attrs(attrs)
