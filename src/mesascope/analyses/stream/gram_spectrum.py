"""Eigendecomposition of WᵀW, and ranks of eigenvalues and of inputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# relative to the largest eigenvalue; smaller ones are set to 0, since rounding determines their eigenvectors in float64
EIGENVALUE_FLOOR = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """The eigendecomposition of WᵀW, in float64.

    Attributes:
        eigenvalues: all eigenvalues in descending order; those of the null space are 0.
        eigenvectors: orthonormal eigenvectors of the first of them; the null space is their orthogonal complement.
    """

    eigenvalues: Float[Tensor, " d_in"]
    eigenvectors: Float[Tensor, "d_in rank"]

    def compute_energies(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_in"]:
        """Return <u_k, x>² of each vector; the energy in the null space is divided equally among its directions.

        Args:
            x: input vectors.

        Returns:
            energies (token, d_in), in the order of the eigenvalues.
        """
        x = x.double()
        energy = (x @ self.eigenvectors).square()
        null_dims = x.shape[1] - energy.shape[1]
        null_energy = (x.square().sum(-1, keepdim=True) - energy.sum(-1, keepdim=True)).clamp_min(0)
        return torch.cat([energy, null_energy.expand(-1, null_dims) / max(null_dims, 1)], dim=1)


def decompose_gram_matrix(weight: Float[Tensor, "d_out d_in"]) -> Spectrum:
    """Compute the eigendecomposition of WᵀW, from W Wᵀ if that is smaller: u_k = Wᵀ v_k / sqrt(λ_k).

    Args:
        weight: the matrix W.

    Returns:
        the eigendecomposition.

    >>> decompose_gram_matrix(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])).eigenvalues.tolist()
    [9.0, 4.0, 0.0]
    """
    W = weight.double()
    wide = W.shape[0] < W.shape[1]
    values, vectors = torch.linalg.eigh(W @ W.T if wide else W.T @ W)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    if wide:
        rank = int((values > EIGENVALUE_FLOOR * values[0]).sum())
        vectors = W.T @ vectors[:, :rank] / values[:rank].sqrt()
        values = torch.cat([values[:rank], values.new_zeros(W.shape[1] - rank)])
    return Spectrum(eigenvalues=values, eigenvectors=vectors)


def effective_rank(eigenvalues: Float[Tensor, " d_in"]) -> Float[Tensor, ""]:
    """Return the exponential of the entropy of the normalized eigenvalues; NaN if all are 0.

    Args:
        eigenvalues: the eigenvalues.

    >>> round(float(effective_rank(torch.tensor([2.0, 2.0, 0.0]))), 6)
    2.0
    """
    fraction = eigenvalues / eigenvalues.sum()
    return torch.xlogy(fraction, fraction).sum().neg().exp()


def participation_ratio(x: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """Return the participation ratio of the inputs, from pairs of different tokens.

    Without the pairs of a token with itself, a small number of tokens does not bias it downwards.

    Args:
        x: input vectors.
    """
    squared_norm = x.square().sum(-1)
    pairs = squared_norm.sum().square() - squared_norm.square().sum()
    return (
        pairs / (small_gram_matrix(x).square().sum() - squared_norm.square().sum())
        if len(x) > 1
        else x.new_full((), torch.nan)
    )


def small_gram_matrix(x: Float[Tensor, "token d_in"]) -> Float[Tensor, "small small"]:
    """Return x xᵀ or xᵀ x, whichever is smaller; both have the same sum of squares.

    Args:
        x: input vectors.
    """
    return x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
