"""Stamps of results: weights, data, analyses and code version, which determine them besides the run's description."""

import hashlib
import inspect
from collections.abc import Sequence

from mesascope.analyses import Analysis
from mesascope.store import CHECKPOINT_FILE, Run
from mesascope.store.provenance import collect_provenance, hash_source_code
from mesascope.store.user_code import hash_user_code
from mesascope.studies.base import Condition, Simulation
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
    code = stamp_code(condition.analyses, task, condition.model_at(scale))
    return {"weights": weights.hexdigest(), "analyses": analyses.hexdigest(), **data, **code}


def stamp_simulation(simulation: Simulation, scale: str, seeds: Sequence[int]) -> dict[str, str]:
    """Return the stamp of the results of a toy model.

    Args:
        simulation: The simulation.
        scale: The name of the scale.
        seeds: The replicates.

    Returns:
        Texts by name; results are valid only while all of them stay the same.
    """
    return {"seeds simulated": ", ".join(map(str, seeds)), **stamp_code(simulation.scales[scale])}


def stamp_code(*values: object) -> dict[str, str]:
    """Return the versions of the package and of torch, and digests of the source code.

    Args:
        *values: What else determines the results, of which a user's own file may define parts.

    Returns:
        Texts by name. The digest of the package's code also changes with uncommitted edits, unlike the revision.
    """
    provenance = collect_provenance()
    versions = {name: provenance[name] for name in ("mesascope", "revision", "torch")}
    return {**versions, "code": hash_source_code(), "user code": hash_user_code(*values)}


def _describe_analysis(analysis: Analysis) -> str:
    """Return name, options and source code of an analysis, which may be defined in a user's file."""
    try:
        source = inspect.getsource(analysis.compute)
    except (OSError, TypeError):  # defined in an interpreter
        source = ""
    return f"{analysis.name} {sorted((name, str(value)) for name, value in analysis.options.items())} {source}"
