"""Principal axes of features, without those that are rounding."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PrincipalAxes(NamedTuple):
    """Singular value decomposition of centred features, in double precision.

    Attributes:
        mean: mean of the features.
        left: left singular vectors.
        singular_values: singular values above rounding.
        right: right singular vectors.
    """

    mean: Float[Tensor, " feature"]
    left: Float[Tensor, "row rank"]
    singular_values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank feature"]


def find_principal_axes(features: Float[Tensor, "row feature"]) -> PrincipalAxes:
    """Return the principal axes of features along which they vary by more than rounding in their own precision.

    The rounding of n rows of d features has singular values of about eps max|x| (sqrt(n) + sqrt(d)).

    Args:
        features: features in their own precision.

    >>> find_principal_axes(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).singular_values.shape
    torch.Size([1])
    """
    x = features.double()
    mean = x.mean(0)
    left, singular_values, right = torch.linalg.svd(x - mean, full_matrices=False)
    rounding = torch.finfo(features.dtype).eps * float(x.abs().max())
    is_real = singular_values > rounding * sum(size**0.5 for size in x.shape)
    return PrincipalAxes(mean, left[:, is_real], singular_values[is_real], right[is_real])
