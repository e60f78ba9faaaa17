"""Erasure of a concept from features by an affine map in closed form (LEACE, Belrose et al. 2023)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Edit, get_site
from mesascope.argument_types import validate_arguments
from mesascope.interventions.edits import IndexByAxis
from mesascope.probes._principal_axes import find_principal_axes
from mesascope.probes._rows import Features, Labels, collect_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Eraser:
    """An affine map x - (x - mean) read write, which leaves nothing of a concept to linear predictors.

    Attributes:
        mean: mean of the features.
        read: map from features to the erased coordinates.
        write: map from the erased coordinates to features; ``write @ read`` is the identity.
    """

    mean: Float[Tensor, " feature"]
    read: Float[Tensor, "feature rank"]
    write: Float[Tensor, "rank feature"]

    @validate_arguments
    def project(self, features: Float[Tensor, "*rest feature"]) -> Float[Tensor, "*rest feature"]:
        """Return features without the concept, in their own precision; computed in double precision.

        Args:
            features: features.

        Raises:
            ValueError: they have another number of entries than those of the fit.
        """
        if features.shape[-1:] != self.mean.shape:
            raise ValueError(
                f"features must have the {len(self.mean)} entries of the fit, but got shape {tuple(features.shape)}; "
                "fit an eraser at this site"
            )
        mean, read, write = (one.to(features.device) for one in (self.mean, self.read, self.write))
        values = features.double()
        return (values - (values - mean) @ read @ write).to(features.dtype)

    def __call__(self, features: Float[Tensor, "*rest feature"]) -> Float[Tensor, "*rest feature"]:
        """Return features without the concept, as `project` does."""
        return self.project(features)


@validate_arguments
def fit_eraser(features: Features, labels: Labels, *, mask: Labels | None = None) -> Eraser:
    """Fit the affine map that erases labels from features and changes them least (LEACE, Belrose et al. 2023).

    With W the pseudo-inverse square root of the covariance of the features, and Q the orthogonal projection on the
    column space of W times the cross-covariance of features and one-hot labels, it is x - W⁺ Q W (x - mean). On the
    rows of the fit, the cross-covariance is 0 afterwards, so that no linear predictor is better than a constant one,
    and no other affine map with this property has a smaller mean squared change.

    Directions along which the features vary by no more than rounding in their own precision stay as they are.

    Args:
        features: (batch, feature), or (batch, pos, feature).
        labels: integers, one per row, or one per sequence.
        mask: 1 where a row counts; all by default.

    Returns:
        The eraser.

    Raises:
        ValueError: labels or features are invalid, there is one class, there are fewer than two sequences, or so few
            rows that any labels can be predicted from the features.

    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> labels = (x[:, 0] > 0).long()
    >>> erased = fit_eraser(x, labels)(x)
    >>> bool((erased[labels == 0].mean(0) - erased[labels == 1].mean(0)).abs().max() < 1e-6)
    True
    """
    rows = collect_rows(features, labels, mask)
    classes, targets = rows.labels.unique(return_inverse=True)
    num_sequences = len(rows.sequences.unique())
    if len(classes) < 2 or num_sequences < 2:
        raise ValueError(
            f"an eraser needs two classes and two sequences or more, but got {len(classes)} classes and "
            f"{num_sequences} sequences; add sequences"
        )
    mean, left, singular_values, right = find_principal_axes(rows.features)
    if len(singular_values) >= len(targets) - 1:
        raise ValueError(
            f"an eraser needs more rows than the features have dimensions, but {len(targets)} rows have "
            f"{len(singular_values)}, from which any labels can be predicted; add sequences or positions"
        )
    z = torch.nn.functional.one_hot(targets).double()
    # W times the cross-covariance, in the principal axes of the features
    directions, strengths, _ = torch.linalg.svd(left.T @ (z - z.mean(0)), full_matrices=False)
    directions = directions[:, strengths > torch.finfo(z.dtype).eps * max(z.shape) * float(z.norm())]
    return Eraser(
        mean=mean,
        read=right.T @ (directions / singular_values[:, None]),
        write=(directions * singular_values[:, None]).T @ right,
    )


@validate_arguments
def erase(site: str, eraser: Eraser, where: IndexByAxis | None = None) -> Edit:
    """Erase a concept from an activation in the forward pass.

    Args:
        site: name of a site whose last axis is ``d_model`` or ``d_head``.
        eraser: an eraser of features of this site, at the layers, heads and positions of ``where``.
        where: index by axis; the whole site by default.

    Returns:
        The edit, for `capture`, `sweep` and all that takes an `Edit`.

    Raises:
        ValueError: the site or an axis does not exist or has no features; and when the edit is run, if the eraser is of
            another number of features.

    >>> x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    >>> erase("resid_post", fit_eraser(x, x[:, 0] > 0), {"layer": 0}).where
    {'layer': 0}
    """
    axes = get_site(site).axes
    if axes[-1] not in ("d_model", "d_head"):
        raise ValueError(f"a site must end in d_model or d_head to be erased from, but {site} has the axes {axes}")
    return Edit(site=site, where=dict(where or {}), fn=eraser.project)
