"""One stack of an encoder-decoder, and how to run the model with other inputs of it."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class StackInputs:
    """One stack of an encoder-decoder, and how to run the model with other inputs of it.

    Attributes:
        name: ``encoder`` or ``decoder``.
        trace_input: its inputs in the traced forward pass.
        run_fn: runs the model with other inputs of this stack, of the same length, and the traced ones of the other.
    """

    name: str
    trace_input: Shaped[Tensor, "batch pos *d_in"]
    run_fn: Callable[[PreTrainedModel, Tensor], object]
