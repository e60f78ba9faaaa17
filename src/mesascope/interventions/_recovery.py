"""Recovered fraction of a metric when activations of one run are patched into another."""

import numpy as np
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.interventions._edit_runner import EditRunner
from mesascope.interventions.metrics import Metric

MIN_DIFFERENCE = 1e-6  # of the metric between two runs, relative


def compute_target_metric(
    metric: Metric,
    edit_runner: EditRunner,
    source_output: Float[Tensor, "batch pos d_out"],
    source_mask: Int[Tensor, "batch pos"] | None,
) -> Float[Tensor, " batch"]:
    """Compute the metric of the source run, whose mean must differ from that of the patched run.

    Args:
        metric: one number per sequence.
        edit_runner: holds the run that is patched.
        source_output: output of the run that is patched in.
        source_mask: 1 where an input of that run is not padding.

    Returns:
        The metric of each sequence of the source run.

    Raises:
        ValueError: If the metric is the same on both runs.
    """
    target_values = metric(source_output, source_mask)
    target = float(target_values.mean())
    intact = float(metric(edit_runner.unedited_output, edit_runner.attention_mask).mean())
    if abs(target - intact) <= MIN_DIFFERENCE * max(abs(target), abs(intact)):
        raise ValueError(
            f"the metric must differ between the two runs, but {metric.name} is {intact:.4g} on both; "
            "choose another metric or other inputs"
        )
    return target_values


def add_recovered_fraction(dataset: xr.Dataset, metric: Metric) -> xr.Dataset:
    """Add the fraction of the metric's difference between the two runs that each patch recovers.

    Args:
        dataset: ``value``, ``intact`` and ``target``, as `run_sweep` returns them.
        metric: the metric of all three.

    Returns:
        The dataset with ``recovered``: NaN where the metric is the same on both runs over the sequences that count.
    """
    intact, target = dataset["intact"], dataset["target"]
    differs = abs(target - intact) > MIN_DIFFERENCE * np.maximum(abs(target), abs(intact))
    recovered = ((dataset["value"] - intact) / (target - intact).where(differs)).transpose(*dataset["value"].dims)
    about = f"{metric.name}: fraction recovered, from the run that is patched (0) to the source run (1)"
    return dataset.assign(recovered=recovered.assign_attrs(units="1", description=about, headline=1))
