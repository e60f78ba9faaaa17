"""Rank correlation of attention scores with the similarity of query and key, for models of vectors."""

from collections.abc import Iterator

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.heads._input_similarity import MAX_PAIRS, InputSimilarity, correlate_with_inputs
from mesascope.analyses.heads.role_counts import with_role_counts
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, null_band, with_null
from mesascope.axes import to_data_array
from mesascope.statistics import derangement, normalized_ranks

MIN_SCORE_STD = 0.1  # nats: below it the odds of attending change by less than a tenth, in any order of scores

Positions = Int[Tensor, "pair"]
Draws = Float[Tensor, "draw layer head"]  # the value first, then the draws of its null


@analysis(
    title="Similarity heads",
    description=f"""
        Correlation of each head's attention score before the softmax with the similarity of query and key, at fixed
        positions, by two definitions of similarity. First, minus the distance of the input terms. fixed_position:
        Spearman's correlation over sequences for every pair of positions, averaged over pairs, so that position has no
        effect. interaction: the same after the main effects of query and key (polynomials of degree 4 in the rank of
        each coordinate of either term) are projected out of both sides; a head that prefers large keys for every query
        has an interaction of 0. over_keys: the correlation over the keys of one query, which mixes similarity with
        position. Second, the cosine of what attention reads at query and key, after the norm. input_fixed_position:
        Spearman's correlation over sequences, averaged over {MAX_PAIRS} pairs of positions. input_interaction: the same
        of the products of centred queries and keys and of centred unit vectors, in which the main effects of query and
        key are exactly 0. Null: the similarity is computed with the query, or with the key, of another sequence; the
        band is 4 standard deviations over shuffles, the union of both kinds. Ranks ignore the size of effects, so the
        standard deviations over sequences are given too. role: -1 for a negative-similarity head, whose score falls as
        the terms get closer (interaction below the band, standard deviation of the score of {MIN_SCORE_STD} nat or
        more), 1 for a head whose score rises, 0 otherwise. input_role: the same of input_interaction and
        interaction_std. Most heads of untrained models have a role, because a score is a bilinear form, which is a
        similarity up to its sign where inputs vary in few dimensions; compare with the untrained models.
    """,
    sites=["attn_scores", "query", "key", "resid_pre"],
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def similarity(acts: Capture, first: int = 2, shuffles: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute the correlation of every head's attention score with the similarity of query and key.

    Args:
        acts: a capture of vectors, with ``attn_scores``, ``query``, ``key`` and ``resid_pre``.
        first: queries before this position are left out.
        shuffles: number of shuffles of each kind for the band.
        seed: seed of the shuffles.

    Returns:
        by layer and head, for the terms ``interaction`` and ``fixed_position`` with their nulls and bands, ``role``,
        ``score_std`` in nats, and ``over_keys``; for the cosine of the inputs of attention ``input_interaction`` and
        ``input_fixed_position`` with their nulls and bands, ``input_role``, and ``interaction_std`` in nats;
        ``role_count`` by layer and role.

    Raises:
        ValueError: the inputs are tokens.
        UnsupportedModel: an operation other than a norm separates the residual stream and attention.
    """
    if not acts.inputs.is_floating_point():
        raise ValueError("similarity needs vectors as inputs, but got tokens; use token_similarity")
    pairs = _position_pairs(acts.inputs.shape[1], first)
    of_terms = _label_terms(acts, *_correlate_terms(acts, pairs, shuffles, seed))
    of_inputs = _label_inputs(correlate_with_inputs(acts, pairs, shuffles, seed))
    return with_role_counts("similarity", xr.Dataset(of_terms | of_inputs))


def _correlate_terms(
    acts: Capture, pairs: tuple[Positions, Positions], shuffles: int, seed: int
) -> tuple[Draws, Draws, Float[Tensor, "layer head"]]:
    # correlations at fixed positions, those of the interaction, each followed by the draws of its null; score's std
    x, (query, key) = acts.inputs, pairs
    raw = acts["attn_scores"][..., query, key].transpose(1, -1).double()
    if not raw.isfinite().all():
        raise ValueError(
            "similarity needs queries that see all earlier keys, but the mask of the model hides some; use a model "
            "without a window"
        )
    scores, score_std = normalized_ranks(raw), raw.std(-1).mean(1)
    basis = _main_effects_basis(x, query, key)
    residual_scores = _normalize_rows(
        scores - einsum(basis, einsum(basis, scores, "p b m, l p h b -> l p h m"), "p b m, l p h m -> l p h b")
    )
    similarities = [_negative_distance(x, x, query, key), *_shuffle_partners(x, query, key, shuffles, seed)]
    correlations = [_correlate_scores(scores, residual_scores, basis, one) for one in similarities]
    fixed, partial = (torch.stack(kind) for kind in zip(*correlations, strict=True))
    return fixed, partial, score_std


def _label_terms(
    acts: Capture, fixed: Draws, partial: Draws, score_std: Float[Tensor, "layer head"]
) -> dict[str, xr.DataArray]:
    about, varies = "correlation of score and similarity at fixed positions", "standard deviation of the score"
    over_keys = _label_scores(
        _correlate_over_keys(acts), "correlation of score and similarity over the keys of each query"
    )
    return {
        **_label_with_null("interaction", partial, f"{about}, without main effects", headline=1),
        "role": _label_role(partial, score_std),
        "score_std": _label_scores(score_std, f"{varies} over sequences at fixed positions", "nat"),
        **_label_with_null("fixed_position", fixed, about),
        "over_keys": over_keys.assign_attrs(center=0),
    }


def _label_inputs(found: InputSimilarity) -> dict[str, xr.DataArray]:
    about = "correlation of score and cosine of the inputs of attention at fixed positions"
    varies = "standard deviation over sequences of the score's part that depends on query and key together"
    return {
        **_label_with_null("input_interaction", found.interaction, f"{about}, without main effects"),
        "input_role": _label_role(found.interaction, found.interaction_std),
        "interaction_std": _label_scores(found.interaction_std, varies, "nat"),
        **_label_with_null("input_fixed_position", found.fixed_position, about),
    }


def _label_scores(values: Tensor, about: str, units: str = "1") -> xr.DataArray:
    return to_data_array(values, "layer", "head", units=units, description=about)


def _label_with_null(name: str, values: Draws, about: str, **attrs: int) -> dict[str, xr.DataArray]:
    low, high = _union_band(values[1:])
    null = Null(
        name="partners shuffled",
        value=_label_scores(values[1:].mean(0), "mean correlation with shuffled partners").assign_attrs(center=0),
        low=_label_scores(low, "lower edge of the band with shuffled partners").assign_attrs(center=0),
        high=_label_scores(high, "upper edge of the band with shuffled partners").assign_attrs(center=0),
    )
    return with_null(name, _label_scores(values[0], about).assign_attrs(center=0, **attrs), null)


def _label_role(values: Draws, std: Float[Tensor, "layer head"]) -> xr.DataArray:
    low, high = _union_band(values[1:])
    role = ((values[0] > high).int() - (values[0] < low).int()) * (std >= MIN_SCORE_STD)
    about = "-1: prefers dissimilar keys; 1: prefers similar keys; 0: neither, or the score hardly varies"
    return _label_scores(role, about).assign_attrs(center=0)


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
