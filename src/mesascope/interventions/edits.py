"""What can be put in place of what a model computes: edits by their usual names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other

import torch
from jaxtyping import Int
from torch import Tensor

from mesascope.activations import Capture, Edit
from mesascope.activations.edits import Index

Where = Mapping[str, Index]


def zero(site: str, where: Where | None = None) -> Edit:
    """Nothing at all (zero ablation). A model has seldom met it in training: prefer :func:`mean` or :func:`resample`.

    Args:
        site: where, from :data:`mesascope.activations.SITES`.
        where: axis to index; all of the site by default.

    >>> zero("head_out", {"layer": 1, "head": [0, 2]}).where["head"]
    [0, 2]
    """
    return Edit(site=_unmasked(site), where=dict(where or {}), fn=torch.zeros_like)


def scale(site: str, factor: float, where: Where | None = None) -> Edit:
    """As many times of what is there: 0 is nothing, 1 changes nothing, 2 doubles it."""
    return Edit(site=_unmasked(site), where=dict(where or {}), fn=lambda old: factor * old)


def steer(site: str, direction: Tensor | Sequence[float], by: float = 1.0, where: Where | None = None) -> Edit:
    """What is there, plus so much of a direction along the site's last axis (activation addition, Turner et al. 2023).

    Args:
        site: where.
        direction: a vector as long as the site's last axis, such as ``d_model``; it is taken as it is, not normalised.
        by: how much of it.
        where: axis to index; all of the site by default.
    """

    direction = torch.as_tensor(direction)

    def fn(old: Tensor) -> Tensor:
        if direction.shape != old.shape[-1:]:
            raise ValueError(
                f"a direction at {site} must have {old.shape[-1]} entries, but got shape {tuple(direction.shape)}"
            )
        return old + by * direction.to(old)

    return Edit(site=_unmasked(site), where=dict(where or {}), fn=fn)


def replace(site: str, source: Capture, where: Where | None = None) -> Edit:
    """What was there in another run, of as many sequences of the same length (activation patching).

    Args:
        site: where; the other run must have recorded it.
        source: the other run.
        where: axis to index; all of the site, in every layer that the other run recorded, by default.

    Raises:
        NotRecorded: the other run does not hold the site.
        ValueError: it holds some rows of score and pattern only.
    """
    return _from(site, source, where, lambda held: held)


def mean(site: str, source: Capture, where: Where | None = None) -> Edit:
    """The mean over another run's sequences at the same position (mean ablation).

    Args:
        site: where; the other run must have recorded it.
        source: the other run: often the very batch that is edited; any number of sequences of the same length.
        where: as in :func:`replace`.

    Raises:
        NotRecorded, ValueError: as :func:`replace` does.
    """
    return _from(site, source, where, lambda held: held.mean(1, keepdim=True), shared=True)


def resample(site: str, source: Capture, where: Where | None = None, seed: int = 0) -> Edit:
    """What is there on another sequence of the same batch (resample ablation, Chan et al. 2022): every sequence takes
    it from the next one in a random cycle, so that none keeps its own.

    Args:
        site: where; the run must have recorded it.
        source: the run of two sequences or more.
        where: as in :func:`replace`.
        seed: of the cycle.

    Raises:
        NotRecorded, ValueError: as :func:`replace` does, or there is one sequence alone.
    """
    if len(source.inputs) < 2:
        raise ValueError("resampling needs another sequence, but the batch has one; pass two or more")
    order = cycle(len(source.inputs), seed)
    return _from(site, source, where, lambda held: held[:, order.to(held.device)])


def cycle(count: int, seed: int) -> Int[Tensor, " count"]:
    """For every one of so many, the one before it in a random cycle; none is its own.

    >>> sorted(cycle(4, seed=0).tolist())
    [0, 1, 2, 3]
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    source = torch.empty_like(order)
    source[order] = order.roll(1)
    return source


def _from(
    site: str, source: Capture, where: Where | None, taken: Callable[[Tensor], Tensor], *, shared: bool = False
) -> Edit:
    """An edit that puts there what is taken from another run."""
    chosen = {"layer": list(source.layers)} | dict(where or {})
    edit = Edit(site=site, where=chosen, fn=lambda old, other: other, shared=shared)
    held = source[site]
    if site in ("score", "pattern") and len(source.queries) < source.inputs.shape[1]:
        raise ValueError(f"{site} must be recorded whole to be put into a run, but queries= picked rows; leave it out")
    if source.attention_mask is not None:
        raise ValueError("what is put into a run must come from sequences of one length, but the source has padding")
    return with_other(edit, source=dict(zip(source.layers, taken(held), strict=True)))


def _unmasked(site: str) -> str:
    """Refuse scores: where a key is masked they are -inf, and must stay so."""
    if site == "score":
        raise ValueError(
            "a score is -inf where a key is masked, which this edit would undo; edit pattern, or replace it"
        )
    return site
