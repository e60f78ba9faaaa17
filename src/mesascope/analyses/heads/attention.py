"""What a head attends to and what it writes: scores, each with what the score is when there is nothing to find."""

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture, LayerReduction, LayerView
from mesascope.analyses.base import measure
from mesascope.analyses.statistics import slope_and_r_squared
from mesascope.axes import label

MOST_IN_ALL = 1.01  # of a query's attention weights, which are rounded to bfloat16 at worst
FEWEST_KEYS = 3  # of a query that counts for position scores
LEAST_GAIN, LEAST_EXPLAINED = 0.1, 0.5  # below either, what a head attends to hardly shows in the output

POSITION_SCORES = {
    "first": "attention to the first position",
    "self": "attention to the query's own position",
    "previous": "attention to the position before the query",
    "two back": "attention two positions back",
    "entropy": "entropy of the attention, as a share of that of uniform attention",
    "non-uniform": "total variation distance from uniform attention over the visible positions",
}


def position_scores(
    pattern: Float[Tensor, "batch head query key"], queries: Int[Tensor, " query"] | None = None
) -> Float[Tensor, "batch head stat"]:
    """The scores of :data:`POSITION_SCORES`, averaged over queries that have at least three keys.

    With fewer keys previous, first and self are the same position, and all heads look alike.

    Args:
        pattern: attention weights.
        queries: their positions; 0, 1, 2, ... by default.
    """
    every = torch.arange(pattern.shape[2]) if queries is None else queries.cpu()
    query = every[every >= FEWEST_KEYS - 1].to(pattern.device)
    rows = pattern[:, :, (every >= FEWEST_KEYS - 1).to(pattern.device)]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    visible = (torch.arange(pattern.shape[-1], device=pattern.device)[None] <= query[:, None]).to(rows.dtype)
    uniform = visible / visible.sum(-1, keepdim=True)
    logs = rows.clamp(min=torch.finfo(rows.dtype).tiny).log()  # several times as fast as xlogy; 0 log 0 is 0
    entropy = -logs.mul_(rows).sum(-1) / visible.sum(-1).log()
    at = torch.arange(len(query), device=pattern.device)
    places = [rows[..., 0]] + [rows[:, :, at, query - back] for back in (0, 1, 2)]
    scores = [*places, entropy, (rows - uniform).abs_().sum(-1) / 2]
    return torch.stack([score.double().mean(-1) for score in scores], dim=-1).float()


def _see_positions(view: LayerView) -> dict[str, Tensor]:
    """The scores of one layer.

    Raises:
        ValueError: attention is not shared out between keys, so that no key has a share.
    """
    pattern = view["pattern"]
    least, most = float(pattern.amin()), float(pattern.sum(-1, dtype=torch.float32).amax())
    if least < 0 or most > MOST_IN_ALL:
        raise ValueError(
            f"position needs attention that is shared out between keys, but in layer {view.layer} weights go down to "
            f"{least:.2g} and those of a query sum to {most:.2g}; linear attention has no shares"
        )
    return {"position_scores": position_scores(pattern, view.queries)}


@measure(
    title="Where heads look",
    sites=[],
    reductions={
        "positions": LayerReduction(
            sites=("pattern",), fn=_see_positions, axes={"position_scores": ("batch", "head", "stat")}
        ),
    },
    order=40,
)
def position(recorded: Capture) -> xr.Dataset:
    """Attention by place alone: to the first position, the query itself, the one before it and two back, averaged over
    sequences and queries with at least three keys; the entropy as a share of uniform attention's, and the distance
    from uniform attention. The null beside each score is what a head that attends uniformly would have.
    """
    scores = recorded["position_scores"].double().mean(1)
    names = {"stat": list(POSITION_SCORES), "layer": list(recorded.layers)}
    seen = [query for query in recorded.queries if query >= FEWEST_KEYS - 1]
    if not seen:
        raise ValueError(f"position needs queries with {FEWEST_KEYS} keys or more, but got {list(recorded.queries)}")
    share = sum(1 / (query + 1) for query in seen) / len(seen)
    null = torch.tensor([share, share, share, share, 1.0, 0.0]).expand(scores.shape)
    return xr.Dataset(
        {
            "score": label(
                scores, "layer", "head", "stat", units="1", about="attention by position", coords=names
            ).assign_attrs(headline=1),
            "score_null": label(
                null, "layer", "head", "stat", units="1", about="the same of uniform attention", coords=names
            ).assign_attrs(control_of="score", control="uniform attention"),
        }
    )


