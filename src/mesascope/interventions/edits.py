"""Edits by their usual names: zero, mean and resample ablation, scaling, steering, activation patching."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other

import torch
from torch import Tensor

from mesascope.activations import Capture, Edit
from mesascope.activations.edits import AxisIndex
from mesascope.statistics import derangement

IndexByAxis = Mapping[str, AxisIndex]


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

    direction = torch.as_tensor(direction)

    def add_direction(old: Tensor) -> Tensor:
        if direction.shape != old.shape[-1:]:
            raise ValueError(
                f"a direction at {site} must have {old.shape[-1]} entries, but got shape {tuple(direction.shape)}"
            )
        return old + coefficient * direction.to(old)

    return Edit(site=_validate_not_scores(site), where=dict(where or {}), fn=add_direction)


def replace(site: str, source: Capture, where: IndexByAxis | None = None) -> Edit:
    """Replace an activation by its value in another run (activation patching).

    Args:
        site: name of the site; the other run must have recorded it.
        source: the other run, with as many sequences of the same length.
        where: index by axis; the whole site in all layers that the other run recorded by default.

    Returns:
        The edit.

    Raises:
        NotRecorded: If the other run did not record the site.
        ValueError: If the other run recorded only some query positions of attn_scores or pattern, or has padding.
    """
    return _edit_from_capture(site, source, where, lambda activation: activation)


def mean(site: str, source: Capture, where: IndexByAxis | None = None) -> Edit:
    """Replace an activation by its mean over sequences at the same position (mean ablation).

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
    return _edit_from_capture(site, source, where, lambda activation: activation.mean(1, keepdim=True), shared=True)


def resample(site: str, source: Capture, where: IndexByAxis | None = None, seed: int = 0) -> Edit:
    """Replace an activation by its value on another sequence of the batch (resample ablation, Chan et al. 2022).

    Sequences are permuted in one random cycle, so that none keeps its own activation.

    Args:
        site: name of the site; the source must have recorded it.
        source: run of two or more sequences.
        where: as in `replace`.
        seed: seed of the cycle.

    Returns:
        The edit.

    Raises:
        NotRecorded: As for `replace`.
        ValueError: As for `replace`, or if the source has one sequence.
    """
    if len(source.inputs) < 2:
        raise ValueError("resample needs two or more sequences, but the source has one; pass a larger batch")
    order = derangement(len(source.inputs), torch.Generator().manual_seed(seed))
    return _edit_from_capture(site, source, where, lambda activation: activation[:, order.to(activation.device)])


def _edit_from_capture(
    site: str,
    source: Capture,
    where: IndexByAxis | None,
    transform: Callable[[Tensor], Tensor],
    *,
    shared: bool = False,
) -> Edit:
    indices = {"layer": list(source.layers)} | dict(where or {})
    edit = Edit(site=site, where=indices, fn=lambda old, other: other, shared_source=shared)
    activation = source[site]
    if site in ("attn_scores", "pattern") and len(source.queries) < source.inputs.shape[1]:
        raise ValueError(f"{site} must be recorded at all query positions, but queries= selected some; omit queries=")
    if source.attention_mask is not None:
        raise ValueError(
            "the source must have sequences of one length, but has padding; pass sequences without padding"
        )
    return with_other(edit, source=dict(zip(source.layers, transform(activation), strict=True)))


def _validate_not_scores(site: str) -> str:
    """Return the site, unless it is attn_scores."""
    if site == "attn_scores":
        raise ValueError(
            "attn_scores must stay -inf where a key is masked, but this edit changes them; edit pattern, or use replace"
        )
    return site
