"""Forward passes of encoder-decoders."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.hooks._module_hooks import accepts_argument
from mesascope.activations.sites import UnsupportedModel
from mesascope.models.encoder_decoder.model import EncoderDecoder


def run_pair(model: PreTrainedModel, inputs: SourceAndTarget) -> Float[Tensor, "batch pos d_out"]:
    """Run a forward pass of an encoder-decoder, and return its logits at the positions of the target.

    Args:
        model: the model.
        inputs: the source and the target.

    Raises:
        UnsupportedModel: the model has no logits in its output.
    """
    return run_pair_forward(model, inputs)["logits"]


def run_pair_forward(model: PreTrainedModel, inputs: SourceAndTarget) -> Mapping[str, Any]:
    """Run a forward pass of an encoder-decoder, and return its output, by name.

    Args:
        model: the model.
        inputs: the source and the target.

    Raises:
        UnsupportedModel: the model has no logits in its output.
    """
    if isinstance(model, EncoderDecoder):
        return _run_own(model, inputs)
    output = model(**pair_arguments(model, inputs))
    logits = output.get("logits") if isinstance(output, dict) else None
    if not isinstance(logits, Tensor) or logits.shape[:2] != inputs.target.shape[:2]:
        raise UnsupportedModel(
            f"an encoder-decoder must return logits at every position of the target, but {type(model).__name__} does "
            "not; load it as a sequence-to-sequence language model"
        )
    return output


def pair_arguments(model: PreTrainedModel, inputs: SourceAndTarget) -> dict[str, Any]:
    """Return the arguments of the forward pass of an encoder-decoder of transformers.

    Args:
        model: the model.
        inputs: the source and the target.
    """
    source = "inputs_embeds" if inputs.source.is_floating_point() else "input_ids"
    target = "decoder_inputs_embeds" if inputs.target.is_floating_point() else "decoder_input_ids"
    arguments: dict[str, Any] = {source: inputs.source, target: inputs.target}
    if inputs.source_mask is not None:
        arguments["attention_mask"] = inputs.source_mask
    if inputs.target_mask is not None:
        arguments["decoder_attention_mask"] = inputs.target_mask
    if accepts_argument(model, "use_cache") or accepts_argument(model, "kwargs"):  # some hand it on to their decoder
        arguments["use_cache"] = False
    return arguments


def _run_own(model: EncoderDecoder, inputs: SourceAndTarget) -> dict[str, Any]:
    masks = [
        torch.ones_like(part) if mask is None else mask
        for part, mask in ((inputs.source, inputs.source_mask), (inputs.target, inputs.target_mask))
    ]
    tokens = torch.cat([inputs.source, inputs.target], dim=1)
    output = model(input_ids=tokens, attention_mask=torch.cat(masks, dim=1), prefix=inputs.prefix)
    return {"logits": output.logits[:, inputs.source.shape[1] :]}
