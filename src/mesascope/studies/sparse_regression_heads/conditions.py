"""Names of the conditions of the study of heads in sparse regression, their risks, and the requirements of claims.

The target of the query has no noise, so that the loss of a model is its excess risk.
"""

import xarray as xr

from mesascope.studies.base import Quantity, Requirement, Results, select_last_step
from mesascope.studies.shared.icl import MAX_ERROR_RATIO
from mesascope.studies.shared.selectors import select_condition_result
from mesascope.studies.sparse_regression_heads.algorithm_claims import LASSO, MAX_LASSO_RISK_RATIO, RIDGE

MAIN, SINGLE_HEAD, DENSE, DENSE_SINGLE_HEAD = "", "single", "dense", "dense_single"

NUM_EXAMPLES = 32  # ours
NOISE_LEVELS = (0.5, 1.0, 1.5)  # ours: over the noise of training
MAX_RIDGE_RISK_RATIO = 0.8  # ours: a model that has learned sparsity is clearly better than the best dense estimator


def select_excess_risk(results: Results, condition: str) -> xr.DataArray:
    """Return the excess risk of the trained model, with the axis seed.

    Args:
        results: of a run.
        condition: name of the condition.
    """
    scored = select_condition_result(results, "loss_vs_baselines", condition)["scored"]
    return select_last_step(scored).sel(predictor="model", drop=True)


def head_risk_ratio(many_heads: str, single_head: str, label: str) -> Quantity:
    """Return the ratio of the excess risks of two conditions.

    Args:
        many_heads: condition with eight heads.
        single_head: condition with one head.
        label: the functions in words.
    """
    return Quantity(
        description=f"ratio of the excess risk with eight heads to that with one head, {label}",
        read=lambda results: select_excess_risk(results, many_heads) / select_excess_risk(results, single_head),
    )


def noise_risk_ratio() -> Quantity:
    """Return the largest ratio, over noise levels, of the excess risk with eight heads to that with one."""

    def read_ratio(results: Results) -> xr.DataArray:
        eight, one = (
            select_last_step(select_condition_result(results, "excess_risk_vs_noise", condition)["excess"])
            .sel(predictor="model", drop=True)
            .sel(_noise=list(NOISE_LEVELS))
            for condition in (MAIN, SINGLE_HEAD)
        )
        return (eight / one).max("_noise", skipna=False)

    levels = ", ".join(f"{level:g}" for level in NOISE_LEVELS)
    return Quantity(
        description="largest ratio of the excess risk with eight heads to that with one head over prompts with "
        f"{levels} times the noise of training",
        read=read_ratio,
    )


def _tuned_risk_ratio(algorithm: str, condition: str, label: str) -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        risk = select_condition_result(results, "excess_risk_vs_context_length", condition)["excess"]
        risk = select_last_step(risk).sel(_examples=NUM_EXAMPLES, drop=True)
        return risk.sel(predictor="model", drop=True) / risk.sel(predictor=algorithm, drop=True)

    return Quantity(
        description=f"ratio of the excess risk with eight heads to that of {algorithm} with its best penalty, {label}",
        read=read_ratio,
    )


SPARSE_REQUIREMENTS = (
    Requirement(
        statement=f"on sparse functions, the excess risk with eight heads is at most {MAX_RIDGE_RISK_RATIO:g} times "
        "that of ridge regression with its best penalty",
        value=_tuned_risk_ratio(RIDGE, MAIN, "sparse functions"),
        threshold=MAX_RIDGE_RISK_RATIO,
        direction="below",
    ),
    Requirement(
        statement="on sparse functions, the excess risk with eight heads is at most twice that of the lasso with its "
        "best penalty",
        value=_tuned_risk_ratio(LASSO, MAIN, "sparse functions"),
        threshold=MAX_LASSO_RISK_RATIO,
        direction="below",
    ),
)
DENSE_REQUIREMENT = Requirement(
    statement="on dense functions, the excess risk with eight heads is at most 20 % above that of ridge regression "
    "with its best penalty",
    value=_tuned_risk_ratio(RIDGE, DENSE, "dense functions"),
    threshold=MAX_ERROR_RATIO,
    direction="below",
)
