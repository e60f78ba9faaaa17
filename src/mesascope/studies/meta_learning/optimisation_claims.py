"""Claims about inner optimisation: updates descend objectives of attention, and the training loss."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.representation_claims import (
    MIN_FALLING_FRACTION,
    OURS,
    PAPER,
    compute_falling_fraction,
)
from mesascope.studies.shared.head_claims import prefix_statement


def inner_objective_claims(objective: str) -> tuple[Claim, ...]:
    """Return the claims on figures 2 and 4: attention lowers an inner objective.

    Args:
        objective: name of the inner objective.
    """
    return (
        _descent_claim(objective),
        _descent_training_claim(objective),
        _falling_loss_claim(objective),
    )


def _descent_claim(objective: str) -> Claim:
    title = objective.replace("_", " ").replace("hopfield", "Hopfield")
    return Claim(
        name=f"attention descends: {title}",
        statement=f"Attention updates lower the {title} objective that the layer's own weights define.",
        source=f"{PAPER}: inner optimisation; the objective is our choice",
        value=_descending_fraction(objective),
        control=Quantity(
            description="the maximum of this fraction with shuffled keys",
            read=lambda results: select_last_step(_average_descends(results, objective, "_null")).max("draw"),
        ),
        direction="above",
    )


def _descent_training_claim(objective: str) -> Claim:
    title = objective.replace("_", " ").replace("hopfield", "Hopfield")
    return Claim(
        name=f"training increases descent: {title}",
        statement=f"Training increases the fraction of tokens at which attention lowers the {title} objective.",
        source=f"{PAPER}, figure 2, in our words",
        value=_descending_fraction(objective),
        control=Quantity(
            description="the same fraction in the untrained model",
            read=lambda results: select_untrained(_average_descends(results, objective)),
        ),
        direction="above",
    )


def _falling_loss_claim(objective: str) -> Claim:
    title = objective.replace("_", " ").replace("hopfield", "Hopfield")
    return Claim(
        name=f"inner loss falls over layers: {title}",
        statement=f"The {title} objective is lower in every layer than in the previous one.",
        source=f"{PAPER}, figure 2 (a); the objective differs by layer and is compared nevertheless",
        value=Quantity(
            description="fraction of adjacent layers at which the objective before the update falls",
            read=lambda results: compute_falling_fraction(select_last_step(_select_before(results, objective))),
        ),
        control=Quantity(
            description="the same fraction in the untrained model",
            read=lambda results: compute_falling_fraction(select_untrained(_select_before(results, objective))),
        ),
        direction="above",
        threshold=MIN_FALLING_FRACTION,
    )


def outer_gradient_claims(prefix: str, name_prefix: str) -> tuple[Claim, ...]:
    """Return the claims that updates descend the loss that training minimises.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to names and statements.
    """
    return (
        _outer_descent_claim(prefix, name_prefix),
        _outer_training_claim(prefix, name_prefix),
    )


def _outer_descent_claim(prefix: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}updates descend the outer loss",
        statement=prefix_statement(
            name_prefix, "The update of each layer points along the negative gradient of the training loss."
        ),
        source=f"{PAPER}: inner optimisation; {OURS} in this form",
        value=_update_cosine(prefix),
        control=Quantity(
            description="the same cosine with the updates of other positions",
            read=lambda results: select_last_step(_average_cosine(results, prefix, "cosine_null_other_positions")),
        ),
        direction="above",
        threshold=0.0,
    )


def _outer_training_claim(prefix: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}training aligns updates with the outer gradient",
        statement=prefix_statement(
            name_prefix, "Training increases the cosine of the updates with the negative gradient of the loss."
        ),
        source=OURS,
        value=_update_cosine(prefix),
        control=Quantity(
            description="the same cosine in the untrained model",
            read=lambda results: select_untrained(_average_cosine(results, prefix)),
        ),
        direction="above",
    )


def _descending_fraction(objective: str) -> Quantity:
    return Quantity(
        description="fraction of tokens at which the update lowers the objective, mean over layers",
        read=lambda results: select_last_step(_average_descends(results, objective)),
    )


def _average_descends(results: Results, objective: str, suffix: str = "") -> xr.DataArray:
    return results[f"inner_{objective}"][f"descends{suffix}"].sel(sublayer="attention", drop=True).mean("layer")


def _select_before(results: Results, objective: str) -> xr.DataArray:
    return results[f"inner_{objective}"]["before"].sel(sublayer="attention", drop=True)


def _update_cosine(prefix: str) -> Quantity:
    return Quantity(
        description="cosine of the update with the negative gradient of the loss, mean over layers and sublayers",
        read=lambda results: select_last_step(_average_cosine(results, prefix)),
    )


def _average_cosine(results: Results, prefix: str, variable: str = "cosine") -> xr.DataArray:
    return results[f"{prefix}inner_outer"][variable].mean(("layer", "sublayer"))
