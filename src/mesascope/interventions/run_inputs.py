"""Inputs of interventions with their attention masks: those of one run, and those of a pair of runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from mesascope.activations import InputsLike, prepare_inputs, validate_model
from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedInputs:
    """Inputs of a run, validated and on the model's device.

    Attributes:
        inputs: tokens or vectors, or the batch of a task as it was given.
        mask: 1 where an input is not padding; ``None`` without padding.
        mask_given: whether a mask was passed, even one that is 1 everywhere.
    """

    inputs: Tensor | Batch
    mask: Int[Tensor, "batch pos"] | None
    mask_given: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inputs, (batch, pos) or (batch, pos, d_in)."""
        return tuple(self.tensor.shape)

    @property
    def tensor(self) -> Tensor:
        """The tokens or vectors, without the rest of a batch."""
        return self.inputs.inputs if isinstance(self.inputs, Batch) else self.inputs


def prepare_run(model: nn.Module, inputs: InputsLike, attention_mask: Any = None) -> PreparedInputs:
    """Validate the inputs of an intervention, in any form that `capture` takes.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer.
        attention_mask: (batch, pos), 1 where an input is not padding.

    Returns:
        The inputs and their mask.

    Raises:
        ValueError: If the inputs or the mask are invalid.
        UnsupportedModel: If the model cannot be captured.
    """
    given = attention_mask is not None or (isinstance(inputs, Mapping) and "attention_mask" in inputs)
    x, mask = prepare_inputs(validate_model(model), inputs, attention_mask)
    return PreparedInputs(inputs=inputs if isinstance(inputs, Batch) else x, mask=mask, mask_given=given)


def prepare_pair(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    attention_mask: Any,
    source_attention_mask: Any,
    *,
    same_number: bool = True,
) -> tuple[PreparedInputs, PreparedInputs]:
    """Validate the inputs of a run and of the run whose activations are patched into it.

    Args:
        model: any model that `capture` supports.
        inputs: inputs of the run that is patched.
        source: inputs of the run that is patched in.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.
        same_number: whether both runs must have the same number of sequences.

    Returns:
        Both inputs, with their masks.

    Raises:
        ValueError: If the two differ in shape, or only one has a mask and that hides inputs.
    """
    run, other = prepare_run(model, inputs, attention_mask), prepare_run(model, source, source_attention_mask)
    start = 0 if same_number else 1
    if run.shape[start:] != other.shape[start:]:
        number = "the same number of sequences of the same length" if same_number else "sequences of the same length"
        raise ValueError(
            f"both runs must have {number}, but got shapes {run.shape} "
            f"and {other.shape}; pad both to one length, with attention_mask and source_attention_mask"
        )
    for one, name, mask in ((other, "source_attention_mask", run.mask), (run, "attention_mask", other.mask)):
        if mask is not None and not one.mask_given:
            raise ValueError(
                f"{name} must be passed too if the other run has padding, but is missing; pass a mask of ones if "
                "there is no padding"
            )
    return run, other
