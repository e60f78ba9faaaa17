"""Claims about the training history: outputs are attention over it, and attended instances share the query's label."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step
from mesascope.studies.meta_learning.representation_claims import PAPER

HISTORY_RESULT = "sgd_history_attention"
HISTORY_LABELS = ("generator", "next token")  # an instance that shares both adds no question of its own
MAX_DUAL_ERROR = 1e-4  # ours: relative error of the dual form in float32
FRACTION_MARGIN = 0.05  # ours, fixed after a run of 3 seeds: half of one of the 10 attended instances


def dual_form_check() -> Claim:
    """Return the check that outputs are attention over the whole training history."""
    return Claim(
        name="outputs are attention over the training history",
        statement="The output of a module is its initial output plus attention over all training instances.",
        source=f"{PAPER}, after Irie et al. 2022; an identity, so this checks the recorded history",
        value=Quantity(
            description="largest relative error of a module's outputs computed from the whole training history",
            read=lambda results: _select_dual_error(results).max(("layer", "map")),
        ),
        control=Quantity(
            description="smallest relative error of a module's outputs without a random half of the instances",
            read=lambda results: _select_dual_error(results, "_half").min(("layer", "map")),
        ),
        direction="below",
        threshold=MAX_DUAL_ERROR,
        kind="check",
    )


def history_attention_claims() -> tuple[Claim, ...]:
    """Return the claims on figure 3: attended training instances share the label of the query."""
    return tuple(_same_label_claim(label) for label in HISTORY_LABELS)


def _same_label_claim(label: str) -> Claim:
    return Claim(
        name=f"attention to the same {label}: training",
        statement=f"Training makes the attended instances share the query's {label} more often.",
        source=f"{PAPER}, figure 3",
        value=Quantity(
            description=f"fraction of the 10 most attended instances with the query's {label}, mean over layers",
            read=lambda results: _select_fraction(results, label).mean("layer"),
        ),
        control=Quantity(
            description="the same fraction in the untrained model, for the same instances and queries",
            read=lambda results: _select_fraction(results, label, "_null_untrained").mean("layer"),
        ),
        direction="above",
        margin=FRACTION_MARGIN,
        by_paper=True,
    )


def _select_fraction(results: Results, label: str, suffix: str = "") -> xr.DataArray:
    return select_last_step(results[HISTORY_RESULT][f"top_by_layer{suffix}"]).sel(stat=label, drop=True)


def _select_dual_error(results: Results, suffix: str = "") -> xr.DataArray:
    return select_last_step(results[HISTORY_RESULT][f"dual_error{suffix}"])
