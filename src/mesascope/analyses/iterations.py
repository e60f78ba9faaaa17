"""Results for models that repeat their layers: every call of a layer is a layer, or a layer in an iteration."""

import numpy as np
import xarray as xr

NUM_BLOCKS = "num_blocks"  # attribute of results whose axis ``layer`` counts calls


def split_iterations(results: xr.Dataset) -> xr.Dataset:
    """Split the axis ``layer`` of results, over calls of layers, into ``layer`` and ``iteration``.

    Args:
        results: the results of an analysis of a model that repeats its layers. Their layer ``iteration * num_blocks +
            layer`` is one call of a layer, and their attribute ``num_blocks`` is the number of different layers.

    Returns:
        The results, with ``layer`` and ``iteration`` in place of ``layer``. Results by depth stay as they are: their
        entry ``after 3`` follows call 3.

    Raises:
        ValueError: the results are those of a model that calls each layer once.
    """
    if NUM_BLOCKS not in results.attrs:
        raise ValueError(
            "results to be split must be of a model that repeats its layers, but have no attribute num_blocks; use "
            "them as they are"
        )
    if "layer" not in results.dims or not np.issubdtype(results["layer"].dtype, np.integer):
        return results
    iterations, layers = np.divmod(results["layer"].values, results.attrs[NUM_BLOCKS])
    by_call = results.drop_vars("layer").rename_dims(layer="_call")
    by_call = by_call.assign_coords(layer=("_call", layers), iteration=("_call", iterations))
    split = by_call.set_index(_call=["layer", "iteration"]).unstack("_call")
    return split.assign({name: split[name].transpose(*_place_axes(array)) for name, array in by_call.data_vars.items()})


def _place_axes(by_call: xr.DataArray) -> list[str]:
    axes = [("layer", "iteration") if dim == "_call" else (str(dim),) for dim in by_call.dims]
    return [axis for group in axes for axis in group]
