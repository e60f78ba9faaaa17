"""Controls of an inspection: the same analyses with random weights, and with shuffled text."""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr

from mesascope.analyses.nulls import control_attrs
from mesascope.inspection._passes import InspectionInputs

PER_TOKEN_AXES = frozenset(
    {"batch", "pos", "query", "key", "rank"}
)  # axes of single tokens, which differ between draws


def shuffled_text(inputs: InspectionInputs, draw: int) -> InspectionInputs:
    """Shuffle the tokens of each sequence of one draw; the first token stays first.

    Args:
        inputs: The inspected text.
        draw: The number of the draw.

    Returns:
        The shuffled text.
    """
    sequence = single_sequence(inputs, draw)
    generator = torch.Generator().manual_seed(inputs.seed + draw)
    order = torch.stack(
        [1 + torch.randperm(sequence.token_ids.shape[1] - 1, generator=generator) for _ in sequence.token_ids]
    )
    first = torch.zeros(len(order), 1, dtype=torch.long)
    return InspectionInputs(
        token_ids=sequence.token_ids.gather(1, torch.cat([first, order], 1)),
        allowed_tokens=sequence.allowed_tokens,
        seed=draw + 1,
    )


def single_sequence(inputs: InspectionInputs, draw: int) -> InspectionInputs:
    """Select the sequence of one draw; it keeps its length, because results can depend on it.

    Args:
        inputs: The inspected text.
        draw: The number of the draw.

    Returns:
        One sequence.
    """
    row = draw % len(inputs.token_ids)
    return InspectionInputs(
        token_ids=inputs.token_ids[row : row + 1], allowed_tokens=inputs.allowed_tokens, seed=draw + 1
    )


def with_controls(main: xr.Dataset, control: str, draws: Sequence[xr.Dataset]) -> xr.Dataset:
    """Add a control to a dataset: every variable that is not per token, in every draw of the control.

    Args:
        main: The results of the model.
        control: The name of the control.
        draws: The results of each draw of the control.

    Returns:
        The dataset, with variables ``NAME_null_CONTROL`` along the axis ``draw``.
    """
    control_variables: Mapping[str, xr.DataArray] = {
        f"{name}_null_{control.replace(' ', '_')}": _stack_draws(str(name), control, draws)
        for name, array in main.data_vars.items()
        if _is_comparable(array) and all(name in draw for draw in draws)
    }
    return main.assign(control_variables)


def _is_comparable(array: xr.DataArray) -> bool:
    """Return whether a variable can be compared between draws."""
    return array.dtype.kind in "fiu" and not PER_TOKEN_AXES & set(array.dims) and "control_of" not in array.attrs


def _stack_draws(name: str, control: str, draws: Sequence[xr.Dataset]) -> xr.DataArray:
    attrs = {key: value for key, value in draws[0][name].attrs.items() if key != "headline"}
    joined = xr.concat([draw[name].drop_attrs() for draw in draws], dim="draw").assign_coords(draw=range(len(draws)))
    return joined.assign_attrs({**attrs, **control_attrs(name, control)})
