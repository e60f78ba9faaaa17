"""Axis names, and the conversion of torch tensors to xarray.

Each axis has one name in the whole project, used in shape annotations, dims of results, docs and figures.

- ``seed``: training replicate; only the random seed of training differs along it.
- ``step``: optimizer steps taken so far; step 0 is the untrained model.
- ``layer``: decoder layer, counted from 0. ``iteration``: call of the layers, in a model that repeats them.
- ``batch``: sequence. ``pos``: position in a sequence, counted from 0; with padding, the column of the padded inputs.
- ``query``, ``key``: positions as the two sides of attention; ``query`` attends to ``key``.
- ``chunk``: consecutive positions that a model processes together. ``slot``: vector of the memory between chunks.
- ``source``: position of the source of an encoder-decoder, as the key of cross-attention.
- ``head``: query head. ``kv_head``: key-value head (fewer than query heads in grouped-query attention).
- ``d_model``: coordinate of the residual stream. ``d_head``: coordinate inside one head.
- ``d_mlp``: neuron, a coordinate of the hidden activations of an MLP.
- ``d_in``, ``d_out``: coordinate of an input vector, and of an output vector (or a token's logit).
- ``component``: additive part of the output (embedding, head, MLP, biases).
- ``role_name``: named role of heads.
- ``sender``, ``receiver``: component that adds a term to the residual stream, and input that reads the sum of terms.
- ``circuit_size``: number of edges of a circuit. ``claim``: claim of a hypothesis about activations.
- ``predictor``: the model or one of the task's baselines. ``stat``: named statistic.
- ``sublayer``: attention or MLP of a layer. ``map``: linear module of a layer, such as ``self_attn.q_proj``.
- ``eigen``: index in a spectrum, in descending order. ``rank``: index in a ranking, best first.
- ``distribution``: distribution of the sequences: the training distribution, or a shifted one.
- ``lens``: readout of the residual stream.
- ``draw``: replicate of a control, with other random weights or another shuffle.

The seed of a *sequence* in a paper is the latent ``generator`` here, never ``seed``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

AXES = frozenset(
    "seed step layer iteration batch chunk pos slot head kv_head query key source d_model d_head d_mlp d_in d_out "
    "component predictor stat sublayer map eigen rank distribution lens draw role_name sender receiver circuit_size "
    "claim".split()
)


def to_data_array(
    values: torch.Tensor | np.ndarray | Sequence | float,
    *dims: str,
    units: str,
    description: str,
    coords: Mapping[Any, Any] | None = None,
) -> xr.DataArray:
    """Convert a tensor to a DataArray with axis names, units and a description.

    Every number in a result passes through this function, so that none lacks any of the three.

    Args:
        values: The numbers, on any device and of any dtype; they are detached and copied to the CPU. Numbers of
            less precision than float32 become float32, because numpy has no bfloat16 and netCDF no float16.
        dims: One axis name per dimension, from :data:`AXES`; names of your own may start with ``_``.
        units: ``"1"`` for a dimensionless number, ``"nat"``, ``"squared value"``, ...
        description: One sentence, shown under figures and stored with the numbers.
        coords: Coordinates along the axes, where they are not 0, 1, 2, ...

    Returns:
        The labelled array.

    Raises:
        ValueError: If an axis name is unknown, or the number of names is not the number of dimensions.

    >>> to_data_array(torch.ones(2, 3), "layer", "head", units="1", description="ones").dims
    ('layer', 'head')
    """
    array = _to_numpy(values)
    unknown = [dim for dim in dims if dim not in AXES and not dim.startswith("_")]
    if unknown:
        raise ValueError(f"axes must be listed in mesascope.axes.AXES, but got {unknown}")
    if array.ndim != len(dims):
        raise ValueError(f"axes must have one name per dimension, but got {dims} for the shape {array.shape}")
    coordinates = {dim: np.arange(size) for dim, size in zip(dims, array.shape, strict=True)} | dict(coords or {})
    return xr.DataArray(array, dims=dims, coords=coordinates, attrs={"units": units, "description": description})


def _to_numpy(values: torch.Tensor | np.ndarray | Sequence | float) -> np.ndarray:
    """Convert a tensor, or a sequence that may contain tensors, to numpy."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu().resolve_conj().resolve_neg()
        tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        if tensor.dtype is torch.complex32:
            tensor = tensor.to(torch.complex64)
        elif tensor.is_floating_point() and tensor.dtype is not torch.float64:
            tensor = tensor.float()
        return tensor.numpy()
    if isinstance(values, list | tuple):
        values = [_to_numpy(value) if isinstance(value, torch.Tensor | list | tuple) else value for value in values]
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def decode_tokens(tokens: xr.DataArray, decode_token: Callable[[int], str | None]) -> np.ndarray:
    """Decode token ids to text.

    Args:
        tokens: Token ids, of any shape.
        decode_token: Decodes one token id; returns None if the tokens have no text.

    Returns:
        An array of strings with the shape of ``tokens``.
    """
    return np.array([decode_token(int(token)) for token in tokens.values.ravel()]).reshape(tokens.shape)


def with_decoded_tokens(dataset: xr.Dataset, decode_token: Callable[[int], str | None]) -> xr.Dataset:
    """Decode the token ids that label the points of a dataset.

    Args:
        dataset: Variables named ``label_*`` with unit ``token`` are decoded.
        decode_token: Decodes one token id; if it returns None, the dataset is returned unchanged.

    Returns:
        The dataset, with decoded variables of unit ``text``.
    """
    if decode_token(0) is None:
        return dataset
    decoded = {}
    for name, array in dataset.data_vars.items():
        if str(name).startswith("label_") and array.attrs.get("units") == "token":
            decoded[name] = (array.dims, decode_tokens(array, decode_token), {**array.attrs, "units": "text"})
    return dataset.assign(decoded)


def concat_seeds(by_seed: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """Concatenate the results of training replicates along the axis ``seed``.

    Args:
        by_seed: The result of each replicate; coordinates that differ are joined, with NaN where a replicate has none.

    Returns:
        The result of all replicates, with the attributes of the first one.
    """
    joined = xr.concat(list(by_seed.values()), dim="seed", join="outer", combine_attrs="override")
    return joined.assign_coords(seed=list(by_seed))
