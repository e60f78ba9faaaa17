"""Which picture a variable gets: decided by its dims alone, or by its attribute ``view``."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import xarray as xr

from mesascope.report.explorers.attention import patterns
from mesascope.report.explorers.colored_text import coloured_text
from mesascope.report.panels.algorithm_ranking import ranking
from mesascope.report.panels.head_importance import causes
from mesascope.report.plotting.bars import bars
from mesascope.report.plotting.curves import over_axis, over_steps
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.heat_maps import drawable, heat_maps, layers_over_steps, thinned
from mesascope.report.plotting.scatter import marked, marks, scatter
from mesascope.report.plotting.table import table
from mesascope.report.plotting.variable import LABELS, NAMES, Shown, beside, companions, numeric, prepare

View = Callable[[Shown], Panel]
ORDERED = frozenset({"layer", "pos", "query", "key", "d_model", "d_head", "d_in", "d_out", "eigen"})
VIEWS: Mapping[str, View] = MappingProxyType(
    {
        "training": over_steps,
        "curves": over_axis,
        "heatmap": heat_maps,
        "attention": patterns,
        "tokens": coloured_text,
        "scatter": scatter,
        "bars": bars,
        "causes": causes,
        "ranking": ranking,
        "table": table,
    }
)
OWN_CONTROL = (over_steps, over_axis, heat_maps, bars, causes, table)  # these draw a control beside what it belongs to


def panels(data: xr.Dataset, elsewhere: Collection[str] = ()) -> list[Panel]:
    """A panel for every variable of a file; controls stand inside the panel that they belong to.

    Args:
        data: the variables of one file.
        elsewhere: names of those that another part of the page draws already.
    """
    drawn, taken = [], {*_used_as_labels(data), *marks(data), *companions(data), *elsewhere}
    for name in map(str, data.data_vars):
        belongs = data[name].attrs.get("control_of")
        if name in taken or (belongs in data.data_vars and belongs not in elsewhere):
            continue
        shown = thinned(prepare(data, name))
        view = choose(shown)
        shown = marked(data, shown) if view is scatter else beside(data, shown) if view in (causes, ranking) else shown
        drawn.append(_draw(view, shown))
        if view is over_axis and _watched(shown):
            drawn.append(_draw(layers_over_steps, shown))
        if view not in OWN_CONTROL:
            drawn += [_draw(choose(control), control) for control in _alone(data, shown)]
    return drawn


def choose(shown: Shown) -> View:
    """The view for a variable."""
    if not numeric(shown.array):
        return table
    asked = shown.array.attrs.get("view")
    if asked is not None and str(asked) in VIEWS:
        return VIEWS[str(asked)]
    return _by_dims(shown)


def _by_dims(shown: Shown) -> View:
    """The first rule that fits; the table where none does."""
    dims, other = set(shown.rest), set(shown.rest) - NAMES
    if {"query", "key"} <= dims <= {"layer", "head", "kv_head", "batch", "query", "key"} and "kv_head" not in dims:
        return patterns
    if _is_text(shown, dims):
        return coloured_text
    if "step" in shown.array.dims and not other and len(dims) <= 1 and shown.array.sizes["step"] > 1:
        return over_steps
    if len(dims) == 1 and not dims & ORDERED:
        return bars
    if len(other) == 1 and other <= ORDERED and len(dims) <= 2:
        return over_axis
    return heat_maps if 2 <= len(dims) <= 4 and dims - {"batch"} and drawable(shown) else table


def _is_text(shown: Shown, dims: set[str]) -> bool:
    """Whether this is a quantity at each token of a text that is known."""
    known = shown.labels is not None and str(shown.labels.name) == "token" and shown.labels.dtype.kind not in "f"
    return known and dims in ({"batch", "pos"}, {"layer", "batch", "pos"})


def _draw(view: View, shown: Shown) -> Panel:
    """The panel; a view that cannot draw this variable gives way to the table, and says so."""
    try:
        panel = view(shown)
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        panel = table(shown)
        panel = replace(panel, caption=f"{panel.caption} (No figure: {error}.)")
    return replace(panel, headline=bool(shown.array.attrs.get("headline", 0)), tautology=shown.tautology)


def _watched(shown: Shown) -> bool:
    """Whether layers can be seen to change: one model was opened at several steps, or its author asks for it."""
    asked = not shown.seeded or bool(shown.array.attrs.get("over_training", 0))
    return asked and "layer" in shown.rest and shown.array.sizes.get("step", 1) > 2


def _alone(data: xr.Dataset, shown: Shown) -> Sequence[Shown]:
    """The controls of a variable as variables of their own."""
    titled = []
    for control in shown.controls:
        own = prepare(data, str(control.name))
        array = own.array.assign_attrs(title=f"{own.title}: {shown.title} where there is nothing to find")
        titled.append(replace(own, array=array))
    return titled


def _used_as_labels(data: xr.Dataset) -> list[str]:
    """``token`` and ``value``, where other variables have the positions that they name."""
    others = {str(d) for name in data.data_vars if name not in LABELS for d in data[name].dims}
    return [name for name in LABELS if name in data.data_vars and others & {"pos", "query", "key"}]
