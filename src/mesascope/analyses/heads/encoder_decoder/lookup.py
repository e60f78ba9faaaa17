"""Look-up heads of an encoder: heads that attend to the slot of a prefix that belongs to a position."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.activations.sites import ENCODER
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, null_band, with_null
from mesascope.axes import to_data_array

MIN_WEIGHT = 0.5  # Lindemann et al. 2024: weight on the slot, which is also the largest weight
MIN_LOOKUPS = 0.8  # ours: fraction of positions of a look-up head


@analysis(
    title="Look-up heads",
    description=f"""
        Fraction of source positions at which a head of the encoder looks up the slot that belongs to the position
        (Lindemann, Koller & Titov 2024): the slot has the largest attention weight of the query, {MIN_WEIGHT} or more.
        Null: every sequence has its slots exchanged at random, so that a head that always attends to one slot, or to a
        slot by its position, has the score of its null. The band is 4 standard deviations over exchanges. Role: 1 for a
        score of {MIN_LOOKUPS} or more that is above the band.
    """,
    sites=["pattern"],
    supports_padding=True,
    stacks=(ENCODER,),
)
def lookup_heads(acts: Capture, slots: Int[Tensor, "batch pos"], draws: int = 20, seed: int = 0) -> xr.Dataset:
    """Compute how often each head of the encoder attends to the slot that belongs to the query.

    Args:
        acts: the capture of an encoder, with ``pattern``.
        slots: for every source position the position of its slot, and -1 for positions that have none.
        draws: number of exchanges of slots that the null is computed from.
        seed: seed of the exchanges.

    Returns:
        ``score`` and ``role`` by layer and head, and ``score_null`` with its band.

    Raises:
        ValueError: ``slots`` has another shape, or no sequence has two slots.
    """
    length = acts.inputs.shape[1]
    slots = slots.to(acts["pattern"].device)
    if slots.shape != acts.inputs.shape[:2] or int(slots.max()) >= length:
        most = f" and {int(slots.max())} at most" if slots.numel() else ""
        raise ValueError(
            f"slots must be (batch, pos) = {tuple(acts.inputs.shape[:2])} with positions below {length} or -1, but got "
            f"shape {tuple(slots.shape)}{most}"
        )
    real = torch.ones_like(slots, dtype=torch.bool) if acts.attention_mask is None else acts.attention_mask.bool()
    scored = (slots >= 0) & real
    if not any(len(row[chosen].unique()) > 1 for row, chosen in zip(slots, scored, strict=True)):
        raise ValueError("lookup_heads needs a sequence with two slots or more, but every sequence has one at most")
    weight, attended = acts["pattern"].max(-1)
    attended = torch.where(weight >= MIN_WEIGHT, attended, -1)
    score, generator = _score(attended, slots, scored), torch.Generator().manual_seed(seed)
    nulls = torch.stack([_score(attended, _exchange(slots, scored, generator), scored) for _ in range(draws)])
    low, high = null_band(nulls)
    role = ((score >= MIN_LOOKUPS) & (score > high)).int()

    def label(values: Tensor, about: str) -> xr.DataArray:
        return to_data_array(values, "layer", "head", units="1", description=about, coords={"layer": list(acts.layers)})

    about = "fraction of positions at which the head attends to the slot of the position"
    null = Null(
        name="slots exchanged",
        value=label(nulls.mean(0), f"{about}, with slots exchanged"),
        low=label(low, "lower edge of the null"),
        high=label(high, "upper edge of the null"),
    )
    roles = label(role, "1: look-up head").assign_attrs(categorical=1)
    return xr.Dataset({**with_null("score", label(score, about).assign_attrs(headline=1), null), "role": roles})


def _score(
    attended: Int[Tensor, "layer batch head query"], slots: Int[Tensor, "batch pos"], scored: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "layer head"]:
    """Return the fraction of scored queries that attend to their slot."""
    found = (attended == slots[:, None]).transpose(1, 2)
    return found[:, :, scored].double().mean(-1)


def _exchange(
    slots: Int[Tensor, "batch pos"], scored: Bool[Tensor, "batch pos"], generator: torch.Generator
) -> Int[Tensor, "batch pos"]:
    """Return the slots with those of every sequence permuted among each other."""
    exchanged = slots.clone()
    for row, (old, chosen) in enumerate(zip(slots, scored, strict=True)):
        present = old[chosen].unique()
        order = torch.randperm(len(present), generator=generator).to(present.device)
        table = torch.arange(int(slots.max()) + 1, device=slots.device)
        table[present] = present[order]
        exchanged[row, chosen] = table[old[chosen]]
    return exchanged
