"""Whether a head of a language model looks for what is like the query, or for what is unlike it."""

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import measure
from mesascope.analyses.statistics import ranks
from mesascope.axes import label

BAND = 4.0  # the null's band is so many standard deviations to each side
LEAST = 0.3  # what Cohen (1988) calls a medium correlation
LEAST_SPREAD = 0.1  # nats: below it the odds of attending change by less than a tenth, whatever the order of scores
SAMPLED, FIRST = 32, 8  # queries looked at, spread evenly over a sequence, and the first of them

Correlations = tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head"]]


def sampled_queries(length: int) -> Int[Tensor, " query"]:
    """The queries that are looked at, evenly spread over a sequence of this length."""
    if length <= FIRST:
        raise ValueError(f"a sequence must have more than {FIRST} positions, but got {length}")
    return torch.linspace(FIRST, length - 1, min(SAMPLED, length - FIRST)).round().long()


def score_rows(score: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head sampled key"]:
    """The rows of the sampled queries."""
    return score[:, :, sampled_queries(score.shape[2]).to(score.device)]


@measure(
    title="Similarity heads, tokens",
    sites=["resid_pre"],
    reductions={"score_rows": Reduction(site="score", fn=score_rows, axes=("batch", "head", "query", "key"))},
    order=43,
)
def token_similarity(recorded: Capture) -> xr.Dataset:
    """Whether a head's score before the softmax rises or falls with the similarity of query and key: Spearman's
    correlation over the keys before a query of the score with the cosine of what attention reads at both places,
    averaged over sampled queries and sequences. Near keys are alike and near keys score high, so the partial
    correlation given the distance is told too, and decides. Null: keys permuted, whose mean is 0 and whose spread is
    known exactly; the band is 4 standard deviations to each side. Role: -1 for a negative-similarity head (partial
    correlation of -0.3 or less, below the band, scores that spread by 0.1 nat or more over keys), 1 for its opposite,
    0 for neither.

    Args:
        recorded: a capture of a language model.
    """
    queries = sampled_queries(recorded.inputs.shape[1])
    found = []
    for layer, rows in enumerate(recorded["score_rows"]):
        normed = recorded.frame.normed(layer, recorded["resid_pre"][layer])
        found.append(torch.stack([*similarity_over_keys(rows, queries, normed), spread_over_keys(rows, queries)]))
    over_keys, partial, spread = torch.stack(found).double().mean(2).unbind(1)
    high = BAND * _null_spread(recorded["score_rows"], queries)
    role = (partial.abs() >= torch.clamp(high, min=LEAST)) & (spread >= LEAST_SPREAD)

    def table(values: Tensor, about: str, units: str = "1", **attrs: str | int) -> xr.DataArray:
        coords = {"layer": list(recorded.layers)}
        return label(values, "layer", "head", units=units, about=about, coords=coords).assign_attrs(**attrs)

    held = {"center": 0, "control_of": "partial", "control": "keys permuted"}
    return xr.Dataset(
        {
            "partial": table(
                partial, "rank correlation of score and cosine over keys, given the distance", center=0, headline=1
            ),
            "null_low": table(-high, "lower edge of the band with keys permuted", **held),
            "null_high": table(high, "upper edge of the band with keys permuted", **held),
            "over_keys": table(over_keys, "rank correlation of score and cosine over keys", center=0),
            "spread": table(spread, "spread of the score over keys", units="nat"),
            "role": table(
                partial.sign().int() * role, "-1: prefers the unlike; 1: prefers the like; 0: neither", center=0
            ),
        }
    )


def similarity_over_keys(
    rows: Float[Tensor, "batch head sampled key"],
    queries: Int[Tensor, " sampled"],
    normed: Float[Tensor, "batch pos d_model"],
) -> Correlations:
    """Spearman's correlation, over the keys before each query, of score and cosine, averaged over queries; then the
    partial one given the distance.

    Args:
        rows: scores of some queries with all keys, -inf where masked.
        queries: their positions.
        normed: what attention reads.
    """
    unit = torch.nn.functional.normalize(normed.double(), dim=-1)
    whole, partial = torch.zeros(2, *rows.shape[:2], dtype=torch.float64, device=rows.device)
    for row, query in zip(rows.unbind(2), queries.tolist(), strict=True):
        keys = _visible(row, query)
        cosine = einsum(unit[:, query], unit[:, keys], "batch d, batch key d -> batch key")
        score, alike, near = ranks(row[..., keys]), ranks(cosine)[:, None], ranks(keys.double())
        both, first, second = (score * alike).sum(-1), (score * near).sum(-1), (alike * near).sum(-1)
        left = ((1 - first**2) * (1 - second**2)).clamp_min(0).sqrt()
        whole += both / len(queries)
        partial += torch.where(left > 1e-9, (both - first * second) / left.clamp_min(1e-9), 0.0) / len(queries)
    return whole, partial


def spread_over_keys(
    rows: Float[Tensor, "batch head sampled key"], queries: Int[Tensor, " sampled"]
) -> Float[Tensor, "batch head"]:
    """Standard deviation of the score over the keys before each query, averaged over queries, in nats."""
    spreads = [
        row[..., _visible(row, query)].double().std(-1)
        for row, query in zip(rows.unbind(2), queries.tolist(), strict=True)
    ]
    return torch.stack(spreads).mean(0)


def _visible(row: Float[Tensor, "batch head key"], query: int) -> Int[Tensor, " visible"]:
    """The keys before a query that every head and sequence may see."""
    keys = row[..., :query].isfinite().flatten(0, 1).all(0).nonzero()[:, 0]
    if len(keys) < 4:
        raise ValueError(f"a query must see 4 keys before it or more, but query {query} sees {len(keys)}")
    return keys


def _null_spread(
    rows: Float[Tensor, "layer batch head sampled key"], queries: Int[Tensor, " sampled"]
) -> Float[Tensor, "layer 1"]:
    """The standard deviation of the averaged correlation with keys permuted: 1 / (n - 2) is the variance for n keys
    with one thing held fixed.
    """
    spreads = []
    for layer in rows:
        each = [
            1 / (len(_visible(row, query)) - 2) for row, query in zip(layer.unbind(2), queries.tolist(), strict=True)
        ]
        spreads.append((sum(each) / rows.shape[1]) ** 0.5 / len(each))
    return torch.tensor(spreads, dtype=torch.float64, device=rows.device)[:, None]