@measure(title="What heads copy", sites=["pattern", "head_out", "resid_post", "prediction"], order=45)
def copying(recorded: Capture, first: int = 2, seed: int = 0) -> xr.Dataset:
    """Whether a head puts into the prediction what it attends to: slope and R² of the head's direct contribution to the
    output (through the frozen final norm) on the attended value, the attention-weighted mean of the input terms.
    Null: the values of each sequence's keys are shuffled before they are averaged. Role: 1 for a copying head (slope
    0.1 or more, R² 0.5 or more and above the null), -1 for one that subtracts what it finds, 0 for neither.

    Args:
        recorded: a capture of vectors whose inputs and outputs have the same dimension.
        first: queries before this one are left out.
        seed: of the shuffles.
    """
    inputs, prediction = recorded.inputs, recorded["prediction"]
    if not inputs.is_floating_point() or inputs.shape != prediction.shape:
        raise ValueError("copying needs vectors whose inputs and predictions have the same shape")
    pattern = recorded["pattern"]
    gain, share = _copying_of(recorded, pattern, inputs, first)
    null_gain, null_share = _copying_of(recorded, pattern, _shuffled_keys(inputs, seed), first)
    marked = (share >= LEAST_EXPLAINED) & (share > null_share) & (gain.abs() >= LEAST_GAIN)
    about = "of the head's direct contribution to the output on the value it attends to"
    return xr.Dataset(
        {
            "gain": label(gain, "layer", "head", units="1", about=f"slope {about}").assign_attrs(center=0, headline=1),
            "role": label(
                gain.sign().int() * marked, "layer", "head", units="1", about="1: copies; -1: subtracts; 0: neither"
            ).assign_attrs(center=0),
            "gain_null": label(
                null_gain, "layer", "head", units="1", about="the same slope with shuffled keys"
            ).assign_attrs(center=0, control_of="gain"),
            "explained": label(share, "layer", "head", units="1", about=f"R² {about}"),
            "explained_null": label(
                null_share, "layer", "head", units="1", about="the same R² with shuffled keys"
            ).assign_attrs(control_of="explained"),
        }
    )


@measure(title="Attention patterns", sites=["pattern"], steps="ends", order=60)
def patterns(recorded: Capture, examples: int = 4) -> xr.Dataset:
    """The attention of every head on a few held-out sequences.

    Args:
        recorded: a capture with patterns.
        examples: how many sequences are kept.
    """
    kept = recorded["pattern"][:, :examples].transpose(1, 2)
    found = {
        "pattern": label(
            kept.half().float(), "layer", "head", "batch", "query", "key", units="1", about="attention weights"
        ).assign_attrs(headline=1)
    }
    if recorded.inputs.is_floating_point() and recorded.inputs.shape[-1] == 1:
        found["value"] = label(
            recorded.inputs[:examples, :, 0], "batch", "pos", units="1", about="the terms of the sequence"
        )
    return xr.Dataset(found)


def _copying_of(
    recorded: Capture,
    pattern: Float[Tensor, "layer batch head query key"],
    values: Float[Tensor, "batch pos d_in"],
    first: int,
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    """Slope and R² of every head, the values being these."""
    layers, _, heads = pattern.shape[:3]
    gain, share = torch.zeros(layers, heads), torch.zeros(layers, heads)
    final = recorded["resid_post"][-1]
    for layer in range(layers):
        attended = einsum(
            pattern[layer].double(), values.double(), "batch head query key, batch key d -> head batch query d"
        )
        for head in range(heads):
            write = recorded["head_out"][layer][:, :, head] @ recorded.frame.output_projection[layer, head]
            direct = recorded.frame.attribute(write, final)
            gain[layer, head], share[layer, head] = slope_and_r_squared(
                attended[head, :, first:].flatten(0, 1), direct[:, first:].flatten(0, 1)
            )
    return gain, share


def _shuffled_keys(values: Float[Tensor, "batch pos d_in"], seed: int) -> Float[Tensor, "batch pos d_in"]:
    """Each sequence's terms in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(values.shape[:2], generator=generator).argsort(1)
    return values.gather(1, order[..., None].to(values.device).expand_as(values))
