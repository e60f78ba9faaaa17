"""Claims on preprocessing and the number of heads in sparse linear regression (Chen et al. 2024)."""

import xarray as xr

from mesascope.analyses.causal.pruning import (
    ALL_HEADS,
    ALL_IN_FIRST_LAYER,
    ALL_IN_LATER_LAYERS,
    ONE_PER_LAYER,
    PRUNING_KINDS,
    REVERSED_SAME_NUMBER,
)
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.shared.selectors import select_similarity
from mesascope.studies.sparse_regression_heads.algorithm_claims import (
    ALGORITHM_CLAIMS,
    OURS,
    PAPER,
    PLAIN,
    PREPROCESSED,
)

# Names of the conditions
MAIN, SINGLE_HEAD, DENSE, DENSE_SINGLE_HEAD = "", "single", "dense", "dense_single"

OUR_WORDING = f"{PAPER}, in our words"
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"

NOISE = 0.075  # ours: standard deviation of the noise of the targets, a quarter of that of the targets

MAX_HEAD_RISK_RATIO = 0.8  # ours
MAX_PRUNING_COST = 0.1  # ours
MIN_PREPROCESSED_R2 = 0.5  # ours


def _excess_risk(results: Results, condition: str) -> xr.DataArray:
    scored = _condition_result(results, "loss_vs_baselines", condition)["scored"]
    return select_last_step(scored).sel(predictor="model", drop=True) - NOISE**2


def _head_risk_ratio(many_heads: str, single_head: str, label: str) -> Quantity:
    return Quantity(
        description=f"ratio of the excess risk with eight heads to that with one head, {label}",
        read=lambda results: _excess_risk(results, many_heads) / _excess_risk(results, single_head),
    )


def _condition_result(results: Results, analysis: str, condition: str) -> xr.Dataset:
    return results[f"{condition}_{analysis}" if condition else analysis]


def _entropy_difference(kind: str, condition: str, label: str, *, trained: bool = True) -> Quantity:
    def read_difference(results: Results) -> xr.DataArray:
        by_step = _condition_result(results, "pruning", condition)["entropy"]
        entropy = (select_last_step(by_step) if trained else select_untrained(by_step)).sel(stat=kind, drop=True)
        return entropy.sel(layer=0, drop=True) - entropy.sel(layer=slice(1, None)).mean("layer")

    return Quantity(
        description=f"normalised entropy of the {kind}-ablation effects of heads in the first layer minus the mean of "
        f"later layers, {label}",
        read=read_difference,
    )


def _pruning_cost(kind: str, remaining_heads: str, label: str) -> Quantity:
    def read_cost(results: Results) -> xr.DataArray:
        loss = select_last_step(results["pruning"][f"pruned_loss_{kind}"])
        increase = loss - loss.sel(component=ALL_HEADS, drop=True)
        return increase.sel(component=remaining_heads, drop=True) / increase.sel(component=ONE_PER_LAYER, drop=True)

    return Quantity(
        description=f"increase of the loss with {label}, as a fraction of the increase with one head per layer",
        read=read_cost,
    )


def _first_layer_cost(kind: str) -> Quantity:
    return _pruning_cost(kind, ALL_IN_FIRST_LAYER, "all heads of the first layer and one per later layer")


def _preprocessed_r2(depth: str, label: str, *, trained: bool = True) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description=f"R² of a linear probe for r_j x_j of the query input, {label}",
        read=lambda results: select_step(results["preprocessing"]["explained"]).sel(layer=depth, drop=True),
    )


def _prediction_similarity(predictor: str) -> Quantity:
    return Quantity(
        description=f"fraction of the variance of the model's predictions explained by fitted {predictor}",
        read=lambda results: select_last_step(select_similarity(results, predictor)),
    )


def _pruning_claims(kind: str) -> tuple[Claim, ...]:
    return (
        _even_importance_claim(kind),
        _sparse_importance_claim(kind),
        _later_layers_claim(kind),
        _first_layer_claim(kind),
    )


def _even_importance_claim(kind: str) -> Claim:
    return Claim(
        name=f"importance is even in the first layer, concentrated in later ones: {kind} ablation",
        statement=f"All heads of the first layer matter, but few heads of each later layer ({kind} ablation).",
        source=f"{PAPER}, which masks heads; {kind} ablation is {OURS}",
        value=_entropy_difference(kind, MAIN, "sparse functions"),
        control=_entropy_difference(kind, MAIN, "untrained", trained=False),
        direction="above",
        threshold=0.0,
    )


