"""Auxiliary variables of the views that need more than one variable of a file."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import xarray as xr

from mesascope.report.plotting.variable import PlotVariable

AUX_VARIABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "head_ablation": ("role", "label", "low", "high", "has_effect"),
        "graph": ("sender_name", "receiver_name", "low", "high", "inclusion", "effect"),
        "ranking": (
            "named",
            "low",
            "high",
            "similarity_null",
            "distinguishable",
            "tied",
            "display_name",
            "iterations",
            "fitted",
            "hyperparameters",
            "at_edge",
            "edges",
        ),
    }
)
REQUIRED_AUX_VARIABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "graph": ("sender_name", "receiver_name"),
        "head_ablation": ("role", "has_effect"),
        "ranking": ("named", "similarity_null", "distinguishable", "display_name", "iterations", "hyperparameters"),
    }
)


def list_aux_variables(data: xr.Dataset) -> list[str]:
    """List the auxiliary variables of the views that the variables of a file request.

    Args:
        data: the variables of the file.

    Returns:
        Their names; those of a view are left out if one that it requires is missing.
    """
    requested = {str(data[name].attrs.get("view")) for name in data.data_vars}
    complete = [
        view
        for view in AUX_VARIABLES
        if view in requested and {*REQUIRED_AUX_VARIABLES[view]} <= {*map(str, data.data_vars)}
    ]
    return [name for view in complete for name in AUX_VARIABLES[view] if name in data.data_vars]


def attach_aux_variables(data: xr.Dataset, variable: PlotVariable) -> PlotVariable:
    """Attach auxiliary variables to a variable as coordinates, all with the axis ``seed``.

    Args:
        data: the variables of the same file.
        variable: the variable to plot.

    Returns:
        The variable with coordinates.
    """
    array = variable.array
    available = [data[name] for name in list_aux_variables(data) if {*data[name].dims} <= {*array.dims}]
    coords = {
        one.name: (one if "seed" in one.dims else one.expand_dims(seed=array.sizes["seed"])).variable
        for one in available
    }
    return replace(variable, array=array.assign_coords(coords))
