"""Table of the number of heads with each role in each layer, next to that of the controls."""

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable
from mesascope.report.text import format_count, format_number, join_words

UNTRAINED = "untrained"  # the control to which the models at step 0 belong too


def tabulate_role_counts(variable: PlotVariable) -> Panel:
    """Tabulate the number of heads with each role by layer, for the trained models and for each control.

    Args:
        variable: the counts, with the axes layer and role_name; the attribute ``num_heads`` is the number of heads in a
            layer.

    Returns:
        The panel. A cell reads ``trained 3 of 4, untrained 2.9 ± 0.6 of 4``.
    """
    num_heads = int(variable.array.attrs["num_heads"])
    counts = {"trained": variable.select_step()} | {
        control_name(control): _select_replicates(variable, control) for control in variable.controls
    }
    roles, layers = variable.list_labels("role_name"), variable.list_labels("layer")
    rows = [
        [
            f"layer {label}",
            *(
                ", ".join(
                    _format_count(name, one.isel(layer=layer, role_name=k), num_heads) for name, one in counts.items()
                )
                for k in range(len(roles))
            ),
        ]
        for layer, label in enumerate(layers)
    ]
    data = {"head": ["", *roles], "rows": rows, "units": ""}
    caption = variable.build_caption(variable.describe_step(), _describe_replicates(variable, counts))
    return Panel(kind="table", title="Heads with each role", caption=caption, data=data)


def _select_replicates(variable: PlotVariable, control: xr.DataArray) -> xr.DataArray:
    """Return the replicates of a control; the models at step 0 are further untrained models."""
    control = control.isel(step=-1) if "step" in control.dims else control
    steps = variable.array["step"].values.tolist() if "step" in variable.array.coords else []
    if control_name(control) != UNTRAINED or len(steps) < 2 or steps[0] != 0:
        return control
    first = variable.select_step(0).transpose(*control.dims)
    return xr.concat([control.drop_vars("seed", errors="ignore"), first.drop_vars(["seed", "step"])], dim="seed")


def _format_count(name: str, values: xr.DataArray, num_heads: int) -> str:
    numbers = values.values.astype(float)
    varies = name != "trained" and len(numbers) > 1 and bool(numbers.std())
    spread = f" ± {numbers.std(ddof=1):.1f}" if varies else ""
    return f"{name} {format_number(float(np.round(numbers.mean(), 1)))}{spread} of {num_heads}"


def _describe_replicates(variable: PlotVariable, counts: dict[str, xr.DataArray]) -> str:
    mean = f"Mean over {variable.seed_count}" if variable.num_seeds > 1 else ""
    draws = [f"{name}: {format_count(one.sizes['seed'], 'draw')}" for name, one in counts.items() if name != "trained"]
    controls = f"controls: mean ± standard deviation ({join_words(draws)})" if draws else ""
    return "; ".join(filter(None, [mean, controls]))
