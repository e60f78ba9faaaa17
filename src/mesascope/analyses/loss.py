"""Loss of the model compared with the baselines of its task."""

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.sequence_losses import (
    SequenceLosses,
    mean_loss_per_sequence,
    measure_losses,
)
from mesascope.analyses.uncertainty import with_standard_error
from mesascope.axes import to_data_array
from mesascope.statistics import MIN_LOSS, ratio_of_sums
from mesascope.tasks.base import Batch


@analysis(
    title="Loss compared with baselines",
    description=r"""
        Error of the model and of every baseline of its task at each scored position, averaged over sequences. All
        predictors see the same prompts. The relative error divides by the error of the baseline that copies the last
        term, $\lVert x_{n+1} - x_n \rVert^2$, at the same position: where a sequence converges, copying becomes nearly
        correct, and only the relative error separates predictors that know the rule from predictors that do not. The
        mean log10 loss takes the logarithm of the loss of each sequence before the mean, so that a few sequences with
        large terms do not decide it.
    """,
    sites=["output"],
    evaluation=True,
)
def loss_vs_baselines(acts: Capture | SequenceLosses) -> xr.Dataset:
    """Compute the error of the model and of the baselines at each scored position.

    Args:
        acts: a capture of a batch with targets, with ``output``; it may have baselines. Or the losses of the model and
            of the baselines on more sequences than a capture holds.

    Returns:
        ``error`` by predictor and position; ``scored``, the mean over positions with the weights of training;
        ``mean_log10_loss``, the mean over sequences of log10 of the same mean within one sequence; and ``relative``,
        the error over that of the baseline ``copy``, if the task has one. Squared error of vectors, negative
        log-likelihood of tokens in nats. Each has its standard error over draws of the sequences, such as
        ``error_se``.

    Raises:
        ValueError: the capture has no targets.
    """
    losses = acts if isinstance(acts, SequenceLosses) else _measure_capture(acts)
    scored_positions = (losses.weight > 0).any(0)
    by_position = losses.values[:, :, scored_positions].transpose(1, 2)
    predictors = {"predictor": list(losses.predictors)}
    coords = predictors | {"pos": scored_positions.nonzero()[:, 0].tolist()}
    results = with_standard_error(*_label_ratio("error", by_position, torch.ones(1), losses.unit, coords))
    weighted = losses.weighted.sum(-1)
    results |= with_standard_error(*_label_ratio("scored", weighted, losses.weight.sum(-1), losses.unit, predictors))
    logs = mean_loss_per_sequence(losses).clamp_min(MIN_LOSS).log10()
    results |= with_standard_error(
        *_label_ratio("mean_log10_loss", logs, torch.ones(1), f"log10 {losses.unit}", predictors)
    )
    if "copy" in losses.predictors:
        copy = by_position[losses.predictors.index("copy")]
        results |= with_standard_error(*_label_ratio("relative", by_position, copy, "1", coords))
    return xr.Dataset(results)


DESCRIPTIONS = {
    "error": "mean error at each position",
    "scored": "mean error over positions, weighted as in training",
    "mean_log10_loss": "mean over sequences of log10 of the mean error of the sequence",
    "relative": "error divided by the error of copying the last term, at the same position",
}


def _measure_capture(acts: Capture) -> SequenceLosses:
    if acts.batch is None:
        raise ValueError("loss_vs_baselines needs targets, but only inputs were captured; capture a Batch")
    return measure_losses({"model": acts["output"], **acts.baselines}, acts.batch)


def _label_ratio(
    name: str,
    numerator: Float[Tensor, "*rest batch"],
    denominator: Float[Tensor, "*other"],
    unit: str,
    coords: dict[str, list],
) -> tuple[str, xr.DataArray, Float[Tensor, "*rest"]]:
    """Return the name, the labelled ratio of sums over sequences, and its standard error."""
    ratio, standard_error = ratio_of_sums(numerator, denominator)
    array = to_data_array(ratio, *coords, units=unit, description=DESCRIPTIONS[name], coords=coords)
    return name, array if name == "mean_log10_loss" else array.assign_attrs(scale="log"), standard_error


@analysis(
    title="Error per output dimension",
    description="""
        Squared error of the model and of every baseline at scored positions, separately for each dimension of the
        output. It shows which dimensions are learned first.
    """,
    sites=["output"],
)
def error_by_output(acts: Capture) -> xr.Dataset:
    """Compute the squared error of the model and of the baselines for each dimension of the output.

    Args:
        acts: a capture of a batch whose targets are vectors, with ``output``.

    Returns:
        ``error`` by predictor and dimension of the output, and its standard error ``error_se``.

    Raises:
        ValueError: the capture has no targets, or they are not vectors.
    """
    batch = acts.batch
    if batch is None or not batch.targets.is_floating_point():
        raise ValueError("error_by_output needs vector targets, but got others; capture a Batch with vector targets")
    predictions, weight = {"model": acts["output"], **acts.baselines}, batch.weight[..., None]
    squared_errors = [(each.double() - batch.targets.double()).square() * weight for each in predictions.values()]
    by_sequence = torch.stack([each.sum(1).T for each in squared_errors])
    error, standard_error = ratio_of_sums(by_sequence, batch.weight.sum(1))
    about, named = "mean squared error of each output dimension", {"predictor": list(predictions)}
    array = to_data_array(
        error, "predictor", "d_out", units="squared units of the terms", description=about, coords=named
    )
    return xr.Dataset(with_standard_error("error", array.assign_attrs(scale="log"), standard_error))


@analysis(
    title="Error per query label",
    description="""
        Error of the model and of every baseline at scored positions, averaged over the positions of each label. It
        shows whether rare labels are learned later.
    """,
    sites=["output"],
)
def error_by_label(acts: Capture, of: str) -> xr.Dataset:
    """Compute the error of the model and of the baselines for each label of the scored positions.

    Args:
        acts: a capture of a batch with labels, with ``output``.
        of: name of a latent of the task that is an integer at every position.

    Returns:
        ``error`` by predictor and label, and its standard error ``error_se``. Squared error of vectors, negative
        log-likelihood of tokens in nats.

    Raises:
        ValueError: the capture has no batch, or the batch has no such label.
    """
    batch, label_of = get_batch_and_label(acts, of)
    scored = batch.weight > 0
    losses = measure_losses({"model": acts["output"], **acts.baselines}, batch)
    label_values = label_of[scored].unique().tolist()
    masks = torch.stack([(label_of == kind) & scored for kind in label_values]).cpu()
    error, standard_error = ratio_of_sums(torch.where(masks, losses.values[:, None], 0.0).sum(-1), masks.sum(-1))
    named = {"predictor": list(losses.predictors), "stat": [f"{of} {kind}" for kind in label_values]}
    array = to_data_array(
        error, "predictor", "stat", units=losses.unit, description=f"mean error by {of}", coords=named
    )
    return xr.Dataset(with_standard_error("error", array.assign_attrs(scale="log"), standard_error))


def get_batch_and_label(acts: Capture, label_name: str) -> tuple[Batch, Int[Tensor, "batch pos"]]:
    """Return the batch of a capture and one of its labels.

    Args:
        acts: a capture.
        label_name: name of the label.

    Returns:
        the batch, and the label at every position.

    Raises:
        ValueError: there is no batch, or no such label.
    """
    labels = {} if acts.batch is None else acts.batch.categorical_latents
    if acts.batch is None or label_name not in labels:
        raise ValueError(
            f"a label must be among those of the batch ({', '.join(labels) or 'it has none'}), but got {label_name!r}"
        )
    return acts.batch, labels[label_name]
