"""Joint least-squares regression of contributions to the output on the stream's estimate and the target."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-5  # relative size below which a difference of float32 activations is rounding

Contribution = Float[Tensor, "part batch pos d_out"]
Estimate = Float[Tensor, "batch pos d_out"]
Score = Float[Tensor, " part"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Regressors:
    """The stream's estimate and the target of a layer, centred over sequences, and the part of each without the other.

    Attributes:
        stream, target: centred values.
        stream_residual, target_residual: the part that is not a linear function of the other one.
        defined: whether both residuals are larger than rounding, by position and output coordinate.
        reason: why no regression is defined; empty if one is.
    """

    stream: Estimate
    target: Estimate
    stream_residual: Estimate
    target_residual: Estimate
    defined: Bool[Tensor, "pos d_out"]
    reason: str

    @classmethod
    def build(cls, stream: Estimate, target: Estimate) -> "Regressors":
        """Return both, centred, with each projected out of the other.

        Args:
            stream: estimate of the stream.
            target: target.
        """
        # a small estimate that is the difference of large numbers is rounding as well
        floor = ROUNDING * torch.maximum(_root_mean_square(stream), _root_mean_square(target))
        stream, target = stream - stream.mean(0), target - target.mean(0)
        varies = {"stream": _root_mean_square(stream) > floor, "target": _root_mean_square(target) > floor}
        stream_residual, target_residual = _project_out(stream, target), _project_out(target, stream)
        defined = (_root_mean_square(stream_residual) > floor) & (_root_mean_square(target_residual) > floor)
        reason = _explain_undefined(varies) if not defined.any() else ""
        return cls(
            stream=stream,
            target=target,
            stream_residual=stream_residual,
            target_residual=target_residual,
            defined=defined,
            reason=reason,
        )

    def fit_slopes(
        self, contribution: Contribution, order: Int[Tensor, " batch"] | slice = slice(None)
    ) -> dict[str, Score]:
        """Return the slopes and R² of centred contributions, averaged over positions and output coordinates.

        Args:
            contribution: contributions, centred over sequences.
            order: the sequence whose stream and target are used for each contribution; its own by default.
        """
        stream, target = self.stream[order], self.target[order]
        on_stream = _fit_slope(contribution, self.stream_residual[order])
        on_target = _fit_slope(contribution, self.target_residual[order])
        residual = contribution - on_stream[:, None] * stream - on_target[:, None] * target
        values = dict(
            zip(
                ("stream_slope", "target_slope", "marginal_slope"),
                (on_stream, on_target, _fit_slope(contribution, stream)),
                strict=True,
            )
        )
        slopes = {name: value[:, self.defined].mean(-1) for name, value in values.items()}
        unexplained, total = self._sum_squares(residual), self._sum_squares(contribution)
        return slopes | {"explained": torch.where(total == 0, 0.0, 1 - unexplained / total)}

    def correlate(self) -> Float[Tensor, ""]:
        """Return the mean correlation of stream and target where it is defined; NaN if it is nowhere."""
        product = (self.stream * self.target).mean(0)[self.defined]
        scale = (_root_mean_square(self.stream) * _root_mean_square(self.target))[self.defined]
        return (product / scale).mean()

    def _sum_squares(self, x: Contribution) -> Score:
        total = x.square().sum(1)[:, self.defined].sum(-1)
        return total if self.defined.any() else total * torch.nan


def _fit_slope(y: Contribution, x: Estimate) -> Float[Tensor, "part pos d_out"]:
    return einsum(y, x, "part b p d, b p d -> part p d") / x.square().sum(0)


def _project_out(x: Estimate, other: Estimate) -> Estimate:
    size = other.square().sum(0)
    return x - torch.where(size > 0, (x * other).sum(0) / size, 0.0) * other


def _root_mean_square(x: Estimate) -> Float[Tensor, "pos d_out"]:
    return x.square().mean(0).sqrt()


def _explain_undefined(varies: Mapping[str, Bool[Tensor, "pos d_out"]]) -> str:
    if not varies["stream"].any():
        return "the stream before the layer gives the same estimate for every sequence"
    if not varies["target"].any():
        return "the target is the same in every sequence"
    return "the estimate of the stream equals the target or a linear function of it, up to rounding"
