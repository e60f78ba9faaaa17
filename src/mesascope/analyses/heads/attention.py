"""Head scores from attention patterns: attention by position, and the patterns themselves."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.activations.sites import STACKS
from mesascope.analyses.base import analysis
from mesascope.analyses.heads.role_counts import with_role_counts
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, with_null
from mesascope.axes import to_data_array

MAX_WEIGHT_SUM = 1.01  # sum of a query's attention weights, which are rounded to bfloat16 at worst
MIN_KEYS = 3  # of a query that is scored

POSITION_SCORES = {
    "first": "attention to the first position",
    "self": "attention to the query's own position",
    "previous": "attention to the position before the query",
    "two back": "attention two positions back",
    "entropy": "entropy of the attention, as a fraction of that of uniform attention",
    "non-uniform": "total variation distance from uniform attention over the visible positions",
}


def score_positions(
    pattern: Float[Tensor, "batch head query key"],
    queries: Int[Tensor, " query"] | None = None,
    visible: Bool[Tensor, "#batch #head query key"] | None = None,
) -> Float[Tensor, "batch head stat"]:
    """Compute the scores of :data:`POSITION_SCORES`, averaged over queries with at least three keys.

    With fewer keys, previous, first and self are the same position, and the scores of all heads agree.

    Args:
        pattern: attention weights.
        queries: positions of the queries; 0, 1, 2, ... by default.
        visible: ``True`` where a query can attend to a key; at all positions up to the query by default.

    Returns:
        the scores, in the order of :data:`POSITION_SCORES`.

    Raises:
        ValueError: no query has three keys.
    """
    all_queries = torch.arange(pattern.shape[2]) if queries is None else queries.cpu()
    visible = _causal_mask(all_queries, pattern.shape[-1]).to(pattern.device) if visible is None else visible
    scored = _find_scored_queries(all_queries, visible)
    query, visible, rows = all_queries[scored.cpu()].to(pattern.device), visible[:, :, scored], pattern[:, :, scored]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    num_visible = visible.sum(-1, dtype=rows.dtype)
    logs = rows.clamp(min=torch.finfo(rows.dtype).tiny).log()  # several times as fast as xlogy; 0 log 0 is 0
    entropy = -logs.mul_(rows).sum(-1) / num_visible.log()
    distance = (rows - visible / num_visible[..., None]).abs_().sum(-1) / 2
    scores = [*_weights_by_position(rows, query), entropy, distance]
    return torch.stack([score.double().mean(-1) for score in scores], dim=-1).float()


def score_uniform_attention(
    queries: Int[Tensor, " query"], visible: Bool[Tensor, "batch head query key"]
) -> Float[Tensor, "batch head stat"]:
    """Compute the scores of :data:`POSITION_SCORES` of a head that attends to all visible keys alike.

    Args:
        queries: positions of the queries.
        visible: ``True`` where a query can attend to a key.

    Returns:
        the scores, averaged over the queries that :func:`score_positions` uses.

    Raises:
        ValueError: no query has three keys.
    """
    scored = _find_scored_queries(queries.cpu(), visible)
    seen = visible[:, :, scored]
    query = queries.cpu()[scored.cpu()].to(seen.device)
    weight = [(at / seen.sum(-1)).mean(-1) for at in _weights_by_position(seen, query)]
    return torch.stack([*weight, torch.ones_like(weight[0]), torch.zeros_like(weight[0])], dim=-1).float()


def _causal_mask(queries: Int[Tensor, " query"], keys: int) -> Bool[Tensor, "1 1 query key"]:
    return (torch.arange(keys)[None] <= queries[:, None])[None, None]


def _find_scored_queries(
    queries: Int[Tensor, " query"], visible: Bool[Tensor, "#batch #head query key"]
) -> Int[Tensor, " scored"]:
    """Return the indices of queries after the second position that see three keys in every sequence and head."""
    enough = (visible.sum(-1) >= MIN_KEYS).flatten(0, 1).all(0).cpu()
    scored = (enough & (queries >= MIN_KEYS - 1)).nonzero()[:, 0]
    if not len(scored):
        raise ValueError(
            f"positional_attention needs queries with {MIN_KEYS} keys or more, but the captured ones see "
            f"{int(visible.sum(-1).max())} at most; capture others"
        )
    return scored.to(visible.device)


def _weights_by_position(rows: Shaped[Tensor, "batch head query key"], query: Int[Tensor, " query"]) -> list[Tensor]:
    """Return the entries of every query's row at the first key, the query itself, and one and two before it."""
    row = torch.arange(len(query), device=rows.device)
    return [rows[..., 0], *(rows[:, :, row, query - back] for back in (0, 1, 2))]


