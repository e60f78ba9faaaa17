"""Recovered fraction of a metric when activations of one run are patched into another."""

import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.interventions.metrics import Metric
from mesascope.tasks.base import Batch


def validate_same_shape(inputs: Tensor | Batch, source: Tensor | Batch) -> None:
    """Check that activations of one run can be patched into another.

    Args:
        inputs: inputs of the run that is patched.
        source: inputs of the run that is patched in.

    Raises:
        ValueError: If the two differ in shape.
    """
    input_shape, source_shape = (tuple((x.inputs if isinstance(x, Batch) else x).shape) for x in (inputs, source))
    if input_shape != source_shape:
        raise ValueError(
            f"both runs must have the same number of sequences of the same length, but got shapes {input_shape} "
            f"and {source_shape}"
        )


def compute_target_metric(
    metric: Metric, output: Float[Tensor, "batch predicted d_out"], source_output: Float[Tensor, "batch pos d_out"]
) -> float:
    """Compute the mean metric of the source run, which must differ from that of the patched run.

    Args:
        metric: one number per sequence.
        output: unedited output of the run that is patched.
        source_output: output of the run that is patched in.

    Returns:
        The mean metric of the source run.

    Raises:
        ValueError: If the metric is the same on both runs.
    """
    intact, target = (float(metric(prediction).mean()) for prediction in (output, source_output))
    if abs(target - intact) <= 1e-6 * max(abs(target), abs(intact)):
        raise ValueError(
            f"the metric must differ between the two runs, but {metric.name} is {intact:.4g} on both; "
            "choose another metric or other inputs"
        )
    return target


def add_recovered_fraction(dataset: xr.Dataset, metric: Metric, target: float) -> xr.Dataset:
    """Add the fraction of the metric's difference between the two runs that each patch recovers.

    Args:
        dataset: ``value`` and ``intact``, as `sweep` returns them.
        metric: the metric of both.
        target: the metric of the source run.

    Returns:
        The dataset with ``recovered`` and ``target``.
    """
    recovered = (dataset["value"] - dataset["intact"]) / (target - dataset["intact"])
    about = f"{metric.name}: fraction recovered, from the run that is patched (0) to the source run (1)"
    return dataset.assign(
        recovered=recovered.assign_attrs(units="1", description=about, headline=1),
        target=to_data_array(target, units=metric.units, description=f"{metric.description}; on the source run"),
    )
