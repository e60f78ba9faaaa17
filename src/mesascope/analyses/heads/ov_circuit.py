"""Whether a head copies tokens, from its weights alone."""

import torch
import xarray as xr
from jaxtyping import Complex, Float
from torch import Tensor

from mesascope.activations import Capture, Frame
from mesascope.analyses.base import measure
from mesascope.axes import label

BAND = 4.0  # the null's band is its mean plus and minus so many standard deviations over draws
LEAST = 0.5  # ours: more than half of the eigenvalues' size must point one way
ROUNDING = 1e-6  # of the product of the maps' sizes: smaller eigenvalues are rounding in float32
BLOCK = 4096  # tokens at a time


@measure(title="What heads copy, from their weights", sites=[], steps="ends", order=46)
def token_copying(recorded: Capture, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Whether attending to a token raises that same token: the eigenvalues of W_E W_V W_O W_U of each head (Elhage et
    al. 2021), as the sum of their real parts over the sum of their sizes. 1: every direction is copied; -1: every
    direction is taken away. Gains of the norms are folded in; their sizes, positions and biases are left out. Null: the
    same head with its value space turned at random between W_V and W_O, so that it reads and writes what it did, but no
    longer the one where the other was; the basis of a head's values being arbitrary, heads paired with each other would
    depend on it. The band is 4 standard deviations over turns to each side. Role: 1 for a copying head (score 0.5 or
    more and above the band), -1 for one that takes away what it reads, 0 for neither.

    Args:
        recorded: a capture of a language model.
        draws: how many turns make the band.
        seed: of the turns.
    """
    products, size = ov_products(recorded.frame)
    score = copying_score(torch.linalg.eigvals(products), size)
    turns = random_turns(products.shape[-1], draws, seed).to(products)
    nulls = torch.stack([copying_score(torch.linalg.eigvals(products @ turn), size) for turn in turns])
    mean, spread = nulls.mean(0), nulls.std(0)
    low, high = mean - BAND * spread, mean + BAND * spread
    role = ((score > high) & (score >= LEAST)).int() - ((score < low) & (score <= -LEAST)).int()

    def table(values: Tensor, about: str, **attrs: str | int) -> xr.DataArray:
        coords = {"layer": list(recorded.layers)}
        return label(values, "layer", "head", units="1", about=about, coords=coords).assign_attrs(center=0, **attrs)

    held = {"control_of": "score", "control": "values turned at random"}
    return xr.Dataset(
        {
            "score": table(score, "sum of the eigenvalues' real parts over the sum of their sizes", headline=1),
            "score_null": table(mean, "mean of the same with values turned at random", **held),
            "null_low": table(low, "lower edge of the band with values turned at random", **held),
            "null_high": table(high, "upper edge of the band with values turned at random", **held),
            "role": table(role, "1: copies; -1: takes away; 0: neither"),
        }
    )


def copying_score(eigenvalues: Complex[Tensor, "*head d_head"], size: Float[Tensor, "*head"]) -> Float[Tensor, "*head"]:
    """The sum of real parts over the sum of sizes; 0 where all are rounding.

    Args:
        eigenvalues: of each head.
        size: of the maps whose product has them: what their rounding is measured by.
    """
    total = eigenvalues.abs().sum(-1)
    return torch.where(total > ROUNDING * size, eigenvalues.real.sum(-1) / total.clamp_min(1e-300), 0.0)


def ov_products(
    frame: Frame,
) -> tuple[Float[Tensor, "layer head d_head d_head"], Float[Tensor, "layer head"]]:
    """W_O W_U W_E W_V of every head, in float64, and the product of the sizes of its maps.

    It has the non-zero eigenvalues of W_E W_V W_O W_U, which is tokens by tokens and is never made.

    Raises:
        UnsupportedModel: values or outputs are not linear, or the embedding is not known.
    """
    output, value = frame.output_projection.double(), frame.value_projection.double()
    value = value.repeat_interleave(output.shape[1] // value.shape[1], dim=1)
    joint = _joint(frame)
    products, sizes = [], []
    for layer, norm in enumerate(frame.attention_norms):
        through = joint if norm is None else norm.direction(joint)
        products.append(output[layer] @ through @ value[layer])
        sizes.append(output[layer].norm(dim=(-2, -1)) * through.norm() * value[layer].norm(dim=(-2, -1)))
    return torch.stack(products), torch.stack(sizes)


def random_turns(width: int, draws: int, seed: int) -> Float[Tensor, "draw d_head d_head"]:
    """Rotations and reflections drawn uniformly (Haar), in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(draws, width, width, dtype=torch.float64, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def _joint(frame: Frame) -> Float[Tensor, "d_model d_model"]:
    """What a direction of the final stream has in common with one of the embedding, summed over tokens: W_U W_E, the
    final norm's gain folded in.
    """
    device = frame.output_projection.device
    total: Tensor | float = 0.0
    for tokens in torch.arange(frame.vocabulary, device=device).split(BLOCK):
        rows = frame.folded(frame.unembedding(tokens)).double()
        total = total + rows.T @ frame.embedding(tokens).double()
    return torch.as_tensor(total)
