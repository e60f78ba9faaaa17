"""Claims about representations over depth: norms, input spectra and lenses."""

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.citation import CITATION
from mesascope.studies.shared.head_claims import prefix_statement

PAPER = CITATION.short
OURS = "ours"
NORM_VARIATION = "coefficient of variation of the norm over tokens, excluding attention sinks,"
MIN_FALLING_FRACTION = 0.9  # ours: of adjacent depths
MAX_NORM_ERROR = 1e-4  # ours: relative error of a predicted norm in float32


def norm_claims(prefix: str, name_prefix: str) -> tuple[Claim, ...]:
    """Return the claims that norms of tokens vary less with depth and with training.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to names and statements.
    """
    return (
        _depth_variation_claim(prefix, name_prefix),
        _training_variation_claim(prefix, name_prefix),
    )


def _depth_variation_claim(prefix: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}norms vary less with depth",
        statement=prefix_statement(
            name_prefix, "The norms of tokens vary less after the last layer than at the embedding."
        ),
        source=f"{PAPER}: a special characteristic of the norms; {OURS} in this form",
        value=Quantity(
            description=f"{NORM_VARIATION} after the last layer",
            read=lambda results: select_last_step(_select_variation(results, prefix)).isel(layer=-1, drop=True),
        ),
        control=Quantity(
            description="the same coefficient at the embedding",
            read=lambda results: select_last_step(_select_variation(results, prefix)).isel(layer=0, drop=True),
        ),
        direction="below",
    )


def _training_variation_claim(prefix: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}norms vary less with training",
        statement=prefix_statement(
            name_prefix, "The norms of tokens vary less in the trained model than in the untrained one."
        ),
        source=OURS,
        value=Quantity(
            description=f"{NORM_VARIATION} mean over depths",
            read=lambda results: select_last_step(_select_variation(results, prefix)).mean("layer"),
        ),
        control=Quantity(
            description="the same coefficient in the untrained model",
            read=lambda results: select_untrained(_select_variation(results, prefix)).mean("layer"),
        ),
        direction="below",
    )


def spectrum_claims() -> tuple[Claim, ...]:
    """Return the claims on the proposition: output norms, and inputs along eigenvectors of WᵀW."""
    return (
        _output_norm_claim(),
        _input_alignment_claim(),
    )


def _output_norm_claim() -> Claim:
    return Claim(
        name="output norms follow from the Gram matrix",
        statement="The output norm of a module follows from the energy of its inputs along eigenvectors of WᵀW.",
        source=f"{PAPER}: the idea of the proposition; an identity, so this checks the analysis",
        value=Quantity(
            description="largest relative error of the RMS norm that is predicted from eigenvalues and energies",
            read=lambda results: _compute_norm_error(results).max(("layer", "map")),
        ),
        control=Quantity(
            description="the smallest relative error if the inputs are assumed isotropic",
            read=lambda results: abs(_select_spectra(results, "gain") ** -0.5 - 1).min(("layer", "map")),
        ),
        direction="below",
        threshold=MAX_NORM_ERROR,
    )


def _input_alignment_claim() -> Claim:
    return Claim(
        name="inputs align with large eigenvalues",
        statement="The inputs of linear modules lie along eigenvectors of WᵀW with large eigenvalues.",
        source=OURS,
        value=Quantity(
            description="log10 of the squared output norm over that of rotated inputs, mean over modules",
            read=_average_log_gain,
        ),
        control=Quantity(
            description="the same for the upper edge of the null band with rotated inputs",
            read=lambda results: _average_log_gain(results, "_null_high"),
        ),
        direction="above",
    )


def lens_claim(prefix: str, name_prefix: str, lens: str) -> Claim:
    """Return the claim that the loss of a lens falls at every layer.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to the name and the statement.
        lens: ``logit`` or ``affine``.
    """
    result = f"{prefix}{lens}_lens"
    return Claim(
        name=f"{name_prefix}the {lens} lens improves with depth",
        statement=prefix_statement(name_prefix, f"The loss of the {lens} lens falls at every layer."),
        source=f"{OURS}: the outer loss at every layer",
        value=Quantity(
            description="fraction of adjacent depths at which the loss falls",
            read=lambda results: compute_falling_fraction(select_last_step(results[result]["loss"])),
        ),
        control=Quantity(
            description="the same fraction in the untrained model",
            read=lambda results: compute_falling_fraction(select_untrained(results[result]["loss"])),
        ),
        direction="above",
        threshold=MIN_FALLING_FRACTION,
    )


def compute_falling_fraction(values: xr.DataArray) -> xr.DataArray:
    """Return the fraction of adjacent depths or layers at which a value falls.

    Args:
        values: with the axis ``layer``.
    """
    steps = np.diff(values.values, axis=values.get_axis_num("layer"))
    return xr.DataArray(steps < 0, dims=values.dims).mean("layer")


def _select_variation(results: Results, prefix: str) -> xr.DataArray:
    return results[f"{prefix}norms"]["variation"]


def _select_spectra(results: Results, variable: str) -> xr.DataArray:
    return select_last_step(results["input_spectra"][variable])


def _compute_norm_error(results: Results) -> xr.DataArray:
    return abs(_select_spectra(results, "predicted_norm") / _select_spectra(results, "observed_norm") - 1)


def _average_log_gain(results: Results, suffix: str = "") -> xr.DataArray:
    return xr.apply_ufunc(np.log10, _select_spectra(results, f"gain{suffix}")).mean(("layer", "map"))
