"""Predictors for sequences with a linear rule, x[n+1] = W phi(x[n]): each sees the same prompt as the model.

At position n the terms x[0..n] are known, and with them the pairs (phi(x[i]), x[i+1]) for i < n. Everything
is batched over sequences and positions and computed in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Terms = Float[Tensor, "batch pos d_in"]
Features = Float[Tensor, "batch pos feature"]


def copy(x: Terms) -> Terms:
    """The last term again."""
    return x.clone()


def zero(x: Terms) -> Terms:
    """Nothing at all: its error is the size of the signal."""
    return torch.zeros_like(x)


def extrapolate(x: Terms) -> Terms:
    """A straight line through the last two terms; at the first position there is one term only, which is copied."""
    previous = torch.cat([x[:, :1], x[:, :-1]], dim=1)
    return 2 * x - previous


def closed_form(x: Terms, phi: Features) -> Terms:
    """Solve the rule exactly from the last pairs, as many as it has coefficients.

    With fewer pairs, or where they do not determine the rule, the smallest rule that fits them is used.
    """
    return _predict(phi, _least_squares(*_pairs(x, phi, last=phi.shape[-1])))


def least_squares(x: Terms, phi: Features) -> Terms:
    """The rule that fits all pairs seen so far best; of several, the smallest."""
    return _predict(phi, _least_squares(*_pairs(x, phi)))


def ridge(x: Terms, phi: Features, penalty: float) -> Terms:
    """Least squares on all pairs seen so far plus ``penalty`` times the squared size of the rule."""
    known, following = _pairs(x, phi)
    gram = known.mT @ known + penalty * torch.eye(phi.shape[-1], dtype=known.dtype, device=known.device)
    return _predict(phi, torch.linalg.solve(gram, known.mT @ following))


def gradient_descent(x: Terms, phi: Features, steps: int, rate: float = 1.0) -> Terms:
    """``steps`` steps of gradient descent on the pairs seen so far, from a rule of zeros.

    The loss is half the summed squared error; the step size is ``rate`` over its largest curvature, so that
    a rate below 2 converges on every sequence.
    """
    known, following = _pairs(x, phi)
    gram, moment = known.mT @ known, known.mT @ following
    curvature = torch.linalg.eigvalsh(gram)[..., -1:, None].clamp_min(torch.finfo(gram.dtype).tiny)
    rule = torch.zeros_like(moment)
    for _ in range(steps):
        rule = rule - rate / curvature * (gram @ rule - moment)
    return _predict(phi, rule)


def _pairs(
    x: Terms, phi: Features, last: int | None = None
) -> tuple[Float[Tensor, "batch pos pair feature"], Float[Tensor, "batch pos pair d_in"]]:
    """The pairs known at every position (all, or the last few), the others as rows of zeros."""
    length = x.shape[1]
    position, pair = torch.arange(length)[:, None], torch.arange(length - 1)[None, :]
    seen = pair < position
    if last is not None:
        seen &= pair >= position - last
    mask = seen.to(device=x.device, dtype=torch.float64)[None, :, :, None]
    return phi.double()[:, None, :-1] * mask, x.double()[:, None, 1:] * mask


def _least_squares(
    known: Float[Tensor, "batch pos pair feature"], following: Float[Tensor, "batch pos pair d_in"]
) -> Float[Tensor, "batch pos feature d_in"]:
    """The smallest of the best-fitting rules."""
    return torch.linalg.pinv(known, rtol=1e-12) @ following


def _predict(phi: Features, rule: Float[Tensor, "batch pos feature d_in"]) -> Terms:
    """Apply the rule found at each position to the term at that position."""
    return torch.einsum("bpf,bpfo->bpo", phi.double(), rule).to(phi.dtype)
