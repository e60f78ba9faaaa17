"""Rank correlation of attention scores with the similarity of query and key, for models of vectors."""

from collections.abc import Iterator

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, null_band, with_null
from mesascope.axes import to_data_array
from mesascope.statistics import derangement, normalized_ranks

MIN_SCORE_STD = 0.1  # nats: below it the odds of attending change by less than a tenth, in any order of scores

Positions = Int[Tensor, "pair"]


@analysis(
    title="Similarity heads",
    description=f"""
        Correlation of each head's attention score before the softmax with the similarity of query and key, defined as
        minus the distance of their input terms. fixed_position: Spearman's correlation over sequences for every pair of
        positions, averaged over pairs, so that position has no effect. interaction: the same after the main effects of
        query and key (polynomials of degree 4 in the rank of each coordinate of either term) are projected out of both
        sides; a head that prefers large keys for every query has an interaction of 0. over_keys: the correlation
        over the keys of one query, which mixes similarity with position. Null: the similarity is computed with the
        query, or with the key, of another sequence; the band is 4 standard deviations over shuffles, the union of both
        kinds. Ranks ignore the size of effects, so the standard deviation of the scores over sequences is given too.
        Role: -1 for a negative-similarity head, whose score falls as the terms get closer (interaction below the band,
        standard deviation of {MIN_SCORE_STD} nat or more), 1 for a head whose score rises, 0 otherwise.
    """,
    sites=["attn_scores"],
)
def similarity(acts: Capture, first: int = 2, shuffles: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute the correlation of every head's attention score with the similarity of query and key.

    Args:
        acts: a capture of vectors, with ``attn_scores``.
        first: queries before this position are left out.
        shuffles: number of shuffles of each kind for the band.
        seed: seed of the shuffles.

    Returns:
        by layer and head, ``interaction`` and ``fixed_position`` with their nulls and bands, ``role``, ``score_std`` in
        nats, and ``over_keys``.

    Raises:
        ValueError: the inputs are tokens.
    """
    if not acts.inputs.is_floating_point():
        raise ValueError("similarity needs vectors as inputs, but got tokens; use token_similarity")
    x, (query, key) = acts.inputs, _position_pairs(acts.inputs.shape[1], first)
    raw = acts["attn_scores"][..., query, key].transpose(1, -1).double()
    scores, score_std = normalized_ranks(raw), raw.std(-1).mean(1)
    basis = _main_effects_basis(x, query, key)
    residual_scores = _normalize_rows(
        scores - einsum(basis, einsum(basis, scores, "p b m, l p h b -> l p h m"), "p b m, l p h m -> l p h b")
    )
    correlation, partial_correlation = _correlate_scores(
        scores, residual_scores, basis, _negative_distance(x, x, query, key)
    )
    draws_of_both = [
        _correlate_scores(scores, residual_scores, basis, other)
        for other in _shuffle_partners(x, query, key, shuffles, seed)
    ]
    fixed_draws, draws = (torch.stack(kind) for kind in zip(*draws_of_both, strict=True))
    low, high = _union_band(draws)
    role = ((partial_correlation > high).int() - (partial_correlation < low).int()) * (score_std >= MIN_SCORE_STD)

    def label_scores(values: Tensor, about: str, units: str = "1") -> xr.DataArray:
        return to_data_array(values, "layer", "head", units=units, description=about)

    def build_null(draws: Float[Tensor, "draw layer head"]) -> Null:
        low, high = _union_band(draws)
        return Null(
            name="partners shuffled",
            value=label_scores(draws.mean(0), "mean correlation with shuffled partners").assign_attrs(center=0),
            low=label_scores(low, "lower edge of the band with shuffled partners").assign_attrs(center=0),
            high=label_scores(high, "upper edge of the band with shuffled partners").assign_attrs(center=0),
        )

    interaction = label_scores(
        partial_correlation, "correlation of score and similarity at fixed positions, without main effects"
    )
    fixed_position = label_scores(correlation, "correlation of score and similarity at fixed positions")
    over_keys = label_scores(
        _correlate_over_keys(acts), "correlation of score and similarity over the keys of each query"
    )
    about = "-1: prefers dissimilar keys; 1: prefers similar keys; 0: neither, or the score hardly varies"
    return xr.Dataset(
        {
            **with_null("interaction", interaction.assign_attrs(center=0, headline=1), build_null(draws)),
            "role": label_scores(role, about).assign_attrs(center=0),
            "score_std": label_scores(
                score_std, "standard deviation of the score over sequences at fixed positions", "nat"
            ),
            **with_null("fixed_position", fixed_position.assign_attrs(center=0), build_null(fixed_draws)),
            "over_keys": over_keys.assign_attrs(center=0),
        }
    )


def _position_pairs(length: int, first: int) -> tuple[Positions, Positions]:
    # all pairs of a query and an earlier key
    query, key = torch.tril_indices(length, length, offset=-1)
    return query[query >= first], key[query >= first]


def _negative_distance(
    at_query: Float[Tensor, "batch pos d_in"], at_key: Float[Tensor, "batch pos d_in"], query: Positions, key: Positions
) -> Float[Tensor, "pair batch"]:
    return -(at_query[:, query] - at_key[:, key]).double().norm(dim=-1).T


def _main_effects_basis(
    x: Float[Tensor, "batch pos d_in"], query: Positions, key: Positions
) -> Float[Tensor, "pair batch basis"]:
    # orthonormal basis of functions of the query's term only and of the key's term only
    extended = torch.cat([x, x.norm(dim=-1, keepdim=True)], dim=-1) if x.shape[-1] > 1 else x
    ranks = normalized_ranks(extended.permute(1, 2, 0)) * len(x) ** 0.5
    powers = torch.cat([ranks**degree for degree in range(1, 5)], dim=1)
    ones = torch.ones(len(query), 1, len(x), dtype=powers.dtype, device=x.device)
    basis, _ = torch.linalg.qr(torch.cat([ones, powers[query], powers[key]], dim=1).mT)
    return basis


def _correlate_scores(
    scores: Float[Tensor, "layer pair head batch"],
    residual_scores: Float[Tensor, "layer pair head batch"],
    basis: Float[Tensor, "pair batch basis"],
    similarity: Float[Tensor, "pair batch"],
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    # rank correlation of score and similarity, and that of their residuals, averaged over pairs
    ranked = normalized_ranks(similarity)
    residual = _normalize_rows(ranked - einsum(basis, einsum(basis, ranked, "p b m, p b -> p m"), "p b m, p m -> p b"))
    correlation = einsum(scores, ranked, "l p h b, p b -> l h") / len(similarity)
    return correlation, einsum(residual_scores, residual, "l p h b, p b -> l h") / len(similarity)


def _normalize_rows(x: Float[Tensor, "*rest batch"]) -> Float[Tensor, "*rest batch"]:
    # rows had unit length before the projection, so shorter ones are rounding and stay zero
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > 1e-6, x / length.clamp_min(1e-6), 0.0)


def _shuffle_partners(
    x: Float[Tensor, "batch pos d_in"], query: Positions, key: Positions, shuffles: int, seed: int
) -> Iterator[Float[Tensor, "pair batch"]]:
    # the two kinds of shuffle alternate: the query's term of another sequence, then the key's
    generator = torch.Generator().manual_seed(seed)
    for _ in range(shuffles):
        other = x[derangement(len(x), generator).to(x.device)]
        yield _negative_distance(other, x, query, key)
        yield _negative_distance(x, other, query, key)


def _union_band(draws: Float[Tensor, "draw layer head"]) -> tuple[Tensor, Tensor]:
    kinds = torch.stack([draws[0::2], draws[1::2]])  # the two kinds of shuffle alternate
    low, high = null_band(kinds.transpose(0, 1))
    return low.amin(0), high.amax(0)


def _correlate_over_keys(acts: Capture) -> Float[Tensor, "layer head"]:
    score, x = acts["attn_scores"], acts.inputs
    total = torch.zeros(score.shape[0], score.shape[2], dtype=torch.float64, device=x.device)
    queries = range(3, x.shape[1])
    for query in queries:
        similarity = normalized_ranks(-(x[:, query : query + 1] - x[:, :query]).double().norm(dim=-1))
        total += einsum(normalized_ranks(score[..., query, :query]), similarity, "l b h k, b k -> l h") / len(x)
    return total / len(queries)
