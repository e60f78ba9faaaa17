"""Baseline predictors for sequences with a linear rule, x[n+1] = W phi(x[n]).

Every baseline sees the same prompt as the model: at position n these are the terms x[0..n], and hence the pairs
(phi(x[i]), x[i+1]) for i < n. Computations are batched over sequences and positions and run in float64.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Terms = Float[Tensor, "batch pos d_in"]
Features = Float[Tensor, "batch pos feature"]


def predict_copy(x: Terms) -> Terms:
    """Predict the current term again.

    Args:
        x: terms of the sequences.

    Returns:
        A copy of the terms.
    """
    return x.clone()


def predict_zero(x: Terms) -> Terms:
    """Predict zero; the squared error is the signal power.

    Args:
        x: terms of the sequences.

    Returns:
        Zeros in the shape of the terms.
    """
    return torch.zeros_like(x)


def predict_extrapolation(x: Terms) -> Terms:
    """Extrapolate linearly from the last two terms, 2 x[n] - x[n-1].

    Args:
        x: terms of the sequences.

    Returns:
        The predicted terms; the first position, which has no earlier term, copies x[0].
    """
    previous = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    return 2 * x - previous


def predict_closed_form(x: Terms, phi: Features) -> Terms:
    """Solve the rule exactly from the most recent pairs, as many as it has coefficients.

    Args:
        x: terms of the sequences.
        phi: features of every term.

    Returns:
        The predicted terms; where the pairs do not determine the rule, of the minimum-norm solution.
    """
    return _apply_rule(phi, _solve_least_squares(*_context_pairs(x, phi, max_pairs=phi.shape[-1])))


def predict_least_squares(x: Terms, phi: Features) -> Terms:
    """Fit the rule by ordinary least squares on all pairs of the context.

    Args:
        x: terms of the sequences.
        phi: features of every term.

    Returns:
        The predicted terms; where the fit is not unique, of the minimum-norm solution.
    """
    return _apply_rule(phi, _solve_least_squares(*_context_pairs(x, phi)))


def predict_ridge(x: Terms, phi: Features, penalty: float) -> Terms:
    """Fit the rule by ridge regression on all pairs of the context: squared error + ``penalty`` * |W|^2.

    Args:
        x: terms of the sequences.
        phi: features of every term.
        penalty: regularisation strength.

    Returns:
        The predicted terms.
    """
    context_x, context_y = _context_pairs(x, phi)
    gram = context_x.mT @ context_x + penalty * torch.eye(phi.shape[-1], dtype=context_x.dtype, device=context_x.device)
    return _apply_rule(phi, torch.linalg.solve(gram, context_x.mT @ context_y))


def predict_gradient_descent(x: Terms, phi: Features, steps: Sequence[int], rate: float = 1.0) -> list[Terms]:
    """Fit the rule by gradient descent on all pairs of the context, from W = 0.

    The loss is half the summed squared error. The step size is ``rate`` / (largest eigenvalue of the Gram matrix), so
    that a rate below 2 converges on every sequence.

    Args:
        x: terms of the sequences.
        phi: features of every term.
        steps: numbers of gradient steps, in increasing order.
        rate: step size relative to the inverse of the largest curvature.

    Returns:
        The predicted terms after each number of steps.
    """
    context_x, context_y = _context_pairs(x, phi)
    gram, moment = context_x.mT @ context_x, context_x.mT @ context_y
    curvature = torch.linalg.eigvalsh(gram)[..., -1:, None].clamp_min(torch.finfo(gram.dtype).tiny)
    rule, predictions = torch.zeros_like(moment), []
    for done, step in pairwise((0, *steps)):
        for _ in range(step - done):
            rule = rule - rate / curvature * (gram @ rule - moment)
        predictions.append(_apply_rule(phi, rule))
    return predictions


def _context_pairs(
    x: Terms, phi: Features, max_pairs: int | None = None
) -> tuple[Float[Tensor, "batch pos pair feature"], Float[Tensor, "batch pos pair d_in"]]:
    # Rows of zeros mask later pairs, and pairs before the last ``last`` ones.
    length = x.shape[1]
    position, pair = torch.arange(length)[:, None], torch.arange(length - 1)[None, :]
    in_context = pair < position
    if max_pairs is not None:
        in_context &= pair >= position - max_pairs
    mask = in_context.to(device=x.device, dtype=torch.float64)[None, :, :, None]
    return phi.double()[:, None, :-1] * mask, x.double()[:, None, 1:] * mask


def _solve_least_squares(
    context_x: Float[Tensor, "batch pos pair feature"], context_y: Float[Tensor, "batch pos pair d_in"]
) -> Float[Tensor, "batch pos feature d_in"]:
    return torch.linalg.pinv(context_x, rtol=1e-12) @ context_y


def _apply_rule(phi: Features, rule: Float[Tensor, "batch pos feature d_in"]) -> Terms:
    return torch.einsum("bpf,bpfo->bpo", phi.double(), rule).to(phi.dtype)
