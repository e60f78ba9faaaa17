"""Whether a head looks for what is like the query, or for what is unlike it."""

from collections.abc import Iterator

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.analyses.statistics import ranks
from mesascope.axes import label

BAND = 4.0  # the null's band is its mean plus and minus so many standard deviations over shuffles
LEAST_SPREAD = 0.1  # nats: below it the odds of attending change by less than a tenth, whatever the order of scores

Places = Int[Tensor, "pair"]


@measure(title="Similarity heads", sites=["score"], order=42)
def similarity(recorded: Capture, first: int = 2, shuffles: int = 10, seed: int = 0) -> xr.Dataset:
    """Whether a head's score before the softmax rises or falls with the similarity of query and key, minus the distance
    of their input terms. Position is held fixed: for every pair of positions Spearman's correlation over sequences,
    then the mean over pairs. Interaction: the same after everything that depends on the query's term alone or on the
    key's term alone (polynomials of degree 4 in the rank of each coordinate) is taken out of both; a head that prefers
    large keys, whatever the query, has none. Over keys: the correlation over the keys of one query, which mixes
    similarity with place. Null: the similarity is computed with the query, or the key, of another sequence; the band is
    4 standard deviations over shuffles to each side. Ranks know no size, so the spread of the scores over sequences is
    told too. Role: -1 for a negative-similarity head, whose score falls as the terms get closer (interaction below the
    band, spread of 0.1 nat or more), 1 for its opposite, 0 for neither.

    Args:
        recorded: a capture of vectors.
        first: queries before this one are left out.
        shuffles: how many shuffles of each kind make the band.
        seed: of the shuffles.
    """
    if not recorded.inputs.is_floating_point():
        raise ValueError("similarity needs vectors as inputs: the distance of two tokens is not defined here")
    x, (query, key) = recorded.inputs, _pairs(recorded.inputs.shape[1], first)
    raw = recorded["score"][..., query, key].transpose(1, -1).double()
    scores, spread = ranks(raw), raw.std(-1).mean(1)
    alone = _alone(x, query, key)
    unexplained = _unit(
        scores - einsum(alone, einsum(alone, scores, "p b m, l p h b -> l p h m"), "p b m, l p h m -> l p h b")
    )
    fixed, found = _correlations(scores, unexplained, alone, _closeness(x, x, query, key))
    nulls = [_correlations(scores, unexplained, alone, other) for other in _shuffled(x, query, key, shuffles, seed)]
    fixed_band, (low, high) = (_band(torch.stack(kind)) for kind in zip(*nulls, strict=True))
    role = ((found > high).int() - (found < low).int()) * (spread >= LEAST_SPREAD)

    def table(values: Tensor, about: str, **attrs: str | int) -> xr.DataArray:
        return label(values, "layer", "head", units="1", about=about).assign_attrs(center=0, **attrs)

    return xr.Dataset(
        {
            "interaction": table(
                found,
                "correlation of score and similarity, position fixed, without what query or key do alone",
                headline=1,
            ),
            "role": table(role, "-1: prefers the unlike; 1: prefers the like; 0: neither, or hardly any difference"),
            "spread": label(
                spread, "layer", "head", units="nat", about="spread of the score over sequences, position fixed"
            ),
            "null_low": table(low, "lower edge of the band with shuffled partners", control_of="interaction"),
            "null_high": table(high, "upper edge of the band with shuffled partners", control_of="interaction"),
            "fixed_position": table(fixed, "correlation of score and similarity, position held fixed"),
            "fixed_low": table(fixed_band[0], "lower edge of its band", control_of="fixed_position"),
            "fixed_high": table(fixed_band[1], "upper edge of its band", control_of="fixed_position"),
            "over_keys": table(_over_keys(recorded), "correlation of score and similarity over the keys of each query"),
        }
    )


