"""Claims about the algorithm of Chen et al. 2024: preprocessing before gradient descent lowers the risk."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results
from mesascope.studies.sparse_regression_heads.citation import CITATION
from mesascope.studies.sparse_regression_heads.problems import PROBLEM_SETTINGS
from mesascope.studies.sparse_regression_heads.toy_model import METHODS

PAPER, OURS = CITATION.short, "ours"
PLAIN, PREPROCESSED, RIDGE, LASSO = METHODS
REVERSED = next(
    setting.name for setting in PROBLEM_SETTINGS if setting.examples > setting.features and not setting.noise
)
IMPROVED = [setting.name for setting in PROBLEM_SETTINGS if setting.name != REVERSED]
OVERDETERMINED = [
    setting.name for setting in PROBLEM_SETTINGS if setting.examples >= setting.features and setting.noise
]
FIRST_STEPS = slice(1, 6)  # the first five steps
MAX_LASSO_RISK_RATIO = 2.0  # ours: the paper's bound holds up to logarithms


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


PREPROCESSING_RATIO = _risk_ratio(PREPROCESSED, PLAIN, IMPROVED, "four settings")

ALGORITHM_CLAIMS = (
    Claim(
        name="algorithm: preprocessing lowers the risk",
        statement="With noise, or with fewer examples than features, preprocessing lowers the risk of gradient "
        "descent.",
        source=f"{PAPER}; the four settings are ours",
        value=PREPROCESSING_RATIO,
        control=_risk_ratio(PREPROCESSED, PLAIN, [REVERSED], "without noise, more examples than features"),
        direction="below",
        threshold=1.0,
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
        source=f"{OURS}: the gain available to a model with few layers",
        value=_descent_risk_ratio(FIRST_STEPS, "first five steps"),
        control=_descent_risk_ratio(-1, "last step"),
        direction="below",
        threshold=1.0,
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
    ),
)
