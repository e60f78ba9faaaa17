"""Inputs of named modules in one forward pass."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.validation.inputs import InputsLike, prepare_inputs


def module_inputs(
    model: PreTrainedModel, inputs: InputsLike, names: Sequence[str]
) -> dict[str, Float[Tensor, "batch pos _"]]:
    """Return the inputs of named modules in one forward pass in evaluation mode.

    Args:
        model: any transformers model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        names: names of modules that are called once, with one tensor (batch, pos, width).

    Raises:
        ValueError: the model has no module of a name, or a module was not called once.
    """
    modules = dict(model.named_modules())
    missing = [name for name in names if name not in modules]
    if missing:
        raise ValueError(f"names must be modules of the model, but it has no {', '.join(missing)}")
    recorded = _record_inputs(model, inputs, {name: modules[name] for name in names})
    uncalled = [name for name, vectors in recorded.items() if len(vectors) != 1]
    if uncalled:
        raise ValueError(f"modules must be called once per forward pass, but {', '.join(uncalled)} is not; omit it")
    return {name: vectors[0] for name, vectors in recorded.items()}


def _record_inputs(
    model: PreTrainedModel, inputs: InputsLike, modules: Mapping[str, nn.Module]
) -> dict[str, list[Tensor]]:
    recorded: dict[str, list[Tensor]] = {name: [] for name in modules}

    def record_input(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        recorded[name].append(args[0].detach())

    x, mask = prepare_inputs(model, inputs, None)
    with eval_no_grad(model), ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(guard_hook(partial(record_input, name))).remove)
        run_model(model, x, mask)
    return recorded
