"""Loss of the model compared with the baselines of its task."""

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.tasks.base import Batch


@analysis(
    title="Loss compared with baselines",
    description="""
        Error of the model and of every baseline of its task at each scored position, averaged over sequences. All
        predictors see the same prompts. The relative error divides by the error of the baseline that copies the last
        term, |x[n+1] - x[n]|^2, at the same position: where a sequence converges, copying becomes nearly correct, and
        only the relative error separates predictors that know the rule from predictors that do not.
    """,
    sites=["output"],
)
def loss_vs_baselines(acts: Capture) -> xr.Dataset:
    """Compute the error of the model and of the baselines at each scored position.

    Args:
        acts: a capture of a batch with targets, with ``output``; it may have baselines.

    Returns:
        ``error`` by predictor and position; ``scored``, the mean over positions with the weights of training; and
        ``relative``, the error over that of the baseline ``copy``, if the task has one. Squared error of vectors,
        negative log-likelihood of tokens in nats.

    Raises:
        ValueError: the capture has no targets.
    """
    batch = acts.batch
    if batch is None:
        raise ValueError("loss_vs_baselines needs targets, but only inputs were captured; capture a Batch")
    predictions = {"model": acts["output"], **acts.baselines}
    losses = torch.stack([loss_per_position(p, batch.targets) for p in predictions.values()])
    scored_positions = (batch.weight > 0).any(0)
    error = losses[:, :, scored_positions].mean(1)
    coords = {"predictor": list(predictions), "pos": scored_positions.nonzero()[:, 0].tolist()}
    unit = "nat" if not batch.targets.is_floating_point() else "squared units of the terms"
    variables = {
        "error": to_data_array(
            error, "predictor", "pos", units=unit, description="mean error at each position", coords=coords
        ),
    }
    scored = (losses * batch.weight).sum((1, 2))
    variables["scored"] = to_data_array(
        scored / batch.weight.sum(),
        "predictor",
        units=unit,
        description="mean error over positions, weighted as in training",
        coords={"predictor": list(predictions)},
    )
    if "copy" in acts.baselines:
        variables["relative"] = to_data_array(
            error / error[list(predictions).index("copy")],
            "predictor",
            "pos",
            units="1",
            description="error divided by the error of copying the last term, at the same position",
            coords=coords,
        )
    for array in variables.values():
        array.attrs["scale"] = "log"
    return xr.Dataset(variables)


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
        ``error`` by predictor and dimension of the output.

    Raises:
        ValueError: the capture has no targets, or they are not vectors.
    """
    batch = acts.batch
    if batch is None or not batch.targets.is_floating_point():
        raise ValueError("error_by_output needs vector targets, but got others; capture a Batch with vector targets")
    predictions, weight = {"model": acts["output"], **acts.baselines}, batch.weight[..., None]
    squared_errors = [(each.double() - batch.targets.double()).square() * weight for each in predictions.values()]
    error = torch.stack([each.sum((0, 1)) / weight.sum() for each in squared_errors])
    about, named = "mean squared error of each output dimension", {"predictor": list(predictions)}
    array = to_data_array(
        error, "predictor", "d_out", units="squared units of the terms", description=about, coords=named
    )
    return xr.Dataset({"error": array.assign_attrs(scale="log")})


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
        ``error`` by predictor and label. Squared error of vectors, negative log-likelihood of tokens in nats.

    Raises:
        ValueError: the capture has no batch, or the batch has no such label.
    """
    batch, label_of = get_batch_and_label(acts, of)
    scored = batch.weight > 0
    predictions = {"model": acts["output"], **acts.baselines}
    losses = [loss_per_position(each, batch.targets)[scored] for each in predictions.values()]
    label_values = label_of[scored].unique().tolist()
    error = torch.stack(
        [torch.stack([each[label_of[scored] == kind].mean() for kind in label_values]) for each in losses]
    )
    unit = "nat" if not batch.targets.is_floating_point() else "squared units of the terms"
    named = {"predictor": list(predictions), "stat": [f"{of} {kind}" for kind in label_values]}
    array = to_data_array(error, "predictor", "stat", units=unit, description=f"mean error by {of}", coords=named)
    return xr.Dataset({"error": array.assign_attrs(scale="log")})


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


def loss_per_position(
    prediction: Float[Tensor, "batch pos d_out"],
    targets: Float[Tensor, "batch pos d_out"] | Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Return the loss at every position: squared error of vectors, or negative log-likelihood of tokens in nats.

    Args:
        prediction: predicted vectors, or logits of tokens.
        targets: target vectors, or tokens.

    Returns:
        the squared error, summed over coordinates, or the negative log-likelihood.
    """
    if targets.is_floating_point():
        return (prediction.double() - targets.double()).square().sum(-1)
    return -prediction.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double()
