"""Gradients of the loss by what flows through the layers, with no more than one layer's graph in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from mesascope.activations.hooks.module_hooks import ORIGINAL, running
from mesascope.activations.layer_spec import Layer
from mesascope.tasks.base import Batch

Objective = Callable[[Tensor], Tensor]

CHUNK = 256  # positions whose loss is computed at once


@contextmanager
def differentiable(model: PreTrainedModel, layers: Sequence[Layer], thrifty: bool = True) -> Iterator[None]:
    """While this lasts, graphs are built, for activations and not for weights.

    Args:
        model: whose weights need no gradient meanwhile.
        layers: where its blocks are.
        thrifty: each block is run again when its gradient is taken, in place of keeping its graph.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    blocks = [model.get_submodule(layer.block) for layer in layers] if thrifty else []
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with running(blocks, [_run_again(block.forward) for block in blocks]), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def backward(
    prediction: Float[Tensor, "batch pos d_out"],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    batch: Batch | None,
    objective: Objective | None = None,
) -> None:
    """Send the gradient of the summed loss back through the model, a few positions' loss at a time.

    The loss is cross-entropy on tokens and the squared error on vectors; positions that are not scored have none.

    Args:
        prediction: of the model, with its graph.
        inputs: what it read: where there is no batch, the next token is the target.
        mask: 1 where an input is real.
        batch: targets and weights of these sequences.
        objective: a number for each sequence in place of the loss, from the predictions.
    """
    if objective is not None:
        leaf = prediction.detach().requires_grad_()
        torch.autograd.backward(prediction, torch.autograd.grad(objective(leaf).sum(), leaf)[0])
        return
    targets, weight = scored(prediction, inputs, mask, batch)
    gradient = torch.empty_like(prediction)
    for start in range(0, prediction.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        leaf = prediction[:, part].detach().requires_grad_()
        loss = losses(leaf, targets[:, part]) * weight[:, part]
        (gradient[:, part],) = torch.autograd.grad(loss.sum(), leaf)
    torch.autograd.backward(prediction, gradient)


def scored(
    prediction: Float[Tensor, "batch pos d_out"],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    batch: Batch | None,
) -> tuple[Shaped[Tensor, "batch pos *d_out"], Float[Tensor, "batch pos"]]:
    """Targets, and how much each position counts."""
    if batch is not None:
        return batch.targets, batch.weight.to(prediction.dtype)
    if inputs.is_floating_point():
        raise ValueError("a gradient needs a loss: vectors must come as a Batch with targets, but got inputs alone")
    weight = torch.ones(inputs.shape, dtype=prediction.dtype, device=inputs.device)
    weight[:, -1] = 0
    if mask is not None:
        weight[:, :-1] *= mask[:, 1:] * mask[:, :-1]
    return inputs.roll(-1, 1), weight


def losses(
    prediction: Float[Tensor, "batch pos d_out"], targets: Shaped[Tensor, "batch pos *d_out"]
) -> Float[Tensor, "batch pos"]:
    """The loss at every position."""
    if targets.is_floating_point():
        return (prediction - targets).square().sum(-1)
    return functional.cross_entropy(prediction.float().mT, targets, reduction="none").to(prediction.dtype)


def _run_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward whose graph is made anew when it is needed; its original stays at hand."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)

    setattr(run, ORIGINAL, forward)
    return run
