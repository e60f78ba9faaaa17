"""Small statistics that several modules share: derangements, resampling, ratios, rank correlation."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

BOOTSTRAP_RESAMPLES = 1_000
CONFIDENCE_LEVEL = 0.95
MIN_LOSS = torch.finfo(torch.float32).eps ** 2  # rounding of outputs of size 1; logarithms take no smaller loss
Features = Float[Tensor, "row feature"]
Targets = Float[Tensor, "row out"]


def derangement(size: int, generator: torch.Generator) -> Int[Tensor, " row"]:
    """Return a permutation without fixed points: every row is replaced by its predecessor in a random cycle.

    Args:
        size: number of rows, 2 or more.
        generator: source of the cycle.

    Returns:
        for every row, the index of another row.

    >>> order = derangement(4, torch.Generator().manual_seed(0))
    >>> sorted(order.tolist()), (order == torch.arange(4)).any().item()
    ([0, 1, 2, 3], False)
    """
    cycle = torch.randperm(size, generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


def evenly_spaced_indices(count: int, most: int, first: int = 0) -> Int[Tensor, " index"]:
    """Return at most ``most`` indices between ``first`` and ``count - 1``, both included, evenly spaced.

    Args:
        count: number of items that are indexed.
        most: maximum number of indices.
        first: the first index.

    >>> evenly_spaced_indices(10, 4).tolist(), evenly_spaced_indices(3, 8).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return torch.linspace(first, count - 1, min(most, count - first)).round().long()


def evenly_spaced_steps(steps: int, n: int) -> tuple[int, ...]:
    """Return at most ``n`` training steps, evenly spaced, 0 and ``steps`` among them.

    Args:
        steps: the last step.
        n: maximum number of steps returned.

    >>> evenly_spaced_steps(10, 5)
    (0, 2, 5, 8, 10)
    """
    return tuple(sorted({round(float(step)) for step in np.linspace(0, steps, min(n, steps + 1))}))


def bootstrap_counts(size: int, resamples: int, generator: torch.Generator) -> Float[Tensor, "row draw"]:
    """Return how often every row occurs in each of ``resamples`` draws with replacement.

    Args:
        size: number of rows.
        resamples: number of draws.
        generator: source of the draws.
    """
    drawn = torch.randint(0, size, (size, resamples), generator=generator)
    return torch.zeros(size, resamples, dtype=torch.float64).scatter_add_(0, drawn, torch.ones_like(drawn).double())


def bootstrap_interval(
    values: Float[Tensor, "*rest batch"], seed: int = 0
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Return the percentile bootstrap interval of the mean over sequences (95 %, 1,000 resamples).

    Args:
        values: one number for each sequence on the last axis; the other axes share the resamples.
        seed: of the resamples.

    Returns:
        lower and upper end of the interval.

    >>> low, high = bootstrap_interval(torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]))
    >>> low.tolist()[0], high.tolist()[0], bool(low[1] > 0)
    (0.0, 0.0, True)
    """
    count = values.shape[-1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=BOOTSTRAP_RESAMPLES)
    means = values.double() @ torch.from_numpy(drawn).double().T / count
    ends = torch.tensor([(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2], dtype=torch.float64)
    low, high = means.quantile(ends, dim=-1)
    return low, high


def ratio_of_sums(
    numerator: Float[Tensor, "*rest batch"], denominator: Shaped[Tensor, "*other"]
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Return the ratio of two sums over sequences, and its standard error over draws of the sequences.

    The standard error is that of the linearised ratio (delta method, Cochran 1977, section 6.4). With the residual
    r = numerator - ratio * denominator of each of n sequences, it is sqrt(n / (n - 1) * sum(r^2)) / |sum(denominator)|.
    If the denominator is 1 everywhere, ratio and standard error are those of a mean.

    Args:
        numerator: one number for each sequence on the last axis.
        denominator: the same of the quantity to divide by, such as the weights; it is broadcast to the numerator.

    Returns:
        ratio and standard error; the latter is NaN for a single sequence.

    >>> ratio, se = ratio_of_sums(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3))
    >>> ratio.item(), round(se.item(), 3)
    (2.0, 0.577)
    """
    numerator, denominator = torch.broadcast_tensors(numerator.double(), denominator.double())
    total, count = denominator.sum(-1), numerator.shape[-1]
    ratio = numerator.sum(-1) / total
    residual = numerator - ratio[..., None] * denominator
    correction = count / (count - 1) if count > 1 else torch.nan
    return ratio, (residual.square().sum(-1) * correction).sqrt() / total.abs()


def split_halves(size: int) -> tuple[slice, slice]:
    """Return the sequences to fit on and the sequences to score on: the first and the second half.

    Args:
        size: number of sequences.
    """
    return slice(0, size // 2), slice(size // 2, size)


def r_squared(prediction: Targets, y: Targets) -> float:
    """Return one minus the squared error over the variance of ``y``; negative where the mean predicts better.

    Args:
        prediction: predicted targets.
        y: targets.
    """
    error = (prediction.double() - y.double()).square().sum()
    variance = (y.double() - y.double().mean(0)).square().sum()
    return float(1 - error / variance)


def slope_and_r_squared(x: Targets, y: Targets) -> tuple[float, float]:
    """Return the slope s of the least-squares fit y ~ s x + constant, and its R².

    Args:
        x: predictor; all its numbers are pooled.
        y: response, of the same shape.

    Returns:
        slope and R²; both are 0 where ``x`` or ``y`` is constant.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    xx, xy, yy = (x * x).sum(), (x * y).sum(), (y * y).sum()
    floor = torch.finfo(torch.float64).eps
    if xx <= floor or yy <= floor:
        return 0.0, 0.0
    return float(xy / xx), float(xy * xy / (xx * yy))


def normalized_ranks(x: Float[Tensor, "*rest row"]) -> Float[Tensor, "*rest row"]:
    """Return the ranks along the last axis, centred and scaled to unit length; ties share their mean rank.

    The product of two such vectors is Spearman's rank correlation. A constant row becomes zeros: no correlation.

    Args:
        x: values to rank along the last axis.
    """
    order = _sort_rows(x)
    ordered = x.gather(-1, order)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    position = torch.arange(x.shape[-1], dtype=torch.float64, device=x.device).expand(x.shape)
    ordered_rank = position if starts.all() else _share_mean_rank(position, starts)
    rank = torch.empty(x.shape, dtype=torch.float64, device=x.device).scatter_(-1, order, ordered_rank)
    rank = rank - rank.mean(-1, keepdim=True)
    length = rank.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, rank / length.clamp_min(1e-300), 0.0)


def _sort_rows(x: Float[Tensor, "*rest row"]) -> Int[Tensor, "*rest row"]:
    """Return the indices that sort each row; on the CPU by NumPy, whose sort takes a quarter of the time."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.argsort(-1)
    return torch.from_numpy(np.argsort(x.detach().numpy(), axis=-1))


def _share_mean_rank(
    position: Float[Tensor, "*rest row"], starts: Bool[Tensor, "*rest row"]
) -> Float[Tensor, "*rest row"]:
    """Return the mean position of each group of equal values in sorted rows, which begin where ``starts`` is true."""
    group = starts.long().cumsum(-1) - 1
    total = position.new_zeros(position.shape).scatter_add(-1, group, position)
    count = torch.zeros_like(total).scatter_add(-1, group, torch.ones_like(position))
    return (total / count.clamp_min(1)).gather(-1, group)
