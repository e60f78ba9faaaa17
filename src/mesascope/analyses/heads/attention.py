"""Head scores from attention patterns: attention by position, and copying of attended values."""

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.statistics import slope_and_r_squared

MAX_WEIGHT_SUM = 1.01  # sum of a query's attention weights, which are rounded to bfloat16 at worst
MIN_KEYS = 3  # of a query that is scored
MIN_SLOPE, MIN_R_SQUARED = 0.1, 0.5  # below either, the attended values hardly show in the output

POSITION_SCORES = {
    "first": "attention to the first position",
    "self": "attention to the query's own position",
    "previous": "attention to the position before the query",
    "two back": "attention two positions back",
    "entropy": "entropy of the attention, as a fraction of that of uniform attention",
    "non-uniform": "total variation distance from uniform attention over the visible positions",
}


def score_positions(
    pattern: Float[Tensor, "batch head query key"], queries: Int[Tensor, " query"] | None = None
) -> Float[Tensor, "batch head stat"]:
    """Compute the scores of :data:`POSITION_SCORES`, averaged over queries with at least three keys.

    With fewer keys, previous, first and self are the same position, and the scores of all heads agree.

    Args:
        pattern: attention weights.
        queries: positions of the queries; 0, 1, 2, ... by default.

    Returns:
        the scores, in the order of :data:`POSITION_SCORES`.
    """
    all_queries = torch.arange(pattern.shape[2]) if queries is None else queries.cpu()
    query = all_queries[all_queries >= MIN_KEYS - 1].to(pattern.device)
    rows = pattern[:, :, (all_queries >= MIN_KEYS - 1).to(pattern.device)]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    visible = (torch.arange(pattern.shape[-1], device=pattern.device)[None] <= query[:, None]).to(rows.dtype)
    uniform = visible / visible.sum(-1, keepdim=True)
    logs = rows.clamp(min=torch.finfo(rows.dtype).tiny).log()  # several times as fast as xlogy; 0 log 0 is 0
    entropy = -logs.mul_(rows).sum(-1) / visible.sum(-1).log()
    row = torch.arange(len(query), device=pattern.device)
    position_weights = [rows[..., 0]] + [rows[:, :, row, query - back] for back in (0, 1, 2)]
    scores = [*position_weights, entropy, (rows - uniform).abs_().sum(-1) / 2]
    return torch.stack([score.double().mean(-1) for score in scores], dim=-1).float()


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
    return {"position_scores": score_positions(pattern, view.queries)}


