"""Edits by their usual names: zero, mean and resample ablation, scaling, steering, activation patching."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture, Edit, get_site
from mesascope.activations.edits import AxisIndex
from mesascope.activations.padding.masks import find_real_entries
from mesascope.activations.padding.source_inputs import SourceInputs
from mesascope.argument_types import describe_value, validate_arguments
from mesascope.statistics import derangement

IndexByAxis = Mapping[str, AxisIndex]


@validate_arguments
def zero(site: str, where: IndexByAxis | None = None) -> Edit:
    """Set an activation to zero (zero ablation).

    Zeros are usually far from the activations seen in training: prefer `mean` or `resample`.

    Args:
        site: name of the site, one of `mesascope.activations.SITES`.
        where: index by axis; the whole site by default.

    Returns:
        The edit.

    Raises:
        ValueError: If the site or an axis does not exist, or the site is attn_scores.

    >>> zero("z", {"layer": 1, "head": [0, 2]}).where["head"]
    [0, 2]
    """
    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=torch.zeros_like)


@validate_arguments
def scale(site: str, factor: float, where: IndexByAxis | None = None) -> Edit:
    """Multiply an activation by a factor.

    Args:
        site: name of the site.
        factor: 0 sets the activation to zero, 1 has no effect.
        where: index by axis; the whole site by default.

    Returns:
        The edit.

    Raises:
        ValueError: As for `zero`.
    """
    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=lambda old: factor * old)


@validate_arguments
def steer(
    site: str, direction: Tensor | Sequence[float], coefficient: float = 1.0, where: IndexByAxis | None = None
) -> Edit:
    """Add a multiple of a direction along the site's last axis (activation addition, Turner et al. 2023).

    Args:
        site: name of the site.
        direction: vector of the size of the site's last axis, such as ``d_model``; it is not normalised.
        coefficient: factor on the direction.
        where: index by axis; the whole site by default.

    Returns:
        The edit.

    Raises:
        ValueError: As for `zero`; and when the edit is run, if the direction has the wrong size.
    """

    try:
        direction = torch.as_tensor(direction)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"direction must be a vector of numbers, but got {describe_value(direction)}") from None

    def add_direction(old: Tensor) -> Tensor:
        if direction.shape != old.shape[-1:]:
            raise ValueError(
                f"a direction at {site} must have {old.shape[-1]} entries, but got shape {tuple(direction.shape)}"
            )
        return old + coefficient * direction.to(old)

    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=add_direction)


@validate_arguments
def replace(site: str, source: Capture, where: IndexByAxis | None = None) -> Edit:
    """Replace an activation by its value in another run (activation patching).

    With padding, columns of the padded inputs correspond: the source must have an input in every edited column in which
    the edited run has one, and the same padding at attn_scores and pattern.

    Args:
        site: name of the site; the other run must have recorded it.
        source: the other run, with as many sequences of the same length.
        where: index by axis; the whole site in all layers that the other run recorded by default.

    Returns:
        The edit.

    Raises:
        NotRecorded: If the other run did not record the site.
        ValueError: If the other run recorded only some query positions of attn_scores or pattern; and when the edit is
            run, if the padding of the two runs does not fit.
    """
    return _edit_from_capture(site, source, where, lambda activation: activation)


@validate_arguments
def mean(site: str, source: Capture, where: IndexByAxis | None = None) -> Edit:
    """Replace an activation by its mean over sequences at the same position (mean ablation).

    With padding, positions are columns of the padded inputs, and the mean is over the sequences that have an input in
    the column. At attn_scores and pattern, sequences of unequal length have no mean, since they attend to other keys.

    Args:
        site: name of the site; the source must have recorded it.
        source: run over which the mean is taken, often of the batch that is edited; any number of sequences of the same
            length.
        where: as in `replace`.

    Returns:
        The edit.

    Raises:
        NotRecorded: As for `replace`.
        ValueError: As for `replace`.
    """

    def average(activation: Tensor) -> Tensor:
        mask = source.attention_mask
        axes = get_site(site).axes
        return activation.mean(1, keepdim=True) if mask is None else _average_real(activation, axes, mask)

    return _edit_from_capture(site, source, where, average, shared=True)


@validate_arguments
def resample(site: str, source: Capture, where: IndexByAxis | None = None, seed: int = 0) -> Edit:
    """Replace an activation by its value on another sequence of the batch (resample ablation, Chan et al. 2022).

    Sequences are permuted in one random cycle, so that none keeps its own activation; with padding, in one cycle for
    each length and side of padding.

    Args:
        site: name of the site; the source must have recorded it.
        source: run of two or more sequences.
        where: as in `replace`.
        seed: seed of the cycle.

    Returns:
        The edit.

    Raises:
        NotRecorded: As for `replace`.
        ValueError: As for `replace`, or if the source has one sequence, or with padding one of some length.
    """
    order = _draw_order(source, seed)
    return _edit_from_capture(
        site, source, where, lambda activation: activation[:, order.to(activation.device)], order=order
    )


def _draw_order(source: Capture, seed: int) -> Int[Tensor, " batch"]:
    """Draw a random cycle of the sequences with the same padding, for each kind of padding."""
    num_sequences, generator = len(source.inputs), torch.Generator().manual_seed(seed)
    if num_sequences < 2:
        raise ValueError("resample needs two or more sequences, but the source has one; pass a larger batch")
    if source.attention_mask is None:
        return derangement(num_sequences, generator)
    kinds, kind = source.attention_mask.cpu().unique(dim=0, return_inverse=True)
    order = torch.arange(num_sequences)
    for number, mask in enumerate(kinds):
        rows = (kind == number).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(
                f"with padding, resample needs two or more sequences of each length, but sequence {int(rows[0])} is "
                f"the only one with {int(mask.sum())} inputs in these columns; leave it out, or use mean"
            )
        order[rows] = rows[derangement(len(rows), generator)]
    return order


def _average_real(
    activation: Float[Tensor, "layer batch *rest"], axes: Sequence[str], mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "layer 1 *rest"]:
    """Return the mean over the sequences that have no padding at an entry; 0 where all have."""
    index = [torch.arange(size) for size in activation.shape[1:]]
    real = find_real_entries(axes[1:], index, mask).to(activation.device)
    return activation.where(real, 0.0).sum(1, keepdim=True) / real.sum(0, keepdim=True).clamp(min=1)


def _edit_from_capture(
    site: str,
    source: Capture,
    where: IndexByAxis | None,
    transform: Callable[[Tensor], Tensor],
    *,
    shared: bool = False,
    order: Int[Tensor, " batch"] | None = None,
) -> Edit:
    indices: dict[str, AxisIndex] = {"layer": list(source.layers)}
    if source.iterations is not None:
        indices["iteration"] = list(source.iterations)
    indices |= dict(where or {})
    source_inputs = SourceInputs(inputs=source.inputs, mask=source.attention_mask, order=order)
    edit = Edit(site=site, where=indices, fn=_take_source, shared_source=shared, source_inputs=source_inputs)
    recorded = source.unrolled(include_stopped=True)
    activation = recorded[site]
    if site in ("attn_scores", "pattern") and len(source.queries) < source.inputs.shape[1]:
        raise ValueError(f"{site} must be recorded at all query positions, but queries= selected some; omit queries=")
    return with_other(edit, source=dict(zip(recorded.layers, transform(activation), strict=True)))


def _take_source(old: Tensor, source: Tensor) -> Tensor:
    return source


def _validate_not_scores(site: str) -> str:
    """Return the site, unless it is attn_scores."""
    if site == "attn_scores":
        raise ValueError(
            "attn_scores must stay -inf where a key is masked, but this edit changes them; edit pattern, or use replace"
        )
    return site
