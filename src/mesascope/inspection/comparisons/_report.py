"""The comparison of one model with the algorithms of a task, and its report."""

from dataclasses import dataclass

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses import which_algorithm
from mesascope.inspection.algorithm_table import build_ranking_rows
from mesascope.store import LogFn
from mesascope.studies.registry import list_studies, load_study
from mesascope.summaries import Summarised, Summary
from mesascope.tasks.base import Task
from mesascope.tasks.icl.base import InContextTask

SEQUENCE_SEED = 2**40 + 23  # seed of the sequences, different from that of the sequences analysed by studies


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AlgorithmReport(Summarised):
    """Result of identifying the algorithm of one model.

    Attributes:
        condition: The condition of a study; empty if there is none.
        seed: The training replicate; None if there is none.
        task: The task whose algorithms were compared with the model.
        results: The dataset returned by :func:`mesascope.analyses.which_algorithm`.
    """

    condition: str
    seed: int | None
    task: str
    results: xr.Dataset

    @property
    def display_title(self) -> str:
        """Condition and seed, as shown to the user."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        return ", ".join(part for part in (self.condition, seed) if part)

    def summarise(self) -> Summary:
        """Return the algorithm that was named, and the similarity of every algorithm with its null."""
        about = ", ".join(part for part in (self.task, self.display_title) if part)
        rows = [
            (row["label"], row["hyperparameters"], f"{row['predictions']:.3f}", f"{row['null']:.3f}")
            for row in build_ranking_rows(self.results)
        ]
        header = ("algorithm", "fitted", "similarity of predictions", "null")
        return Summary(title=f"Nearest algorithm: {self.results['named'].item()} ({about})", header=header, rows=rows)


def compare_algorithms(
    condition: str,
    replicate: int | None,
    model: PreTrainedModel,
    task: InContextTask,
    sequences: int,
    seed: int,
    log: LogFn,
    task_label: str,
) -> AlgorithmReport:
    """Compare a model with the algorithms of a task.

    Args:
        condition: The condition or the checkpoint; empty if there is none.
        replicate: The training replicate; None if there is none.
        model: The model.
        task: The task.
        sequences: Number of sequences to sample.
        seed: The seed of the sequences.
        log: Receives lines of text.
        task_label: A description of the task.

    Returns:
        The report.
    """
    report = AlgorithmReport(condition=condition, seed=replicate, task=task_label, results=xr.Dataset())
    log(f"comparing algorithms with the model{': ' if report.display_title else ''}{report.display_title}")
    batch = task.sample(sequences, torch.Generator().manual_seed(SEQUENCE_SEED + seed)).to(model.device)
    results = which_algorithm(model, task, batch, seed=seed)
    return AlgorithmReport(condition=condition, seed=replicate, task=task_label, results=results)


def compare_on_task(
    label: str, model: PreTrainedModel, task: Task, sequences: int, seed: int, log: LogFn
) -> AlgorithmReport:
    """Compare a model with the algorithms of a task that must be learned in context.

    Args:
        label: The name of the checkpoint; empty if there is only one.
        model: The model.
        task: The task.
        sequences: Number of sequences to sample.
        seed: The seed of the sequences.
        log: Receives lines of text.

    Returns:
        The report.

    Raises:
        ValueError: If the task is not learned in context.
    """
    if not isinstance(task, InContextTask):
        raise ValueError(no_icl_task_message(f"the task {type(task).__name__}"))
    return compare_algorithms(label, None, model, task, sequences, seed, log, type(task).__name__)


def no_icl_task_message(subject: str) -> str:
    """Return an error message that names the studies with in-context tasks.

    Args:
        subject: What has no such task.
    """
    study_names = ", ".join(studies_with_icl_tasks())
    return f"the task must be learned in context, but {subject} has no such task; choose from {study_names}"


def studies_with_icl_tasks() -> list[str]:
    """Return the names of the studies with in-context tasks."""
    return [
        entry.name
        for entry in list_studies()
        if any(isinstance(condition.task, InContextTask) for condition in load_study(entry.name).conditions)
    ]
