"""Rank correlation of attention scores with the similarity of query and key, for language models."""

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.role_counts import with_role_counts
from mesascope.analyses.nulls import NULL_BAND_WIDTH, NUM_UNTRAINED_DRAWS, Null, with_null
from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_indices, normalized_ranks

MIN_CORRELATION = 0.3  # minimum correlation of a role: a medium correlation, Cohen (1988)
MIN_SCORE_STD = 0.1  # nats: below it the odds of attending change by less than a tenth, in any order of scores
NUM_QUERIES, FIRST_QUERY = 32, 8  # number of queries, evenly spaced over a sequence, and the position of the first

Correlations = tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head"]]


def sample_queries(length: int) -> Int[Tensor, " query"]:
    """Return the positions of the queries that are used, evenly spaced over a sequence.

    Args:
        length: number of positions of the sequence.

    Returns:
        positions of the queries.

    Raises:
        ValueError: the sequence is too short.
    """
    if length <= FIRST_QUERY:
        raise ValueError(
            f"a sequence must have more than {FIRST_QUERY} positions, but got {length}; use longer sequences"
        )
    return evenly_spaced_indices(length, NUM_QUERIES, first=FIRST_QUERY)


def select_score_rows(scores: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head sampled key"]:
    """Return the rows of the sampled queries.

    Args:
        scores: attention scores of one layer.

    Returns:
        the scores of :func:`sample_queries` with all keys.
    """
    return scores[:, :, sample_queries(scores.shape[2]).to(scores.device)]


@analysis(
    title="Similarity heads, tokens",
    description=f"""
        Correlation of each head's attention score before the softmax with the similarity of query and key: Spearman's
        correlation, over the keys before a query, of the score with the cosine of the inputs of attention at both
        positions, averaged over sampled queries and sequences. Nearby keys are similar and nearby keys get high scores,
        so the partial correlation given the distance is computed too, and decides. Null: keys are shuffled; the mean is
        0, and the standard deviation is known exactly. The band is 4 standard deviations. Role: -1 for a
        negative-similarity head (partial correlation of -{MIN_CORRELATION} or less and below the band, standard
        deviation of scores over keys of {MIN_SCORE_STD} nat or more), 1 for a similarity head, 0 otherwise.
    """,
    sites=["resid_pre"],
    reductions={
        "score_rows": Reduction(site="attn_scores", fn=select_score_rows, axes=("batch", "head", "query", "key"))
    },
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def token_similarity(acts: Capture) -> xr.Dataset:
    """Compute the correlation of every head's attention score with the similarity of query and key.

    Args:
        acts: a capture of a language model, with ``resid_pre`` and the reduction ``score_rows``.

    Returns:
        by layer and head, ``partial`` with its null and band, ``over_keys``, ``score_std`` in nats, and ``role``;
        ``role_count`` by layer and role.

    Raises:
        ValueError: sequences are too short, or a query sees fewer than four earlier keys.
    """
    queries = sample_queries(acts.inputs.shape[1])
    by_layer = []
    for layer, rows in enumerate(acts["score_rows"]):
        normed = acts.readout.apply_attention_norm(layer, acts["resid_pre"][layer])
        by_layer.append(torch.stack([*correlate_over_keys(rows, queries, normed), score_std_over_keys(rows, queries)]))
    over_keys, partial, score_std = torch.stack(by_layer).double().mean(2).unbind(1)
    high = (NULL_BAND_WIDTH * _null_std(acts["score_rows"], queries)).expand_as(partial)
    has_role = (partial.abs() >= torch.clamp(high, min=MIN_CORRELATION)) & (score_std >= MIN_SCORE_STD)

    def label_scores(values: Tensor, about: str, units: str = "1", **attrs: int) -> xr.DataArray:
        coords = {"layer": list(acts.layers)}
        return to_data_array(values, "layer", "head", units=units, description=about, coords=coords).assign_attrs(
            **attrs
        )

    null = Null(
        name="keys shuffled",
        value=label_scores(torch.zeros_like(partial), "mean with keys shuffled", center=0),
        low=label_scores(-high, "lower edge of the band with keys shuffled", center=0),
        high=label_scores(high, "upper edge of the band with keys shuffled", center=0),
    )
    about = "rank correlation of score and cosine over keys, given the distance"
    signs = "-1: prefers dissimilar keys; 1: prefers similar keys; 0: neither"
    found = xr.Dataset(
        {
            **with_null("partial", label_scores(partial, about, center=0, headline=1), null),
            "over_keys": label_scores(over_keys, "rank correlation of score and cosine over keys", center=0),
            "score_std": label_scores(score_std, "standard deviation of the score over keys", units="nat"),
            "role": label_scores(partial.sign().int() * has_role, signs, center=0),
        }
    )
    return with_role_counts("token_similarity", found)


def correlate_over_keys(
    rows: Float[Tensor, "batch head sampled key"],
    queries: Int[Tensor, " sampled"],
    normed: Float[Tensor, "batch pos d_model"],
) -> Correlations:
    """Compute Spearman's correlation of score and cosine over the keys before each query, averaged over queries.

    Args:
        rows: scores of the sampled queries with all keys, -inf where masked.
        queries: positions of the sampled queries.
        normed: inputs of attention, after the norm.

    Returns:
        the correlation, and the partial correlation given the distance of the key.

    Raises:
        ValueError: a query sees fewer than four earlier keys.
    """
    unit = torch.nn.functional.normalize(normed.double(), dim=-1)
    correlation, partial = torch.zeros(2, *rows.shape[:2], dtype=torch.float64, device=rows.device)
    for row, query in zip(rows.unbind(2), queries.tolist(), strict=True):
        keys = _visible_keys(row, query)
        cosine = einsum(unit[:, query], unit[:, keys], "batch d, batch key d -> batch key")
        score, similarity, distance = (
            normalized_ranks(row[..., keys]),
            normalized_ranks(cosine)[:, None],
            normalized_ranks(keys.double()),
        )
        both, first, second = (score * similarity).sum(-1), (score * distance).sum(-1), (similarity * distance).sum(-1)
        residual_scale = ((1 - first**2) * (1 - second**2)).clamp_min(0).sqrt()
        correlation += both / len(queries)
        partial += torch.where(
            residual_scale > 1e-9, (both - first * second) / residual_scale.clamp_min(1e-9), 0.0
        ) / len(queries)
    return correlation, partial


def score_std_over_keys(
    rows: Float[Tensor, "batch head sampled key"], queries: Int[Tensor, " sampled"]
) -> Float[Tensor, "batch head"]:
    """Compute the standard deviation of the score over the keys before each query, averaged over queries, in nats.

    Args:
        rows: scores of the sampled queries with all keys, -inf where masked.
        queries: positions of the sampled queries.

    Returns:
        the standard deviation of each sequence and head.

    Raises:
        ValueError: a query sees fewer than four earlier keys.
    """
    stds = [
        row[..., _visible_keys(row, query)].double().std(-1)
        for row, query in zip(rows.unbind(2), queries.tolist(), strict=True)
    ]
    return torch.stack(stds).mean(0)


def _visible_keys(row: Float[Tensor, "batch head key"], query: int) -> Int[Tensor, " visible"]:
    # the keys before a query that no head and no sequence masks
    keys = row[..., :query].isfinite().flatten(0, 1).all(0).nonzero()[:, 0]
    if len(keys) < 4:
        raise ValueError(f"a query must see 4 keys before it or more, but query {query} sees {len(keys)}")
    return keys


def _null_std(
    rows: Float[Tensor, "layer batch head sampled key"], queries: Int[Tensor, " sampled"]
) -> Float[Tensor, "layer 1"]:
    # of the averaged correlation: with n keys and one controlled variable, the variance is 1 / (n - 2)
    stds = []
    for layer in rows:
        variances = [
            1 / (len(_visible_keys(row, query)) - 2)
            for row, query in zip(layer.unbind(2), queries.tolist(), strict=True)
        ]
        stds.append((sum(variances) / rows.shape[1]) ** 0.5 / len(variances))
    return torch.tensor(stds, dtype=torch.float64, device=rows.device)[:, None]
