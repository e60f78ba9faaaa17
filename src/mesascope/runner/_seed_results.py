"""Results of one seed of one condition, stored at once, so that a stopped run resumes from them."""

import json
from collections.abc import Mapping

import xarray as xr

from mesascope.store import Run
from mesascope.studies.base import Condition

STAMP = "stamp"


def save_seed_results(
    run: Run, condition: Condition, seed: int, stamp: Mapping[str, str], results: Mapping[str, xr.Dataset]
) -> None:
    """Save the results of one seed.

    Args:
        run: The run.
        condition: The condition.
        seed: The training replicate.
        stamp: What determines the results.
        results: The results of its analyses, by result name.
    """
    for analysis in condition.analyses:
        name = condition.result_name(analysis)
        run.save_partial(_part_name(name, seed), results[name].assign_attrs({STAMP: _format_stamp(stamp)}))


def load_seed_results(
    run: Run, condition: Condition, seed: int, stamp: Mapping[str, str]
) -> dict[str, xr.Dataset] | None:
    """Load the results of one seed.

    Args:
        run: The run.
        condition: The condition.
        seed: The training replicate.
        stamp: What determines the results.

    Returns:
        The results of its analyses, by result name; None unless all are stored and have this stamp.
    """
    results = {}
    for analysis in condition.analyses:
        name = condition.result_name(analysis)
        part = run.load_partial(_part_name(name, seed))
        if part is None or part.attrs.pop(STAMP, None) != _format_stamp(stamp):
            return None
        results[name] = part
    return results


def _part_name(name: str, seed: int) -> str:
    return f"{name}-seed={seed}"


def _format_stamp(stamp: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(stamp.items())))
