"""Selectors of results that several studies read: similarity to algorithms, and probe error over depth."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained


def select_condition_result(results: Results, analysis: str, condition: str) -> xr.Dataset:
    """Return the result of an analysis in one condition.

    Args:
        results: of a run.
        analysis: name of the analysis.
        condition: name of the condition; empty for the main one.
    """
    return results[f"{condition}_{analysis}" if condition else analysis]


def select_similarity(
    results: Results,
    predictor: str,
    *,
    stat: str = "predictions",
    distribution: str = TRAINING_DISTRIBUTION,
    result: str = "which_algorithm",
) -> xr.DataArray:
    """Return the similarity of an algorithm and the model at each checkpoint, as computed by `which_algorithm`.

    Args:
        results: of a run.
        predictor: name of the algorithm.
        stat: the compared statistic.
        distribution: of the sequences.
        result: name of the result, such as ``two_which_algorithm``.

    Returns:
        similarity with the axes seed and step.
    """
    return results[result]["similarity"].sel(distribution=distribution, predictor=predictor, stat=stat, drop=True)


def select_shifted_similarity(
    results: Results, predictor: str, distributions: Sequence[str] | None = None, *, result: str = "which_algorithm"
) -> xr.DataArray:
    """Return the lowest similarity of an algorithm and the trained model over shifted distributions.

    Args:
        results: of a run.
        predictor: name of the algorithm.
        distributions: those to take the minimum over; None for all but the training distribution.
        result: name of the result, such as ``two_which_algorithm``.

    Returns:
        similarity of the predictions with the axis seed.
    """
    similarity = select_last_step(results[result]["similarity"])
    similarity = similarity.sel(predictor=predictor, stat="predictions", drop=True)
    if distributions is None:
        return similarity.drop_sel(distribution=TRAINING_DISTRIBUTION).min("distribution")
    return similarity.sel(distribution=list(distributions)).min("distribution")


def compute_log_error_changes(error: xr.DataArray) -> xr.DataArray:
    """Return the change of log10 error from each depth to the next; negative where the error falls.

    Args:
        error: positive errors with the axis ``layer``.
    """
    return xr.apply_ufunc(np.log10, error).diff("layer")


def refinement_claim(name: str, statement: str, source: str) -> Claim:
    """Return the claim that the error of the linear probe falls at every depth.

    Args:
        name, statement, source: of the claim.
    """
    return Claim(
        name=name,
        statement=statement,
        source=source,
        value=Quantity(
            description="largest change of the log10 error of the linear probe from one depth to the next",
            read=lambda results: _largest_change(select_last_step(_select_probe_error(results))),
        ),
        control=Quantity(
            description="the same change in the untrained model",
            read=lambda results: _largest_change(select_untrained(_select_probe_error(results))),
        ),
        direction="below",
        threshold=0.0,
    )


def _select_probe_error(results: Results) -> xr.DataArray:
    return results["probe_and_logit_lens"]["affine_error"]


def _largest_change(error: xr.DataArray) -> xr.DataArray:
    return compute_log_error_changes(error).max("layer")
