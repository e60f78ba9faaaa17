"""Norms in closed form, found by running their modules."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import allclose, relative_difference

ResidualStream = Float[Tensor, "*rest d_model"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """A norm in closed form: bias + gain * x / scale(x), where x may be centred first.

    Attributes:
        centred: the mean over ``d_model`` is subtracted first (LayerNorm), or not (RMSNorm).
        gain, bias: per coordinate.
    """

    centred: bool
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]

    def linear_part(self, x: ResidualStream) -> ResidualStream:
        """Apply the linear part of the norm, before the division by the scale.

        Args:
            x: input of the norm.

        Returns:
            gain * x, with x centred first in a LayerNorm.
        """
        return self.gain * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def apply_transposed(self, row: ResidualStream) -> ResidualStream:
        """Apply the transpose of the linear part: ``apply_transposed(row) @ x == row @ linear_part(x)``.

        Args:
            row: vectors in the output space of the norm.

        Returns:
            Vectors in its input space.
        """
        row = self.gain * row
        return row - row.mean(-1, keepdim=True) if self.centred else row

    def scale(self, x: ResidualStream, normed: ResidualStream) -> Float[Tensor, "*rest 1"]:
        """Compute the scale by which the norm divided its input: its root mean square, or standard deviation.

        Args:
            x: input of the norm.
            normed: its output.

        Returns:
            The divisor of each vector.
        """
        linear_part, out = self.linear_part(x.double()), normed.double() - self.bias
        return (linear_part.square().sum(-1, keepdim=True) / (linear_part * out).sum(-1, keepdim=True)).to(x.dtype)


def identify_norm(module: nn.Module, x: Float[Tensor, "row d_model"], description: str) -> Norm:
    """Find the closed form of a norm by running its module on noise and on real inputs.

    Args:
        module: maps (row, d_model) to the same shape.
        x: real inputs of the module.
        description: the name of the norm in error messages.

    Returns:
        The closed form of the norm.

    Raises:
        UnsupportedModel: If it is neither an RMSNorm nor a LayerNorm.
    """
    noise = _sample_noise(x)
    inputs = torch.cat([x, noise])
    with torch.no_grad():
        bias, out, sampled = module(torch.zeros_like(x[:1]))[0], module(inputs), module(noise)
    if out.shape != inputs.shape:
        raise UnsupportedModel(f"{description} must keep the shape of its input, but {type(module).__name__} does not")
    differences = []
    for centred in (False, True):
        norm = Norm(centred=centred, gain=_fit_gain(noise, sampled - bias, centred), bias=bias)
        predicted = norm.linear_part(inputs) / norm.scale(inputs, out) + bias
        if allclose(predicted, out):
            return norm
        differences.append(relative_difference(predicted, out))
    raise UnsupportedModel(
        f"{description} must be an RMSNorm or a LayerNorm, but {type(module).__name__} is neither: the closer "
        f"one differs by {min(differences):.1e}"
    )


def refit_norm(module: nn.Module, norm: Norm, description: str) -> Norm:
    """Find gain and bias of a norm of known kind anew, from the present weights of its module.

    Args:
        module: maps (row, d_model) to the same shape.
        norm: its closed form for earlier weights.
        description: the name of the norm in error messages.

    Returns:
        The closed form for the present weights.

    Raises:
        UnsupportedModel: If the module is no longer a norm of this kind.
    """
    noise = _sample_noise(norm.gain.expand(1, -1))
    with torch.no_grad():
        bias, sampled = module(torch.zeros_like(noise[:1]))[0], module(noise)
    refitted = Norm(centred=norm.centred, gain=_fit_gain(noise, sampled - bias, norm.centred), bias=bias)
    predicted = refitted.linear_part(noise) / refitted.scale(noise, sampled) + bias
    if not allclose(predicted, sampled):
        raise UnsupportedModel(
            f"{description} must stay an RMSNorm or a LayerNorm, but {type(module).__name__} now differs from it by "
            f"{relative_difference(predicted, sampled):.1e}; capture again with a new model"
        )
    return refitted


def _sample_noise(like: Float[Tensor, "row d_model"]) -> Float[Tensor, "256 d_model"]:
    noise = 1e3 * torch.randn(256, like.shape[-1], generator=torch.Generator().manual_seed(0))
    return noise.to(like)


def _fit_gain(noise: ResidualStream, out: ResidualStream, centred: bool) -> Float[Tensor, " d_model"]:
    """Fit the gain of a norm on noise by least squares over rows."""
    x = noise.double()
    x = x - x.mean(-1, keepdim=True) if centred else x
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    return ((unit * out.double()).sum(0) / unit.square().sum(0)).to(noise.dtype)
