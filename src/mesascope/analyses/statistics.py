"""Least squares with a held-out score: the small statistics that several measures share."""

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = tuple(10.0**power for power in range(-6, 4))  # in units of the mean variance of what is read
Rows = Float[Tensor, "row feature"]
Values = Float[Tensor, "row out"]


def halves(size: int) -> tuple[slice, slice]:
    """The sequences to fit on and those to score on."""
    return slice(0, size // 2), slice(size // 2, size)


def affine_fit(x: Rows, y: Values, penalty: float = 1e-6) -> tuple[Float[Tensor, "feature out"], Float[Tensor, "out"]]:
    """The affine map from x to y by ridge regression, in float64.

    Args:
        x: what is read.
        y: what it shall tell.
        penalty: the ridge, in units of the mean variance of x; the constant is not penalised.
    """
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    ridge = penalty * gram.diagonal().mean() + torch.finfo(torch.float64).tiny
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=x.dtype, device=x.device), x.T @ y)
    return weight, mean_y - mean_x @ weight


def ridge_fit(x: Rows, y: Values) -> tuple[Float[Tensor, "feature out"], Float[Tensor, "out"], float]:
    """The affine map from x to y by ridge regression, its penalty chosen by generalised cross-validation.

    Args:
        x: what is read; fewer rows than features will do.
        y: what it shall tell.

    Returns:
        the map, its constant, and the penalty in units of the mean variance of x (Golub, Heath & Wahba 1979).
    """
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    u, size, v = torch.linalg.svd(x - mean_x, full_matrices=False)
    along, unit = u.T @ (y - mean_y), size.square().sum() / x.shape[1]
    rest = (y - mean_y).square().sum() - along.square().sum()

    def score(penalty: float) -> float:
        kept = size.square() / (size.square() + penalty * unit)
        error = ((1 - kept)[:, None] * along).square().sum() + rest.clamp_min(0)
        return float(error / (len(x) - 1 - kept.sum()).clamp_min(1e-9).square())

    penalty = min(PENALTIES, key=score)
    weight = v.T @ ((size / (size.square() + penalty * unit))[:, None] * along)
    return weight, mean_y - mean_x @ weight, penalty


def r_squared(prediction: Values, y: Values) -> float:
    """One minus the squared error over the variance of y; negative where the mean would do better."""
    error = (prediction.double() - y.double()).square().sum()
    spread = (y.double() - y.double().mean(0)).square().sum()
    return float(1 - error / spread)


def slope_and_r_squared(x: Values, y: Values) -> tuple[float, float]:
    """The best number s in y ~ s x + constant, and the share of the variance of y that it explains.

    A constant x or y has neither: both are 0.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    xx, xy, yy = (x * x).sum(), (x * y).sum(), (y * y).sum()
    floor = torch.finfo(torch.float64).eps
    if xx <= floor or yy <= floor:
        return 0.0, 0.0
    return float(xy / xx), float(xy * xy / (xx * yy))


def ranks(x: Float[Tensor, "*rest row"]) -> Float[Tensor, "*rest row"]:
    """Ranks along the last axis, ties sharing their mean rank, centred and scaled to unit length.

    The product of two such vectors is Spearman's correlation. A constant row becomes zeros: no correlation.
    """
    ordered, order = x.sort(dim=-1)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    group = starts.long().cumsum(-1) - 1
    place = torch.arange(x.shape[-1], dtype=torch.float64, device=x.device).expand(x.shape)
    total = torch.zeros(x.shape, dtype=torch.float64, device=x.device).scatter_add(-1, group, place)
    count = torch.zeros_like(total).scatter_add(-1, group, torch.ones_like(place))
    shared = (total / count.clamp_min(1)).gather(-1, group)
    rank = torch.empty_like(shared).scatter(-1, order, shared)
    rank = rank - rank.mean(-1, keepdim=True)
    length = rank.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, rank / length.clamp_min(1e-300), 0.0)