@analysis(
    title="Attention by position",
    description="""
        Attention of each head to the first position, to the query itself, and to the positions one and two before it;
        the entropy of the attention as a fraction of that of uniform attention; and the total variation distance from
        uniform attention. All are averaged over sequences and over queries with at least three keys. Null: the score of
        a head that attends uniformly.
    """,
    reductions={
        "positions": LayerReduction(
            sites=("pattern",), fn=_reduce_positions, axes={"position_scores": ("batch", "head", "stat")}
        ),
    },
)
def positional_attention(acts: Capture) -> xr.Dataset:
    """Compute the attention of every head by position, with uniform attention as null.

    Args:
        acts: a capture with the reduction ``positions``.

    Returns:
        ``score`` by layer, head and statistic (:data:`POSITION_SCORES`), and ``score_null``.

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
    uniform_weight = sum(1 / (query + 1) for query in seen) / len(seen)
    uniform = torch.tensor([uniform_weight, uniform_weight, uniform_weight, uniform_weight, 1.0, 0.0]).expand(
        scores.shape
    )

    def label_scores(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "stat", units="1", description=about, coords=names)

    null = Null(
        name="uniform attention", value=label_scores(uniform, "attention by position of a head that attends uniformly")
    )
    return xr.Dataset(with_null("score", label_scores(scores, "attention by position").assign_attrs(headline=1), null))


@analysis(
    title="Copying of attended values",
    description=f"""
        Slope and R² of the regression of each head's direct contribution to the output (through the final norm, its
        scale held fixed) on the attended value, which is the attention-weighted mean of the input terms. Null: the
        terms of each sequence are shuffled over its keys before they are averaged. Role: 1 for a copying head (slope of
        {MIN_SLOPE} or more, R² of {MIN_R_SQUARED} or more and above the null), -1 for a head that subtracts the
        attended value (slope of -{MIN_SLOPE} or less, same R²), 0 otherwise.
    """,
    sites=["pattern", "z", "resid_post", "output"],
)
def value_copying(acts: Capture, first: int = 2, seed: int = 0) -> xr.Dataset:
    """Compute how much of the value that a head attends to it adds to the output, with shuffled keys as null.

    Args:
        acts: a capture of vectors whose inputs and outputs have the same dimension.
        first: queries before this position are left out.
        seed: seed of the shuffles.

    Returns:
        ``gain`` (the slope), ``explained`` (R²) and ``role`` by layer and head, and ``gain_null`` and
        ``explained_null``.

    Raises:
        ValueError: the inputs are tokens, or their shape differs from that of the outputs.
    """
    inputs, prediction = acts.inputs, acts["output"]
    if not inputs.is_floating_point() or inputs.shape != prediction.shape:
        raise ValueError(
            "value_copying needs vectors whose inputs and outputs have the same shape; capture such a task"
        )
    pattern = acts["pattern"]
    slope_values, r_squared_values = _regress_contributions(acts, pattern, inputs, first)
    null_slope, null_r_squared = _regress_contributions(acts, pattern, _shuffle_keys(inputs, seed), first)
    has_role = (
        (r_squared_values >= MIN_R_SQUARED) & (r_squared_values > null_r_squared) & (slope_values.abs() >= MIN_SLOPE)
    )
    about, null = "of the head's direct contribution to the output on the value it attends to", "keys shuffled"

    def label_scores(values: Tensor, about: str, **attrs: int) -> xr.DataArray:
        return to_data_array(values, "layer", "head", units="1", description=about).assign_attrs(**attrs)

    slope, r_squared = (
        label_scores(slope_values, f"slope {about}", center=0, headline=1),
        label_scores(r_squared_values, f"R² {about}"),
    )
    slope_null = label_scores(null_slope, "the same slope with shuffled keys", center=0)
    r_squared_null = label_scores(null_r_squared, "the same R² with shuffled keys")
    role = label_scores(slope_values.sign().int() * has_role, "1: copies; -1: subtracts; 0: neither", center=0)
    return xr.Dataset(
        {
            **with_null("gain", slope, Null(name=null, value=slope_null)),
            "role": role,
            **with_null("explained", r_squared, Null(name=null, value=r_squared_null)),
        }
    )


@analysis(
    title="Attention patterns",
    description="Attention weights of every head on a few held-out sequences.",
    sites=["pattern"],
    steps="ends",
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


def _regress_contributions(
    acts: Capture,
    pattern: Float[Tensor, "layer batch head query key"],
    values: Float[Tensor, "batch pos d_in"],
    first: int,
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    layers, _, heads = pattern.shape[:3]
    slope, r_squared = torch.zeros(layers, heads), torch.zeros(layers, heads)
    final = acts["resid_post"][-1]
    for layer in range(layers):
        attended = einsum(
            pattern[layer].double(), values.double(), "batch head query key, batch key d -> head batch query d"
        )
        for head in range(heads):
            head_out = acts["z"][layer][:, :, head] @ acts.readout.output_projection[layer, head]
            direct = acts.readout.attribute_logits(head_out, final)
            slope[layer, head], r_squared[layer, head] = slope_and_r_squared(
                attended[head, :, first:].flatten(0, 1), direct[:, first:].flatten(0, 1)
            )
    return slope, r_squared


def _shuffle_keys(values: Float[Tensor, "batch pos d_in"], seed: int) -> Float[Tensor, "batch pos d_in"]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(values.shape[:2], generator=generator).argsort(1)
    return values.gather(1, order[..., None].to(values.device).expand_as(values))
