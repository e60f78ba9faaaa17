"""Claims on preprocessing and the number of heads in sparse linear regression (Chen et al. 2024)."""

import xarray as xr

from mesascope.analyses.causal.pruning import ALL_HEADS, ALL_IN_FIRST_LAYER, ALL_IN_LATER_LAYERS, ONE_PER_LAYER
from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step, select_untrained
from mesascope.studies.shared.icl import MAX_ERROR_RATIO, MIN_LEAD, MIN_RATIO_CHANGE, make_constant_control
from mesascope.studies.shared.selectors import select_similarity
from mesascope.studies.sparse_regression_heads.algorithm_claims import (
    ALGORITHM_CLAIMS,
    LASSO,
    MAX_LASSO_RISK_RATIO,
    PAPER,
    PLAIN,
    PREPROCESSED,
    RIDGE,
)

# Names of the conditions
MAIN, SINGLE_HEAD, DENSE, DENSE_SINGLE_HEAD = "", "single", "dense", "dense_single"

OURS = "ours"
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"

NOISE = 0.075  # ours: standard deviation of the noise of the targets, a quarter of that of the targets
NUM_EXAMPLES = 8  # ours

MAX_HEAD_RISK_RATIO = 0.8  # ours
MAX_PRUNING_COST = 0.1  # ours: also the smallest difference of two costs that matters
MIN_PREPROCESSED_R2 = 0.5  # ours
MIN_R2_CHANGE = 0.05  # ours
MIN_ENTROPY_CHANGE = 0.05  # ours: of the normalised entropy

PRUNING_KIND = "mean"  # zero ablation agrees to two digits, since outputs of heads have means near 0


def _condition_result(results: Results, analysis: str, condition: str) -> xr.Dataset:
    return results[f"{condition}_{analysis}" if condition else analysis]


def _excess_risk(results: Results, condition: str) -> xr.DataArray:
    scored = _condition_result(results, "loss_vs_baselines", condition)["scored"]
    return select_last_step(scored).sel(predictor="model", drop=True) - NOISE**2


def _head_risk_ratio(many_heads: str, single_head: str, label: str) -> Quantity:
    return Quantity(
        description=f"ratio of the excess risk with eight heads to that with one head, {label}",
        read=lambda results: _excess_risk(results, many_heads) / _excess_risk(results, single_head),
    )


def _tuned_risk_ratio(algorithm: str, condition: str, label: str) -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        risk = _condition_result(results, "excess_risk_vs_context_length", condition)["excess"]
        risk = select_last_step(risk).sel(_examples=NUM_EXAMPLES, drop=True)
        return risk.sel(predictor="model", drop=True) / risk.sel(predictor=algorithm, drop=True)

    return Quantity(
        description=f"ratio of the excess risk with eight heads to that of {algorithm} with its best penalty, {label}",
        read=read_ratio,
    )


SPARSE_REQUIREMENT = Requirement(
    statement="on sparse functions, the excess risk with eight heads is at most twice that of the lasso with its best "
    "penalty",
    value=_tuned_risk_ratio(LASSO, MAIN, "sparse functions"),
    threshold=MAX_LASSO_RISK_RATIO,
    direction="below",
)
DENSE_REQUIREMENT = Requirement(
    statement="on dense functions, the excess risk with eight heads is at most 20 % above that of ridge regression "
    "with its best penalty",
    value=_tuned_risk_ratio(RIDGE, DENSE, "dense functions"),
    threshold=MAX_ERROR_RATIO,
    direction="below",
)


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
        description=f"R² of a linear probe for r_j x_j of the query input, {label}",
        read=lambda results: select_step(results["preprocessing"]["explained"]).sel(layer="after 0", drop=True),
    )


def _prediction_similarity(predictor: str) -> Quantity:
    return Quantity(
        description=f"fraction of the variance of the model's predictions explained by fitted {predictor}",
        read=lambda results: select_last_step(select_similarity(results, predictor)),
    )


HEAD_RATIO = _head_risk_ratio(MAIN, SINGLE_HEAD, "sparse functions")

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
        requirements=(SPARSE_REQUIREMENT,),
    ),
    Claim(
        name="more heads lower the risk more for sparse functions",
        statement="The relative reduction of risk by eight heads is larger for sparse than for dense functions.",
        source=f"{OURS}: expected if heads serve preprocessing",
        value=HEAD_RATIO,
        control=_head_risk_ratio(DENSE, DENSE_SINGLE_HEAD, "dense functions"),
        direction="below",
        margin=MIN_RATIO_CHANGE,
        requirements=(SPARSE_REQUIREMENT, DENSE_REQUIREMENT),
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
        requirements=(SPARSE_REQUIREMENT,),
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
        requirements=(SPARSE_REQUIREMENT,),
    ),
)

PREPROCESSING_CLAIMS = (
    Claim(
        name="the first layer preprocesses the inputs",
        statement="After the first layer, the products r_j x_j can be decoded linearly from the residual stream, and "
        "better than before training.",
        source=f"{PAPER}, which probes layers; this probe, the threshold and the control are ours, since attention "
        "with random weights computes products, too",
        value=_preprocessed_r2("after the first layer"),
        control=_preprocessed_r2("after the first layer, untrained", trained=False),
        direction="above",
        threshold=MIN_PREPROCESSED_R2,
        margin=MIN_R2_CHANGE,
        by_paper=True,
        requirements=(SPARSE_REQUIREMENT,),
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
        requirements=(SPARSE_REQUIREMENT,),
    ),
)

CLAIMS = (*ALGORITHM_CLAIMS, *HEAD_CLAIMS, *PREPROCESSING_CLAIMS)
