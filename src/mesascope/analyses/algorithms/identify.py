"""Identification of the algorithm whose predictions, errors and weights on the context agree best with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.algorithms._by_depth import BOOTSTRAP_DRAWS, NO_ALGORITHM, compare_by_depth
from mesascope.analyses.algorithms._by_distribution import compare_by_distribution, compare_predictions
from mesascope.analyses.algorithms._ties import (
    Evidence,
    break_ties,
    cap_errors,
    error_scale,
    find_candidates,
    name_tied,
)
from mesascope.analyses.algorithms.agreement import (
    PredictionsAtQueries,
    Predictor,
    predict_at_queries,
    read_answers_by_depth,
)
from mesascope.analyses.algorithms.fit import Answers, FittedAlgorithm, fit_hyperparameters, fit_iterations
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.statistics import bootstrap_counts, derangement, split_halves
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.icl.base import InContextTask

TRAINING_DISTRIBUTION = "training distribution"
INTERVAL_QUANTILES = (0.025, 0.975)


@analysis(
    title="Nearest algorithm",
    description="""
        Agreement of the model with algorithms that it may have learned. The hyperparameters of each algorithm
        (iterations, step size, ridge) are fitted to the predictions of the model on half of the sequences; everything
        is evaluated on the other half, and on sequences of other distributions with the same hyperparameters.
        Similarity of predictions: the fraction of the variance of the model's predictions that those of the algorithm
        explain, position by position (1: equal; 0: no better than their mean). Of errors: the cosine between both
        errors (Fu et al. 2024). Of weights: the cosine between the gradients of both last predictions by the context,
        averaged over sequences (Akyürek et al. 2023). Null: the same algorithm with the context of another sequence and
        the same query. In a recurrence whose terms converge all predictions are similar, so similarity is also given
        relative to the model's predicted steps from the last term (0 for a copy of it). The model is identified with
        the most similar algorithm. Ties (algorithms that a bootstrap over sequences does not distinguish from it) are
        broken by the weights, by the other distributions and by inputs on which tied algorithms differ. Of those that
        are still tied, the one with the fewest fitted hyperparameters is named; several with equally few are named
        together, because they cannot be distinguished here. No algorithm is named if the most similar one is no better
        than its null. A hyperparameter at the edge of its grid is marked, because others may fit better. Layers: the
        same for a linear probe, fitted to the answers on the first half, and for the logit lens, at every depth; only
        the number of iterations is fitted again.
    """,
    input="model",
    steps="last",
)
def which_algorithm(
    model: PreTrainedModel | Predictor,
    task: Task,
    batch: Batch,
    seed: int = 0,
    layers: bool = True,
    shifted: bool = True,
    iterations: int | None = None,
    tuned: bool = False,
) -> xr.Dataset:
    """Compare a model with the algorithms of its task, and identify it with one of them.

    Args:
        model: a model of this package, or a function from inputs to predictions.
        task: an in-context learning task; it defines the algorithms and the other distributions.
        batch: 32 or more sequences of the task.
        seed: seed of the sequences of other distributions, and of the bootstrap.
        layers: whether the residual stream is read at every depth, too; ignored for functions.
        shifted: whether other distributions are evaluated, too.
        iterations: number of iterations of iterative algorithms; fitted by default.
        tuned: whether the algorithms are also fitted to the targets on the first half of the sequences.

    Returns:
        ``similarity`` by distribution, algorithm and statistic, with ``similarity_null`` of the predictions on the
        training distribution; ``error`` of the algorithms and ``model_error``; ``named``, the identified algorithm, or
        all that cannot be distinguished; by algorithm ``low`` and ``high`` (interval of the similarity),
        ``distinguishable`` (by predictions on the training distribution), ``tied`` (after all attempts to break ties),
        ``display_name``, ``iterations``, ``fitted``, ``hyperparameters``, ``at_edge`` (1 if any of them is at the edge
        of its grid) and ``edges`` (their names); ``layer_similarity``, ``layer_iterations``, ``layer_at_edge`` and
        ``layer_nearest`` by depth; and, if ``tuned``, ``tuned_error`` of algorithms fitted to the targets, on the
        second half, with ``tuned_at_edge``.

    Raises:
        ValueError: the task is not learned in context, there are fewer than 32 sequences, or a prediction is not
            finite.
    """
    if not isinstance(task, InContextTask):
        raise ValueError(f"which_algorithm needs a task that is learned in context, but {type(task).__name__} is not")
    if len(batch) < 32:
        raise ValueError(f"which_algorithm needs 32 sequences or more, but got {len(batch)}; pass a larger batch")
    first, second = (batch[rows] for rows in split_halves(len(batch)))
    fitting, scoring = predict_at_queries(model, task, first), predict_at_queries(model, task, second)
    answers = read_answers_by_depth(model, task, batch) if layers and isinstance(model, PreTrainedModel) else {}
    first_answers = {position: values[: len(first)] for position, values in answers.items()}
    fitted, by_layer = _fit_algorithms(task, fitting, first_answers, iterations)
    shifts = task.distribution_shifts() if shifted else {}
    distributions, skipped = _predict_shifts(model, task, scoring, shifts, seed)
    similarity, errors, evidence = compare_by_distribution(model, task, distributions, fitted)
    separating, _ = _predict_shifts(model, task, scoring, task.separating_distributions(), seed)
    evidence += [compare_predictions(task, each, list(fitted.values())) for each in list(separating.values())[1:]]
    named, null = _identify_algorithm(task, scoring, fitted, evidence, seed)
    display_attrs = {"headline": 1, "view": "ranking", "first": TRAINING_DISTRIBUTION}
    compared = with_null("similarity", similarity.assign_attrs(skipped | display_attrs), null) | errors
    if tuned:
        compared |= _tune_algorithms(fitted, fitting, scoring)
    second_answers = {position: values[len(first) :] for position, values in answers.items()}
    return xr.Dataset(compared | named | compare_by_depth(task, scoring, second_answers, by_layer, seed))


def _fit_algorithms(
    task: InContextTask,
    fitting: PredictionsAtQueries,
    answers: Mapping[tuple[str, str], Answers],
    iterations: int | None,
) -> tuple[dict[str, FittedAlgorithm], dict[str, dict[tuple[str, str], FittedAlgorithm]]]:
    """Fit every algorithm to the model's predictions, and to the readout at every depth; both by its name."""
    by_name, by_layer = {}, {}
    for algorithm in (_limit_iterations(each, iterations) for each in task.candidate_algorithms()):
        fitted = fit_hyperparameters(algorithm, fitting.context, fitting.prediction, fitting.weight)
        by_name[algorithm.name] = fitted
        depths = fit_iterations(fitted, fitting.context, list(answers.values()), fitting.weight)
        by_layer[algorithm.name] = dict(zip(answers, depths, strict=True))
    return by_name, by_layer


