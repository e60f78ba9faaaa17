"""Running many edits of the same sequences, as many at once as there is room for."""

from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Edit, Stem
from mesascope.interventions.metrics import Metric

POSITIONS = 4096  # of all branches that run as one
NUMBERS = 64_000_000  # that their predictions may have: 256 MB in single precision

Progress = Callable[[int, int], None]
Branch = Callable[[Sequence[Edit]], Float[Tensor, "branch batch predicted d_out"]]


def branched(
    stem: Stem,
    edits: Sequence[Edit],
    metric: Metric,
    *,
    positions: int = POSITIONS,
    progress: Progress | None = None,
    branch: Branch | None = None,
) -> tuple[Float[Tensor, "edit batch"], list[bool]]:
    """The metric of every sequence under each of many edits, and which edits change any bit.

    An edit that changes no bit is not run: its numbers are those of the untouched pass.

    Args:
        stem: of the model and its sequences.
        edits: what is done, one after the other; they fit (:meth:`mesascope.activations.Stem.refuse`), and act at the
            site of the stem.
        metric: one number for each sequence.
        positions: sequences times length of all edits that run as one.
        progress: hears how many edits are done, and how many there are.
        branch: from edits of one first layer to the prediction with each, where that is not simply the model's with
            the edit.

    Raises:
        UnsupportedModel: what one sequence predicts depends on which others run beside it.

    >>> import torch
    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import planted
    >>> x = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0))
    >>> last = Metric(name="last", units="1", about="the last number", fn=lambda prediction: prediction[:, -1, 0])
    >>> edits = [zero("head_out", {"layer": 0, "head": head}) for head in range(4)]
    >>> value, changed = branched(Stem(planted("previous"), x, "head_out"), edits, last)
    >>> value.shape, changed
    (torch.Size([4, 4]), [True, True, True, True])
    """
    branch = branch or (lambda edits: stem.branch([[edit] for edit in edits]))
    changed = [stem.changes(edit) for edit in edits]
    value = metric(stem.prediction).repeat(len(edits), 1)
    done = changed.count(False)
    if progress is not None:
        progress(done, len(edits))
    for chunk in _chunks(stem, edits, changed, positions):
        for number, prediction in zip(chunk, branch([edits[number] for number in chunk]), strict=True):
            value[number] = metric(prediction)
        done += len(chunk)
        if progress is not None:
            progress(done, len(edits))
    return value, changed


def room_for(stem: Stem, positions: int) -> int:
    """How many branches may run as one, beside one that is not edited.

    Args:
        stem: of the model and its sequences.
        positions: sequences times length of all that run as one.
    """
    each = stem.inputs.shape[0] * stem.inputs.shape[1]
    return max(1, min(positions // each, NUMBERS // max(1, stem.prediction.numel())) - 1)


def _chunks(stem: Stem, edits: Sequence[Edit], changed: Sequence[bool], positions: int) -> Iterator[list[int]]:
    """Numbers of edits that run together: of one first layer, and as many as there is room for."""
    room = room_for(stem, positions)
    layers: dict[int, list[int]] = {}
    for number, edit in enumerate(edits):
        if changed[number]:
            layers.setdefault(min(edit.layers(stem.layers)), []).append(number)
    for _, group in sorted(layers.items()):
        yield from (group[start : start + room] for start in range(0, len(group), room))
