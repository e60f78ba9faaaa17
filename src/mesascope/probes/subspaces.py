"""Interchange of an activation, or of its part in a subspace, with that of another run."""

from collections.abc import Sequence
from dataclasses import replace as with_other

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture, Edit, get_site
from mesascope.argument_types import describe_value, validate_arguments
from mesascope.interventions.edits import IndexByAxis, replace

Basis = Float[Tensor, "rank feature"]
MAX_DIMENSION = 2**31 - 1  # of a space from which a random subspace is drawn


@validate_arguments
def find_orthonormal_basis(directions: Float[Tensor, "direction feature"]) -> Basis:
    """Return an orthonormal basis of the space that directions span, such as the weights of a probe.

    Args:
        directions: vectors; dependent ones add nothing.

    Raises:
        ValueError: they are not finite, or all 0.

    >>> find_orthonormal_basis(torch.tensor([[0.0, 2.0], [0.0, 1.0]])).abs()
    tensor([[0., 1.]])
    """
    if not directions.isfinite().all() or not directions.any():
        raise ValueError("directions must be finite and not all 0; check the probe that they come from")
    _, singular_values, right = torch.linalg.svd(directions.double(), full_matrices=False)
    precision = torch.finfo(directions.dtype).eps * max(directions.shape)
    return right[singular_values > precision * singular_values.max()].to(directions.dtype)


@validate_arguments
def draw_random_basis(rank: int, size: int, generator: torch.Generator) -> Basis:
    """Draw an orthonormal basis of a uniformly random subspace, in double precision.

    Args:
        rank: dimension of the subspace.
        size: dimension of the space.
        generator: source of the draw.

    Returns:
        The basis, with orthonormal rows.

    Raises:
        ValueError: the rank is not from 1 to the dimension of the space, or that dimension is too large.

    >>> draw_random_basis(2, 5, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 5])
    """
    if not 1 <= rank <= size:
        raise ValueError(f"rank must be from 1 to the dimension of the space, {size}, but got {rank}")
    if size > MAX_DIMENSION:
        raise ValueError(f"size must be {MAX_DIMENSION} or less, but got {size}")
    return torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64)).Q.T


@validate_arguments
def replace_subspace(
    site: str, source: Capture, basis: Basis, where: IndexByAxis | None = None, order: Sequence[int] | None = None
) -> Edit:
    """Replace the projection of an activation on a subspace by that in another run: h + (h_source - h) BᵀB.

    The component orthogonal to the subspace stays (distributed interchange intervention, Geiger et al. 2024).

    Args:
        site: name of a site whose last axis is ``d_model`` or ``d_head``; the other run must have recorded it.
        source: the other run, as in `replace`.
        basis: orthonormal rows along the last axis of the site; the same at all edited heads and positions.
        where: as in `replace`.
        order: for every sequence, the sequence of the other run to take; its own by default. Not with padding.

    Returns:
        The edit.

    Raises:
        NotRecorded: the other run did not record the site.
        ValueError: the basis is not orthonormal or of another size, or as in `replace`.

    >>> from mesascope.activations import capture
    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2))
    >>> source = capture(model, torch.tensor([[1, 2], [3, 4]]), ["resid_post"])
    >>> replace_subspace("resid_post", source, torch.eye(8)[:2], {"layer": 0}).site
    'resid_post'
    """
    _validate_basis(site, basis, source)

    def swap_projection(old: Tensor, other: Tensor) -> Tensor:
        rows = basis.to(old.device, torch.float64)
        difference = other.double() - old.double()
        return (old.double() + difference @ rows.T @ rows).to(old.dtype)

    return with_other(replace_in_order(site, source, where, order), fn=swap_projection)


def replace_in_order(site: str, source: Capture, where: IndexByAxis | None, order: Sequence[int] | None) -> Edit:
    """Replace an activation by its value in another run, with the sequences of that run in another order.

    Args:
        site: name of the site.
        source: the other run.
        where: as in `replace`.
        order: for every sequence, the sequence of the other run to take; its own by default.

    Returns:
        The edit.

    Raises:
        ValueError: the order is not one index per sequence, or there is padding.
    """
    edit = replace(site, source, where)
    if order is None:
        return edit
    count = len(source.inputs)
    try:
        indices = torch.as_tensor(order)
    except (TypeError, ValueError, RuntimeError):
        indices = torch.empty(0)
    if indices.shape != (count,) or indices.is_floating_point() or not ((indices >= 0) & (indices < count)).all():
        raise ValueError(
            f"order must be one index from 0 to {count - 1} for each of {count} sequences, but got "
            f"{describe_value(order)}"
        )
    if source.attention_mask is not None:
        raise ValueError("order must be omitted with padding, since sequences differ in length; use sequences of one")
    assert edit.source is not None
    assert edit.source_inputs is not None
    reordered = {layer: values[indices.to(values.device)] for layer, values in edit.source.items()}
    return with_other(edit, source=reordered, source_inputs=with_other(edit.source_inputs, order=indices))


def _validate_basis(site: str, basis: Basis, source: Capture) -> None:
    axes = get_site(site).axes
    if axes[-1] not in ("d_model", "d_head"):
        raise ValueError(f"a subspace needs a site that ends in d_model or d_head, but {site} has the axes {axes}")
    size = source[site].shape[-1]
    if basis.shape[1] != size or not 1 <= len(basis) <= size:
        raise ValueError(
            f"a basis at {site} must be (rank, {size}) of rank 1 to {size}, but got shape {tuple(basis.shape)}"
        )
    rows = basis.detach().double().cpu()
    deviation = (rows @ rows.T - torch.eye(len(basis), dtype=torch.float64)).abs().max()
    if not deviation < 1e-4:
        raise ValueError(
            f"a basis must have orthonormal rows, but their products deviate from the identity by {deviation:.1e}; "
            "use find_orthonormal_basis"
        )
