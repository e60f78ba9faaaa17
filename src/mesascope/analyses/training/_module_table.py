"""The linear modules of a training history, and the labelling of results about them."""

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array


class ModuleTable:
    """The linear modules of a history by layer and name in the layer, and the labelling of results about them.

    Args:
        modules: the facts about each module in the history, by its name.
    """

    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        order = (
            "embed",
            *(name for name in modules if name.startswith("layers.")),
            "readout",
        )  # in the order of the forward pass
        self.positions = {name: _layer_and_module(name) for name in order if name in modules}
        self.attending_modules = [name for name in self.positions if modules[name]["reads"] == name]
        self.heads = {name: int(modules[name]["heads"]) for name in modules}
        self._layers = list(dict.fromkeys(layer for layer, _ in self.positions.values()))
        self._maps = list(dict.fromkeys(slot for _, slot in self.positions.values()))

    def label_matches(
        self, matches: Mapping[tuple[str, str], Mapping[str, Tensor]], labels: list[str], num_attended: int
    ) -> dict[str, xr.DataArray]:
        """Label the matching fractions of all modules, and their means over the modules of a layer, with their nulls.

        Args:
            matches: fractions by module, for each end of the ranking (``top``, ``last``) and each kind of
                :data:`KIND_SUFFIXES`.
            labels: names of the labels.
            num_attended: number of instances at each end.

        Returns:
            ``top`` and ``top_by_layer``, each with its nulls: permuted labels, the untrained model, and the least
            attended instances, which have the first two nulls themselves.
        """
        by_map, by_layer = {}, {}
        for (end, kind), values in matches.items():
            attended = f"{num_attended} {'most' if end == 'top' else 'least'} attended instances"
            about = f"fraction of the {attended} with the query's label{KIND_SUFFIXES[kind]}"
            by_map[end, kind], by_layer[end, kind] = self._label_fractions(values, labels, about)
        display_attrs = {"headline": 1, "over_training": 1, "title": "attended with the same label"}
        by_layer["top", ""] = by_layer["top", ""].assign_attrs(display_attrs)
        return _with_nulls("top", by_map) | _with_nulls("top_by_layer", by_layer)

    def _label_fractions(
        self, values: Mapping[str, Tensor], labels: list[str], about: str
    ) -> tuple[xr.DataArray, xr.DataArray]:
        """Label fractions by module, and their means over the modules of a layer."""
        table, coords = self.build_table(values, len(labels)), {"layer": self._layers, "stat": labels}
        map_coords = {"layer": self._layers, "map": self._maps, "stat": labels}
        by_map = to_data_array(table, "layer", "map", "stat", units="1", description=about, coords=map_coords)
        about, mean = f"{about}, mean over modules", table.nanmean(1)
        return by_map, to_data_array(mean, "layer", "stat", units="1", description=about, coords=coords)

    def label_errors(self, name: str, errors: Mapping[str, Tensor], about: str) -> dict[str, xr.DataArray]:
        """Label the errors of all modules.

        Args:
            name: name of the variable.
            errors: error by module.
            about: description of the variable.

        Returns:
            the variable by its name.
        """
        coords = {"layer": self._layers, "map": self._maps}
        values = self.build_table({key: value[None] for key, value in errors.items()}, 1)[..., 0]
        array = to_data_array(values, "layer", "map", units="1", description=about, coords=coords)
        return {name: array.assign_attrs(scale="log")}

    def build_table(self, values: Mapping[str, Tensor], width: int) -> Float[Tensor, "layer map _"]:
        """Arrange values by layer and module; NaN where a layer has no such module.

        Args:
            values: values by module.
            width: number of values per module.

        Returns:
            the table.
        """
        table = torch.full((len(self._layers), len(self._maps), width), torch.nan, dtype=torch.float64)
        for name, value in values.items():
            layer, module_name = self.positions[name]
            table[self._layers.index(layer), self._maps.index(module_name)] = value
        return table


KIND_SUFFIXES = {"": "", "untrained": ", both computed by the untrained model", "permuted": ", labels permuted"}


def _with_nulls(name: str, arrays: Mapping[tuple[str, str], xr.DataArray]) -> dict[str, xr.DataArray]:
    def make_nulls(end: str) -> tuple[Null, Null]:
        permuted = Null(name="labels permuted", value=arrays[end, "permuted"])
        return permuted, Null(name="untrained", value=arrays[end, "untrained"])

    least = Null(name="least attended", value=arrays["last", ""])
    variables = with_null(name, arrays["top", ""], *make_nulls("top"), least)
    least_name = f"{name}_null_least_attended"
    return variables | with_null(least_name, variables[least_name], *make_nulls("last"))


def _layer_and_module(name: str) -> tuple[str, str]:
    """Return the layer of a module and its name in the layer, as shown on pages.

    >>> _layer_and_module("layers.0.attention.q_proj"), _layer_and_module("readout")
    (('0', 'attention.q_proj'), ('output head', 'readout'))
    """
    parts = name.split(".", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("embedding" if name == "embed" else "output head", name)
