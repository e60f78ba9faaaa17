"""Claims on preprocessing and the number of heads in sparse linear regression (Chen et al. 2024)."""

import xarray as xr

from mesascope.analyses.causal.pruning import ALL_HEADS, ALL_IN_FIRST_LAYER, ALL_IN_LATER_LAYERS, ONE_PER_LAYER
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.shared.icl import MIN_LEAD, MIN_RATIO_CHANGE, make_constant_control
from mesascope.studies.shared.selectors import select_similarity
from mesascope.studies.sparse_regression_heads.algorithm_claims import (
    ALGORITHM_CLAIMS,
    PAPER,
    PLAIN,
    PREPROCESSED,
)
from mesascope.studies.sparse_regression_heads.conditions import (
    DENSE,
    DENSE_REQUIREMENT,
    DENSE_SINGLE_HEAD,
    MAIN,
    SINGLE_HEAD,
    SPARSE_REQUIREMENTS,
    head_risk_ratio,
    noise_risk_ratio,
    select_excess_risk,
)

OURS = "ours"
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"

MAX_HEAD_RISK_RATIO = 0.8  # ours
MAX_PRUNING_COST = 0.1  # ours: also the smallest difference of two costs that matters
MIN_PREPROCESSED_R2 = 0.5  # ours
MIN_R2_CHANGE = 0.05  # ours
MIN_ENTROPY_CHANGE = 0.05  # ours: of the normalised entropy

PRUNING_KIND = "mean"  # zero ablation agrees to two digits, since outputs of heads have means near 0


def _entropy_difference(label: str, *, trained: bool = True) -> Quantity:
    def read_difference(results: Results) -> xr.DataArray:
        by_step = results["pruning"]["entropy"].sel(stat=PRUNING_KIND, drop=True)
        entropy = select_last_step(by_step) if trained else select_untrained(by_step)
        return entropy.sel(layer=0, drop=True) - entropy.sel(layer=slice(1, None)).mean("layer")

    return Quantity(
        description=f"normalised entropy of the {PRUNING_KIND}-ablation effects of heads in the first layer minus the "
        f"mean of later layers, {label}",
        read=read_difference,
    )


def _pruning_cost(remaining_heads: str, label: str) -> Quantity:
    def read_cost(results: Results) -> xr.DataArray:
        loss = select_last_step(results["pruning"][f"pruned_loss_{PRUNING_KIND}"])
        increase = loss - loss.sel(component=ALL_HEADS, drop=True)
        return increase.sel(component=remaining_heads, drop=True) / increase.sel(component=ONE_PER_LAYER, drop=True)

    return Quantity(
        description=f"increase of the loss with {label}, as a fraction of the increase with one head per layer",
        read=read_cost,
    )


def _preprocessed_r2(label: str, *, trained: bool = True) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description=f"R² of a linear probe for $r_j x_j$ of the query input, {label}",
        read=lambda results: select_step(results["preprocessing"]["explained"]).sel(layer="after 0", drop=True),
    )


def _prediction_similarity(predictor: str) -> Quantity:
    return Quantity(
        description=f"fraction of the variance of the model's predictions explained by fitted {predictor}",
        read=lambda results: select_last_step(select_similarity(results, predictor)),
    )


def _pruned_risk_ratio() -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        pruned = select_last_step(results["pruning"][f"pruned_loss_{PRUNING_KIND}"])
        return pruned.sel(component=ALL_IN_FIRST_LAYER, drop=True) / select_excess_risk(results, SINGLE_HEAD)

    return Quantity(
        description="ratio of the excess risk with all heads of the first layer and one per later layer to that of the "
        "model trained with one head per layer",
        read=read_ratio,
    )


HEAD_RATIO = head_risk_ratio(MAIN, SINGLE_HEAD, "sparse functions")

NOISE_RATIO, PRUNED_RATIO = noise_risk_ratio(), _pruned_risk_ratio()

