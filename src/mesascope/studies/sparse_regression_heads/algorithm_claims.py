"""Claims about the algorithm of Chen et al. 2024: preprocessing before gradient descent lowers the risk."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results
from mesascope.studies.shared.icl import MIN_RATIO_CHANGE
from mesascope.studies.sparse_regression_heads.citation import CITATION
from mesascope.studies.sparse_regression_heads.problems import PROBLEM_SETTINGS
from mesascope.studies.sparse_regression_heads.toy_model import METHODS

PAPER = CITATION.short
PLAIN, PREPROCESSED, RIDGE, LASSO = METHODS
REVERSED = next(
    setting.name for setting in PROBLEM_SETTINGS if setting.examples > setting.features and not setting.noise
)
IMPROVED = [setting.name for setting in PROBLEM_SETTINGS if setting.name != REVERSED]
OVERDETERMINED = [
    setting.name for setting in PROBLEM_SETTINGS if setting.examples >= setting.features and setting.noise
]
MAX_LASSO_RISK_RATIO = 2.0  # ours: the paper's bound holds up to logarithms


def _risk_ratio(method: str, baseline: str, settings: list[str], label: str) -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        best = results["preprocess_then_optimise"]["best_risk"].sel(distribution=settings)
        risk, baseline_risk = (best.sel(predictor=name, drop=True) for name in (method, baseline))
        return (risk / baseline_risk).max("distribution")

    return Quantity(
        description=f"largest ratio of the best excess risk of {method} to that of {baseline}, {label}",
        read=read_ratio,
    )


ALGORITHM_CLAIMS = (
    Claim(
        name="algorithm: preprocessing lowers the risk",
        statement="Preprocessing lowers the risk of gradient descent with noise, or with fewer examples than "
        "features, and more than without noise and with more examples than features.",
        source=f"{PAPER}; the four settings are ours",
        value=_risk_ratio(PREPROCESSED, PLAIN, IMPROVED, "four settings"),
        control=_risk_ratio(PREPROCESSED, PLAIN, [REVERSED], "without noise, more examples than features"),
        direction="below",
        threshold=1.0,
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
        kind="simulation",
    ),
    Claim(
        name="algorithm: lower risk than ridge regression",
        statement="With noise, or with fewer examples than features, preprocessed gradient descent has a lower "
        "risk than ridge regression.",
        source=PAPER,
        value=_risk_ratio(PREPROCESSED, RIDGE, IMPROVED, "four settings"),
        control=_risk_ratio(PLAIN, RIDGE, IMPROVED, "four settings"),
        direction="below",
        threshold=1.0,
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
        kind="simulation",
    ),
    Claim(
        name="algorithm: comparable to the lasso",
        statement="With noise, and as many examples as features or more, preprocessed gradient descent has a risk "
        "comparable to that of the lasso.",
        source=f"{PAPER}, up to logarithms; the threshold is ours",
        value=_risk_ratio(PREPROCESSED, LASSO, OVERDETERMINED, "two settings"),
        control=_risk_ratio(PLAIN, LASSO, OVERDETERMINED, "two settings"),
        direction="below",
        threshold=MAX_LASSO_RISK_RATIO,
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
        kind="simulation",
    ),
)
