"""Total contribution of every head to the output: its effect along all paths, measured by mean ablation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Edit, InputsLike, capture
from mesascope.argument_types import validate_arguments
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, compute_max_edits
from mesascope.interventions.edits import mean
from mesascope.interventions.run_inputs import prepare_run


@validate_arguments
def total_head_contributions(
    model: nn.Module, inputs: InputsLike, *, attention_mask: Any = None, max_positions: int = MAX_BATCH_POSITIONS
) -> Float[Tensor, "layer head batch pos d_out"]:
    """Compute the change of the output that each head makes along all paths, through later layers and MLPs too.

    The contribution is the output minus the output when the head's ``z`` is replaced by its mean over sequences at the
    same position. In the last layer of a model without MLP and final norm, it equals the direct contribution minus its
    mean over sequences.

    Args:
        model: any model that `capture` supports.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask;
            two sequences or more.
        attention_mask: (batch, pos), 1 where an input is not padding; means are over the sequences that have an input
            in the column.
        max_positions: maximum of sequences times length over all edits that run as one batch.

    Returns:
        The contributions, in units of the output; NaN at padding.

    Raises:
        UnsupportedModel: If a layer has no attention heads, or the output for one sequence depends on the others.
        ValueError: If there is one sequence, whose mean over sequences is the sequence itself.

    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> x = torch.randn(8, 6, 1, generator=torch.Generator().manual_seed(0))
    >>> contributions = total_head_contributions(build_planted_model("previous", nuisance=0.0), x)
    >>> contributions.shape, [bool(head.abs().max() > 0.1) for head in contributions[0]]
    (torch.Size([1, 4, 8, 6, 1]), [True, False, False, False])
    """
    run = prepare_run(model, inputs, attention_mask)
    activations = capture(model, run.inputs, ["z"], attention_mask=run.mask).unrolled()
    num_sequences, num_heads = activations["z"].shape[1], activations["z"].shape[3]
    if num_sequences < 2:
        raise ValueError("contributions need two or more sequences, but got one; pass a larger batch")
    ablation, runner = mean("z", activations), BatchedEdits(model, run.inputs, "z", attention_mask=run.mask)
    max_edits = compute_max_edits(runner, max_positions)
    edits_by_layer = [
        [replace(ablation, where={"layer": layer, "head": head}) for head in range(num_heads)]
        for layer in activations.layers
    ]
    contributions = torch.stack([_measure_contributions(runner, edits, max_edits) for edits in edits_by_layer])
    if run.mask is not None:
        contributions.masked_fill_(~run.mask.bool().to(contributions.device)[:, :, None], torch.nan)
    return contributions


def _measure_contributions(
    runner: BatchedEdits, edits: Sequence[Edit], max_edits: int
) -> Float[Tensor, "head batch pos d_out"]:
    chunks = [edits[start : start + max_edits] for start in range(0, len(edits), max_edits)]
    return runner.unedited_output - torch.cat([runner.run_edits([[edit] for edit in chunk]) for chunk in chunks])
