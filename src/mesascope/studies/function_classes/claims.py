"""Claims about function classes in context: the model's error and predictions, compared with those of learners."""

from collections.abc import Callable

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.function_classes.citation import CITATION
from mesascope.studies.shared.icl import MIN_SIMILARITY, least_squares_claim
from mesascope.studies.shared.selectors import select_shifted_similarity, select_similarity

PAPER = CITATION.short
SHIFTED_DISTRIBUTIONS = (
    "inputs twice as large",
    "correlated inputs",
)  # with noise, the error of least squares is unbounded
LAST_POSITIONS = slice(-4, None)  # the last four: with fewer pairs, learners predict little
MAX_FINAL_ERROR = 0.1  # ours: of the error of predicting 0
MAX_ERROR_RATIO = 1.2  # ours: over the error of the learner


def function_class_claims() -> tuple[Claim, ...]:
    """Return the claims on linear functions, sparse functions, networks and trees."""
    return (
        *_LINEAR_CLAIMS,
        *_SPARSE_CLAIMS,
        *_NETWORK_CLAIMS,
        _tree_claim("greedy trees", "a tree that is fitted greedily to the context", "greedy tree"),
        _tree_claim(
            "greedy trees of signs", "a greedy tree that is fitted to the inputs' signs", "greedy tree of signs"
        ),
        _tree_claim(
            "boosted trees",
            "boosted trees that are fitted to the context",
            "boosted trees",
            f"{PAPER}, for XGBoost; here scikit-learn's gradient boosting",
        ),
    )


def _tree_claim(name: str, words: str, learner: str, source: str = PAPER) -> Claim:
    return Claim(
        name=f"trees: better than {name}",
        statement=f"Trained on decision trees, the model has a lower error than {words}.",
        source=source,
        value=Quantity(
            description=f"error over that of the {learner}, last four positions",
            read=lambda results: _compute_late_ratio(results, "tree", learner),
        ),
        control=Quantity(
            description="the same ratio for the untrained model",
            read=lambda results: _compute_late_ratio(results, "tree", learner, select_step=select_untrained),
        ),
        direction="below",
        threshold=1.0,
    )


def _select_trained_similarity(predictor: str, **selection: str) -> Callable[[Results], xr.DataArray]:
    return lambda results: select_last_step(select_similarity(results, predictor, **selection))


def _compute_error_ratio(results: Results, result: str) -> xr.DataArray:
    error = select_last_step(results[result]["scored"])
    return error.sel(predictor="model", drop=True) / error.sel(predictor="least squares", drop=True)


def _compute_late_ratio(
    results: Results,
    condition: str,
    learner: str,
    *,
    predictor: str = "model",
    select_step: Callable[[xr.DataArray], xr.DataArray] = select_last_step,
) -> xr.DataArray:
    error = select_step(results[f"{condition}_loss_vs_baselines"]["error"]).isel(pos=LAST_POSITIONS).mean("pos")
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor=learner, drop=True)


def _compute_final_error(results: Results, predictor: str) -> xr.DataArray:
    error = select_last_step(results["loss_vs_baselines"]["error"]).isel(pos=-1, drop=True)
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor="zero", drop=True)


_LINEAR_CLAIMS = (
    least_squares_claim(
        "linear: least squares",
        "Trained on linear functions, the model predicts as least squares does.",
        PAPER,
    ),
    Claim(
        name="linear: error after the context",
        statement="After twice as many pairs as dimensions, the error is at most 10 % of that of predicting 0.",
        source=f"{PAPER}; the threshold is ours",
        value=Quantity(
            description="squared error at the last position over that of predicting 0",
            read=lambda results: _compute_final_error(results, "model"),
        ),
        control=Quantity(
            description="the same ratio for averaging input times target",
            read=lambda results: _compute_final_error(results, "averaging"),
        ),
        direction="below",
        threshold=MAX_FINAL_ERROR,
    ),
    Claim(
        name="linear: out of distribution",
        statement="The model predicts as least squares does on correlated and on larger inputs.",
        source=f"{PAPER}, which reports robustness to most shifts; the threshold is ours",
        value=Quantity(
            description="fraction of the variance that least squares explains, lower of the two distributions",
            read=lambda results: select_shifted_similarity(results, "least squares", SHIFTED_DISTRIBUTIONS),
        ),
        control=Quantity(
            description="the same fraction for the nearest neighbours",
            read=lambda results: select_shifted_similarity(results, "nearest neighbours", SHIFTED_DISTRIBUTIONS),
        ),
        direction="above",
        threshold=MIN_SIMILARITY,
    ),
)

_SPARSE_CLAIMS = (
    Claim(
        name="sparse: better than least squares",
        statement="Trained on sparse functions, the model has a lower error than least squares.",
        source=PAPER,
        value=Quantity(
            description="error over that of least squares, all positions",
            read=lambda results: _compute_error_ratio(results, "sparse_loss_vs_baselines"),
        ),
        control=Quantity(
            description="the same ratio on dense functions, where least squares is optimal",
            read=lambda results: _compute_error_ratio(results, "loss_vs_baselines"),
        ),
        direction="below",
        threshold=1.0,
    ),
    Claim(
        name="sparse: lasso",
        statement="Trained on sparse functions, the model agrees more with the lasso than with least squares.",
        source=f"{PAPER}, for errors",
        value=Quantity(
            description="fraction of the variance of the predictions that the fitted lasso explains",
            read=_select_trained_similarity("lasso", result="sparse_which_algorithm"),
        ),
        control=Quantity(
            description="the same fraction for least squares",
            read=_select_trained_similarity("least squares", result="sparse_which_algorithm"),
        ),
        direction="above",
    ),
)

_ON_LINEAR_FUNCTIONS = {"distribution": "linear functions", "result": "network_linear_algorithms"}
_NETWORK_CLAIMS = (
    Claim(
        name="networks: trained network",
        statement="The model's error is at most 20 % above that of a network that is trained on the context.",
        source=f"{PAPER}; the threshold is ours",
        value=Quantity(
            description="error over that of the trained network, last four positions",
            read=lambda results: _compute_late_ratio(results, "network", "trained network"),
        ),
        control=Quantity(
            description="the same ratio for the mean of 3 nearest neighbours",
            read=lambda results: _compute_late_ratio(
                results, "network", "trained network", predictor="3 nearest neighbours"
            ),
        ),
        direction="below",
        threshold=MAX_ERROR_RATIO,
    ),
    Claim(
        name="networks: linear functions",
        statement="Trained on networks, the model predicts as least squares does on linear functions.",
        source=f"{PAPER}, for errors; the threshold is ours",
        value=Quantity(
            description="fraction of the variance of predictions on linear functions that least squares explains",
            read=_select_trained_similarity("least squares", **_ON_LINEAR_FUNCTIONS),
        ),
        control=Quantity(
            description="the same fraction for the nearest neighbours",
            read=_select_trained_similarity("nearest neighbours", **_ON_LINEAR_FUNCTIONS),
        ),
        direction="above",
        threshold=MIN_SIMILARITY,
    ),
)
