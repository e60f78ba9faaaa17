"""Exact match of outputs, with a prefix in place of the rules and with edits."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, UnsupportedModel, capture
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.tasks.base import Batch, Task, seed_by_batch
from mesascope.tasks.syntax.transformations import SyntacticTransformations

CHUNK = 256  # sequences of a forward pass
Prefix = Float[Tensor, "slot d_model"]


def validate_model_and_task(model: PreTrainedModel, task: Task) -> tuple[EncoderDecoder, SyntacticTransformations]:
    """Return the model and the task if the analyses of the study are defined for them.

    Args:
        model: an `EncoderDecoder`.
        task: `SyntacticTransformations`, with a source as long as that of the model.

    Raises:
        UnsupportedModel: the model is of another type, or its source has another length.
        ValueError: the task is another one.
    """
    if not isinstance(task, SyntacticTransformations):
        raise ValueError(f"the task must be SyntacticTransformations, but got {type(task).__name__}")
    if not isinstance(model, EncoderDecoder) or model.config.source_length != task.source_length:
        raise UnsupportedModel(
            f"the model must be an EncoderDecoder with a source of {task.source_length} positions, but got "
            f"{type(model).__name__}; pass the model of the task"
        )
    return model, task


def match_outputs(
    model: EncoderDecoder, batch: Batch, *, prefix: Prefix | None = None, edits: Sequence[Edit] = ()
) -> Bool[Tensor, " batch"]:
    """Return whether every token of the output of a sequence has the largest logit.

    The true output so far is the input. For a causal decoder this is the same event as a correct greedy generation.

    Args:
        model: the model.
        batch: sequences of `SyntacticTransformations`.
        prefix: vectors that take the place of the rules.
        edits: edits of the forward pass.
    """
    start, chunks = model.config.source_length, []
    for first in range(0, len(batch), CHUNK):
        chunk = batch[first : first + CHUNK]
        inputs = {"input_ids": chunk.inputs} | ({} if prefix is None else {"prefix": prefix})
        predicted = capture(model, inputs, ["logits"], edits=edits)["logits"].argmax(-1)
        is_correct = (predicted == chunk.targets[:, start:]) | (chunk.weight[:, start:] == 0)
        chunks.append(is_correct.all(1).cpu())
    return torch.cat(chunks)


def sample_seen_pairs(task: SyntacticTransformations, batch: Batch) -> Batch:
    """Draw as many sequences with pairs of a label and a function that are seen in training.

    Args:
        task: the task, as in training.
        batch: held-out sequences; they seed the draw, so that each training replicate gets its own.

    Returns:
        the drawn sequences, on the device of the held-out ones.
    """
    return task.sample(len(batch), seed_by_batch(batch)).to(batch.inputs.device)


def find_slots(task: SyntacticTransformations, batch: Batch) -> Int[Tensor, "batch source"]:
    """Return the position of the rule for the label of each word, -1 for words without a rule and at other positions.

    Args:
        task: gives the length of the source.
        batch: its sequences.

    >>> task = SyntacticTransformations()
    >>> batch = task.sample(1, torch.Generator().manual_seed(1))
    >>> " ".join(task.decode_token(token) for token in batch.inputs[0, :11].tolist())
    'al:concat-rel ar:ignore-dep br:concat-rel . root4 ar5 ar5 ar6 . . .'
    >>> find_slots(task, batch).tolist()
    [[-1, -1, -1, -1, -1, 1, 1, 1, -1, -1, -1]]
    """
    source = slice(task.source_length)
    label, rule_label = batch.latents["label"][:, source], batch.latents["rule label"][:, : task.max_rules]
    is_own = (label[:, :, None] == rule_label[:, None]) & (label >= 0)[:, :, None]
    return torch.where(is_own.any(-1), is_own.int().argmax(-1), -1)
