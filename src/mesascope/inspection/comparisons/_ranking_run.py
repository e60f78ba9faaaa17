"""Rankings of algorithms as a run: results with axes and provenance, from which the report is made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from mesascope.axes import concat_seeds
from mesascope.formulas import escape_dollars
from mesascope.inspection.comparisons._report import AlgorithmReport
from mesascope.store import Run

RESULT_NAME = "which_algorithm"


def describe_ranking(
    name: str, *, study: str | None, token_ids: str | None, sequences: int, seed: int, device: str
) -> dict[str, Any]:
    """Return the description of a run that ranks algorithms.

    Args:
        name: The name of the subject: a model or the directory of a run.
        study: The study whose task is used, if it was given.
        token_ids: The file of token ids, if one was given.
        sequences: Number of sequences.
        seed: Their seed.
        device: The device to compute on.
    """
    parameters = {"study": study, "token_ids": token_ids, "sequences": sequences, "seed": seed}
    return {
        "study": "which-algorithm",
        "title": f"The algorithm of {escape_dollars(Path(name).name)}",
        "description": (
            "In-context algorithms, ranked by how similar their predictions are to those of the model. Hyperparameters "
            "are fitted on one half of the sequences, and similarities are computed on the other half"
        ),
        "model": name,
        "device": device,
        "parameters": {key: value for key, value in parameters.items() if value is not None},
    }


def write_rankings(path: Path, description: Mapping[str, Any], reports: Sequence[AlgorithmReport]) -> Run:
    """Write the rankings of one or several models as a run.

    Args:
        path: The directory of the run; it is created, or holds a run of the same description.
        description: Of the run, from :func:`describe_ranking`.
        reports: The rankings, one per model. Those of one condition are joined along the axis ``seed``.

    Returns:
        The run, with one result per condition.

    Raises:
        RunError: If the directory holds something else.
    """
    run = Run.create(path, description)
    with run.exclusive_lock():
        conditions = dict.fromkeys(one.condition for one in reports)
        for number, condition in enumerate(conditions, start=1):
            members = [one for one in reports if one.condition == condition]
            suffix = f"_{number}" if len(conditions) > 1 else ""
            run.write_results(f"{RESULT_NAME}{suffix}", _join_seeds(members))
    return run


def _join_seeds(reports: Sequence[AlgorithmReport]) -> xr.Dataset:
    """Return the results of one condition, with the axis ``seed`` if its models are training replicates."""
    first = reports[0]
    attrs = dict(first.results.attrs)
    title = ": ".join(part for part in (attrs["title"], first.condition) if part)
    attrs |= {"title": title, "description": f"Task: {first.task}. {attrs['description']}"}
    by_seed = {one.seed: one.results for one in reports if one.seed is not None}
    return (concat_seeds(by_seed) if by_seed else first.results).assign_attrs(attrs)