def _limit_iterations(algorithm: Algorithm, iterations: int | None) -> Algorithm:
    if iterations is None or not algorithm.iteration_unit or iterations not in algorithm.iteration_grid:
        return algorithm
    return replace(algorithm, iteration_grid=(iterations,))


def _predict_shifts(
    model: PreTrainedModel | Predictor,
    task: InContextTask,
    scoring: PredictionsAtQueries,
    shifts: Mapping[str, InContextTask],
    seed: int,
) -> tuple[dict[str, PredictionsAtQueries], dict[str, str]]:
    """Predict on the training distribution and on all others on which the model runs, and say why it does not."""
    distributions, skipped = {TRAINING_DISTRIBUTION: scoring}, {}
    for name, shifted in shifts.items():
        batch = shifted.sample(len(scoring.batch), torch.Generator().manual_seed(seed)).to(scoring.batch.inputs.device)
        try:
            distributions[name] = predict_at_queries(model, task, batch)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, IndexError, RuntimeError) as error:  # for example of a sequence longer than the context
            skipped[f"skipped: {name}"] = " ".join(str(error).split())
    return distributions, skipped


def _identify_algorithm(
    task: InContextTask,
    scoring: PredictionsAtQueries,
    by_name: Mapping[str, FittedAlgorithm],
    evidence: Sequence[Evidence],
    seed: int,
) -> tuple[dict[str, xr.DataArray], Null]:
    fitted, variance, generator = list(by_name.values()), scoring.total_variance, torch.Generator().manual_seed(seed)
    partners = derangement(len(variance), generator).to(variance.device)
    error = cap_errors(scoring, [one(scoring.context) for one in fitted])
    null = torch.stack([_null_distance(scoring, one, partners) for one in fitted])
    counts = bootstrap_counts(len(variance), BOOTSTRAP_DRAWS, generator).to(variance.device)
    resampled_variance, nearest = variance @ counts, int(error.sum(1).argmin())
    similarity, null_margin = 1 - error @ counts / resampled_variance, (null - error) @ counts / resampled_variance
    above_null = bool(variance.sum() > 0) and bool(null_margin[nearest].quantile(INTERVAL_QUANTILES[0]) > 0)
    candidates = find_candidates(error, error_scale(task, scoring), counts)
    tied = break_ties(candidates, evidence, counts) if above_null else []
    named = to_data_array(
        np.array(name_tied(tied, fitted) if above_null else NO_ALGORITHM),
        units="text",
        description="algorithm with which the model is identified, or all that cannot be distinguished",
    )
    about = "the same with the context of another sequence, or 0 if that is more"
    control = _label_algorithms(by_name, 1 - null.sum(1) / variance.sum(), "1", about)
    described = _describe_fits(by_name, similarity, candidates, tied)
    return {"named": named} | described, Null(name="context shuffled", value=control)


