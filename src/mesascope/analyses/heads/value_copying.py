"""Copying of attended values: regression of each head's contribution to the output on what it attends to."""

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.role_counts import with_role_counts
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, null_band, with_null
from mesascope.axes import to_data_array
from mesascope.statistics import derangement, slope_and_r_squared

MIN_SLOPE, MIN_R_SQUARED = 0.1, 0.5  # below either, the attended values hardly show in the output

Grids = Float[Tensor, "draw layer head"]


@analysis(
    title="Copying of attended values",
    description=f"""
        Slope and R² of the regression of each head's direct contribution to the output (through the final norm, its
        scale held fixed) on the attended value, which is the attention-weighted mean of the input terms. Null: the
        terms are those of another sequence at the same positions, weighted by the same attention. A head that writes
        nothing of the sequence, or a function of the position, has the same slope and R² as its null. The band is 4
        standard deviations over exchanges of sequences. Role: 1 for a copying head (slope of {MIN_SLOPE} or more, R² of
        {MIN_R_SQUARED} or more and above the band), -1 for a head that subtracts the attended value (slope of
        -{MIN_SLOPE} or less, same R²), 0 otherwise. Most heads of an untrained model copy or subtract, because a head
        without MLP and norm is linear in the values it attends to; compare with the untrained models.
    """,
    sites=["pattern", "z", "resid_post", "output"],
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def value_copying(acts: Capture, first: int = 2, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute how much of the value that a head attends to it adds to the output, with other sequences as null.

    Args:
        acts: a capture of two sequences or more, of vectors whose inputs and outputs have the same dimension.
        first: queries before this position are left out.
        draws: number of exchanges of sequences for the band.
        seed: seed of the exchanges.

    Returns:
        by layer and head, ``gain`` (the slope) and ``explained`` (R²) with their nulls and bands, and ``role``;
        ``role_count`` by layer and role.

    Raises:
        ValueError: the inputs are tokens, their shape differs from that of the outputs, there is one sequence, or there
            are fewer than two draws.

    >>> from mesascope.analyses import run_analyses
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> results = run_analyses(build_planted_model("similar, subtracted"), torch.randn(64, 20, 1), [value_copying])
    >>> results["value_copying"]["role"].values.tolist()
    [[-1, 0, 0, 0]]
    """
    _validate_inputs(acts, draws)
    slope_values, r_squared_values = _regress_contributions(acts, _exchange_sequences(acts.inputs, draws, seed), first)
    has_role = (
        (r_squared_values[0] >= MIN_R_SQUARED)
        & (r_squared_values[0] > null_band(r_squared_values[1:])[1])
        & (slope_values[0].abs() >= MIN_SLOPE)
    )
    about = "of the head's direct contribution to the output on the value it attends to"

    def label_scores(values: Tensor, about: str, **attrs: int) -> xr.DataArray:
        return to_data_array(values, "layer", "head", units="1", description=about).assign_attrs(**attrs)

    def add_null(name: str, symbol: str, values: Grids, **attrs: int) -> dict[str, xr.DataArray]:
        centered = {key: value for key, value in attrs.items() if key == "center"}
        parts = dict(zip(("lower", "upper"), null_band(values[1:]), strict=True)) | {"mean": values[1:].mean(0)}
        null = {
            part: label_scores(value, f"{part} {symbol}, with the terms of another sequence", **centered)
            for part, value in parts.items()
        }
        control = Null(name="other sequences", value=null["mean"], low=null["lower"], high=null["upper"])
        return with_null(name, label_scores(values[0], f"{symbol} {about}", **attrs), control)

    role = label_scores(slope_values[0].sign().int() * has_role, "1: copies; -1: subtracts; 0: neither", center=0)
    gain = add_null("gain", "slope", slope_values, center=0, headline=1)
    found = xr.Dataset({**gain, "role": role, **add_null("explained", "R²", r_squared_values)})
    return with_role_counts("value_copying", found)


def _validate_inputs(acts: Capture, draws: int) -> None:
    inputs, prediction = acts.inputs, acts["output"]
    if not inputs.is_floating_point() or inputs.shape != prediction.shape:
        raise ValueError(
            "value_copying needs vectors whose inputs and outputs have the same shape; capture such a task"
        )
    if len(inputs) < 2 or draws < 2:
        raise ValueError(
            f"value_copying needs two sequences and two draws or more, but got {len(inputs)} and {draws}; capture more"
        )


def _exchange_sequences(
    values: Float[Tensor, "batch pos d_in"], draws: int, seed: int
) -> Float[Tensor, "draw batch pos d_in"]:
    # the values themselves, then those of another sequence at the same positions
    generator = torch.Generator().manual_seed(seed)
    others = [values[derangement(len(values), generator).to(values.device)] for _ in range(draws)]
    return torch.stack([values, *others])


def _regress_contributions(
    acts: Capture, values: Float[Tensor, "draw batch pos d_in"], first: int
) -> tuple[Grids, Grids]:
    pattern, final = acts["pattern"], acts["resid_post"][-1]
    found = torch.zeros(2, len(values), pattern.shape[0], pattern.shape[2])
    for layer, weights in enumerate(pattern):
        for head in range(pattern.shape[2]):
            head_out = acts["z"][layer][:, :, head] @ acts.readout.output_projection[layer, head]
            direct = acts.readout.attribute_logits(head_out, final)[:, first:].flatten(0, 1)
            attended = einsum(
                weights[:, head, first:].double(),
                values.double(),
                "batch query key, draw batch key d -> draw batch query d",
            )
            for draw, each in enumerate(attended.flatten(1, 2)):
                found[:, draw, layer, head] = torch.tensor(slope_and_r_squared(each, direct))
    return found[0], found[1]
