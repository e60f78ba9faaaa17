"""Standard errors and interval ends of a variable, stored beside it.

A variable ``x`` has its standard error in ``x_se`` and the ends of its interval in ``x_low`` and ``x_high``. They carry
the attribute ``uncertainty_of`` (the variable), by which reports do not take them for results of their own.
"""

import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array

SEQUENCES_DRAWN = "over draws of the held-out sequences"
Values = Float[Tensor, "*axes"]


def with_standard_error(name: str, value: xr.DataArray, standard_error: Values) -> dict[str, xr.DataArray]:
    """Return a variable and its standard error over draws of the held-out sequences as variables of a Dataset.

    Args:
        name: of the variable.
        value: the variable.
        standard_error: the standard error, of the same shape and in the same units.

    Returns:
        ``name`` and ``name_se``.

    >>> import torch
    >>> variables = with_standard_error("loss", xr.DataArray([0.5], dims="layer"), torch.tensor([0.1]))
    >>> list(variables), variables["loss_se"].attrs["uncertainty_of"]
    (['loss', 'loss_se'], 'loss')
    """
    return {name: value, f"{name}_se": _label_like(value, name, standard_error, f"standard error {SEQUENCES_DRAWN}")}


def with_interval(name: str, value: xr.DataArray, low: Values, high: Values) -> dict[str, xr.DataArray]:
    """Return a variable and the ends of its 95 % bootstrap interval over sequences as variables of a Dataset.

    Args:
        name: of the variable.
        value: the variable.
        low, high: ends of the interval, of the same shape and in the same units.

    Returns:
        ``name``, ``name_low`` and ``name_high``.

    >>> import torch
    >>> ends = torch.tensor([0.1]), torch.tensor([0.9])
    >>> list(with_interval("effect", xr.DataArray([0.5], dims="layer"), *ends))
    ['effect', 'effect_low', 'effect_high']
    """
    about = "end of the 95 % bootstrap interval over sequences"
    return {
        name: value,
        f"{name}_low": _label_like(value, name, low, f"lower {about}"),
        f"{name}_high": _label_like(value, name, high, f"upper {about}"),
    }


def _label_like(value: xr.DataArray, name: str, numbers: Values, about: str) -> xr.DataArray:
    array = to_data_array(
        numbers,
        *map(str, value.dims),
        units=str(value.attrs.get("units", "1")),
        description=f"{about}: {value.attrs.get('description', name)}",
        coords=dict(value.coords),
    )
    return array.assign_attrs(uncertainty_of=name)
