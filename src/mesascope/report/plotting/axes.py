"""Axes of figures: titles, units, ticks and logarithmic scales."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mesascope.report.text import escape_plotly, format_number, format_power_of_ten, truncate_label


def build_axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return a plotly axis in the style of the report.

    Args:
        title: the title of the axis.
        **settings: further plotly settings, which override the defaults.

    Returns:
        The axis settings.
    """
    look = {"gridcolor": "#e9e6df", "linecolor": "#b9b5ab", "ticks": "outside", "ticklen": 4, "zeroline": False}
    text = {"text": escape_plotly(truncate_label(title, 48)), "font": {"size": 13}, "standoff": 8}
    return {"title": text, "automargin": True, "tickcolor": "#b9b5ab", "showline": True, **look, **settings}


def append_units(title: str, units: str) -> str:
    """Append units in brackets to an axis title; pure numbers have none.

    Args:
        title: the title.
        units: the units; ``1`` for a pure number.

    Returns:
        The title with units.

    >>> append_units("loss", "nat"), append_units("fraction", "1")
    ('loss (nat)', 'fraction')
    """
    return title if units in ("", "1") else f"{title} ({units})"


def build_ticks(labels: Sequence[Any], max_ticks: int = 12) -> dict[str, Any]:
    """Return ticks for the positions 0, 1, 2, ...: all if there are few, else evenly spaced ones.

    Args:
        labels: one label per position.
        max_ticks: the maximum number of ticks.

    Returns:
        The tick settings of a plotly axis.

    >>> build_ticks(["a", "b"])["ticktext"]
    ['a', 'b']
    """
    every = max(1, -(-len(labels) // max_ticks))
    positions = list(range(0, len(labels), every))
    return {
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [escape_plotly(truncate_label(str(labels[k]))) for k in positions],
    }


def build_step_axis(steps: Sequence[float | int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a logarithmic axis of training steps. Step 0 is drawn slightly left of the first positive step.

    Args:
        steps: training steps.

    Returns:
        The x coordinate of each step, and the axis settings.

    >>> build_step_axis([0, 1, 10])[0].tolist()
    [0.4, 1.0, 10.0]
    """
    x = np.asarray(steps, dtype=float).copy()
    positive = x[x > 0]
    if not len(positive):
        return x, build_axis("training step")
    zero = positive.min() * 0.4
    powers = _list_powers(positive.min(), positive.max())
    labelled = ([(zero, "0")] if (x <= 0).any() else []) + [(p, _format_step(p)) for p in powers]
    x[x <= 0] = zero
    marks = {"tickmode": "array", "tickvals": [v for v, _ in labelled], "ticktext": [t for _, t in labelled]}
    return x, build_axis("training step", type="log", **marks)


def _list_powers(least: float, most: float) -> list[float]:
    """Return the powers of ten between both ends, or the ends if there is none."""
    powers = [10.0**k for k in range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)]
    return [p for p in powers if least * 0.99 <= p <= most * 1.01] or [least, most]


def build_log_axis(low: float | int, high: float | int, max_labels: int = 6) -> dict[str, Any]:
    """Return settings of a logarithmic axis with few labels: powers of ten, with their multiples by 2 and 5 if needed.

    Args:
        low: the smallest value; must be positive.
        high: the largest value.
        max_labels: the approximate maximum number of labels.

    Returns:
        The axis settings.

    >>> build_log_axis(0.02, 3)["ticktext"]
    ['0.02', '0.05', '0.1', '0.2', '0.5', '1', '2']
    """
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    inside = [k for k in range(first, last + 1) if low * 0.999 <= 10.0**k <= high * 1.001]
    if len(inside) >= 3:
        marks = [10.0**k for k in inside[:: max(1, round(len(inside) / max_labels))]]
    else:
        every = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
        marks = [v for v in every if low * 0.999 <= v <= high * 1.001] or [low, high]
    return {"type": "log", "tickmode": "array", "tickvals": marks, "ticktext": [_format_log_tick(v) for v in marks]}


def _format_log_tick(value: float) -> str:
    exponent = np.log10(value)
    if abs(exponent) > 3.01 and abs(exponent - round(exponent)) < 1e-9:
        return format_power_of_ten(round(exponent))
    return format_number(float(f"{value:.3g}"))


def _format_step(value: float) -> str:
    """Format a step as 1, 10, 100, 1k, 10k or 1M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
