"""Head explorer: a map of all heads, and all results for the selected one."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mesascope.formulas import render_plain
from mesascope.report.explorers.attention_excerpt import REPORT_LIMIT, ExcerptLimit, encode_attention_excerpt
from mesascope.report.explorers.combined import CombinedPanel, PanelQuantity, find_quantities, group_by_file
from mesascope.report.load_run import ResultFile
from mesascope.report.plotting.controls import control_colour, control_name, summarize_replicates
from mesascope.report.plotting.figure import DIVERGING_COLOURS, SEQUENTIAL_COLOURS, Panel
from mesascope.report.plotting.variable import PlotVariable, is_numeric, prepare_variable
from mesascope.report.text import round_significant

HeadGrid = tuple[list[str], list[str]]  # labels of layers and of heads
TOP_VARIABLES = ("top_token", "top_logit", "top_position")
MAX_RANKS = 12  # top tokens listed for a head


def build_head_explorer(results: Sequence[ResultFile], limit: ExcerptLimit = REPORT_LIMIT) -> CombinedPanel | None:
    """Build the head explorer. Heads of different files are matched by their layer and head labels.

    Args:
        results: the result files of an inspection.
        limit: how many attention weights fit.

    Returns:
        The panel, or None if no file has results for single heads.
    """
    patterns, tops = _find_variables(results, _is_pattern), _find_top_tokens(results)
    roles = _find_variables(results, _is_role)
    found_quantities = list(find_quantities(results, _is_per_head, controls=False))
    grid = _choose_grid([*(one.array for one in found_quantities), *(variable.array for _, variable in patterns)])
    found_quantities = [one for one in found_quantities if grid and _fits_grid(one.array, grid)]
    patterns = [one for one in patterns if grid and _fits_grid(one[1].array, grid)]
    if grid is None or not (found_quantities or patterns):
        return None
    used = [(file, variable.name) for file, variable in (*patterns[:1], *tops, *roles[:1])]
    used += [(patterns[0][0], "token")] if patterns else []  # its tokens label positions and need no panel
    files = dict.fromkeys([*(one.file for one in found_quantities), *(file for file, _ in used)])
    data = _encode_results(grid, found_quantities, patterns, tops, roles, limit)
    panel = Panel(kind="explorer", title="", caption=_build_caption(data), data=data)
    return CombinedPanel(panel=panel, used_variables=group_by_file(used), files=list(files))


def _encode_results(
    grid: HeadGrid,
    found_quantities: Sequence[PanelQuantity],
    patterns: Sequence[tuple[str, PlotVariable]],
    tops: Sequence[tuple[str, PlotVariable]],
    roles: Sequence[tuple[str, PlotVariable]],
    limit: ExcerptLimit,
) -> dict[str, Any]:
    return {
        "layers": grid[0],
        "heads": grid[1],
        "quantities": [_encode_quantity(one, grid) for one in found_quantities],
        "selected": next((k for k, one in enumerate(found_quantities) if one.variable.array.attrs.get("headline")), 0),
        "patterns": encode_attention_excerpt(align_to_grid(patterns[0][1].array, grid), patterns[0][1], limit)
        if patterns
        else None,
        "tops": _encode_top_tokens({variable.name: variable for _, variable in tops}, grid),
        "roles": _flatten_text(align_to_grid(_drop_seeds(roles[0][1]), grid)) if roles else [],
    }


def align_to_grid(array: xr.DataArray, grid: HeadGrid) -> xr.DataArray:
    """Reindex an array to all layers and heads of the grid.

    Args:
        array: an array with the axes layer and head.
        grid: labels of layers and of heads.

    Returns:
        The array with axes (layer, head, ...); missing heads are NaN.
    """
    labelled = array.assign_coords({d: read_grid_labels(array, d) for d in ("layer", "head")})
    return labelled.reindex(layer=grid[0], head=grid[1]).transpose("layer", "head", ...)


def _find_variables(results: Sequence[ResultFile], fits: Any) -> list[tuple[str, PlotVariable]]:
    """Return the variables that satisfy a predicate, with their file."""
    variables = []
    for result in results:
        data = result.data if result.data is not None else xr.Dataset()
        variables += [(result.file, prepare_variable(data, str(name))) for name in data.data_vars if fits(data[name])]
    return variables


def _find_top_tokens(results: Sequence[ResultFile]) -> list[tuple[str, PlotVariable]]:
    """Return the variables with the top tokens of each head, from the first file that has them."""
    variables = _find_variables(
        results, lambda one: one.name in TOP_VARIABLES and set(one.dims) == {"layer", "head", "rank"}
    )
    return [one for one in variables if one[0] == variables[0][0]]


def _is_pattern(array: xr.DataArray) -> bool:
    """Return whether a variable is the attention of single heads over an excerpt."""
    dims = set(map(str, array.dims)) - {"seed", "step"}
    return array.name == "pattern" and {"layer", "head", "query", "key"} <= dims <= {
        *"layer head batch query key".split()
    }


def _is_role(array: xr.DataArray) -> bool:
    return array.name == "role" and set(array.dims) == {"layer", "head"} and not is_numeric(array)


def _is_per_head(array: xr.DataArray) -> bool:
    return set(array.dims) == {"layer", "head"}


def _choose_grid(arrays: Sequence[xr.DataArray]) -> HeadGrid | None:
    """Return the most common layer and head labels; among equally common ones, those with most heads."""
    if not arrays:
        return None
    counts = Counter((tuple(read_grid_labels(one, "layer")), tuple(read_grid_labels(one, "head"))) for one in arrays)
    layers, heads = max(counts, key=lambda one: (counts[one], len(one[0]) * len(one[1])))
    return list(layers), list(heads)


def read_grid_labels(data: xr.DataArray | xr.Dataset, dim: str) -> list[str]:
    """Return the labels of layers or heads by which files are matched.

    Args:
        data: data with this axis.
        dim: the name of the axis.
    """
    return [str(v) for v in data[dim].values.tolist()]


def _fits_grid(array: xr.DataArray, grid: HeadGrid) -> bool:
    return set(read_grid_labels(array, "layer")) <= set(grid[0]) and set(read_grid_labels(array, "head")) <= set(
        grid[1]
    )


def _drop_seeds(variable: PlotVariable) -> xr.DataArray:
    return variable.array.isel(seed=0)


def _flatten_text(array: xr.DataArray) -> list[str]:
    """Return values as text; missing values are empty."""
    return ["" if isinstance(v, float) else str(v) for v in array.values.ravel().tolist()]


def _encode_quantity(quantity: PanelQuantity, grid: HeadGrid) -> dict[str, Any]:
    """Return the values of all heads, their colour scale, and the controls at the same heads."""
    values = align_to_grid(quantity.array, grid).values
    log = quantity.variable.is_log and not (values < 0).any()
    visible_values = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = (float(visible_values.min()), float(visible_values.max())) if visible_values.size else (0.0, 1.0)
    center = None if log else quantity.variable.center
    if center is not None:
        reach = max(high - center, center - low) or 1.0
        low, high = center - reach, center + reach
    high = high if high > low else low + (abs(low) or 1.0)
    return {
        "group": quantity.group,
        "name": quantity.name,
        "description": render_plain(quantity.variable.build_caption(quantity.variable.describe_step())),
        "tautology": render_plain(quantity.variable.tautology),
        "units": "" if quantity.variable.units == "1" else quantity.variable.units,
        "log": log,
        "low": low,
        "high": high,
        "colours": list(SEQUENTIAL_COLOURS if center is None else DIVERGING_COLOURS),
        "values": round_significant(values.ravel()),
        "controls": [
            _summarize_control(c, quantity, grid)
            for c in quantity.variable.controls
            if set(c.dims) >= {"layer", "head"}
        ],
    }


def _summarize_control(control: xr.DataArray, quantity: PanelQuantity, grid: HeadGrid) -> dict[str, Any]:
    """Return mean, minimum and maximum over the replicates of a control at every head."""
    control = control.isel(step=-1) if "step" in control.dims else control
    on_grid = align_to_grid(quantity.select_in_control(control), grid)
    over = [d for d in on_grid.dims if d not in ("layer", "head", "seed")]
    mean, low, high = summarize_replicates(on_grid.mean(over).transpose("seed", "layer", "head"))
    numbers = {"mean": mean, "low": low, "high": high}
    encoded = {k: round_significant(v.ravel(), 3) for k, v in numbers.items()}
    return {"name": control_name(control), "colour": control_colour(control), "draws": on_grid.sizes["seed"], **encoded}


def _encode_top_tokens(variables: dict[str, PlotVariable], grid: HeadGrid) -> dict[str, Any] | None:
    """Return the tokens whose logits each head increases most, in descending order."""
    if "top_token" not in variables:
        return None
    text = (
        align_to_grid(_drop_seeds(variables["top_token"]), grid)
        .transpose("layer", "head", "rank")
        .isel(rank=slice(MAX_RANKS))
    )
    words = [_flatten_text(head) for row in text for head in row]
    encoded: dict[str, Any] = {"token": words}
    for name in ("top_logit", "top_position"):
        if name in variables:
            numbers = (
                align_to_grid(_drop_seeds(variables[name]), grid)
                .transpose("layer", "head", "rank")
                .isel(rank=slice(MAX_RANKS))
            )
            encoded[name.removeprefix("top_")] = round_significant(numbers.values.reshape(-1, numbers.sizes["rank"]), 5)
    units = variables["top_logit"].units if "top_logit" in variables else ""
    return encoded | {"units": "" if units == "1" else units}


def _build_caption(data: dict[str, Any]) -> str:
    return (
        "Rows are layers, columns are heads. Click or tap a head to select it, or move with the arrow keys and press "
        "Enter. Controls are listed with their mean and the range of their draws at that head."
        if data["quantities"]
        else "Rows are layers, columns are heads. Click or tap a head, or press Enter on it, to see its attention."
    )