def _sparse_importance_claim(kind: str) -> Claim:
    return Claim(
        name=f"importance is more even in the first layer for sparse functions: {kind} ablation",
        statement="The entropy of importance in the first layer, relative to later layers, is larger for sparse "
        f"than for dense functions ({kind} ablation).",
        source=f"{OURS}: dense functions need no preprocessing",
        value=_entropy_difference(kind, MAIN, "sparse functions"),
        control=_entropy_difference(kind, DENSE, "dense functions"),
        direction="above",
    )


def _later_layers_claim(kind: str) -> Claim:
    return Claim(
        name=f"later layers need one head: {kind} ablation",
        statement="All heads of the first layer and one head per later layer suffice for nearly the full "
        f"performance ({kind} ablation).",
        source=OUR_THRESHOLD,
        value=_first_layer_cost(kind),
        control=_pruning_cost(
            kind, REVERSED_SAME_NUMBER, "one head in the first layer and the same total number of heads"
        ),
        direction="below",
        threshold=MAX_PRUNING_COST,
    )


def _first_layer_claim(kind: str) -> Claim:
    return Claim(
        name=f"heads of the first layer matter more than those of later layers: {kind} ablation",
        statement="Keeping all heads of the first layer gives a lower loss than keeping all heads of later layers "
        f"({kind} ablation).",
        source=OUR_WORDING,
        value=_first_layer_cost(kind),
        control=_pruning_cost(
            kind, ALL_IN_LATER_LAYERS, "one head in the first layer and all in later layers (more heads in total)"
        ),
        direction="below",
    )


HEAD_RATIO = _head_risk_ratio(MAIN, SINGLE_HEAD, "sparse functions")
FIRST_LAYER_R2 = _preprocessed_r2("after 0", "after the first layer")


HEAD_CLAIMS = (
    Claim(
        name="more heads lower the risk",
        statement="On sparse functions, a model with eight heads has a lower risk than one with a single head of the "
        "same total width.",
        source=OUR_THRESHOLD,
        value=HEAD_RATIO,
        control=Quantity(
            description="1, the ratio for equal risks", read=lambda results: xr.ones_like(HEAD_RATIO.read(results))
        ),
        direction="below",
        threshold=MAX_HEAD_RISK_RATIO,
    ),
    Claim(
        name="more heads lower the risk more for sparse functions",
        statement="The relative reduction of risk by eight heads is larger for sparse than for dense functions.",
        source=f"{OURS}: expected if heads serve preprocessing",
        value=HEAD_RATIO,
        control=_head_risk_ratio(DENSE, DENSE_SINGLE_HEAD, "dense functions"),
        direction="below",
    ),
    *(claim for kind in PRUNING_KINDS for claim in _pruning_claims(kind)),
)

PREPROCESSING_CLAIMS = (
    Claim(
        name="the first layer preprocesses the inputs",
        statement="After the first layer, the products r_j x_j can be decoded linearly from the residual stream.",
        source=f"{PAPER}, which probes layers; this probe and the threshold are ours",
        value=FIRST_LAYER_R2,
        control=_preprocessed_r2("embedding", "embedding"),
        direction="above",
        threshold=MIN_PREPROCESSED_R2,
    ),
    Claim(
        name="training improves the preprocessing",
        statement="The products r_j x_j can be decoded better after training than before.",
        source=f"{OURS}: attention with random weights computes products, too",
        value=FIRST_LAYER_R2,
        control=_preprocessed_r2("after 0", "after the first layer, untrained", trained=False),
        direction="above",
    ),
    Claim(
        name="predictions are closer to preprocessed gradient descent",
        statement="The model's predictions are more similar to preprocessed than to plain gradient descent.",
        source=OUR_WORDING,
        value=_prediction_similarity(PREPROCESSED),
        control=_prediction_similarity(PLAIN),
        direction="above",
    ),
)

CLAIMS = (*ALGORITHM_CLAIMS, *HEAD_CLAIMS, *PREPROCESSING_CLAIMS)
