"""Running a model once, quietly: evaluation mode, no gradients, no cache, right positions for padding."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.hooks.module_hooks import accepts
from mesascope.activations.sites import UnsupportedModel

Inputs = Shaped[Tensor, "batch pos *d_in"]
Mask = Int[Tensor, "batch pos"]
_FIRST: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


@contextmanager
def quiet(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is restored on exit."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def predict(
    model: PreTrainedModel, inputs: Inputs, mask: Mask | None = None, *, everywhere: bool = True
) -> Float[Tensor, "batch predicted d_out"]:
    """What a model predicts at every position.

    Args:
        model: any causal language model, or one of ours.
        inputs: tokens or vectors.
        mask: 1 where an input is real, 0 at padding, on either side; positions are counted from the first real one.
        everywhere: otherwise at the last position alone, where the class can: what happens inside is the same, and a
            vocabulary is large.

    Raises:
        UnsupportedModel: the model gives no logits.
    """
    less = not everywhere and accepts(model, "logits_to_keep")
    output = model(**_arguments(model, inputs, mask), **({"logits_to_keep": 1} if less else {}))
    logits = output.get("logits") if isinstance(output, dict) else None
    if not isinstance(logits, Tensor) or not (less or logits.shape[:2] == inputs.shape[:2]):
        raise UnsupportedModel(
            f"a model must predict at every position, but {type(model).__name__} gives no such logits; "
            "load it as a causal language model"
        )
    return logits


def first_position(model: PreTrainedModel, real: Shaped[Tensor, "*d_in"]) -> int:
    """Which number a model gives to its first position: what an embedding counts up from, on a real input twice.

    It is found once for a model, which runs for it; so ask first where hooks that count calls are to be attached.
    """
    if model not in _FIRST:
        seen: list[Tensor] = []
        counters = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        with ExitStack() as hooks:
            for module in counters:
                hooks.callback(module.register_forward_pre_hook(lambda _, given: seen.extend(given[:1])).remove)
            predict(model, real.expand(1, 2, *real.shape))
        pairs = [x.flatten().tolist() for x in seen if isinstance(x, Tensor) and x.numel() == 2]
        _FIRST[model] = next((a for a, b in pairs if b == a + 1), 0)
    return _FIRST[model]


def _arguments(model: PreTrainedModel, inputs: Inputs, mask: Mask | None) -> dict[str, Any]:
    """The arguments of one forward pass."""
    given: dict[str, Any] = {model.main_input_name: inputs}
    if accepts(model, "use_cache"):
        given["use_cache"] = False
    if mask is not None:
        given["attention_mask"] = mask
        if accepts(model, "position_ids") and not mask[:, 0].all():
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + first_position(model, inputs[mask.bool()][0])
    return given
