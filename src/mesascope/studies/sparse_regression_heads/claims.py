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
from mesascope.studies.sparse_regression_heads.toy_model import METHODS, PROBLEM_SETTINGS

# Names of the conditions
MAIN, SINGLE_HEAD, DENSE, DENSE_SINGLE_HEAD = "", "single", "dense", "dense_single"

PAPER, OURS = "Chen et al. 2024", "ours"
OUR_WORDING = f"{PAPER}, in our words"
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"

NOISE = 0.075  # ours: standard deviation of the noise of the targets, a quarter of that of the targets

PLAIN, PREPROCESSED, RIDGE, LASSO = METHODS
REVERSED = next(
    setting.name for setting in PROBLEM_SETTINGS if setting.examples > setting.features and not setting.noise
)
IMPROVED = [setting.name for setting in PROBLEM_SETTINGS if setting.name != REVERSED]
OVERDETERMINED = [
    setting.name for setting in PROBLEM_SETTINGS if setting.examples >= setting.features and setting.noise
]
FIRST_STEPS = slice(1, 6)  # the first five steps

MAX_HEAD_RISK_RATIO = 0.8  # ours
MAX_LASSO_RISK_RATIO = 2.0  # ours: the paper's bound holds up to logarithms
MAX_PRUNING_COST = 0.1  # ours
MIN_PREPROCESSED_R2 = 0.5  # ours


def _risk_ratio(method: str, baseline: str, settings: list[str], label: str, *, smallest: bool = False) -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        best = results["preprocess_then_optimise"]["best_risk"].sel(distribution=settings)
        risk, baseline_risk = (best.sel(predictor=name, drop=True) for name in (method, baseline))
        return (
            1 / (baseline_risk / risk).max("distribution") if smallest else (risk / baseline_risk).max("distribution")
        )

    return Quantity(
        description=f"{'smallest' if smallest else 'largest'} ratio of the best excess risk of {method} to that of "
        f"{baseline}, {label}",
        read=read_ratio,
    )


def _descent_risk_ratio(steps: slice | int, label: str) -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        ratio = results["preprocess_then_optimise"]["risk_ratio"].isel(_steps=steps, drop=True).max("distribution")
        return ratio.max("_steps") if "_steps" in ratio.dims else ratio

    return Quantity(
        description=f"largest ratio over settings of the excess risk of {PREPROCESSED} to that of {PLAIN}, {label}",
        read=read_ratio,
    )


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
    entropy_difference = _entropy_difference(kind, MAIN, "sparse functions")
    first_layer_cost = _pruning_cost(kind, ALL_IN_FIRST_LAYER, "all heads of the first layer and one per later layer")
    return (
        Claim(
            name=f"importance is even in the first layer, concentrated in later ones: {kind} ablation",
            statement=f"All heads of the first layer matter, but few heads of each later layer ({kind} ablation).",
            source=f"{PAPER}, which masks heads; {kind} ablation is {OURS}",
            value=entropy_difference,
            control=_entropy_difference(kind, MAIN, "untrained", trained=False),
            direction="above",
            threshold=0.0,
        ),
        Claim(
            name=f"importance is more even in the first layer for sparse functions: {kind} ablation",
            statement="The entropy of importance in the first layer, relative to later layers, is larger for sparse "
            f"than for dense functions ({kind} ablation).",
            source=f"{OURS}: dense functions need no preprocessing",
            value=entropy_difference,
            control=_entropy_difference(kind, DENSE, "dense functions"),
            direction="above",
        ),
        Claim(
            name=f"later layers need one head: {kind} ablation",
            statement="All heads of the first layer and one head per later layer suffice for nearly the full "
            f"performance ({kind} ablation).",
            source=OUR_THRESHOLD,
            value=first_layer_cost,
            control=_pruning_cost(
                kind, REVERSED_SAME_NUMBER, "one head in the first layer and the same total number of heads"
            ),
            direction="below",
            threshold=MAX_PRUNING_COST,
        ),
        Claim(
            name=f"heads of the first layer matter more than those of later layers: {kind} ablation",
            statement="Keeping all heads of the first layer gives a lower loss than keeping all heads of later layers "
            f"({kind} ablation).",
            source=OUR_WORDING,
            value=first_layer_cost,
            control=_pruning_cost(
                kind, ALL_IN_LATER_LAYERS, "one head in the first layer and all in later layers (more heads in total)"
            ),
            direction="below",
        ),
    )


PREPROCESSING_RATIO = _risk_ratio(PREPROCESSED, PLAIN, IMPROVED, "four settings")
HEAD_RATIO = _head_risk_ratio(MAIN, SINGLE_HEAD, "sparse functions")
FIRST_LAYER_R2 = _preprocessed_r2("after 0", "after the first layer")

ALGORITHM_CLAIMS = (
    Claim(
        name="algorithm: preprocessing lowers the risk",
        statement="With noise, or with fewer examples than features, preprocessing lowers the risk of descent.",
        source=f"{PAPER}; the four settings are ours",
        value=PREPROCESSING_RATIO,
        control=_risk_ratio(PREPROCESSED, PLAIN, [REVERSED], "without noise, more examples than features"),
        direction="below",
        threshold=1.0,
    ),
    Claim(
        name="algorithm: lower risk than ridge regression",
        statement="With noise, or with fewer examples than features, its risk is lower than that of ridge regression.",
        source=PAPER,
        value=_risk_ratio(PREPROCESSED, RIDGE, IMPROVED, "four settings"),
        control=_risk_ratio(PLAIN, RIDGE, IMPROVED, "four settings"),
        direction="below",
        threshold=1.0,
    ),
    Claim(
        name="algorithm: preprocessing raises the risk without noise",
        statement="Without noise, and with more examples than features, preprocessing raises the risk.",
        source=f"{OURS}: plain descent converges to the true coefficients, so nothing can be gained",
        value=_risk_ratio(PREPROCESSED, PLAIN, [REVERSED], "without noise, more examples than features", smallest=True),
        control=PREPROCESSING_RATIO,
        direction="above",
        threshold=1.0,
    ),
    Claim(
        name="algorithm: lower risk in the first steps in all settings",
        statement="After the same number of steps, up to five, preprocessing lowers the risk in all settings.",
        source=f"{OURS}: the gain available to a model of few layers",
        value=_descent_risk_ratio(FIRST_STEPS, "first five steps"),
        control=_descent_risk_ratio(-1, "last step"),
        direction="below",
        threshold=1.0,
    ),
    Claim(
        name="algorithm: comparable to the lasso",
        statement="With noise, and no fewer examples than features, its risk is comparable to that of the lasso.",
        source=f"{PAPER}, up to logarithms; the threshold is ours",
        value=_risk_ratio(PREPROCESSED, LASSO, OVERDETERMINED, "two settings"),
        control=_risk_ratio(PLAIN, LASSO, OVERDETERMINED, "two settings"),
        direction="below",
        threshold=MAX_LASSO_RISK_RATIO,
    ),
)

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
