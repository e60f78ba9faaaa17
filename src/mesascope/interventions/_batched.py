"""Batched runs of many edits on the same sequences."""

from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Edit
from mesascope.interventions._edit_runner import EditRunner
from mesascope.interventions.metrics import Metric

MAX_BATCH_POSITIONS = 4096  # sequences times length, over all edits of one batch
MAX_OUTPUT_ENTRIES = 64_000_000  # entries of the output of one batch: 256 MB in single precision

ProgressFn = Callable[[int, int], None]
RunEditsFn = Callable[[Sequence[Edit]], Float[Tensor, "branch batch predicted d_out"]]


def run_batched_edits(
    edit_runner: EditRunner,
    edits: Sequence[Edit],
    metric: Metric,
    *,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
    run_edits: RunEditsFn | None = None,
) -> tuple[Float[Tensor, "edit batch"], list[bool]]:
    """Run many edits and return the metric of every sequence under each.

    An edit that has no effect is not run: its values are those of the unedited pass.

    Args:
        edit_runner: holds the model and its sequences.
        edits: edits at the site of ``edit_runner``, already validated.
        metric: one number per sequence.
        max_positions: maximum of sequences times length over all edits that run as one batch.
        progress: called with the number of finished edits and the number of all edits.
        run_edits: maps edits with the same first layer to the output under each; by default, the output of the model
            with the edit.

    Returns:
        The metric by edit and sequence; and per edit, True if it changed any bit of the activation.

    Raises:
        UnsupportedModel: If the output for one sequence depends on the other sequences in the batch.

    >>> import torch
    >>> from mesascope.activations import BatchedEdits
    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> x = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0))
    >>> last = Metric(name="last", units="1", description="the last number", fn=lambda prediction: prediction[:, -1, 0])
    >>> edits = [zero("z", {"layer": 0, "head": head}) for head in range(4)]
    >>> value, changed = run_batched_edits(BatchedEdits(build_planted_model("previous"), x, "z"), edits, last)
    >>> value.shape, changed
    (torch.Size([4, 4]), [True, True, True, True])
    """
    run_edits = run_edits or (lambda edits: edit_runner.run_edits([[edit] for edit in edits]))
    changed = [edit_runner.has_effect(edit) for edit in edits]
    value = metric(edit_runner.unedited_output, edit_runner.attention_mask).repeat(len(edits), 1)
    num_done = changed.count(False)
    if progress is not None:
        progress(num_done, len(edits))
    for chunk in _chunk_edits(edit_runner, edits, changed, max_positions):
        for number, output in zip(chunk, run_edits([edits[number] for number in chunk]), strict=True):
            value[number] = metric(output, edit_runner.attention_mask)
        num_done += len(chunk)
        if progress is not None:
            progress(num_done, len(edits))
    return value, changed


def compute_max_edits(edit_runner: EditRunner, max_positions: int) -> int:
    """Compute the number of edits that can run as one batch, together with one unedited copy.

    Args:
        edit_runner: holds the model and its sequences.
        max_positions: maximum of sequences times length over the whole batch.

    Returns:
        The number of edits, 1 or more.
    """
    branches = max_positions // edit_runner.num_positions
    return max(1, min(branches, MAX_OUTPUT_ENTRIES // max(1, edit_runner.unedited_output.numel())) - 1)


def _chunk_edits(
    edit_runner: EditRunner, edits: Sequence[Edit], changed: Sequence[bool], max_positions: int
) -> Iterator[list[int]]:
    """Yield indices of edits that run as one batch: of the same first layer, as many as fit."""
    max_edits = compute_max_edits(edit_runner, max_positions)
    layers: dict[int, list[int]] = {}
    for number, edit in enumerate(edits):
        if changed[number]:
            layers.setdefault(min(edit_runner.edited_layers(edit)), []).append(number)
    for _, group in sorted(layers.items()):
        yield from (group[start : start + max_edits] for start in range(0, len(group), max_edits))
