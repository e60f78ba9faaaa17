"""Table of the number of heads with each role in each layer, next to that of the controls."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable
from mesascope.report.text import format_count, format_number, join_words

UNTRAINED = "untrained"  # the control to which the models at step 0 belong too
MAX_WORDED_LAYERS = 12  # in tables with more, a cell has numbers only


def tabulate_role_counts(variable: PlotVariable) -> Panel:
    """Tabulate the number of heads with each role by layer, for the trained models and for each control.

    Args:
        variable: the counts, with the axes layer and role_name; the attribute ``num_heads`` is the number of heads in a
            layer.

    Returns:
        The panel. A cell reads ``trained 3 of 4, untrained 2.9 ± 0.6 of 4``; with many layers ``3 (2.9 ± 0.6)``, and
        the caption names the numbers.
    """
    num_heads = int(variable.array.attrs["num_heads"])
    counts = {"trained": variable.select_step()} | {
        control_name(control): _select_replicates(variable, control) for control in variable.controls
    }
    roles, layers = variable.list_labels("role_name"), variable.list_labels("layer")
    if len(layers) > MAX_WORDED_LAYERS:
        format_cell, legend = _format_numbers, _describe_numbers(counts, num_heads)
    else:
        format_cell, legend = partial(_format_words, num_heads=num_heads), ""
    rows = [
        [
            f"layer {label}",
            *(
                format_cell({name: one.isel(layer=layer, role_name=k) for name, one in counts.items()})
                for k in range(len(roles))
            ),
        ]
        for layer, label in enumerate(layers)
    ]
    data = {"head": ["", *roles], "rows": rows, "units": ""}
    caption = variable.build_caption(legend, variable.describe_step(), _describe_replicates(variable, counts))
    return Panel(kind="table", title="Heads with each role", caption=caption, data=data)


def _select_replicates(variable: PlotVariable, control: xr.DataArray) -> xr.DataArray:
    """Return the replicates of a control; the models at step 0 are further untrained models."""
    control = control.isel(step=-1) if "step" in control.dims else control
    steps = variable.array["step"].values.tolist() if "step" in variable.array.coords else []
    if control_name(control) != UNTRAINED or len(steps) < 2 or steps[0] != 0:
        return control
    first = variable.select_step(0).transpose(*control.dims)
    return xr.concat([control.drop_vars("seed", errors="ignore"), first.drop_vars(["seed", "step"])], dim="seed")


def _format_words(counts: Mapping[str, xr.DataArray], num_heads: int) -> str:
    return ", ".join(f"{name} {_format_count(name, values)} of {num_heads}" for name, values in counts.items())


def _format_numbers(counts: Mapping[str, xr.DataArray]) -> str:
    trained, *controls = (_format_count(name, values) for name, values in counts.items())
    return f"{trained} ({', '.join(controls)})" if controls else trained


def _format_count(name: str, values: xr.DataArray) -> str:
    numbers = values.values.astype(float)
    varies = name != "trained" and len(numbers) > 1 and bool(numbers.std())
    spread = f" ± {numbers.std(ddof=1):.1f}" if varies else ""
    return f"{format_number(float(np.round(numbers.mean(), 1)))}{spread}"


def _describe_numbers(counts: Mapping[str, xr.DataArray], num_heads: int) -> str:
    controls = join_words(name for name in counts if name != "trained")
    return f"Of {num_heads} heads in a layer" + (f"; in brackets: {controls}" if controls else "")


def _describe_replicates(variable: PlotVariable, counts: Mapping[str, xr.DataArray]) -> str:
    mean = f"Mean over {variable.seed_count}" if variable.num_seeds > 1 else ""
    draws = [f"{name}: {format_count(one.sizes['seed'], 'draw')}" for name, one in counts.items() if name != "trained"]
    controls = f"controls: mean ± standard deviation ({join_words(draws)})" if draws else ""
    return "; ".join(filter(None, [mean, controls]))
