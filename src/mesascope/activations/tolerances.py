"""What counts as rounding: the one place where tolerances are set."""

from jaxtyping import Float, Shaped
from torch import Tensor, finfo


def same(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    """Whether two tensors are equal bit for bit, shape included."""
    return a.shape == b.shape and a.dtype == b.dtype and a.equal(b)


def distance(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], scale: float = 0.0) -> float:
    """The largest difference, relative to the largest entry of ``b`` (or to ``scale``, if that is larger)."""
    size = max(scale, b.double().abs().max().item())
    gap = (a.double() - b.double()).abs().max().item()
    return gap / size if size else gap


def tolerance(of: Float[Tensor, "..."]) -> float:
    """What two orders of the same sums may differ by, relative to the largest entry, in this precision."""
    return max(1e-4, 8 * finfo(of.dtype).eps) if finfo(of.dtype).bits <= 32 else 1e-9


def close(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], scale: float = 0.0) -> bool:
    """Whether two tensors are the same but for the order of sums; a NaN is never close."""
    return distance(a, b, scale) <= tolerance(b)


def sums_to(total: Float[Tensor, "*shape"], *terms: Float[Tensor, "*shape"]) -> bool:
    """Whether terms add up to a total, each entry to a few roundings of its own largest term."""
    gap = (total.double() - sum(term.double() for term in terms)).abs()
    size = total.double().abs() + sum(term.double().abs() for term in terms)
    return bool((gap <= 4 * finfo(total.dtype).eps * size).all())