def _pairs(length: int, first: int) -> tuple[Places, Places]:
    """All pairs of a query and an earlier key."""
    query, key = torch.tril_indices(length, length, offset=-1)
    return query[query >= first], key[query >= first]


def _closeness(
    at_query: Float[Tensor, "batch pos d_in"], at_key: Float[Tensor, "batch pos d_in"], query: Places, key: Places
) -> Float[Tensor, "pair batch"]:
    """Minus the distance between the terms at these pairs of positions."""
    return -(at_query[:, query] - at_key[:, key]).double().norm(dim=-1).T


def _alone(x: Float[Tensor, "batch pos d_in"], query: Places, key: Places) -> Float[Tensor, "pair batch basis"]:
    """An orthonormal basis of what can be said of the query's term alone and of the key's term alone."""
    extended = torch.cat([x, x.norm(dim=-1, keepdim=True)], dim=-1) if x.shape[-1] > 1 else x
    place = ranks(extended.permute(1, 2, 0)) * len(x) ** 0.5
    powers = torch.cat([place**degree for degree in range(1, 5)], dim=1)
    ones = torch.ones(len(query), 1, len(x), dtype=powers.dtype, device=x.device)
    basis, _ = torch.linalg.qr(torch.cat([ones, powers[query], powers[key]], dim=1).mT)
    return basis


def _correlations(
    scores: Float[Tensor, "layer pair head batch"],
    unexplained: Float[Tensor, "layer pair head batch"],
    alone: Float[Tensor, "pair batch basis"],
    closeness: Float[Tensor, "pair batch"],
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """The rank correlation of score and similarity, then of what is left of both, averaged over pairs."""
    ranked = ranks(closeness)
    left = _unit(ranked - einsum(alone, einsum(alone, ranked, "p b m, p b -> p m"), "p b m, p m -> p b"))
    whole = einsum(scores, ranked, "l p h b, p b -> l h") / len(closeness)
    return whole, einsum(unexplained, left, "l p h b, p b -> l h") / len(closeness)


def _unit(x: Float[Tensor, "*rest batch"]) -> Float[Tensor, "*rest batch"]:
    """Scaled to unit length; what is zero but for rounding (it was unit length before) stays zero."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-6, x / length.clamp_min(1e-6), 0.0)


def _shuffled(
    x: Float[Tensor, "batch pos d_in"], query: Places, key: Places, shuffles: int, seed: int
) -> Iterator[Float[Tensor, "pair batch"]]:
    """The similarity with the query's, then with the key's, term taken from another sequence, again and again."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(shuffles):
        other = x[_derangement(len(x), generator).to(x.device)]
        yield _closeness(other, x, query, key)
        yield _closeness(x, other, query, key)


def _band(nulls: Float[Tensor, "shuffle layer head"]) -> tuple[Tensor, Tensor]:
    """The union of the two kinds' bands; the kinds alternate."""
    kinds = torch.stack([nulls[0::2], nulls[1::2]])
    mean, spread = kinds.mean(1), kinds.std(1)
    return (mean - BAND * spread).amin(0), (mean + BAND * spread).amax(0)


def _derangement(size: int, generator: torch.Generator) -> Int[Tensor, "batch"]:
    """An order in which nothing stays in place: a random cycle through everything."""
    cycle = torch.randperm(size, generator=generator)
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


def _over_keys(recorded: Capture) -> Float[Tensor, "layer head"]:
    """Spearman's correlation of score and similarity over the keys before a query, averaged over queries."""
    score, x = recorded["score"], recorded.inputs
    total = torch.zeros(score.shape[0], score.shape[2], dtype=torch.float64, device=x.device)
    queries = range(3, x.shape[1])
    for query in queries:
        closeness = ranks(-(x[:, query : query + 1] - x[:, :query]).double().norm(dim=-1))
        total += einsum(ranks(score[..., query, :query]), closeness, "l b h k, b k -> l h") / len(x)
    return total / len(queries)
