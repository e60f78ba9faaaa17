"""The traces of one plot with the legend that hides and shows them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mesascope.report.panel import entry


@dataclass
class Drawing:
    """Traces and legend of one plot, as they come to be."""

    traces: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, colour: str, traces: Sequence[dict[str, Any]], dash: str = "solid", kind: str = "line"):
        """Add the traces of one entry of the legend."""
        first = len(self.traces)
        self.traces.extend(traces)
        self.legend.append(entry(name, colour, range(first, len(self.traces)), dash, kind))


def shared(legends: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One legend for plots side by side: every name once, with its traces in each plot."""
    entries = {one["name"]: one for legend in legends for one in legend}
    places = [{one["name"]: one["traces"] for one in legend} for legend in legends]
    return [{**one, "each": [place.get(name, []) for place in places]} for name, one in entries.items()]
