"""Claims about inner optimisation: objectives of attention, the outer gradient, attention over the history."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.meta_learning.representation_claims import (
    MIN_FALLING_FRACTION,
    OURS,
    PAPER,
    compute_falling_fraction,
)
from mesascope.studies.shared.head_claims import prefix_statement

HISTORY_RESULT = "sgd_history_attention"
COMPARED_MODULE = "attention.q_proj"  # modules of one layer differ too, so layers are compared on one of them
MAX_DUAL_ERROR = 1e-4  # ours: relative error of the dual form in float32
MIN_HALF_ERROR = 0.1  # ours: relative error of the dual form with half of the instances


def inner_objective_claims(objective: str) -> tuple[Claim, ...]:
    """Return the claims on figures 2 and 4: attention lowers an inner objective.

    Args:
        objective: name of the inner objective.
    """
    result, title = f"inner_{objective}", objective.replace("_", " ").replace("hopfield", "Hopfield")

    def average_descends(results: Results, suffix: str = "") -> xr.DataArray:
        return results[result][f"descends{suffix}"].sel(sublayer="attention", drop=True).mean("layer")

    def select_before(results: Results) -> xr.DataArray:
        return results[result]["before"].sel(sublayer="attention", drop=True)

    descending_fraction = Quantity(
        description="fraction of tokens at which the update lowers the objective, mean over layers",
        read=lambda results: select_last_step(average_descends(results)),
    )
    return (
        Claim(
            name=f"attention descends: {title}",
            statement=f"Attention updates lower the {title} objective that the layer's own weights define.",
            source=f"{PAPER}: inner optimisation; the objective is our choice",
            value=descending_fraction,
            control=Quantity(
                description="the maximum of this fraction with shuffled keys",
                read=lambda results: select_last_step(average_descends(results, "_null")).max("draw"),
            ),
            direction="above",
        ),
        Claim(
            name=f"training increases descent: {title}",
            statement=f"Training increases the fraction of tokens at which attention lowers the {title} objective.",
            source=f"{PAPER}, figure 2, in our words",
            value=descending_fraction,
            control=Quantity(
                description="the same fraction in the untrained model",
                read=lambda results: select_untrained(average_descends(results)),
            ),
            direction="above",
        ),
        Claim(
            name=f"inner loss falls over layers: {title}",
            statement=f"The {title} objective is lower in every layer than in the previous one.",
            source=f"{PAPER}, figure 2 (a); the objective differs by layer and is compared nevertheless",
            value=Quantity(
                description="fraction of adjacent layers at which the objective before the update falls",
                read=lambda results: compute_falling_fraction(select_last_step(select_before(results))),
            ),
            control=Quantity(
                description="the same fraction in the untrained model",
                read=lambda results: compute_falling_fraction(select_untrained(select_before(results))),
            ),
            direction="above",
            threshold=MIN_FALLING_FRACTION,
        ),
    )


def outer_gradient_claims(prefix: str, name_prefix: str) -> tuple[Claim, ...]:
    """Return the claims that updates descend the loss that training minimises.

    Args:
        prefix: of the condition's results.
        name_prefix: the condition in words, prepended to names and statements.
    """

    def average_cosine(results: Results, variable: str = "cosine") -> xr.DataArray:
        return results[f"{prefix}inner_outer"][variable].mean(("layer", "sublayer"))

    update_cosine = Quantity(
        description="cosine of the update with the negative gradient of the loss, mean over layers and sublayers",
        read=lambda results: select_last_step(average_cosine(results)),
    )
    return (
        Claim(
            name=f"{name_prefix}updates descend the outer loss",
            statement=prefix_statement(
                name_prefix, "The update of each layer points along the negative gradient of the training loss."
            ),
            source=f"{PAPER}: inner optimisation; {OURS} in this form",
            value=update_cosine,
            control=Quantity(
                description="the same cosine with the updates of other positions",
                read=lambda results: select_last_step(average_cosine(results, "cosine_null_other_positions")),
            ),
            direction="above",
            threshold=0.0,
        ),
        Claim(
            name=f"{name_prefix}training aligns updates with the outer gradient",
            statement=prefix_statement(
                name_prefix, "Training increases the cosine of the updates with the negative gradient of the loss."
            ),
            source=OURS,
            value=update_cosine,
            control=Quantity(
                description="the same cosine in the untrained model",
                read=lambda results: select_untrained(average_cosine(results)),
            ),
            direction="above",
        ),
    )


def dual_form_claims() -> tuple[Claim, ...]:
    """Return the claims that outputs are attention over the training history."""

    def select_error(results: Results, suffix: str = "") -> xr.DataArray:
        return select_last_step(results[HISTORY_RESULT][f"dual_error{suffix}"])

    largest_error = Quantity(
        description="largest relative error of a module's outputs computed from the whole training history",
        read=lambda results: select_error(results).max(("layer", "map")),
    )
    smallest_half_error = Quantity(
        description="smallest relative error of a module's outputs without a random half of the instances",
        read=lambda results: select_error(results, "_half").min(("layer", "map")),
    )
    return (
        Claim(
            name="outputs are attention over the training history",
            statement="The output of a module is its initial output plus attention over all training instances.",
            source=f"{PAPER}, after Irie et al. 2022; an identity, so this checks the recorded history",
            value=largest_error,
            control=smallest_half_error,
            direction="below",
            threshold=MAX_DUAL_ERROR,
        ),
        Claim(
            name="the whole training history is needed",
            statement="Without half of the training instances, the outputs of every module are off by 10 % or more.",
            source=OURS,
            value=smallest_half_error,
            control=largest_error,
            direction="above",
            threshold=MIN_HALF_ERROR,
        ),
    )


def history_attention_claims(label: str) -> tuple[Claim, ...]:
    """Return the claims on figure 3: attended training instances share the label of the query.

    Args:
        label: of an instance, such as ``generator``.
    """

    def select_fraction(results: Results, suffix: str = "") -> xr.DataArray:
        return select_last_step(results[HISTORY_RESULT][f"top_by_layer{suffix}"]).sel(stat=label, drop=True)

    def compute_layer_range(results: Results, suffix: str = "") -> xr.DataArray:
        fraction = select_last_step(results[HISTORY_RESULT][f"top{suffix}"])
        fraction = fraction.sel(stat=label, map=COMPARED_MODULE, drop=True).dropna("layer", how="all")
        return fraction.max("layer") - fraction.min("layer")

    def select_higher_null(results: Results) -> xr.DataArray:
        nulls = [select_fraction(results, suffix) for suffix in ("_null", "_null_least_attended")]
        return xr.concat(nulls, "null").max("null")

    same_label_fraction = Quantity(
        description=f"fraction of the 10 most attended instances with the query's {label}, mean over layers",
        read=lambda results: select_fraction(results).mean("layer"),
    )
    return (
        Claim(
            name=f"attention to the same {label}",
            statement=f"The most attended instances share the {label} more often than chance and the least attended.",
            source=f"{PAPER}, figure 3; the next claim controls for the token embeddings",
            value=same_label_fraction,
            control=Quantity(
                description="the higher of the fractions for the 10 least attended instances and for permuted labels",
                read=lambda results: select_higher_null(results).mean("layer"),
            ),
            direction="above",
        ),
        Claim(
            name=f"attention to the same {label}: training",
            statement=f"Training makes the attended instances share the {label} more often.",
            source=f"{PAPER}, figure 3",
            value=same_label_fraction,
            control=Quantity(
                description="the same fraction in the untrained model, for the same instances and queries",
                read=lambda results: select_fraction(results, "_null_untrained").mean("layer"),
            ),
            direction="above",
        ),
        Claim(
            name=f"attention to the same {label}: layers",
            statement=f"Training makes layers differ in how often the attended instances share the {label}.",
            source=f"{PAPER}, figure 3, in our words",
            value=Quantity(
                description="highest minus lowest fraction over the query projections of the layers",
                read=compute_layer_range,
            ),
            control=Quantity(
                description="the same range in the untrained model, for the same instances and queries",
                read=lambda results: compute_layer_range(results, "_null_untrained"),
            ),
            direction="above",
        ),
    )
