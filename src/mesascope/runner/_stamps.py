"""Stamps of results: weights, data, analyses and code version, which determine them besides the run's description."""

import hashlib
import inspect
from collections.abc import Sequence

from mesascope.analyses import Analysis
from mesascope.store import CHECKPOINT_FILE, Run
from mesascope.store.provenance import collect_provenance
from mesascope.studies.base import Condition
from mesascope.tasks.base import Task


def stamp_condition(run: Run, condition: Condition, task: Task, scale: str, seeds: Sequence[int]) -> dict[str, str]:
    """Return the stamp of the results of a condition, whose checkpoints must exist.

    Args:
        run: The run, with access to any condition's models.
        condition: The condition.
        task: Its task, prepared.
        scale: The name of the scale.
        seeds: The training replicates.

    Returns:
        Texts by name; results are valid only while all of them stay the same.
    """
    weights, models = hashlib.sha256(), run.for_condition(condition.name)
    for seed in seeds:
        for step in condition.scales[scale].training.checkpoint_steps:
            weights.update((models.seed_path(seed) / f"step={step}" / CHECKPOINT_FILE).read_bytes())
    analyses = hashlib.sha256("\n".join(map(_describe_analysis, condition.analyses)).encode())
    data = {"data": task.token_digest} if task.token_digest else {}
    return {"weights": weights.hexdigest(), "analyses": analyses.hexdigest(), **data, **stamp_code()}


def stamp_code() -> dict[str, str]:
    """Return the versions of the package, of its source code and of torch."""
    provenance = collect_provenance()
    return {name: provenance[name] for name in ("mesascope", "revision", "torch")}


def _describe_analysis(analysis: Analysis) -> str:
    """Return name, options and source code of an analysis, which may be defined in a user's file."""
    try:
        source = inspect.getsource(analysis.compute)
    except (OSError, TypeError):  # defined in an interpreter
        source = ""
    return f"{analysis.name} {sorted((name, str(value)) for name, value in analysis.options.items())} {source}"
