"""Gradients of the loss with respect to activations, with the autograd graph of one layer in memory at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.hooks._block_call import ORIGINAL_FORWARD
from mesascope.activations.hooks._module_hooks import replace_forwards
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.validation.quantized_gradients import validate_quantized_gradients
from mesascope.tasks.base import Batch

ObjectiveFn = Callable[..., Tensor]  # outputs (batch, pos, d_out) and, with padding, attention_mask

LOSS_CHUNK = 256  # positions of one loss computation, which bounds the memory of the softmax


@contextmanager
def enable_activation_gradients(
    model: PreTrainedModel, layers: Sequence[LayerSpec], activation_checkpointing: bool = True
) -> Iterator[None]:
    """Enable gradients of activations but not of weights.

    Args:
        model: the model; its weights require no gradient inside the context.
        layers: the specification of every layer.
        activation_checkpointing: recompute each block in the backward pass instead of storing its graph.

    Raises:
        UnsupportedModel: a quantised module would lose the gradient.
    """
    validate_quantized_gradients(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    names = dict.fromkeys(layer.block for layer in layers)  # once each, in a model that repeats its layers
    blocks = [model.get_submodule(name) for name in names] if activation_checkpointing else []
    # a block that stopped early when it is recomputed would keep the weights of the module that it stopped in
    stops_early = not any(parameter.is_meta for parameter in model.parameters())
    try:
        for name in trainable:
            model.get_parameter(name).requires_grad_(False)
        with (
            replace_forwards(blocks, [_checkpoint_forward(block.forward) for block in blocks]),
            set_checkpoint_early_stop(stops_early),
            torch.enable_grad(),
        ):
            yield
    finally:
        for name in trainable:  # by name: offloaded weights are other objects after each forward pass
            model.get_parameter(name).requires_grad_(True)


def require_gradient(outputs: Float[Tensor, "*rest d_out"], site: str, layer: int) -> None:
    """Check that outputs are differentiable with respect to a site.

    Args:
        outputs: the outputs of a model.
        site: the name of the site.
        layer: its layer.

    Raises:
        UnsupportedModel: they are not.
    """
    if not outputs.requires_grad:
        raise UnsupportedModel(
            f"the output must be differentiable with respect to {site}, but in layer {layer} it has no gradient; "
            "choose another site"
        )


def backpropagate_loss(
    output: Float[Tensor, "batch pos d_out"],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    batch: Batch | None,
    objective: ObjectiveFn | None = None,
) -> None:
    """Backpropagate the gradient of the summed loss through the model, computing the loss of a few positions at a time.

    The loss is cross-entropy for tokens and the squared error for vectors; positions of weight 0 have none.

    Args:
        output: the model's output, with its graph.
        inputs: the model inputs: without a batch, the next token is the target.
        mask: 1 where an input is not padding.
        batch: targets and weights of these sequences.
        objective: a function from outputs to one number per sequence that replaces the loss; with padding, it must
            have a parameter ``attention_mask``.

    Raises:
        ValueError: there are no targets for vectors.
    """
    if objective is not None:
        leaf = output.detach().requires_grad_()
        values = objective(leaf) if mask is None else objective(leaf, attention_mask=mask)
        torch.autograd.backward(output, torch.autograd.grad(values.sum(), leaf)[0])
        return
    targets, weight = loss_targets(output, inputs, mask, batch)
    gradient = torch.empty_like(output)
    for start in range(0, output.shape[1], LOSS_CHUNK):
        part = slice(start, start + LOSS_CHUNK)
        leaf = output[:, part].detach().requires_grad_()
        loss = position_losses(leaf, targets[:, part]) * weight[:, part]
        (gradient[:, part],) = torch.autograd.grad(loss.sum(), leaf)
    torch.autograd.backward(output, gradient)


def loss_targets(
    output: Float[Tensor, "batch pos d_out"],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    batch: Batch | None,
) -> tuple[Shaped[Tensor, "batch pos *d_out"], Float[Tensor, "batch pos"]]:
    """Return the targets of a loss and the weight of each position.

    Padding has weight 0. Without a batch, the last position, and one whose next input is padding, have weight 0 too.

    Args:
        output: the model's output.
        inputs: the model inputs: without a batch, the next token is the target.
        mask: 1 where an input is not padding.
        batch: targets and weights of these sequences.

    Returns:
        Targets (batch, pos) or (batch, pos, d_out), and weights (batch, pos).

    Raises:
        ValueError: the inputs are vectors and there is no batch.
    """
    if batch is not None:
        weight = batch.weight.to(output.dtype)
        return batch.targets, weight if mask is None else weight * mask.to(weight)
    if inputs.is_floating_point():
        raise ValueError("gradients need a loss, but the vectors have no targets; pass a Batch with targets")
    weight = torch.ones(inputs.shape, dtype=output.dtype, device=inputs.device)
    weight[:, -1] = 0
    if mask is not None:
        weight[:, :-1] *= mask[:, 1:] * mask[:, :-1]
    return inputs.roll(-1, 1), weight


def position_losses(
    output: Float[Tensor, "batch pos d_out"], targets: Shaped[Tensor, "batch pos *d_out"]
) -> Float[Tensor, "batch pos"]:
    """Return the loss at every position.

    Args:
        output: logits or vectors.
        targets: tokens (cross-entropy) or vectors (squared error).

    Returns:
        The loss (batch, pos), in nats or squared units.
    """
    if targets.is_floating_point():
        return (output - targets).square().sum(-1)
    return functional.cross_entropy(output.float().mT, targets.long(), reduction="none").to(output.dtype)


def _checkpoint_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a forward in activation checkpointing; the original is an attribute of the result."""

    def run_checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)

    setattr(run_checkpointed, ORIGINAL_FORWARD, forward)
    return run_checkpointed
