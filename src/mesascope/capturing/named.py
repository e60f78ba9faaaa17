"""What modules read whose names are known, as those of our own decoders are."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.capturing.arguments import on_device
from mesascope.capturing.forward import predict, quiet
from mesascope.tasks.base import Batch


def read_by(
    model: PreTrainedModel, inputs: Tensor | Batch, names: Sequence[str]
) -> dict[str, Float[Tensor, "batch pos _"]]:
    """The vectors that modules of these names read in one forward pass, in evaluation mode.

    Args:
        model: any transformers model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        names: of modules that are called once, with one tensor of vectors (batch, pos, width).

    Raises:
        ValueError: a module of this name is not there, or was not called once.
    """
    known = dict(model.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(f"modules must be the model's, but it has no {', '.join(missing)}")
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hear(name: str):
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(args[0].detach())

        return note

    hooks = [known[name].register_forward_pre_hook(hear(name)) for name in names]
    x, mask = on_device(model, inputs, None)
    try:
        with quiet(model), torch.no_grad():
            predict(model, x, mask)
    finally:
        for hook in hooks:
            hook.remove()
    uncalled = [name for name, vectors in seen.items() if len(vectors) != 1]
    if uncalled:
        raise ValueError(f"modules must be called once in a forward pass, but {', '.join(uncalled)} is not")
    return {name: vectors[0] for name, vectors in seen.items()}
