"""Variables that are drawn with another one of their file, rather than alone."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import xarray as xr

from mesascope.report.shown import Shown

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