HEAD_CLAIMS = (
    Claim(
        name="more heads lower the risk",
        statement="On sparse functions, a model with eight heads has a lower risk than one with a single head of the "
        "same total width.",
        source=OUR_THRESHOLD,
        value=HEAD_RATIO,
        control=make_constant_control(HEAD_RATIO, 1.0, "1, the ratio for equal risks"),
        direction="below",
        threshold=MAX_HEAD_RISK_RATIO,
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
        requirements=SPARSE_REQUIREMENTS,
    ),
    Claim(
        name="more heads lower the risk at several noise levels",
        statement="A model with eight heads has a lower risk than one with a single head on prompts with less noise, "
        "as much noise and more noise than in training.",
        source=f"{OURS}: one model, evaluated at several noise levels; {PAPER} has results for several levels",
        value=NOISE_RATIO,
        control=make_constant_control(NOISE_RATIO, 1.0, "1, the ratio for equal risks"),
        direction="below",
        margin=MIN_RATIO_CHANGE,
        requirements=SPARSE_REQUIREMENTS,
    ),
    Claim(
        name="more heads lower the risk more for sparse functions",
        statement="The relative reduction of risk by eight heads is larger for sparse than for dense functions.",
        source=f"{OURS}: expected if heads serve preprocessing",
        value=HEAD_RATIO,
        control=head_risk_ratio(DENSE, DENSE_SINGLE_HEAD, "dense functions"),
        direction="below",
        margin=MIN_RATIO_CHANGE,
        requirements=(*SPARSE_REQUIREMENTS, DENSE_REQUIREMENT),
    ),
    Claim(
        name="importance is even in the first layer, concentrated in later ones",
        statement="All heads of the first layer matter, but few heads of each later layer.",
        source=f"{PAPER}, which masks heads; {PRUNING_KIND} ablation is {OURS}",
        value=_entropy_difference("sparse functions"),
        control=_entropy_difference("untrained", trained=False),
        direction="above",
        threshold=0.0,
        margin=MIN_ENTROPY_CHANGE,
        by_paper=True,
        requirements=SPARSE_REQUIREMENTS,
    ),
    Claim(
        name="later layers need one head",
        statement="All heads of the first layer and one head per later layer suffice for nearly the full performance; "
        "one head in the first layer and all heads of later layers do not.",
        source=OUR_THRESHOLD,
        value=_pruning_cost(ALL_IN_FIRST_LAYER, "all heads of the first layer and one per later layer"),
        control=_pruning_cost(
            ALL_IN_LATER_LAYERS, "one head in the first layer and all in later layers (more heads in total)"
        ),
        direction="below",
        threshold=MAX_PRUNING_COST,
        margin=MAX_PRUNING_COST,
        by_paper=True,
        requirements=SPARSE_REQUIREMENTS,
    ),
    Claim(
        name="the pruned model has a lower risk than a model with one head",
        statement="Pruned to all heads of the first layer and one per later layer, without retraining, the model has a "
        "lower risk than a model of the same width that is trained with one head per layer.",
        source=f"{PAPER}, which compares the full, the pruned and the single-head model; the margin is {OURS}",
        value=PRUNED_RATIO,
        control=make_constant_control(PRUNED_RATIO, 1.0, "1, the ratio for equal risks"),
        direction="below",
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
        requirements=SPARSE_REQUIREMENTS,
    ),
)

PREPROCESSING_CLAIMS = (
    Claim(
        name="the first layer preprocesses the inputs",
        statement="After the first layer, the products $r_j x_j$ can be decoded linearly from the residual stream, and "
        "better than before training.",
        source=f"{PAPER}, which probes layers; this probe, the threshold and the control are ours, since attention "
        "with random weights computes products, too",
        value=_preprocessed_r2("after the first layer"),
        control=_preprocessed_r2("after the first layer, untrained", trained=False),
        direction="above",
        threshold=MIN_PREPROCESSED_R2,
        margin=MIN_R2_CHANGE,
        by_paper=True,
        requirements=SPARSE_REQUIREMENTS,
    ),
    Claim(
        name="predictions are closer to preprocessed gradient descent",
        statement="The model's predictions are more similar to preprocessed than to plain gradient descent.",
        source=f"{PAPER}, in our words; the margin is ours",
        value=_prediction_similarity(PREPROCESSED),
        control=_prediction_similarity(PLAIN),
        direction="above",
        margin=MIN_LEAD,
        by_paper=True,
        requirements=SPARSE_REQUIREMENTS,
    ),
)

CLAIMS = (*ALGORITHM_CLAIMS, *HEAD_CLAIMS, *PREPROCESSING_CLAIMS)
