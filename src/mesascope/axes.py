"""The vocabulary of axis names, and the one door from torch to xarray.

One word per axis in the whole project: the same words stand in shape annotations, in the dims of
results, in the docs and under the figures.

- ``seed``: a training replicate; nothing but the random seed of training differs along it.
- ``step``: optimiser steps taken so far; step 0 is the untrained model.
- ``layer``: a decoder block, counted from 0.
- ``batch``: a sequence. ``pos``: a position in it, counted from 0.
- ``query``, ``key``: positions again, as the two sides of attention: ``query`` looks at ``key``.
- ``head``: a query head. ``kv_head``: a key-value head (fewer than heads in grouped-query attention).
- ``d_model``: a coordinate of the residual stream. ``d_head``: a coordinate inside one head.
- ``d_in``, ``d_out``: a coordinate of an input vector, of a predicted vector (or a token's logit).
- ``component``: one additive part of the output (embedding, a head, an MLP, biases).
- ``predictor``: the model or one of the task's oracles. ``stat``: a named number about one thing.
- ``sublayer``: the attention or the MLP of a layer. ``map``: a linear map inside a layer, such as ``self_attn.q_proj``.
- ``eigen``: place in a spectrum, largest first. ``rank``: place in an order, best first.
- ``setting``: where sequences come from: as in training, or with something changed.
- ``lens``: how something is read from the residual stream.
- ``draw``: a replicate of a control: other random weights, another order.

What a paper calls the seed of a *sequence* is the latent ``generator`` here, never ``seed``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

AXES = frozenset(
    "seed step layer batch pos head kv_head query key d_model d_head d_in d_out component predictor stat "
    "sublayer map eigen rank setting lens draw".split()
)


def label(
    values: torch.Tensor | np.ndarray | Sequence | float,
    *dims: str,
    units: str,
    about: str,
    coords: Mapping[Any, Any] | None = None,
) -> xr.DataArray:
    """Give a tensor its axis names, its units and a sentence that says what it is.

    Every number that leaves mesascope passes here, so that no result lacks any of the three.

    Args:
        values: the numbers, on any device; they are detached and copied to the CPU.
        dims: one axis name per dimension, from :data:`AXES` (a name of your own may start with ``_``).
        units: ``"1"`` for a pure number, ``"nat"``, ``"squared value"``, ...
        about: one sentence, shown under figures and stored with the numbers.
        coords: labels along the axes, where they are not 0, 1, 2, ...

    Raises:
        ValueError: a dim is not in the vocabulary, or their number is not the tensor's.

    >>> label(torch.ones(2, 3), "layer", "head", units="1", about="ones").dims
    ('layer', 'head')
    """
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    unknown = [dim for dim in dims if dim not in AXES and not dim.startswith("_")]
    if unknown:
        raise ValueError(f"axes must be from the vocabulary in mesascope.axes, but got {unknown}")
    if array.ndim != len(dims):
        raise ValueError(f"one name per axis is needed: shape {array.shape}, but names {dims}")
    index = {dim: np.arange(size) for dim, size in zip(dims, array.shape, strict=True)} | dict(coords or {})
    return xr.DataArray(array, dims=dims, coords=index, attrs={"units": units, "about": about})


def written(tokens: xr.DataArray, spell: Callable[[int], str | None]) -> np.ndarray:
    """Tokens as text, in the same places."""
    return np.array([spell(int(token)) for token in tokens.values.ravel()]).reshape(tokens.shape)


def spelled(dataset: xr.Dataset, spell: Callable[[int], str | None]) -> xr.Dataset:
    """A dataset in which points are labelled by tokens as they are written, and not by their numbers.

    Args:
        dataset: variables called ``label_*`` whose unit is ``token`` are changed.
        spell: a token as text; where it gives nothing, tokens are numbers and stay so.
    """
    if spell(0) is None:
        return dataset
    words = {}
    for name, array in dataset.data_vars.items():
        if str(name).startswith("label_") and array.attrs.get("units") == "token":
            words[name] = (array.dims, written(array, spell), {**array.attrs, "units": "text"})
    return dataset.assign(words)
