"""Claims about function classes in context: the model's error and predictions, compared with those of learners."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step
from mesascope.studies.function_classes.citation import CITATION
from mesascope.studies.shared.icl import (
    MAX_ERROR_RATIO,
    MIN_LEAD,
    MIN_RATIO_CHANGE,
    final_error_requirement,
    least_squares_claim,
    make_constant_control,
)
from mesascope.studies.shared.selectors import select_similarity

PAPER = CITATION.short
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"
SHIFTED_DISTRIBUTIONS = (
    "inputs twice as large",
    "correlated inputs",
)  # with noise, the error of least squares is unbounded
LAST_POSITIONS = slice(-4, None)  # the last four: with fewer pairs, learners predict little
TREE_LEARNERS = ("greedy tree", "greedy tree of signs", "boosted trees")


def function_class_claims() -> tuple[Claim, ...]:
    """Return the claims on linear functions, sparse functions, networks and trees."""
    return (*_LINEAR_CLAIMS, *_SPARSE_CLAIMS, *_NETWORK_CLAIMS, _TREE_CLAIM)


def _select_late_error(results: Results, condition: str) -> xr.DataArray:
    error = select_last_step(results[f"{condition}_loss_vs_baselines"]["error"])
    return error.isel(pos=LAST_POSITIONS).mean("pos")


def _compute_network_ratio(results: Results, predictor: str) -> xr.DataArray:
    error = _select_late_error(results, "network")
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor="trained network", drop=True)


def _compute_tree_ratio(results: Results) -> xr.DataArray:
    error = _select_late_error(results, "tree")
    learners = error.sel(predictor=list(TREE_LEARNERS)).min("predictor")
    return error.sel(predictor="model", drop=True) / learners


def _compute_sparse_ratio(results: Results) -> xr.DataArray:
    error = select_last_step(results["sparse_loss_vs_baselines"]["scored"])
    return error.sel(predictor="model", drop=True) / error.sel(predictor="least squares", drop=True)


def _sparse_similarity(predictor: str, description: str) -> Quantity:
    return Quantity(
        description=description,
        read=lambda results: select_last_step(select_similarity(results, predictor, result="sparse_which_algorithm")),
    )


LINEAR_REQUIREMENT = final_error_requirement("the model of linear functions")
SPARSE_REQUIREMENT = final_error_requirement("the model of sparse functions", "sparse_loss_vs_baselines")

_LINEAR_CLAIMS = (
    least_squares_claim(
        "linear: least squares",
        "Trained on linear functions, the model predicts as least squares does.",
        OUR_THRESHOLD,
        LINEAR_REQUIREMENT,
    ),
    least_squares_claim(
        "linear: out of distribution",
        "The model predicts as least squares does on correlated and on larger inputs.",
        f"{PAPER}, which reports robustness to most shifts; the threshold is ours",
        LINEAR_REQUIREMENT,
        distributions=SHIFTED_DISTRIBUTIONS,
    ),
)

SPARSE_RATIO = Quantity(description="error over that of least squares, all positions", read=_compute_sparse_ratio)
_SPARSE_CLAIMS = (
    Claim(
        name="sparse: better than least squares",
        statement="Trained on sparse functions, the model has a lower error than least squares.",
        source=f"{PAPER}; the margin is ours",
        value=SPARSE_RATIO,
        control=make_constant_control(SPARSE_RATIO, 1.0, "1, the ratio for least squares"),
        direction="below",
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
        requirements=(SPARSE_REQUIREMENT,),
    ),
    Claim(
        name="sparse: lasso",
        statement="Trained on sparse functions, the model agrees more with the lasso than with ridge regression.",
        source=f"{PAPER}, for errors and for least squares; ridge regression has a fitted penalty as well",
        value=_sparse_similarity("lasso", "fraction of the variance of the predictions that the fitted lasso explains"),
        control=_sparse_similarity("ridge regression", "the same fraction for fitted ridge regression"),
        direction="above",
        margin=MIN_LEAD,
        by_paper=True,
        requirements=(SPARSE_REQUIREMENT,),
    ),
)

NETWORK_RATIO = Quantity(
    description="error over that of the trained network, last four positions",
    read=lambda results: _compute_network_ratio(results, "model"),
)
NETWORK_REQUIREMENT = Requirement(
    statement="the error of the model of networks is at most 20 % above that of a network that is trained on the "
    "context",
    value=NETWORK_RATIO,
    threshold=MAX_ERROR_RATIO,
    direction="below",
)
_NETWORK_CLAIMS = (
    Claim(
        name="networks: trained network",
        statement="The model's error is at most 20 % above that of a network that is trained on the context.",
        source=OUR_THRESHOLD,
        value=NETWORK_RATIO,
        control=Quantity(
            description="the same ratio for the mean of 3 nearest neighbours",
            read=lambda results: _compute_network_ratio(results, "3 nearest neighbours"),
        ),
        direction="below",
        threshold=MAX_ERROR_RATIO,
        margin=MIN_RATIO_CHANGE,
        by_paper=True,
    ),
    least_squares_claim(
        "networks: linear functions",
        "Trained on networks, the model predicts as least squares does on linear functions.",
        f"{PAPER}, for errors; the threshold is ours",
        NETWORK_REQUIREMENT,
        distributions=("linear functions",),
        result="network_linear_algorithms",
    ),
)

TREE_RATIO = Quantity(
    description="error over that of the best learner of trees (greedy, greedy on the inputs' signs, boosted), last "
    "four positions",
    read=_compute_tree_ratio,
)
_TREE_CLAIM = Claim(
    name="trees: better than tree learners",
    statement="Trained on decision trees, the model has a lower error than learners that fit trees to the context.",
    source=f"{PAPER}, for XGBoost as boosted trees, here scikit-learn's gradient boosting; the margin is ours",
    value=TREE_RATIO,
    control=make_constant_control(TREE_RATIO, 1.0, "1, the ratio for the best of the learners"),
    direction="below",
    margin=MIN_RATIO_CHANGE,
    by_paper=True,
)
