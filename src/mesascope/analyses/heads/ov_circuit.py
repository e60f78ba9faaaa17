"""Copying score of the OV circuit of each head, from its weights."""

import torch
import xarray as xr
from jaxtyping import Complex, Float
from torch import Tensor

from mesascope.activations import Capture, Readout
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.role_counts import with_role_counts
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, null_band, with_null
from mesascope.axes import to_data_array

MIN_COPYING_SCORE = 0.5  # ours: minimum score of a role; the real parts of most eigenvalues have the same sign
ROUNDING = 1e-6  # of the product of the matrices' norms: smaller eigenvalues are rounding in float32
TOKENS_PER_BLOCK = 4096  # tokens at a time


@analysis(
    title="OV-circuit copying score",
    description=f"""
        Eigenvalues of W_E W_V W_O W_U of each head (Elhage et al. 2021): the sum of their real parts over the sum of
        their absolute values. 1: attending to a token raises the logit of the same token in every direction; -1: it
        lowers it. Gains of the norms are folded in; their scales, positions and biases are ignored. Null: the value
        space of the head is rotated at random between W_V and W_O, so that the head reads and writes the same subspaces
        but does not connect them as before. (Pairing the W_V of one head with the W_O of another would depend on the
        arbitrary basis of each value space.) The band is 4 standard deviations over rotations. Role: 1 for a copying
        head (score of {MIN_COPYING_SCORE} or more and above the band), -1 for an anti-copying head (score of
        -{MIN_COPYING_SCORE} or less and below the band), 0 otherwise.
    """,
    steps="ends",
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def ov_copying_score(acts: Capture, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute the copying score of every head's OV circuit, with rotated values as null.

    Args:
        acts: a capture of a language model.
        draws: number of rotations.
        seed: seed of the rotations.

    Returns:
        ``score`` and ``role`` by layer and head, ``score_null`` with its band, and ``role_count`` by layer and role.

    Raises:
        UnsupportedModel: values or outputs are not linear, or the embedding is not known.
    """
    products, scale = compute_ov_products(acts.readout)
    score = compute_copying_score(torch.linalg.eigvals(products), scale)
    rotations = random_rotations(products.shape[-1], draws, seed).to(products)
    nulls = torch.stack([compute_copying_score(torch.linalg.eigvals(products @ turn), scale) for turn in rotations])
    low, high = null_band(nulls)
    role = ((score > high) & (score >= MIN_COPYING_SCORE)).int() - ((score < low) & (score <= -MIN_COPYING_SCORE)).int()

    def label_scores(values: Tensor, about: str) -> xr.DataArray:
        coords = {"layer": list(acts.layers)}
        return to_data_array(values, "layer", "head", units="1", description=about, coords=coords).assign_attrs(
            center=0
        )

    null = Null(
        name="values rotated",
        value=label_scores(nulls.mean(0), "mean score with values rotated at random"),
        low=label_scores(low, "lower edge of the band with values rotated at random"),
        high=label_scores(high, "upper edge of the band with values rotated at random"),
    )
    about = "sum of the eigenvalues' real parts over the sum of their absolute values"
    found = xr.Dataset(
        {
            **with_null("score", label_scores(score, about).assign_attrs(headline=1), null),
            "role": label_scores(role, "1: copying; -1: anti-copying; 0: neither"),
        }
    )
    return with_role_counts("ov_copying_score", found)


def compute_copying_score(
    eigenvalues: Complex[Tensor, "*head d_head"], scale: Float[Tensor, "*head"]
) -> Float[Tensor, "*head"]:
    """Return the sum of the eigenvalues' real parts over the sum of their absolute values; 0 where all are rounding.

    Args:
        eigenvalues: eigenvalues of each head.
        scale: product of the norms of the matrices whose product has them; rounding is relative to it.

    Returns:
        the score of each head, between -1 and 1.
    """
    total = eigenvalues.abs().sum(-1)
    return torch.where(total > ROUNDING * scale, eigenvalues.real.sum(-1) / total.clamp_min(1e-300), 0.0)


def compute_ov_products(
    readout: Readout,
) -> tuple[Float[Tensor, "layer head d_head d_head"], Float[Tensor, "layer head"]]:
    """Compute W_O W_U W_E W_V of every head in float64, and the product of the norms of its matrices.

    It has the non-zero eigenvalues of W_E W_V W_O W_U, a vocabulary-sized matrix that is never formed.

    Args:
        readout: readout of a language model.

    Returns:
        the products, and for each the product of the Frobenius norms of its factors.

    Raises:
        UnsupportedModel: values or outputs are not linear, or the embedding is not known.
    """
    output, value = readout.output_projection.double(), readout.value_projection.double()
    value = value.repeat_interleave(output.shape[1] // value.shape[1], dim=1)
    unembed_embed = _unembed_embed_product(readout)
    products, scales = [], []
    for layer, norm in enumerate(readout.attention_norms):
        through = unembed_embed if norm is None else norm.linear_part(unembed_embed)
        products.append(output[layer] @ through @ value[layer])
        scales.append(output[layer].norm(dim=(-2, -1)) * through.norm() * value[layer].norm(dim=(-2, -1)))
    return torch.stack(products), torch.stack(scales)


def random_rotations(width: int, draws: int, seed: int) -> Float[Tensor, "draw d_head d_head"]:
    """Draw orthogonal matrices from the Haar distribution, in float64.

    Args:
        width: number of rows and columns.
        draws: number of matrices.
        seed: seed of the draws.

    Returns:
        the matrices.
    """
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(draws, width, width, dtype=torch.float64, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def _unembed_embed_product(readout: Readout) -> Float[Tensor, "d_model d_model"]:
    # W_U W_E summed over blocks of tokens, the gain of the final norm folded in
    device = readout.output_projection.device
    total: Tensor | float = 0.0
    for tokens in torch.arange(readout.vocab_size, device=device).split(TOKENS_PER_BLOCK):
        rows = readout.fold_norm(readout.get_unembedding_rows(tokens)).double()
        total = total + rows.T @ readout.embed_tokens(tokens).double()
    return torch.as_tensor(total)
