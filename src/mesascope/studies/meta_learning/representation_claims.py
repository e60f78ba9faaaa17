"""Claims about representations over depth: clusters, norms, input spectra and lenses."""

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.shared.head_claims import prefix_statement

PAPER = "Wu & Varshney 2023"
OURS = "ours"
MIN_FALLING_FRACTION = 0.9  # ours: of adjacent depths
MAX_NORM_ERROR = 1e-4  # ours: relative error of a predicted norm in float32


def cluster_claims(label: str) -> tuple[Claim, ...]:
    """Return the claims on figure 1: representations cluster by a label.

    Args:
        label: of a token, such as ``generator``.
    """

    def select_f1(results: Results) -> xr.DataArray:
        return results["clusters"]["pairwise_f1"].sel(stat=label, drop=True)

    def select_null(results: Results) -> xr.DataArray:
        return results["clusters"]["pairwise_f1_null"].sel(stat=label, drop=True)

    # F1 is high for any large cluster, so the value with permuted labels is subtracted.
    def compute_excess_f1(results: Results) -> xr.DataArray:
        return select_f1(results) - select_null(results).mean("draw")

    excess_f1 = f"pairwise F1 of k-means with {label}, minus that with permuted labels,"
    return (
        Claim(
            name=f"clusters by {label}",
            statement=f"After the last layer, representations cluster by {label} more than by chance.",
            source=f"{PAPER}, figure 1",
            value=Quantity(
                description=f"pairwise F1 of k-means with {label}, after the last layer",
                read=lambda results: select_last_step(select_f1(results)).isel(layer=-1, drop=True),
            ),
            control=Quantity(
                description="the maximum with permuted labels",
                read=lambda results: select_last_step(select_null(results)).isel(layer=-1, drop=True).max("draw"),
            ),
            direction="above",
        ),
        Claim(
            name=f"clusters by {label}: layers",
            statement=f"Representations cluster by {label} more after the last layer than at the embedding.",
            source=f"{PAPER}, figure 1",
            value=Quantity(
                description=f"{excess_f1} after the last layer",
                read=lambda results: select_last_step(compute_excess_f1(results)).isel(layer=-1, drop=True),
            ),
            control=Quantity(
                description="the same difference at the embedding",
                read=lambda results: select_last_step(compute_excess_f1(results)).isel(layer=0, drop=True),
            ),
            direction="above",
        ),
        Claim(
            name=f"clusters by {label}: training",
            statement=f"Training makes representations cluster more by {label}.",
            source=f"{PAPER}, figure 1",
            value=Quantity(
                description=f"{excess_f1} maximum over layers",
                read=lambda results: (
                    select_last_step(compute_excess_f1(results)).isel(layer=slice(1, None)).max("layer")
                ),
            ),
            control=Quantity(
                description="the same difference in the untrained model",
                read=lambda results: (
                    select_untrained(compute_excess_f1(results)).isel(layer=slice(1, None)).max("layer")
                ),
            ),
            direction="above",
        ),
        Claim(
            name=f"clusters by {label}: upper layers",
            statement=f"Representations cluster more by {label} in the upper half of the layers than in the lower.",
            source=f"{PAPER}, figure 1, in our words",
            value=Quantity(
                description=f"{excess_f1} mean over the upper half of the depths",
                read=lambda results: _average_halves(select_last_step(compute_excess_f1(results)))[1],
            ),
            control=Quantity(
                description="the same difference over the lower half, including the embedding",
                read=lambda results: _average_halves(select_last_step(compute_excess_f1(results)))[0],
            ),
            direction="above",
        ),
    )


