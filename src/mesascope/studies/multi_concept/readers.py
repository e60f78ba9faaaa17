"""Quantities that the claims about the toy model and those about decoders read."""

from collections.abc import Callable, Sequence

import xarray as xr

from mesascope.studies.base import Quantity, Results, select_last_step


def select_final(result: str, variable: str, **labels: str) -> Callable[[Results], xr.DataArray]:
    """Return a reader of a variable at the end of training.

    Args:
        result: name of the result.
        variable: name of the variable.
        **labels: coordinates to select.
    """

    def read_last(results: Results) -> xr.DataArray:
        array = results[result][variable].sel(labels, drop=True)
        return select_last_step(array) if "step" in array.dims else array

    return read_last


def lowest_accuracy(result: str, predictor: str, distributions: Sequence[str], label: str) -> Quantity:
    """Return the lowest accuracy of a predictor over distributions, at the end of training.

    Args:
        result: name of the result.
        predictor: name of the predictor.
        distributions: of the prompts.
        label: the predictor in words.
    """

    def read_lowest(results: Results) -> xr.DataArray:
        accuracy = select_final(result, "accuracy", predictor=predictor)(results)
        return accuracy.sel(distribution=list(distributions)).min("distribution")

    lowest = "" if len(distributions) == 1 else "lowest "
    return Quantity(description=f"{lowest}accuracy ({', '.join(distributions)}), {label}", read=read_lowest)
