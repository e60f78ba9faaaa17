"""Null distributions: the values of a score where there is nothing to find, stored next to the score.

Every analysis states its controls with :class:`Null` and :func:`with_null`, so that a score ``x`` is always followed by
``x_null``, and by ``x_null_low`` and ``x_null_high`` where the null has a band. A further null of the same score adds
its name: ``x_null_untrained``. All of them carry the attributes ``control_of`` (the score) and ``control`` (the null's
name); reports find controls by these, never by the name of a variable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
from jaxtyping import Float
from torch import Tensor

NULL_BAND_WIDTH = 4.0  # standard deviations of the draws on either side of their mean
UNTRAINED = "untrained"  # name of the null of models that were not trained
PER_TOKEN_AXES = frozenset({"batch", "pos", "query", "key", "rank"})  # single tokens differ between draws
NUM_UNTRAINED_DRAWS = 4  # untrained models per seed, in addition to the one at step 0, as a null of head roles
Score = Float[Tensor, "*axes"]


def null_band(draws: Float[Tensor, "draw *axes"]) -> tuple[Score, Score]:
    """Return the band of a null: mean minus and plus 4 standard deviations of its draws.

    Args:
        draws: the score under the null, with the axis of draws first.

    Returns:
        lower and upper edge.
    """
    mean, std = draws.mean(0), draws.std(0)
    return mean - NULL_BAND_WIDTH * std, mean + NULL_BAND_WIDTH * std


@dataclass(frozen=True, kw_only=True, eq=False)
class Null:
    """The values of a score under a null hypothesis.

    Attributes:
        name: what was destroyed, in words that a page prints, such as ``keys shuffled``.
        value: the score under the null, with the axes of the score; it may have the axis ``draw`` besides, which then
            holds the draws themselves.
        low, high: edges of the null's band; a score inside the band is not distinguishable from the null.
    """

    name: str
    value: xr.DataArray
    low: xr.DataArray | None = None
    high: xr.DataArray | None = None


def with_null(name: str, value: xr.DataArray, null: Null, *further: Null) -> dict[str, xr.DataArray]:
    """Return a score and its nulls as variables of a Dataset.

    Args:
        name: of the score.
        value: the score.
        null: its null.
        further: other nulls of the same score; their variables end in their names.

    Returns:
        ``name``, ``name_null``, and ``name_null_low`` and ``name_null_high`` where the null has a band; for each
        further null the same with its own name between, such as ``name_null_untrained``.

    Raises:
        ValueError: two nulls have the same name.

    >>> score, null = xr.DataArray([0.9, 0.1], dims="head"), xr.DataArray([0.2, 0.2], dims="head")
    >>> data = with_null("score", score, Null(name="keys shuffled", value=null), Null(name="untrained", value=null))
    >>> list(data), data["score_null"].attrs["control_of"]
    (['score', 'score_null', 'score_null_untrained'], 'score')
    """
    names = [each.name for each in (null, *further)]
    if len(set(names)) < len(names):
        raise ValueError(f"the nulls of a score must have different names, but {name!r} has {', '.join(names)}")
    variables = {name: value}
    for position, one in enumerate((null, *further)):
        prefix = f"{name}_null" if position == 0 else f"{name}_null_{one.name.replace(' ', '_')}"
        parts = {"": one.value, "_low": one.low, "_high": one.high}
        variables |= {
            prefix + edge: part.assign_attrs(control_attrs(name, one.name))
            for edge, part in parts.items()
            if part is not None
        }
    return variables


def with_draws(main: xr.Dataset, control: str, draws: Sequence[xr.Dataset]) -> xr.Dataset:
    """Add the results of other models or other inputs as a null of every number that is not about single tokens.

    Args:
        main: the results of the model.
        control: name of the null, such as ``untrained``.
        draws: the results of each draw.

    Returns:
        the results, with variables ``NAME_null_CONTROL`` along the axis ``draw``.
    """
    nulls: Mapping[str, xr.DataArray] = {
        f"{name}_null_{control.replace(' ', '_')}": _stack_draws(str(name), control, draws)
        for name, array in main.data_vars.items()
        if _is_comparable(array) and all(name in draw for draw in draws)
    }
    return main.assign(nulls)


def _is_comparable(array: xr.DataArray) -> bool:
    belongs_to_another = {"control_of", "uncertainty_of"} & set(array.attrs)
    return array.dtype.kind in "fiu" and not PER_TOKEN_AXES & set(array.dims) and not belongs_to_another


def _stack_draws(name: str, control: str, draws: Sequence[xr.Dataset]) -> xr.DataArray:
    attrs = {key: value for key, value in draws[0][name].attrs.items() if key != "headline"}
    joined = xr.concat([draw[name].drop_attrs() for draw in draws], dim="draw").assign_coords(draw=range(len(draws)))
    return joined.assign_attrs({**attrs, **control_attrs(name, control)})


def control_attrs(score: str, null: str) -> Mapping[str, Any]:
    """Return the attributes by which reports recognise a control.

    Args:
        score: name of the variable that is controlled for.
        null: name of the null.

    Returns:
        ``control_of`` and ``control``.
    """
    return {"control_of": score, "control": null}
