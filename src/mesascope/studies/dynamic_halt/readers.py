"""Quantities and requirements that the claims share."""

from collections.abc import Mapping, Sequence

import xarray as xr

from mesascope.studies.base import Quantity, Requirement, Results, select_last_step
from mesascope.studies.dynamic_halt.accuracy import MODEL
from mesascope.studies.dynamic_halt.citation import CITATION
from mesascope.studies.dynamic_halt.models import GUT, TITLES
from mesascope.studies.dynamic_halt.shifts import TRAINING
from mesascope.studies.shared.selectors import select_condition_result

OURS = "ours"
SUMMARY = f"{CITATION.short}: the abstract states the question and no result; the direction is that of a public summary"
FLIP_FLOP, LIST_OPS, LOGIC = "flip_flop", "list_ops", "logic"
TASK_TITLES: Mapping[str, str] = {FLIP_FLOP: "flip-flop", LIST_OPS: "ListOps", LOGIC: "logical inference"}


def name_condition(task: str, kind: str) -> str:
    """Return the name of the condition in which a model is trained on a task; empty for GUT on expressions.

    Args:
        task: a key of `TASK_TITLES`.
        kind: of the model.
    """
    return "" if task != FLIP_FLOP and kind == GUT else f"{task}_{kind}"


def read_result(results: Results, analysis: str, task: str, kind: str) -> xr.Dataset:
    """Return the result of an analysis of a model.

    Args:
        results: of a run.
        analysis: name of the analysis.
        task: a key of `TASK_TITLES`.
        kind: of the model.
    """
    return select_condition_result(results, analysis, name_condition(task, kind))


def read_accuracy(
    results: Results, task: str, kind: str, distribution: str = TRAINING, predictor: str = MODEL
) -> xr.DataArray:
    """Return the accuracy of a trained model, or of a baseline on the same sequences, by seed.

    Args:
        results: of a run.
        task: a key of `TASK_TITLES`.
        kind: of the model.
        distribution: of the sequences.
        predictor: the model, or a baseline.
    """
    accuracy = read_result(results, "shifted_answer_accuracy", task, kind)["accuracy"]
    return select_last_step(accuracy).sel(distribution=distribution, predictor=predictor, drop=True)


def accuracy_of(task: str, kind: str, distribution: str = TRAINING, predictor: str = MODEL) -> Quantity:
    """Return the accuracy of a trained model, or of a baseline on the same sequences, as a quantity.

    Args:
        task: a key of `TASK_TITLES`.
        kind: of the model.
        distribution: of the sequences.
        predictor: the model, or a baseline.
    """
    label = TITLES[kind] if predictor == MODEL else predictor
    return Quantity(
        description=f"accuracy on {TASK_TITLES[task]}, {distribution}, {label}",
        read=lambda results: read_accuracy(results, task, kind, distribution, predictor),
    )


def lowest_accuracy_over_models(task: str, kinds: Sequence[str]) -> Quantity:
    """Return the lowest accuracy on the training distribution over models.

    Args:
        task: a key of `TASK_TITLES`.
        kinds: of the models.
    """
    return Quantity(
        description=f"lowest accuracy on {TASK_TITLES[task]} over {len(kinds)} models",
        read=lambda results: xr.concat([read_accuracy(results, task, kind) for kind in kinds], "model").min("model"),
    )


def require_accuracy(task: str, kinds: Sequence[str], minimum: float) -> Requirement:
    """Return the requirement that models have learned a task.

    Args:
        task: a key of `TASK_TITLES`.
        kinds: of the models.
        minimum: accuracy on the training distribution.
    """
    names = " and ".join(TITLES[kind] for kind in kinds)
    return Requirement(
        statement=f"{names} answer more than {minimum:.0%} of the sequences of {TASK_TITLES[task]} in distribution",
        value=lowest_accuracy_over_models(task, kinds),
        threshold=minimum,
        direction="above",
    )