def norm_claims(prefix: str, name_prefix: str) -> tuple[Claim, ...]:
    """Return the claims that norms of tokens vary less with depth and with training.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to names and statements.
    """

    def select_variation(results: Results) -> xr.DataArray:
        return results[f"{prefix}norms"]["variation"]

    variation = "coefficient of variation of the norm over tokens, excluding attention sinks,"
    return (
        Claim(
            name=f"{name_prefix}norms vary less with depth",
            statement=prefix_statement(
                name_prefix, "The norms of tokens vary less after the last layer than at the embedding."
            ),
            source=f"{PAPER}: a special characteristic of the norms; {OURS} in this form",
            value=Quantity(
                description=f"{variation} after the last layer",
                read=lambda results: select_last_step(select_variation(results)).isel(layer=-1, drop=True),
            ),
            control=Quantity(
                description="the same coefficient at the embedding",
                read=lambda results: select_last_step(select_variation(results)).isel(layer=0, drop=True),
            ),
            direction="below",
        ),
        Claim(
            name=f"{name_prefix}norms vary less with training",
            statement=prefix_statement(
                name_prefix, "The norms of tokens vary less in the trained model than in the untrained one."
            ),
            source=OURS,
            value=Quantity(
                description=f"{variation} mean over depths",
                read=lambda results: select_last_step(select_variation(results)).mean("layer"),
            ),
            control=Quantity(
                description="the same coefficient in the untrained model",
                read=lambda results: select_untrained(select_variation(results)).mean("layer"),
            ),
            direction="below",
        ),
    )


def spectrum_claims() -> tuple[Claim, ...]:
    """Return the claims on the proposition: output norms, and inputs along eigenvectors of WᵀW."""

    def select_spectra(results: Results, variable: str) -> xr.DataArray:
        return select_last_step(results["input_spectra"][variable])

    def compute_norm_error(results: Results) -> xr.DataArray:
        return abs(select_spectra(results, "predicted_norm") / select_spectra(results, "observed_norm") - 1)

    def average_log_gain(results: Results, suffix: str = "") -> xr.DataArray:
        return xr.apply_ufunc(np.log10, select_spectra(results, f"gain{suffix}")).mean(("layer", "map"))

    return (
        Claim(
            name="output norms follow from the Gram matrix",
            statement="The output norm of a module follows from the energy of its inputs along eigenvectors of WᵀW.",
            source=f"{PAPER}: the idea of the proposition; an identity, so this checks the analysis",
            value=Quantity(
                description="largest relative error of the RMS norm that is predicted from eigenvalues and energies",
                read=lambda results: compute_norm_error(results).max(("layer", "map")),
            ),
            control=Quantity(
                description="the smallest relative error if the inputs are assumed isotropic",
                read=lambda results: abs(select_spectra(results, "gain") ** -0.5 - 1).min(("layer", "map")),
            ),
            direction="below",
            threshold=MAX_NORM_ERROR,
        ),
        Claim(
            name="inputs align with large eigenvalues",
            statement="The inputs of linear modules lie along eigenvectors of WᵀW with large eigenvalues.",
            source=OURS,
            value=Quantity(
                description="log10 of the squared output norm over that of rotated inputs, mean over modules",
                read=average_log_gain,
            ),
            control=Quantity(
                description="the same for the upper edge of the null band with rotated inputs",
                read=lambda results: average_log_gain(results, "_null_high"),
            ),
            direction="above",
        ),
    )


def lens_claim(prefix: str, name_prefix: str, lens: str) -> Claim:
    """Return the claim that the loss of a lens falls at every layer.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to the name and the statement.
        lens: ``logit`` or ``affine``.
    """

    def select_loss(results: Results) -> xr.DataArray:
        return results[f"{prefix}{lens}_lens"]["loss"]

    return Claim(
        name=f"{name_prefix}the {lens} lens improves with depth",
        statement=prefix_statement(name_prefix, f"The loss of the {lens} lens falls at every layer."),
        source=f"{OURS}: the outer loss at every layer",
        value=Quantity(
            description="fraction of adjacent depths at which the loss falls",
            read=lambda results: compute_falling_fraction(select_last_step(select_loss(results))),
        ),
        control=Quantity(
            description="the same fraction in the untrained model",
            read=lambda results: compute_falling_fraction(select_untrained(select_loss(results))),
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


def _average_halves(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the means over the lower and the upper half of the depths; a middle depth is in neither."""
    count = values.sizes["layer"]
    lower, upper = slice(0, count // 2), slice(count - count // 2, None)
    return values.isel(layer=lower).mean("layer"), values.isel(layer=upper).mean("layer")