def _reduce_positions(view: LayerView) -> dict[str, Tensor]:
    pattern = view["pattern"]
    smallest, largest_sum = float(pattern.amin()), float(pattern.sum(-1, dtype=torch.float32).amax())
    if smallest < 0 or largest_sum > MAX_WEIGHT_SUM:
        raise ValueError(
            "positional_attention needs attention weights of 0 or more that sum to 1 over keys, but in layer "
            f"{view.layer} the smallest weight is {smallest:.2g} and the largest sum is {largest_sum:.2g}; use "
            "a model with "
            "softmax attention"
        )
    scores, uniform = (
        score_positions(pattern, view.queries, view.visible_keys),
        score_uniform_attention(view.queries, view.visible_keys),
    )
    return {"position_scores": scores, "position_uniform": uniform.expand_as(scores)}


@analysis(
    title="Attention by position",
    description="""
        Attention of each head to the first position, to the query itself, and to the positions one and two before it;
        the entropy of the attention as a fraction of that of uniform attention; and the total variation distance from
        uniform attention. All are averaged over sequences and over queries with at least three keys. Null: the score of
        a head that attends uniformly to the keys that the model's mask shows to each query.
    """,
    reductions={
        "positions": LayerReduction(
            sites=("pattern",),
            fn=_reduce_positions,
            axes=dict.fromkeys(("position_scores", "position_uniform"), ("batch", "head", "stat")),
        ),
    },
    untrained_draws=NUM_UNTRAINED_DRAWS,
    stacks=STACKS,
)
def positional_attention(acts: Capture) -> xr.Dataset:
    """Compute the attention of every head by position, with uniform attention as null.

    Args:
        acts: a capture with the reduction ``positions``.

    Returns:
        ``score`` by layer, head and statistic (:data:`POSITION_SCORES`), ``score_null``, and ``role_count``
        by layer and role.

    Raises:
        ValueError: no captured query has three keys.
    """
    scores = acts["position_scores"].double().mean(1)
    names = {"stat": list(POSITION_SCORES), "layer": list(acts.layers)}
    seen = [query for query in acts.queries if query >= MIN_KEYS - 1]
    if not seen:
        raise ValueError(
            f"positional_attention needs queries with {MIN_KEYS} keys or more, but got {list(acts.queries)}"
        )
    uniform = acts["position_uniform"].double().mean(1)

    def label_scores(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "stat", units="1", description=about, coords=names)

    null = Null(
        name="uniform attention", value=label_scores(uniform, "attention by position of a head that attends uniformly")
    )
    score = label_scores(scores, "attention by position").assign_attrs(headline=1)
    return with_role_counts("positional_attention", xr.Dataset(with_null("score", score, null)))


@analysis(
    title="Attention patterns",
    description="Attention weights of every head on a few held-out sequences.",
    sites=["pattern"],
    steps="ends",
    stacks=STACKS,
)
def attention_patterns(acts: Capture, examples: int = 4) -> xr.Dataset:
    """Return the attention weights of every head on the first sequences.

    Args:
        acts: a capture with ``pattern``.
        examples: number of sequences.

    Returns:
        ``pattern``, rounded to float16; and ``value``, the terms of the sequences, if the inputs are numbers.
    """
    pattern = acts["pattern"][:, :examples].transpose(1, 2)
    variables = {
        "pattern": to_data_array(
            pattern.half().float(), "layer", "head", "batch", "query", "key", units="1", description="attention weights"
        ).assign_attrs(headline=1)
    }
    if acts.inputs.is_floating_point() and acts.inputs.shape[-1] == 1:
        variables["value"] = to_data_array(
            acts.inputs[:examples, :, 0], "batch", "pos", units="1", description="the terms of the sequence"
        )
    return xr.Dataset(variables)
