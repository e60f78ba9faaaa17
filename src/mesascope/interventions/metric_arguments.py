"""Metrics from the arguments of sweeps and patches: names, functions and metrics."""

from collections.abc import Callable

from torch import Tensor

from mesascope.interventions.metrics import Metric, kl_divergence, loss, squared_distance
from mesascope.tasks.base import Batch

METRIC_NAMES = ("kl_divergence", "squared_distance", "loss")


def resolve_directed_metric(metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch) -> Metric:
    """Return the metric of a patch, which must not be a distance from the unedited output.

    Args:
        metric: a metric, or a function from (batch, pos, d_out) to (batch).
        inputs: the run that is patched.

    Returns:
        The metric.

    Raises:
        ValueError: If the metric is given by name, or is not defined for the model's output.
    """
    if isinstance(metric, str):
        raise ValueError(
            f"patch needs a metric that differs between the runs, such as logit_difference, but got {metric!r}"
        )
    resolved_metric = resolve_metric(metric, inputs)
    assert isinstance(resolved_metric, Metric)
    return resolved_metric


def resolve_metric(
    metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch
) -> Metric | Callable[[Tensor], Metric]:
    """Return the metric for a name or a function.

    Args:
        metric: a metric, one of the names in `METRIC_NAMES`, or a function from (batch, pos, d_out) to (batch).
        inputs: tokens, vectors, or a batch of a task.

    Returns:
        The metric; for a distance from the unedited output, a function from that output to the metric.

    Raises:
        ValueError: If there is no such name, or the metric is not defined for the model's output.
    """
    _validate_output_kind(metric, inputs)
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = getattr(metric, "__name__", "metric")
        return Metric(name=name, units="units of the metric", description=f"{name}, a user-defined function", fn=metric)
    if metric not in METRIC_NAMES:
        names = ", ".join(METRIC_NAMES)
        raise ValueError(f"a metric must be one of {names}, a Metric or a function, but got {metric!r}")
    return {"kl_divergence": kl_divergence, "squared_distance": squared_distance}.get(metric) or loss(inputs)


def _validate_output_kind(metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch) -> None:
    vectors = (inputs.targets if isinstance(inputs, Batch) else inputs).is_floating_point()
    output_kind = metric.output_kind if isinstance(metric, Metric) else "tokens" if metric == "kl_divergence" else ""
    if output_kind and vectors == (output_kind == "tokens"):
        name, predicted = metric.name if isinstance(metric, Metric) else metric, "vectors" if vectors else "tokens"
        raise ValueError(f"{name} needs a model that predicts {output_kind}, but this one predicts {predicted}")
