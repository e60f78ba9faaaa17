"""How far parameters go in training, and in which direction: read from a trail of checkpoints.

Merrill, Ramanujan, Goldberg, Schwartz and Smith, Effects of Parameter Norm Growth During Transformer Training
(arXiv 2010.09697). The update from one checkpoint to the next is d = theta' - theta; with its relative size
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

from mesascope.analyses.instrument import instrument
from mesascope.axes import label

WHOLE, INSIDE = "all parameters", "without embeddings"
CURVES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "√t": np.sqrt,
    "t": lambda t: t,
    "⁴√t": lambda t: t**0.25,
    "e^-t": lambda t: np.exp(-t),
}
EXPONENTS = np.arange(1, 301) / 100  # the powers that are tried: 0.01 is as good as a logarithm
IN_A_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trail:
    """The checkpoints of one training.

    Attributes:
        steps: at which there is one, in order.
        load: opens that of a step.
    """

    steps: tuple[int, ...]
    load: Callable[[int], PreTrainedModel]


@instrument(title="Growth of the parameters", order=5)
def growth(trail: Trail, early: float = 0.0) -> xr.Dataset:
    """The norm of all parameters, without embeddings and read-out, and of every layer; how alike parameters of
    neighbouring checkpoints are (cosine), how large the update between them is and how it is aligned with the
    parameters; R² of affine fits of the norm on √t, t, ⁴√t and e^-t, and the power g for which that on t^g is the best;
    and the growth of every matrix inside the layers, as the logarithm of its norm over what it was. Powers from 0.01,
    as good as a logarithm, to 3 are tried; where the norm does not change there is none. Merrill et al. 2021.

    Args:
        trail: the checkpoints.
        early: the share of the steps that fits, and the growth of matrices, leave out, such as warm-up.

    Raises:
        ValueError: fewer than four checkpoints are left for a fit.
    """
    later = [place for place, step in enumerate(trail.steps) if step >= early * trail.steps[-1]]
    if len(later) < 4:
        raise ValueError(
            f"a fit needs four checkpoints or more, but {len(later)} are left after early={early:g} of the steps; "
            "keep more of them"
        )
    norms, tensors, moves, before = [], [], [], None
    matrices: list[str] = []
    for step in trail.steps:
        model = trail.load(step)
        parameters, inside = dict(model.named_parameters()), _inside(model)
        tensors.append({name: length(each) for name, each in parameters.items()})
        within = torch.cat([parameters[name].detach().double().flatten() for name in inside])
        norms.append([math.hypot(*tensors[-1].values()), length(within)])
        moves.append([np.nan] * 3 if before is None else _moved(before, within))
        before = within
        matrices = [name for name, each in parameters.items() if each.ndim > 1 and IN_A_LAYER.search(name)]
    by_layer = np.array([_by_layer(each) for each in tensors])
    moved, norm = np.array(moves), np.array(norms)
    rate = {name: np.log(tensors[-1][name] / tensors[later[0]][name]) for name in matrices}
    t, curve = np.array(trail.steps, dtype=float)[later], norm[later, 1]
    return _labelled(list(trail.steps), norm, by_layer, moved, rate, fits(t, curve), exponent(t, curve))


def length(x: Float[Tensor, "..."]) -> float:
    """The norm of a tensor, in float64."""
    return x.detach().double().norm().item()


def fits(t: Float[np.ndarray, " step"], norm: Float[np.ndarray, " step"]) -> dict[str, float]:
    """R² of the affine fit on each of :data:`CURVES`; time is counted in the mean distance between checkpoints, which
    changes nothing but e^-t, whose unit is not known. Not numbers where the norm does not change.

    >>> fits(np.arange(1.0, 9.0), 3 + 2 * np.arange(1.0, 9.0))["t"]
    1.0
    """
    unit = np.diff(t).mean()
    return {name: _straight(curve(t / unit), norm) for name, curve in CURVES.items()}


def exponent(t: Float[np.ndarray, " step"], norm: Float[np.ndarray, " step"]) -> float:
    """The power g in :data:`EXPONENTS` for which an affine fit of the norm on t^g leaves the least; not a number where
    the norm does not change.

    >>> exponent(np.arange(1.0, 9.0), 3 + 2 * np.arange(1.0, 9.0) ** 0.5)
    0.5
    """
    found = np.array([_straight(t**power, norm) for power in EXPONENTS])
    return float(EXPONENTS[found.argmax()]) if np.isfinite(found).all() else float("nan")


def _straight(x: np.ndarray, y: np.ndarray) -> float:
    """R² of a straight line; not a number where either is constant but for rounding."""
    if np.ptp(x) <= 1e-12 * np.abs(x).max() or np.ptp(y) <= 1e-9 * np.abs(y).max():
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _inside(model: PreTrainedModel) -> list[str]:
    """The names of parameters that belong to no embedding and not to the read-out."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = [each for each in model.modules() if isinstance(each, nn.Embedding) or any(each is end for end in ends)]
    there = {id(parameter) for each in outside for parameter in each.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in there]


