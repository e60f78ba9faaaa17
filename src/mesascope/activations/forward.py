"""Single forward passes in evaluation mode, without gradients or cache, with the right position ids under padding."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.exclusive_use import exclusive_use, guard_hook
from mesascope.activations.hooks._module_hooks import accepts_argument
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.validation.fingerprint import list_modules

ModelInputs = Shaped[Tensor, "batch pos *d_in"]
AttentionMask = Int[Tensor, "batch pos"]
_FIRST_POSITION_IDS: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


@contextmanager
def eval_no_grad(model: PreTrainedModel) -> Iterator[None]:
    """Set evaluation mode and disable gradients, in exclusive use; every module's mode is restored on exit.

    Args:
        model: the model.
    """
    with exclusive_use(model), evaluation_mode(model), torch.no_grad():
        yield


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Set evaluation mode, in which dropout does nothing; every module's mode is restored on exit.

    Args:
        model: the model.
    """
    training = [module for module in list_modules(model) if module.training]
    try:
        if training:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def run_model(
    model: PreTrainedModel, inputs: ModelInputs, mask: AttentionMask | None = None, *, all_positions: bool = True
) -> Float[Tensor, "batch predicted d_out"]:
    """Run a forward pass and return the logits or predicted vectors.

    Args:
        model: the model.
        inputs: tokens (batch, pos) or vectors (batch, pos, d_in).
        mask: as in `run_forward`.
        all_positions: as in `run_forward`.

    Raises:
        UnsupportedModel: the model has no logits in its output.
    """
    return run_forward(model, inputs, mask, all_positions=all_positions)["logits"]


def run_forward(
    model: PreTrainedModel, inputs: ModelInputs, mask: AttentionMask | None = None, *, all_positions: bool = True
) -> Mapping[str, Any]:
    """Run a forward pass and return the whole output of the model, by name.

    Args:
        model: the model.
        inputs: tokens (batch, pos) or vectors (batch, pos, d_in).
        mask: 1 where an input is not padding, on either side; position ids are counted from the first such input.
        all_positions: return outputs at every position; otherwise at the last only, if the model class can, which
            saves a large product with the vocabulary and changes no activation.

    Raises:
        UnsupportedModel: the model has no logits in its output.
    """
    last_only = not all_positions and accepts_argument(model, "logits_to_keep")
    output = model(**_forward_arguments(model, inputs, mask), **({"logits_to_keep": 1} if last_only else {}))
    logits = output.get("logits") if isinstance(output, dict) else None
    if not isinstance(logits, Tensor) or not (last_only or logits.shape[:2] == inputs.shape[:2]):
        raise UnsupportedModel(
            f"a model must return logits at every position, but {type(model).__name__} does not; "
            "load it as a causal language model"
        )
    return output


def first_position_id(model: PreTrainedModel, input_at_position: Shaped[Tensor, "*d_in"]) -> int:
    """Return the position id that a model gives to its first position; 0 if no embedding counts positions.

    It is read from an embedding whose inputs count up, on an input that is repeated once. The result is cached; the
    first call runs the model, so call it before you attach hooks that count calls.

    Args:
        model: the model.
        input_at_position: one input that is not padding.
    """
    if model not in _FIRST_POSITION_IDS:
        embedded: list[Tensor] = []
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        with ExitStack() as hooks:
            for module in embeddings:
                hook = guard_hook(lambda _, given: embedded.extend(given[:1]))
                hooks.callback(module.register_forward_pre_hook(hook).remove)
            run_model(model, input_at_position.expand(1, 2, *input_at_position.shape))
        pairs = [x.flatten().tolist() for x in embedded if isinstance(x, Tensor) and x.numel() == 2]
        _FIRST_POSITION_IDS[model] = next((a for a, b in pairs if b == a + 1), 0)
    return _FIRST_POSITION_IDS[model]


def forget_first_position_id(model: PreTrainedModel) -> None:
    """Forget the first position id of a model that has changed.

    Args:
        model: the model.
    """
    _FIRST_POSITION_IDS.pop(model, None)


def _forward_arguments(model: PreTrainedModel, inputs: ModelInputs, mask: AttentionMask | None) -> dict[str, Any]:
    arguments: dict[str, Any] = {model.main_input_name: inputs}
    if accepts_argument(model, "use_cache"):
        arguments["use_cache"] = False
    if mask is not None:
        arguments["attention_mask"] = mask
        if accepts_argument(model, "position_ids") and not mask[:, 0].all():
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + first_position_id(
                model, inputs[mask.bool()][0]
            )
    return arguments
