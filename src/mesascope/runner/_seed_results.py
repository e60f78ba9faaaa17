"""Results of one seed of one condition, stored at once, so that a stopped run resumes from them."""

import json
from collections.abc import Mapping

import xarray as xr

from mesascope.store import LogFn, Run, do_nothing
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
        save_stamped(run, _part_name(name, seed), stamp, results[name])


def load_seed_results(
    run: Run, condition: Condition, seed: int, stamp: Mapping[str, str], log: LogFn = do_nothing
) -> dict[str, xr.Dataset] | None:
    """Load the results of one seed.

    Args:
        run: The run.
        condition: The condition.
        seed: The training replicate.
        stamp: What determines the results.
        log: Receives one line if a file is damaged.

    Returns:
        The results of its analyses, by result name; None unless all are stored and have this stamp.
    """
    results = {}
    for analysis in condition.analyses:
        name = condition.result_name(analysis)
        part = load_stamped(run, _part_name(name, seed), stamp, log)
        if part is None:
            return None
        results[name] = part
    return results


def save_stamped(run: Run, name: str, stamp: Mapping[str, str], dataset: xr.Dataset) -> None:
    """Save a partial result with its stamp.

    Args:
        run: The run.
        name: The name of the partial result.
        stamp: What determines it.
        dataset: The partial result.
    """
    run.save_partial(name, dataset.assign_attrs({STAMP: _format_stamp(stamp)}))


def load_stamped(run: Run, name: str, stamp: Mapping[str, str], log: LogFn = do_nothing) -> xr.Dataset | None:
    """Load a partial result if it has this stamp.

    Args:
        run: The run.
        name: The name of the partial result.
        stamp: What determines it.
        log: Receives one line if the file is damaged.

    Returns:
        The dataset without the stamp, or None.
    """
    part = run.load_partial(name, log)
    return part if part is not None and part.attrs.pop(STAMP, None) == _format_stamp(stamp) else None


def _part_name(name: str, seed: int) -> str:
    return f"{name}-seed={seed}"


def _format_stamp(stamp: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(stamp.items())))
