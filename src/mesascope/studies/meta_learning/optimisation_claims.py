"""Claims about inner optimisation: updates descend an objective of attention, and the training loss."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.representation_claims import OURS, PAPER
from mesascope.studies.shared.head_claims import prefix_statement

COSINE_MARGIN = 0.05  # ours, fixed after a run of 3 seeds: a mean cosine of less is no descent
INNER_LOSS_MARGIN = 0.05  # ours, fixed before this inner loss was seen: of a cosine, too


def fast_weight_claim() -> Claim:
    """Return the claim on figure 2 that attention descends the fast weight objective.

    No claim rests on the descent of the other inner objectives: attention lowers the linear one by construction, and
    the descent of the quadratic one and of the Hopfield energy depends on the norms of tokens only.
    """
    return Claim(
        name="attention descends: fast weight",
        statement="Attention outputs point along the first gradient step on the fast weight objective that the layer's "
        "own keys and values define.",
        source=f"{PAPER}: inner optimisation; objective and cosine are ours, chosen after a run of 3 seeds",
        value=Quantity(
            description="cosine of attention outputs with the outputs of the gradient step, mean over heads and layers",
            read=lambda results: select_last_step(_average_fast_weight_cosine(results)),
        ),
        control=Quantity(
            description="the highest of 0, this cosine with shuffled keys and this cosine in the untrained model",
            read=lambda results: _select_highest(
                select_last_step(_average_fast_weight_cosine(results, "_null")).max("draw"),
                select_untrained(_average_fast_weight_cosine(results)),
            ),
        ),
        direction="above",
        margin=COSINE_MARGIN,
        by_paper=True,
    )


def inner_loss_claim() -> Claim:
    """Return the claim on figure 2 (a) that the inner loss of attention falls over training, in every layer.

    The loss is the linear objective before the update over the norms of representation x and update u, -cos(x, u). Its
    value depends on the weights, unlike its descent.
    """
    return Claim(
        name="inner loss falls over training",
        statement="In every layer the inner loss of attention, -cos(x, u), is lower after training than before, and "
        "lower than with shuffled keys.",
        source=f"{PAPER}, figure 2 (a): inner losses by layer and epoch; this loss, and that it falls in every layer, "
        f"are {OURS}",
        value=Quantity(
            description="largest difference over layers of the inner loss from the lower one of the untrained model "
            "and of the trained model with shuffled keys",
            read=_largest_inner_loss_difference,
        ),
        control=Quantity(
            description="0, no fall", read=lambda results: xr.zeros_like(_largest_inner_loss_difference(results))
        ),
        direction="below",
        margin=INNER_LOSS_MARGIN,
        by_paper=True,
    )


def outer_gradient_claim(prefix: str, name_prefix: str) -> Claim:
    """Return the claim that updates descend the loss that training minimises.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to the name and the statement.
    """
    return Claim(
        name=f"{name_prefix}updates descend the outer loss",
        statement=prefix_statement(
            name_prefix, "The update of each layer points along the negative gradient of the training loss."
        ),
        source=f"{PAPER}: inner optimisation; {OURS} in this form",
        value=Quantity(
            description="cosine of the update with the negative gradient of the loss, mean over layers and sublayers",
            read=lambda results: select_last_step(_average_outer_cosine(results, prefix)),
        ),
        control=Quantity(
            description="the highest of 0, this cosine with the updates of other positions and this cosine in the "
            "untrained model",
            read=lambda results: _select_highest(
                select_last_step(_average_outer_cosine(results, prefix, "_null_other_positions")),
                select_untrained(_average_outer_cosine(results, prefix)),
            ),
        ),
        direction="above",
        margin=COSINE_MARGIN,
        by_paper=True,
    )


def _largest_inner_loss_difference(results: Results) -> xr.DataArray:
    """Return the difference in the layer in which the inner loss falls least."""
    loss, shuffled = (
        results["inner_linear"][name].sel(sublayer="attention", drop=True) for name in ("opposition", "opposition_null")
    )
    controls = select_untrained(loss), select_last_step(shuffled).min("draw")
    lowest = xr.concat(controls, "control").min("control", skipna=False)
    return (select_last_step(loss) - lowest).max("layer", skipna=False)


def _average_fast_weight_cosine(results: Results, suffix: str = "") -> xr.DataArray:
    return results["inner_fast_weight"][f"cosine{suffix}"].sel(sublayer="attention", drop=True).mean("layer")


def _average_outer_cosine(results: Results, prefix: str, suffix: str = "") -> xr.DataArray:
    return results[f"{prefix}inner_outer"][f"cosine{suffix}"].mean(("layer", "sublayer"))


def _select_highest(*cosines: xr.DataArray) -> xr.DataArray:
    """Return the highest of the cosines and 0, so that a control that opposes the gradient proves no descent."""
    return xr.concat(cosines, "control").max("control").clip(min=0)
