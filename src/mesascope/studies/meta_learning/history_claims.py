"""Claims about the training history: outputs are attention over it, and attended instances share the query's label."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step
from mesascope.studies.meta_learning.representation_claims import OURS, PAPER

HISTORY_RESULT = "sgd_history_attention"
COMPARED_MODULE = "attention.q_proj"  # modules of one layer differ too, so layers are compared on one of them
MAX_DUAL_ERROR = 1e-4  # ours: relative error of the dual form in float32
MIN_HALF_ERROR = 0.1  # ours: relative error of the dual form with half of the instances


def dual_form_claims() -> tuple[Claim, ...]:
    """Return the claims that outputs are attention over the training history."""
    return (
        _dual_form_claim(),
        _whole_history_claim(),
    )


def _dual_form_claim() -> Claim:
    return Claim(
        name="outputs are attention over the training history",
        statement="The output of a module is its initial output plus attention over all training instances.",
        source=f"{PAPER}, after Irie et al. 2022; an identity, so this checks the recorded history",
        value=_LARGEST_DUAL_ERROR,
        control=_SMALLEST_HALF_ERROR,
        direction="below",
        threshold=MAX_DUAL_ERROR,
    )


def _whole_history_claim() -> Claim:
    return Claim(
        name="the whole training history is needed",
        statement="Without half of the training instances, the outputs of every module have an error of 10 % or more.",
        source=OURS,
        value=_SMALLEST_HALF_ERROR,
        control=_LARGEST_DUAL_ERROR,
        direction="above",
        threshold=MIN_HALF_ERROR,
    )


def history_attention_claims(label: str) -> tuple[Claim, ...]:
    """Return the claims on figure 3: attended training instances share the label of the query.

    Args:
        label: of an instance, such as ``generator``.
    """
    return (
        _same_label_claim(label),
        _same_label_training_claim(label),
        _layer_range_claim(label),
    )


def _same_label_claim(label: str) -> Claim:
    return Claim(
        name=f"attention to the same {label}",
        statement=f"The most attended instances share the query's {label} more often than chance and than the least "
        "attended.",
        source=f"{PAPER}, figure 3; the next claim controls for the token embeddings",
        value=_same_label_fraction(label),
        control=Quantity(
            description="the higher of the fractions for the 10 least attended instances and for permuted labels",
            read=lambda results: _select_higher_null(results, label).mean("layer"),
        ),
        direction="above",
    )


def _same_label_training_claim(label: str) -> Claim:
    return Claim(
        name=f"attention to the same {label}: training",
        statement=f"Training makes the attended instances share the query's {label} more often.",
        source=f"{PAPER}, figure 3",
        value=_same_label_fraction(label),
        control=Quantity(
            description="the same fraction in the untrained model, for the same instances and queries",
            read=lambda results: _select_fraction(results, label, "_null_untrained").mean("layer"),
        ),
        direction="above",
    )


def _layer_range_claim(label: str) -> Claim:
    return Claim(
        name=f"attention to the same {label}: layers",
        statement=f"Training makes layers differ in how often the attended instances share the query's {label}.",
        source=f"{PAPER}, figure 3, in our words",
        value=Quantity(
            description="highest minus lowest fraction over the query projections of the layers",
            read=lambda results: _compute_layer_range(results, label),
        ),
        control=Quantity(
            description="the same range in the untrained model, for the same instances and queries",
            read=lambda results: _compute_layer_range(results, label, "_null_untrained"),
        ),
        direction="above",
    )


def _same_label_fraction(label: str) -> Quantity:
    return Quantity(
        description=f"fraction of the 10 most attended instances with the query's {label}, mean over layers",
        read=lambda results: _select_fraction(results, label).mean("layer"),
    )


def _select_fraction(results: Results, label: str, suffix: str = "") -> xr.DataArray:
    return select_last_step(results[HISTORY_RESULT][f"top_by_layer{suffix}"]).sel(stat=label, drop=True)


def _select_higher_null(results: Results, label: str) -> xr.DataArray:
    nulls = [_select_fraction(results, label, suffix) for suffix in ("_null", "_null_least_attended")]
    return xr.concat(nulls, "null").max("null")


def _compute_layer_range(results: Results, label: str, suffix: str = "") -> xr.DataArray:
    fraction = select_last_step(results[HISTORY_RESULT][f"top{suffix}"])
    fraction = fraction.sel(stat=label, map=COMPARED_MODULE, drop=True).dropna("layer", how="all")
    return fraction.max("layer") - fraction.min("layer")


def _select_dual_error(results: Results, suffix: str = "") -> xr.DataArray:
    return select_last_step(results[HISTORY_RESULT][f"dual_error{suffix}"])


_LARGEST_DUAL_ERROR = Quantity(
    description="largest relative error of a module's outputs computed from the whole training history",
    read=lambda results: _select_dual_error(results).max(("layer", "map")),
)
_SMALLEST_HALF_ERROR = Quantity(
    description="smallest relative error of a module's outputs without a random half of the instances",
    read=lambda results: _select_dual_error(results, "_half").min(("layer", "map")),
)
