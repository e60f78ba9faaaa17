"""Checks that an edit has the same effect with and without a key-value cache."""

from collections.abc import Callable
from operator import index as number

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations.edits import AxisIndex, Edit
from mesascope.activations.padding.masks import POSITION_AXES
from mesascope.activations.padding.validate_edits import counts_from_end
from mesascope.activations.sites import get_site
from mesascope.activations.tolerances import allclose

FAR_AWAY = -torch.inf  # score of a key that a query does not see


def validate_cached_edit(edit: Edit) -> None:
    """Check what can be known of an edit before the model runs.

    Args:
        edit: the edit.

    Raises:
        ValueError: it selects sequences, counts positions from the end, or has a source.
    """
    if edit.source is not None:
        raise ValueError(
            "an edit of forward passes must not have the activations of another run, as replace, mean and resample "
            f"do, but that of {edit.site} has; their sequences and positions are not those of generated text: pass "
            "Edit with a function that returns the values"
        )
    if "batch" in edit.where:
        raise ValueError(
            "where must not select sequences in forward passes that are not known yet, since generation may repeat or "
            f"reorder them, but got where['batch']={edit.where['batch']}; generate these sequences on their own"
        )
    for axis in POSITION_AXES:
        if axis in edit.where and counts_from_end(edit.where[axis]):
            raise ValueError(
                f"where[{axis!r}] must not count from the end, which moves with every generated token, but got "
                f"{edit.where[axis]}; pass columns counted from 0, such as slice(10, None) for all from column 10 on"
            )


def select_columns(edit: Edit, axis: str, total: int) -> list[int]:
    """Return the columns that an edit selects among those that exist so far.

    Args:
        edit: the edit.
        axis: an axis of positions.
        total: the number of columns.
    """
    where: AxisIndex = edit.where.get(axis, slice(None))
    if isinstance(where, slice):
        return list(range(total)[where])
    return [column for column in _as_columns(where) if column < total]


def is_within(edit: Edit, axis: str, total: int) -> bool:
    """Return whether an edit selects only columns that exist already, however many follow.

    Args:
        edit: the edit.
        axis: an axis of positions.
        total: the number of columns.
    """
    where: AxisIndex = edit.where.get(axis, slice(None))
    if isinstance(where, slice):
        return where.stop is not None and where.stop <= total
    return all(column < total for column in _as_columns(where))


def _as_columns(where: AxisIndex) -> list[int]:
    try:
        return [number(where)]  # pyright: ignore[reportArgumentType] raises TypeError for a sequence
    except (TypeError, ValueError):
        return [number(one) for one in where]  # pyright: ignore[reportGeneralTypeIssues]


def check_independence(edit: Edit, old: Float[Tensor, "..."], total: int, compute: Callable[[Tensor], Tensor]) -> None:
    """Check on an activation that an edit treats every sequence and every position on its own.

    Args:
        edit: the edit.
        old: the activation in the pass over the prompt, restricted to what is edited.
        total: the number of columns of the prompt.
        compute: returns the replacement of an activation.

    Raises:
        ValueError: the replacement of one sequence or position depends on others, or on their number.
    """
    axes, new = get_site(edit.site).axes_within_layer, compute(old)
    for row in {0, len(old) - 1} if len(old) > 1 else ():
        others = _change(old, edit.site)
        others[row] = old[row]
        if not _agree(compute(others)[row], new[row]):
            _refuse(edit, "sequence", "the other sequences")
    for axis in POSITION_AXES:
        if axis not in axes or is_within(edit, axis, total):
            continue
        at = axes.index(axis)
        if axis == "key":
            _check_further_key(edit, old, new, compute)
            continue
        first, last = old.narrow(at, 0, 1), old.narrow(at, old.shape[at] - 1, 1)
        other = _change(first, edit.site)
        try:
            single = [compute(column) for column in (first, other, last)]
            pair = compute(torch.cat([first, other], at)).split(1, at)
        except (ValueError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"an edit of {edit.site} must take any number of positions, because they are computed one at a time, "
                f"but fails for one or two ({str(error).splitlines()[0]}); select columns of the prompt with "
                f"where={{{axis!r}: ...}}"
            ) from error
        together = [*pair, new.narrow(at, old.shape[at] - 1, 1)]
        if not all(map(_agree, together, single)):
            _refuse(edit, "position", "other positions, or on their number")


def _check_further_key(
    edit: Edit, old: Float[Tensor, "..."], new: Float[Tensor, "..."], compute: Callable[[Tensor], Tensor]
) -> None:
    """Check that a masked key after the others changes nothing and stays masked; passes without a cache have such."""
    masked = torch.full_like(old[..., :1], 0.0 if edit.site == "pattern" else FAR_AWAY)
    further = compute(torch.cat([old, masked], -1))
    if not (_agree(further[..., :-1], new) and torch.equal(further[..., -1:], masked)):
        _refuse(edit, "row of attention", "keys that it does not see")


def _change(values: Float[Tensor, "..."], site: str) -> Float[Tensor, "..."]:
    """Return other values that the site can have."""
    if site in ("attn_scores", "pattern"):
        return values * 0.5
    return 1.0 - 2.0 * values


def _agree(a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> bool:
    finite = a.isfinite()
    return torch.equal(finite, b.isfinite()) and allclose(a.where(finite, 0.0), b.where(finite, 0.0))


def _refuse(edit: Edit, part: str, others: str) -> None:
    raise ValueError(
        f"an edit of {edit.site} must treat every {part} on its own, because with a key-value cache each position is "
        f"computed once, but its function depends on {others}; use a function that does not, or edits of capture"
    )
