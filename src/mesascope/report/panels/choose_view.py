"""Choice of the view for a variable, by its dims or by its attribute ``view``."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import xarray as xr

from mesascope.formulas import escape_dollars
from mesascope.report.explorers.attention import build_attention_browser
from mesascope.report.explorers.colored_text import build_coloured_text
from mesascope.report.panels.algorithm_ranking import plot_algorithm_ranking
from mesascope.report.panels.circuit_graph import draw_circuit_graph
from mesascope.report.panels.head_ablation import plot_head_ablation
from mesascope.report.panels.role_counts import tabulate_role_counts
from mesascope.report.plotting.aux_variables import attach_aux_variables, list_aux_variables
from mesascope.report.plotting.bars import plot_bars
from mesascope.report.plotting.curves import plot_over_axis, plot_over_steps
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.heat_maps import fits_heat_map, plot_heat_maps, plot_layers_over_steps, thin_spectrum
from mesascope.report.plotting.scatter import attach_colour_labels, list_colour_labels, plot_scatter
from mesascope.report.plotting.table import build_table
from mesascope.report.plotting.variable import (
    CATEGORICAL_DIMS,
    LABEL_VARIABLES,
    PlotVariable,
    is_numeric,
    is_uncertainty,
    prepare_variable,
)

NO_VIEW = "none"  # of variables that are stored and not drawn
PanelView = Callable[[PlotVariable], Panel]
ORDERED_DIMS = frozenset({"layer", "pos", "query", "key", "d_model", "d_head", "d_in", "d_out", "eigen"})
VIEWS: Mapping[str, PanelView] = MappingProxyType(
    {
        "training": plot_over_steps,
        "curves": plot_over_axis,
        "heatmap": plot_heat_maps,
        "attention": build_attention_browser,
        "tokens": build_coloured_text,
        "scatter": plot_scatter,
        "bars": plot_bars,
        "graph": draw_circuit_graph,
        "head_ablation": plot_head_ablation,
        "ranking": plot_algorithm_ranking,
        "role_counts": tabulate_role_counts,
        "table": build_table,
    }
)
# these views draw controls in the variable's panel
VIEWS_WITH_CONTROLS = (
    plot_over_steps,
    plot_over_axis,
    plot_heat_maps,
    plot_bars,
    plot_head_ablation,
    plot_algorithm_ranking,
    tabulate_role_counts,
    build_table,
)


def build_panels(data: xr.Dataset, excluded: Collection[str] = ()) -> list[Panel]:
    """Build a panel for every variable of a result file. Controls are part of the panel of their variable.

    Args:
        data: the variables of one file.
        excluded: names of variables that another part of the page shows; they are left out.

    Returns:
        The panels in the order of the variables.
    """
    skipped = {*_list_label_variables(data), *list_colour_labels(data), *list_aux_variables(data), *excluded}
    panel_list: list[Panel] = []
    for name in map(str, data.data_vars):
        owner = data[name].attrs.get("control_of")
        if data[name].attrs.get("view") == NO_VIEW:
            continue
        if is_uncertainty(data, name) or name in skipped or (owner in data.data_vars and owner not in excluded):
            continue
        panel_list += _build_variable_panels(data, name)
    return panel_list


def _build_variable_panels(data: xr.Dataset, name: str) -> list[Panel]:
    variable = thin_spectrum(prepare_variable(data, name))
    view = choose_view(variable)
    variable = _attach_variables(data, variable, view)
    panel_list = [_draw_panel(view, variable)]
    if view is plot_over_axis and _has_layer_history(variable):
        panel = _draw_panel(plot_layers_over_steps, variable)
        panel_list.append(replace(panel, name=f"{name}-over-training"))
    if view not in VIEWS_WITH_CONTROLS:
        panel_list += [_draw_panel(choose_view(control), control) for control in _separate_controls(data, variable)]
    return panel_list


def _attach_variables(data: xr.Dataset, variable: PlotVariable, view: PanelView) -> PlotVariable:
    """Attach the other variables of the file that a view draws."""
    if view is plot_scatter:
        return attach_colour_labels(data, variable)
    needs_aux = view in (draw_circuit_graph, plot_head_ablation, plot_algorithm_ranking)
    return attach_aux_variables(data, variable) if needs_aux else variable


def choose_view(variable: PlotVariable) -> PanelView:
    """Choose the view for a variable: its attribute ``view`` if given, else by its dims.

    Args:
        variable: the variable.

    Returns:
        The function that builds the panel.
    """
    if not is_numeric(variable.array):
        return build_table
    requested = variable.array.attrs.get("view")
    if requested is not None and str(requested) in VIEWS:
        return VIEWS[str(requested)]
    return _choose_by_dims(variable)


def _choose_by_dims(variable: PlotVariable) -> PanelView:
    dims, other = set(variable.plot_dims), set(variable.plot_dims) - CATEGORICAL_DIMS
    if {"query", "key"} <= dims <= {"layer", "head", "kv_head", "batch", "query", "key"} and "kv_head" not in dims:
        return build_attention_browser
    if _is_token_quantity(variable, dims):
        return build_coloured_text
    if "step" in variable.array.dims and not other and len(dims) <= 1 and variable.array.sizes["step"] > 1:
        return plot_over_steps
    if len(dims) == 1 and not dims & ORDERED_DIMS:
        return plot_bars
    if len(other) == 1 and other <= ORDERED_DIMS and len(dims) <= 2:
        return plot_over_axis
    return plot_heat_maps if 2 <= len(dims) <= 4 and dims - {"batch"} and fits_heat_map(variable) else build_table


def _is_token_quantity(variable: PlotVariable, dims: set[str]) -> bool:
    has_known_axes = (
        variable.labels is not None and str(variable.labels.name) == "token" and variable.labels.dtype.kind not in "f"
    )
    return has_known_axes and dims in ({"batch", "pos"}, {"layer", "batch", "pos"})


def _draw_panel(view: PanelView, variable: PlotVariable) -> Panel:
    """Build the panel. A view that cannot draw the variable is replaced by a table that gives the reason."""
    try:
        panel = view(variable)
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        panel = build_table(variable)
        panel = replace(panel, caption=f"{panel.caption} (No figure: {escape_dollars(str(error))}.)")
    headline = bool(variable.array.attrs.get("headline", 0))
    return replace(panel, headline=headline, tautology=variable.tautology, name=variable.name)


def _has_layer_history(variable: PlotVariable) -> bool:
    # by default only for a single model over its checkpoints; a study's author sets the attribute
    requested = not variable.has_seeds or bool(variable.array.attrs.get("over_training", 0))
    return requested and "layer" in variable.plot_dims and variable.array.sizes.get("step", 1) > 2


def _separate_controls(data: xr.Dataset, variable: PlotVariable) -> Sequence[PlotVariable]:
    """Return the controls of a variable as variables with panels of their own."""
    titled = []
    for control in variable.controls:
        control_variable = prepare_variable(data, str(control.name))
        title = f"{control_variable.title}: control of {variable.title}"
        array = control_variable.array.assign_attrs(title=escape_dollars(title))
        titled.append(replace(control_variable, array=array))
    return titled


def _list_label_variables(data: xr.Dataset) -> list[str]:
    """Return ``token`` and ``value`` if they label the positions of other variables."""
    others = {str(d) for name in data.data_vars if name not in LABEL_VARIABLES for d in data[name].dims}
    return [name for name in LABEL_VARIABLES if name in data.data_vars and others & {"pos", "query", "key"}]
