"""Claims about clusters: representations of tokens with the same label, over depth and training."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.representation_claims import PAPER

EXCESS_F1 = "pairwise F1 of k-means with {}, minus that with permuted labels,"


def cluster_claims(label: str) -> tuple[Claim, ...]:
    """Return the claims on figure 1: representations cluster by a label.

    Args:
        label: of a token, such as ``generator``.
    """
    return (
        _cluster_claim(label),
        _cluster_layer_claim(label),
        _cluster_training_claim(label),
        _cluster_half_claim(label),
    )


def _cluster_claim(label: str) -> Claim:
    return Claim(
        name=f"clusters by {label}",
        statement=f"After the last layer, representations cluster by {label} more than by chance.",
        source=f"{PAPER}, figure 1",
        value=Quantity(
            description=f"pairwise F1 of k-means with {label}, after the last layer",
            read=lambda results: select_last_step(_select_f1(results, label)).isel(layer=-1, drop=True),
        ),
        control=Quantity(
            description="the maximum with permuted labels",
            read=lambda results: (
                select_last_step(_select_null_f1(results, label)).isel(layer=-1, drop=True).max("draw")
            ),
        ),
        direction="above",
    )


def _cluster_layer_claim(label: str) -> Claim:
    return Claim(
        name=f"clusters by {label}: layers",
        statement=f"Representations cluster by {label} more after the last layer than at the embedding.",
        source=f"{PAPER}, figure 1",
        value=Quantity(
            description=f"{EXCESS_F1.format(label)} after the last layer",
            read=lambda results: select_last_step(_compute_excess_f1(results, label)).isel(layer=-1, drop=True),
        ),
        control=Quantity(
            description="the same difference at the embedding",
            read=lambda results: select_last_step(_compute_excess_f1(results, label)).isel(layer=0, drop=True),
        ),
        direction="above",
    )


def _cluster_training_claim(label: str) -> Claim:
    return Claim(
        name=f"clusters by {label}: training",
        statement=f"Training makes representations cluster more by {label}.",
        source=f"{PAPER}, figure 1",
        value=Quantity(
            description=f"{EXCESS_F1.format(label)} maximum over layers",
            read=lambda results: (
                select_last_step(_compute_excess_f1(results, label)).isel(layer=slice(1, None)).max("layer")
            ),
        ),
        control=Quantity(
            description="the same difference in the untrained model",
            read=lambda results: (
                select_untrained(_compute_excess_f1(results, label)).isel(layer=slice(1, None)).max("layer")
            ),
        ),
        direction="above",
    )


def _cluster_half_claim(label: str) -> Claim:
    return Claim(
        name=f"clusters by {label}: upper layers",
        statement=f"Representations cluster more by {label} in the upper half of the layers than in the lower.",
        source=f"{PAPER}, figure 1, in our words",
        value=Quantity(
            description=f"{EXCESS_F1.format(label)} mean over the upper half of the depths",
            read=lambda results: _average_halves(select_last_step(_compute_excess_f1(results, label)))[1],
        ),
        control=Quantity(
            description="the same difference over the lower half, including the embedding",
            read=lambda results: _average_halves(select_last_step(_compute_excess_f1(results, label)))[0],
        ),
        direction="above",
    )


def _select_f1(results: Results, label: str) -> xr.DataArray:
    return results["clusters"]["pairwise_f1"].sel(stat=label, drop=True)


def _select_null_f1(results: Results, label: str) -> xr.DataArray:
    return results["clusters"]["pairwise_f1_null"].sel(stat=label, drop=True)


def _compute_excess_f1(results: Results, label: str) -> xr.DataArray:
    """Subtract the value with permuted labels, since F1 is high for any large cluster."""
    return _select_f1(results, label) - _select_null_f1(results, label).mean("draw")


def _average_halves(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the means over the lower and the upper half of the depths; a middle depth is in neither."""
    count = values.sizes["layer"]
    lower, upper = slice(0, count // 2), slice(count - count // 2, None)
    return values.isel(layer=lower).mean("layer"), values.isel(layer=upper).mean("layer")