def _moved(before: Float[Tensor, " parameter"], now: Float[Tensor, " parameter"]) -> list[float]:
    """Cosine of both, relative size of the update, and its alignment: not a number where nothing moved."""
    update = now - before
    size = length(update)
    alignment = float(update @ before) / (size * length(before)) if size else float("nan")
    return [float(before @ now) / (length(before) * length(now)), size / length(before), alignment]


def _by_layer(norms: Mapping[str, float]) -> list[float]:
    """The norm of each layer's parameters, from those of its tensors."""
    squares: dict[int, float] = {}
    for name, norm in norms.items():
        if place := IN_A_LAYER.search(name):
            layer = int(place[1])
            squares[layer] = squares.get(layer, 0.0) + norm**2
    return [squares[layer] ** 0.5 for layer in sorted(squares)]


def _labelled(
    steps: list[int],
    norm: np.ndarray,
    by_layer: np.ndarray,
    moved: np.ndarray,
    rate: Mapping[str, float],
    straight: Mapping[str, float],
    power: float,
) -> xr.Dataset:
    """What was found, with its meaning."""
    at = {"step": steps}
    table, named = _matrices(rate)
    found = {
        "norm": label(norm, "step", "stat", units="1", about="norm", coords=at | {"stat": [WHOLE, INSIDE]}),
        "norm_by_layer": label(by_layer, "step", "layer", units="1", about="norm of a layer", coords=at).assign_attrs(
            view="training"
        ),
        "straight": label(
            np.array(list(straight.values())),
            "_curve",
            units="1",
            about=f"R² of the affine fit of the norm {INSIDE} on a function of the step",
            coords={"_curve": list(straight)},
        ),
        "exponent": label(power, units="1", about=f"best g of an affine fit of the norm {INSIDE} on t^g"),
        "rate": label(table, "layer", "map", units="1", about="logarithm of the growth of a matrix", coords=named),
        "spread": label(
            float(np.std(list(rate.values()))),
            units="1",
            about="standard deviation of that over the matrices of all layers",
        ),
    }
    about = (
        ("cosine", f"cosine of the parameters {INSIDE} with those of the checkpoint before"),
        ("update", f"size of the update since the checkpoint before over that of the parameters {INSIDE}"),
        ("alignment", "cosine of that update with the parameters that it changed"),
    )
    for column, (name, meaning) in enumerate(about):
        found[name] = label(moved[:, column], "step", units="1", about=meaning, coords=at)
    for name in ("norm", "straight", "cosine", "alignment"):
        found[name].attrs["headline"] = 1
    return xr.Dataset(found)


def _matrices(rate: Mapping[str, float]) -> tuple[np.ndarray, dict[str, list]]:
    """Growth by layer and by what the matrix is called inside of it."""
    parts = {name: IN_A_LAYER.split(name, maxsplit=1) for name in rate}
    layers = sorted({int(layer) for _, layer, _ in parts.values()})
    maps = list(dict.fromkeys(rest.removesuffix(".weight") for *_, rest in parts.values()))
    table = np.full((len(layers), len(maps)), np.nan)
    for name, (_, layer, rest) in parts.items():
        table[layers.index(int(layer)), maps.index(rest.removesuffix(".weight"))] = rate[name]
    return table, {"layer": layers, "map": maps}
