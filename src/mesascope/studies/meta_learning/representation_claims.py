"""Claims about representations over depth: norms, input spectra and lenses."""

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.citation import CITATION
from mesascope.studies.shared.head_claims import prefix_statement

PAPER = CITATION.short
OURS = "ours"
NORM_VARIATION = "coefficient of variation of the norm over tokens, excluding attention sinks,"
VARIATION_MARGIN = 0.05  # ours, fixed after a run of 3 seeds: in the coefficient of variation
LOG_GAIN_MARGIN = 0.04  # ours, fixed after a run of 3 seeds: in log10, a squared norm that is 10 % larger
MIN_FALLING_FRACTION = 0.9  # ours: of adjacent depths
MIN_FALL = 0.01  # ours, fixed after a run of 3 seeds: in nat; a smaller difference between depths is no fall
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
        margin=VARIATION_MARGIN,
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
        margin=VARIATION_MARGIN,
    )


def output_norm_check() -> Claim:
    """Return the check on the proposition: output norms follow from inputs along eigenvectors of WᵀW."""
    return Claim(
        name="output norms follow from the Gram matrix",
        statement=r"The output norm of a module follows from the energy of its inputs along eigenvectors of "
        r"$W^\top W$.",
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
        kind="check",
    )


def input_alignment_claim() -> Claim:
    """Return the claim that training aligns inputs of linear modules with large eigenvalues."""
    return Claim(
        name="inputs align with large eigenvalues",
        statement=r"The inputs of linear modules lie along eigenvectors of $W^\top W$ with large eigenvalues.",
        source=OURS,
        value=Quantity(
            description="log10 of the squared output norm over that of rotated inputs, mean over modules",
            read=lambda results: select_last_step(_average_log_gain(results)),
        ),
        control=Quantity(
            description="the higher of the same for the upper edge of the null band with rotated inputs, and in the "
            "untrained model",
            read=_higher_control_gain,
        ),
        direction="above",
        margin=LOG_GAIN_MARGIN,
    )


def lens_claim(prefix: str, name_prefix: str) -> Claim:
    """Return the claim that the loss of the logit lens falls at every layer.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to the name and the statement.
    """
    return Claim(
        name=f"{name_prefix}the logit lens improves with depth",
        statement=prefix_statement(name_prefix, "The loss of the logit lens falls at every layer."),
        source=f"{OURS}: the outer loss at every layer",
        value=Quantity(
            description=f"fraction of adjacent depths at which the loss falls by more than {MIN_FALL:g} nat",
            read=lambda results: _compute_falling_fraction(select_last_step(_select_lens_loss(results, prefix))),
        ),
        control=Quantity(
            description="the same fraction in the untrained model",
            read=lambda results: _compute_falling_fraction(select_untrained(_select_lens_loss(results, prefix))),
        ),
        direction="above",
        threshold=MIN_FALLING_FRACTION,
    )


def _compute_falling_fraction(loss: xr.DataArray) -> xr.DataArray:
    steps = np.diff(loss.values, axis=loss.get_axis_num("layer"))
    return xr.DataArray(steps < -MIN_FALL, dims=loss.dims).mean("layer")


def _select_lens_loss(results: Results, prefix: str) -> xr.DataArray:
    return results[f"{prefix}logit_lens"]["loss"]


def _select_variation(results: Results, prefix: str) -> xr.DataArray:
    return results[f"{prefix}norms"]["variation"]


def _select_spectra(results: Results, variable: str) -> xr.DataArray:
    return select_last_step(results["input_spectra"][variable])


def _compute_norm_error(results: Results) -> xr.DataArray:
    return abs(_select_spectra(results, "predicted_norm") / _select_spectra(results, "observed_norm") - 1)


def _higher_control_gain(results: Results) -> xr.DataArray:
    rotated = select_last_step(_average_log_gain(results, "_null_high"))
    untrained = select_untrained(_average_log_gain(results))
    return xr.concat([rotated, untrained], "control").max("control")


def _average_log_gain(results: Results, suffix: str = "") -> xr.DataArray:
    return xr.apply_ufunc(np.log10, results["input_spectra"][f"gain{suffix}"]).mean(("layer", "map"))
