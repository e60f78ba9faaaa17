"""Inputs of interventions with their attention masks: those of one run, and those of a pair of runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations import (
    InputsLike,
    SourceAndTarget,
    prepare_inputs,
    prepare_source_and_target,
    validate_model,
)
from mesascope.activations.encoder_decoder.batches import split_batch
from mesascope.activations.sites import DECODER
from mesascope.activations.validation.inputs import is_encoder_decoder
from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedInputs:
    """Inputs of a run, validated and on the model's device.

    Attributes:
        model: the model.
        inputs: tokens or vectors, or the batch of a task as it was given; of an encoder-decoder, those of the target.
        mask: 1 where one of these inputs is not padding; ``None`` without padding.
        mask_given: whether a mask was passed, even one that is 1 everywhere.
        pair: of an encoder-decoder, the source and the target.
    """

    model: PreTrainedModel
    inputs: Tensor | Batch
    mask: Int[Tensor, "batch pos"] | None
    mask_given: bool
    pair: SourceAndTarget | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the inputs, (batch, pos) or (batch, pos, d_in); of an encoder-decoder, (batch, source, pos)."""
        if self.pair is not None:
            return (*self.pair.source.shape[:2], self.pair.target.shape[1])
        return tuple(self.tensor.shape)

    @property
    def tensor(self) -> Tensor:
        """The tokens or vectors, without the rest of a batch."""
        return self.inputs.inputs if isinstance(self.inputs, Batch) else self.inputs


def prepare_run(
    model: nn.Module, inputs: InputsLike, attention_mask: Any = None, *, accepts_encoder_decoder: bool = False
) -> PreparedInputs:
    """Validate the inputs of an intervention, in any form that `capture` takes.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer; a source and a target for an
            encoder-decoder.
        attention_mask: (batch, pos), 1 where an input is not padding.
        accepts_encoder_decoder: the intervention is defined for encoder-decoders, too.

    Returns:
        The inputs and their mask.

    Raises:
        ValueError: If the inputs or the mask are invalid.
        UnsupportedModel: If the model cannot be captured.
    """
    model = validate_model(model)
    if accepts_encoder_decoder and is_encoder_decoder(model):
        return _prepare_encoder_decoder(model, inputs, attention_mask)
    given = attention_mask is not None or (isinstance(inputs, Mapping) and "attention_mask" in inputs)
    x, mask = prepare_inputs(model, inputs, attention_mask)
    return PreparedInputs(model=model, inputs=inputs if isinstance(inputs, Batch) else x, mask=mask, mask_given=given)


def _prepare_encoder_decoder(model: PreTrainedModel, inputs: InputsLike, attention_mask: Any) -> PreparedInputs:
    pair = prepare_source_and_target(model, inputs, attention_mask)
    if pair.target.is_floating_point():
        raise ValueError(
            "metrics of an encoder-decoder need the tokens of the target, but got decoder_inputs_embeds; pass "
            "decoder_input_ids"
        )
    target = split_batch(inputs, pair)[DECODER]
    return PreparedInputs(
        model=model, inputs=pair.target if target is None else target, mask=pair.target_mask, mask_given=True, pair=pair
    )


def prepare_pair(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    attention_mask: Any,
    source_attention_mask: Any,
    *,
    same_number: bool = True,
    accepts_encoder_decoder: bool = False,
) -> tuple[PreparedInputs, PreparedInputs]:
    """Validate the inputs of a run and of the run whose activations are patched into it.

    Args:
        model: any model that `capture` supports.
        inputs: inputs of the run that is patched.
        source: inputs of the run that is patched in.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.
        same_number: whether both runs must have the same number of sequences.
        accepts_encoder_decoder: the intervention is defined for encoder-decoders, too.

    Returns:
        Both inputs, with their masks.

    Raises:
        ValueError: If the two differ in shape, or only one has a mask and that hides inputs.
    """
    run, other = (
        prepare_run(model, each, mask, accepts_encoder_decoder=accepts_encoder_decoder)
        for each, mask in ((inputs, attention_mask), (source, source_attention_mask))
    )
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
