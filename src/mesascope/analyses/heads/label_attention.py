"""Attention of queries to earlier positions with the same label."""

from functools import reduce

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.loss import get_batch_and_label
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS, Null, with_null
from mesascope.axes import to_data_array


@analysis(
    title="Attention to same-label examples",
    description="""
        Attention of scored positions to earlier positions with the same label, averaged over the positions of each
        label. Null: the labels of the earlier positions are those of another sequence. A head that attends uniformly,
        or by position only, has the same score as its null.
    """,
    sites=["pattern"],
    untrained_draws=NUM_UNTRAINED_DRAWS,
)
def same_label_attention(acts: Capture, of: str, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Compute the attention of every head to earlier positions with the query's label, with permuted labels as null.

    Args:
        acts: a capture of a batch with labels, with ``pattern``.
        of: name of a latent of the task that is an integer at every position.
        draws: number of exchanges of sequences that the null is averaged over.
        seed: seed of the exchanges.

    Returns:
        ``attention`` by layer, head and label, and ``attention_null``.

    Raises:
        ValueError: the batch has no such label, or it has one sequence.
    """
    batch, label_of = get_batch_and_label(acts, of)
    if len(label_of) < 2:
        raise ValueError(f"same_label_attention needs two sequences or more, but got {len(label_of)}; capture more")
    rows = torch.tensor(acts.queries, device=label_of.device)
    scored, query_label = (batch.weight > 0)[:, rows], label_of[:, rows]
    earlier = rows[:, None] > torch.arange(label_of.shape[1], device=rows.device)
    label_values = query_label[scored].unique().tolist()
    attention = _attention_to_label(acts["pattern"], query_label, label_of, earlier, scored, label_values)
    generator = torch.Generator().manual_seed(seed)
    shifts = [int(torch.randint(1, len(label_of), (1,), generator=generator)) for _ in range(draws)]
    others = (label_of.roll(shift, 0) for shift in shifts)
    masses = (
        _attention_to_label(acts["pattern"], query_label, other, earlier, scored, label_values) for other in others
    )
    null = reduce(torch.add, masses) / draws
    named = {"layer": list(acts.layers), "stat": [f"{of} {kind}" for kind in label_values]}
    about = f"attention to earlier positions of the same {of}"

    def label_scores(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "stat", units="1", description=about, coords=named)

    control = Null(name="labels permuted", value=label_scores(null, f"{about}, with the labels of another sequence"))
    return xr.Dataset(with_null("attention", label_scores(attention, about), control))


def _attention_to_label(
    pattern: Float[Tensor, "layer batch head query key"],
    query_label: Int[Tensor, "batch query"],
    label_of: Int[Tensor, "batch key"],
    earlier: Bool[Tensor, "query key"],
    scored: Bool[Tensor, "batch query"],
    label_values: list[int],
) -> Float[Tensor, "layer head stat"]:
    same_label = (query_label[:, :, None] == label_of[:, None, :]) & earlier
    attention = torch.stack(
        [(each * same_label[:, None]).sum(-1) for each in pattern]
    )  # layer by layer: patterns are large
    chosen = attention.double().transpose(2, 3)
    return torch.stack([chosen[:, scored & (query_label == kind)].mean(1) for kind in label_values], -1)
