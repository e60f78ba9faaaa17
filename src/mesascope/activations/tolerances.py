"""Tolerances for rounding errors, all of which are set here."""

from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, finfo

# eps of the inputs to matrix products of float32, by torch's name of the precision; all others are exact
PRODUCT_EPS = {"tf32": 2.0**-10, "bf16": 2.0**-7, "high": 2.0**-10, "medium": 2.0**-7}


def bitwise_equal(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    """Return whether two tensors are equal bit for bit, shape and dtype included.

    Args:
        a: a tensor.
        b: a tensor.

    Returns:
        ``True`` if they are equal; a NaN is equal to nothing.
    """
    return a.shape == b.shape and a.dtype == b.dtype and a.equal(b)


def relative_difference(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], scale: float = 0.0) -> float:
    """Return the largest absolute difference, relative to the largest entry: max |a - b| / max(scale, max |b|).

    Args:
        a: a tensor.
        b: the reference, of the same shape.
        scale: a lower bound of the denominator.

    Returns:
        The relative difference; the absolute one if the denominator is 0.
    """
    size = max(scale, b.double().abs().max().item())
    gap = (a.double() - b.double()).abs().max().item()
    return gap / size if size else gap


def rounding_tolerance(tensor: Float[Tensor, "..."]) -> float:
    """Return the tolerance for sums in another order, relative to the largest entry, in the precision of a tensor.

    Args:
        tensor: the tensor.

    Returns:
        max(1e-4, 8 eps) up to 32 bits, and 1e-5 in double precision: most models compute norms and the softmax in
        single precision inside, whatever the precision of their weights. If matrix products of float32 round their
        inputs to TF32 or bfloat16 on the tensor's device, eps is that of the rounded inputs.
    """
    if finfo(tensor.dtype).bits > 32:
        return 1e-5
    eps = finfo(tensor.dtype).eps
    if tensor.dtype == torch.float32:
        eps = max(eps, PRODUCT_EPS.get(float32_product_precision(tensor.device), 0.0))
    return max(1e-4, 8 * eps)


def float32_product_precision(device: torch.device) -> str:
    """Return the precision to which matrix products of float32 on a device round their inputs.

    Args:
        device: the device.

    Returns:
        Torch's name of the precision: tf32, bf16, or another one for no rounding; before torch 2.9, high, medium or
        highest.
    """
    products: Any = attrgetter("cuda.matmul" if device.type == "cuda" else "mkldnn.matmul")
    try:
        return products(torch.backends).fp32_precision
    except AttributeError:  # before torch 2.9
        return torch.get_float32_matmul_precision()


def allclose(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"], scale: float = 0.0) -> bool:
    """Return whether two tensors agree up to the order of summation; a NaN never agrees.

    Args:
        a: a tensor.
        b: the reference, of the same shape.
        scale: a lower bound of the size to which the difference is relative.

    Returns:
        ``True`` if the relative difference is within the tolerance.
    """
    return relative_difference(a, b, scale) <= rounding_tolerance(b)


def terms_sum_to(total: Float[Tensor, "*shape"], *terms: Float[Tensor, "*shape"]) -> bool:
    """Return whether terms sum to a total, each entry within 4 eps of the sum of the magnitudes of its terms.

    Args:
        total: the expected sum.
        *terms: the terms, of the same shape.

    Returns:
        ``True`` if every entry agrees.
    """
    gap = (total.double() - sum(term.double() for term in terms)).abs()
    size = total.double().abs() + sum(term.double().abs() for term in terms)
    return bool((gap <= 4 * finfo(total.dtype).eps * size).all())
