"""Parameter norms during training, and size and direction of the updates between checkpoints.

Merrill, Ramanujan, Goldberg, Schwartz and Smith, Effects of Parameter Norm Growth During Transformer Training
(arXiv 2010.09697). The update between neighbouring checkpoints is d = theta' - theta; with its relative size
u = |d| / |theta| and its alignment a = cos(d, theta), |theta'|^2 = |theta|^2 (1 + 2 u a + u^2).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array

ALL_PARAMETERS, WITHOUT_EMBEDDINGS = "all parameters", "without embeddings"
CURVES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "√t": np.sqrt,
    "t": lambda t: t,
    "⁴√t": lambda t: t**0.25,
    "e^-t": lambda t: np.exp(-t),
}
EXPONENTS = np.arange(1, 301) / 100  # 0.01 is indistinguishable from a logarithm
LAYER_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointSeries:
    """The checkpoints of one training.

    Attributes:
        steps: their training steps, in order.
        load: function that loads the model of a step.
    """

    steps: tuple[int, ...]
    load: Callable[[int], PreTrainedModel]


@analysis(
    title="Parameter norms",
    description=r"""The norm of all parameters, of all without embeddings and output map, and of every layer; the
    cosine of the parameters of neighbouring checkpoints, the relative size of the update between them and its
    alignment with the parameters; R² of affine fits of the norm on $\sqrt{t}$, $t$, $t^{1/4}$ and $e^{-t}$, and the
    exponent $g$ of the best fit on $t^g$, from 0.01 (indistinguishable from a logarithm) to 3, undefined if the norm
    is constant; and the growth of every matrix of the layers, as the logarithm of the ratio of its norms (Merrill et
    al. 2021).""",
    input="checkpoints",
)
def parameter_norms(checkpoints: CheckpointSeries, early: float = 0.0) -> xr.Dataset:
    """Compute norms of the parameters at all checkpoints, the updates between them, and fits of the norm over time.

    Args:
        checkpoints: the checkpoints.
        early: fraction of the steps that is excluded from the fits and from the growth of matrices, such as warm-up.

    Returns:
        ``norm`` (step, stat), ``norm_by_layer`` (step, layer), ``cosine``, ``update`` and ``alignment`` (step),
        ``r_squared`` of each fit, ``exponent``, ``log_growth`` (layer, map) and ``log_growth_std``.

    Raises:
        ValueError: fewer than four checkpoints are left for a fit.
    """
    fitted_checkpoints = [
        index for index, step in enumerate(checkpoints.steps) if step >= early * checkpoints.steps[-1]
    ]
    if len(fitted_checkpoints) < 4:
        raise ValueError(
            f"a fit needs at least four checkpoints, but {len(fitted_checkpoints)} are left after "
            f"early={early:g} of the steps; "
            "save more checkpoints"
        )
    norms, tensors, updates, previous = [], [], [], None
    matrices: list[str] = []
    for step in checkpoints.steps:
        model = checkpoints.load(step)
        parameters, inner_names = dict(model.named_parameters()), _inner_parameter_names(model)
        tensors.append({name: tensor_norm(each) for name, each in parameters.items()})
        inner_parameters = torch.cat([parameters[name].detach().double().flatten() for name in inner_names])
        norms.append([math.hypot(*tensors[-1].values()), tensor_norm(inner_parameters)])
        updates.append([np.nan] * 3 if previous is None else _describe_update(previous, inner_parameters))
        previous = inner_parameters
        matrices = [name for name, each in parameters.items() if each.ndim > 1 and LAYER_INDEX.search(name)]
    by_layer = np.array([_norms_by_layer(each) for each in tensors])
    update_stats, norm = np.array(updates), np.array(norms)
    log_growth = {name: np.log(tensors[-1][name] / tensors[fitted_checkpoints[0]][name]) for name in matrices}
    t, curve = np.array(checkpoints.steps, dtype=float)[fitted_checkpoints], norm[fitted_checkpoints, 1]
    return _label_results(
        list(checkpoints.steps),
        norm,
        by_layer,
        update_stats,
        log_growth,
        fit_curves(t, curve),
        fit_norm_exponent(t, curve),
    )


def tensor_norm(x: Float[Tensor, "..."]) -> float:
    """Return the norm of a tensor in float64.

    Args:
        x: the tensor.
    """
    return x.detach().double().norm().item()


def fit_curves(t: Float[np.ndarray, " step"], norm: Float[np.ndarray, " step"]) -> dict[str, float]:
    """Compute the R² of the affine fit of the norm on each of :data:`CURVES`; NaN if the norm is constant.

    The unit of time is the mean distance between checkpoints. It only matters for e^-t, whose unit is not known.

    Args:
        t: training steps.
        norm: norm at each step.

    Returns:
        R² by the name of the curve.

    >>> fit_curves(np.arange(1.0, 9.0), 3 + 2 * np.arange(1.0, 9.0))["t"]
    1.0
    """
    unit = np.diff(t).mean()
    return {name: _linear_fit_r_squared(curve(t / unit), norm) for name, curve in CURVES.items()}


def fit_norm_exponent(t: Float[np.ndarray, " step"], norm: Float[np.ndarray, " step"]) -> float:
    """Return the exponent g in :data:`EXPONENTS` of the best affine fit of the norm on t^g; NaN for a constant norm.

    Args:
        t: training steps.
        norm: norm at each step.

    >>> fit_norm_exponent(np.arange(1.0, 9.0), 3 + 2 * np.arange(1.0, 9.0) ** 0.5)
    0.5
    """
    r_squared = np.array([_linear_fit_r_squared(t**power, norm) for power in EXPONENTS])
    return float(EXPONENTS[r_squared.argmax()]) if np.isfinite(r_squared).all() else float("nan")


def _linear_fit_r_squared(x: np.ndarray, y: np.ndarray) -> float:
    """Return the R² of a linear fit; NaN if x or y is constant up to rounding."""
    if np.ptp(x) <= 1e-12 * np.abs(x).max() or np.ptp(y) <= 1e-9 * np.abs(y).max():
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _inner_parameter_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that belong neither to an embedding nor to the output embeddings."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    outer_modules = [
        each for each in model.modules() if isinstance(each, nn.Embedding) or any(each is end for end in embeddings)
    ]
    outer_parameters = {id(parameter) for each in outer_modules for parameter in each.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in outer_parameters]


def _describe_update(previous: Float[Tensor, " parameter"], current: Float[Tensor, " parameter"]) -> list[float]:
    """Return the cosine of two checkpoints, and the relative size and the alignment of the update."""
    update = current - previous
    update_norm = tensor_norm(update)
    alignment = float(update @ previous) / (update_norm * tensor_norm(previous)) if update_norm else float("nan")
    return [
        float(previous @ current) / (tensor_norm(previous) * tensor_norm(current)),
        update_norm / tensor_norm(previous),
        alignment,
    ]


def _norms_by_layer(norms: Mapping[str, float]) -> list[float]:
    squares: dict[int, float] = {}
    for name, norm in norms.items():
        if index := LAYER_INDEX.search(name):
            layer = int(index[1])
            squares[layer] = squares.get(layer, 0.0) + norm**2
    return [squares[layer] ** 0.5 for layer in sorted(squares)]


def _label_results(
    steps: list[int],
    norm: np.ndarray,
    by_layer: np.ndarray,
    update_stats: np.ndarray,
    log_growth: Mapping[str, float],
    curve_r_squared: Mapping[str, float],
    fitted_exponent: float,
) -> xr.Dataset:
    coords = {"step": steps}
    table, matrix_coords = _growth_table(log_growth)
    variables = {
        "norm": to_data_array(
            norm,
            "step",
            "stat",
            units="1",
            description="norm",
            coords=coords | {"stat": [ALL_PARAMETERS, WITHOUT_EMBEDDINGS]},
        ),
        "norm_by_layer": to_data_array(
            by_layer, "step", "layer", units="1", description="norm of a layer", coords=coords
        ).assign_attrs(view="training"),
        "r_squared": to_data_array(
            np.array(list(curve_r_squared.values())),
            "_curve",
            units="1",
            description=f"R² of the affine fit of the norm {WITHOUT_EMBEDDINGS} on a function of the step",
            coords={"_curve": list(curve_r_squared)},
        ),
        "exponent": to_data_array(
            fitted_exponent,
            units="1",
            description=f"exponent g of the best affine fit of the norm {WITHOUT_EMBEDDINGS} on t^g",
        ),
        "log_growth": to_data_array(
            table,
            "layer",
            "map",
            units="1",
            description="logarithm of the growth factor of the norm of each matrix",
            coords=matrix_coords,
        ),
        "log_growth_std": to_data_array(
            float(np.std(list(log_growth.values()))),
            units="1",
            description="standard deviation of the logarithm of the growth factor over the matrices of all layers",
        ),
    }
    about = (
        ("cosine", f"cosine of the parameters {WITHOUT_EMBEDDINGS} with those of the previous checkpoint"),
        (
            "update",
            f"norm of the update since the previous checkpoint over the norm of the parameters {WITHOUT_EMBEDDINGS}",
        ),
        ("alignment", "cosine of that update with the parameters before it"),
    )
    for column, (name, meaning) in enumerate(about):
        variables[name] = to_data_array(update_stats[:, column], "step", units="1", description=meaning, coords=coords)
    for name in ("norm", "r_squared", "cosine", "alignment"):
        variables[name].attrs["headline"] = 1
    return xr.Dataset(variables)


def _growth_table(log_growth: Mapping[str, float]) -> tuple[np.ndarray, dict[str, list]]:
    """Arrange the growth of the matrices by layer and by name in the layer."""
    parts = {name: LAYER_INDEX.split(name, maxsplit=1) for name in log_growth}
    layers = sorted({int(layer) for _, layer, _ in parts.values()})
    maps = list(dict.fromkeys(rest.removesuffix(".weight") for *_, rest in parts.values()))
    table = np.full((len(layers), len(maps)), np.nan)
    for name, (_, layer, rest) in parts.items():
        table[layers.index(int(layer)), maps.index(rest.removesuffix(".weight"))] = log_growth[name]
    return table, {"layer": layers, "map": maps}