def _tune_algorithms(
    by_name: Mapping[str, FittedAlgorithm], fitting: PredictionsAtQueries, scoring: PredictionsAtQueries
) -> dict[str, xr.DataArray]:
    """Fit the algorithms to the targets of one half of the sequences and compute their errors on the other half."""
    tuned = [
        fit_hyperparameters(one.algorithm, fitting.context, fitting.targets, fitting.weight) for one in by_name.values()
    ]
    errors = [scoring.mean_squared_error(one(scoring.context)) for one in tuned]
    about, edge = (
        "error of the algorithm, fitted to the targets of other sequences",
        "1 if a hyperparameter of that fit is",
    )
    return {
        "tuned_error": _label_algorithms(by_name, errors, "squared units of the targets", about),
        "tuned_at_edge": _label_algorithms(
            by_name, [int(bool(one.at_edge)) for one in tuned], "1", f"{edge} at the edge of its grid"
        ),
    }


def _describe_fits(
    by_name: Mapping[str, FittedAlgorithm],
    similarity: Float[Tensor, "algorithm draw"],
    candidates: Sequence[int],
    tied: Sequence[int],
) -> dict[str, xr.DataArray]:
    fitted = list(by_name.values())
    low, high = (similarity.quantile(quantile, dim=1) for quantile in INTERVAL_QUANTILES)
    first = [next(iter(one.hyperparameters.values()), float("nan")) for one in fitted]
    others = ["; ".join(f"{key} {value:.3g}" for key, value in one.hyperparameters.items()) for one in fitted]
    rows: dict[str, tuple[Tensor | Sequence, str, str]] = {
        "low": (low, "1", "similarity of predictions, lower end of its interval"),
        "high": (high, "1", "similarity of predictions, upper end of its interval"),
        "distinguishable": (
            [int(n not in candidates) for n in range(len(fitted))],
            "1",
            "1 if its predictions are distinguishable from those of the most similar algorithm",
        ),
        "tied": (
            [int(n in tied) for n in range(len(fitted))],
            "1",
            "1 if weights and other inputs do not distinguish it from the named algorithm either",
        ),
        "at_edge": (
            [int(bool(one.at_edge)) for one in fitted],
            "1",
            "1 if a hyperparameter is at the edge of its grid",
        ),
        "edges": ([", ".join(one.at_edge) for one in fitted], "text", "hyperparameters at the edge of their grid"),
        "display_name": ([one.name for one in fitted], "text", "name with its iterations"),
        "iterations": ([one.iteration for one in fitted], "1", "iterations, as fitted"),
        "fitted": (first, "1", "the first other hyperparameter, as fitted"),
        "hyperparameters": (others, "text", "all other hyperparameters, as fitted"),
    }
    return {name: _label_algorithms(by_name, *row) for name, row in rows.items()}


def _label_algorithms(
    by_name: Mapping[str, FittedAlgorithm], values: Tensor | Sequence, units: str, about: str
) -> xr.DataArray:
    return to_data_array(values, "predictor", units=units, description=about, coords={"predictor": list(by_name)})


def _null_distance(
    scoring: PredictionsAtQueries, fitted: FittedAlgorithm, partners: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    # distance of the model's predictions from those of the algorithm with shuffled context, or from their mean if that
    # is less; algorithms that ignore the context are compared with the mean
    variance, answers = scoring.total_variance, fitted(scoring.context)
    shuffled = fitted(scoring.context.with_shuffled_context(partners))
    error = scoring.squared_error(shuffled)
    return variance if torch.equal(answers, shuffled) or float(error.sum()) > float(variance.sum()) else error
