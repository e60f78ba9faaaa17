"""Optimizer state as plain tensors."""

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor, nn


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of an optimizer's state.

    Args:
        optimizer: The optimizer.
        model: The model that it optimizes; it names the parameters.

    Returns:
        Tensors on the CPU, by ``PARAMETER/KEY``.
    """
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Shaped[Tensor, "..."]]
) -> None:
    """Load the tensors of :func:`state_tensors` into an optimizer, bitwise.

    Args:
        optimizer: The optimizer; its state is replaced.
        model: The model that it optimizes.
        tensors: State tensors, by ``PARAMETER/KEY``.

    Raises:
        ValueError: If a tensor belongs to no parameter of the model.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        if name not in order:
            raise ValueError(f"optimizer state must belong to the model, but it has no parameter {name}")
        state.setdefault(order.index(name), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
