"""Whether heads look at what is like the thing that is asked."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.analyses.loss import labelled
from mesascope.axes import label


@measure(title="Attention to what is like the thing asked", sites=["pattern"], order=44)
def matching(recorded: Capture, of: str, draws: int = 10, seed: int = 0) -> xr.Dataset:
    """Attention of scored positions to earlier ones of the same label, by label. Null: the earlier labels are those of
    another sequence, so that a head which spreads its attention evenly, or by place alone, has the same score as its
    null.

    Args:
        recorded: a capture of a batch with labels.
        of: a latent of the task that is a whole number at every position.
        draws: how many exchanges of sequences make the null.
        seed: of the exchanges.
    """
    batch, label_of = labelled(recorded, of)
    if len(label_of) < 2:
        raise ValueError(f"matching needs two sequences or more, but got {len(label_of)}")
    rows = torch.tensor(recorded.queries, device=label_of.device)
    scored, asked = (batch.weight > 0)[:, rows], label_of[:, rows]
    earlier = rows[:, None] > torch.arange(label_of.shape[1], device=rows.device)
    kinds = asked[scored].unique().tolist()
    found = _mass(recorded["pattern"], asked, label_of, earlier, scored, kinds)
    generator = torch.Generator().manual_seed(seed)
    shifts = [int(torch.randint(1, len(label_of), (1,), generator=generator)) for _ in range(draws)]
    others = (label_of.roll(shift, 0) for shift in shifts)
    null = sum(_mass(recorded["pattern"], asked, other, earlier, scored, kinds) for other in others) / draws
    named = {"layer": list(recorded.layers), "stat": [f"{of} {kind}" for kind in kinds]}
    about = f"attention to earlier places of the same {of}"
    dims = ("layer", "head", "stat")
    control = label(null, *dims, units="1", about=f"{about}, of another sequence", coords=named)
    return xr.Dataset(
        {
            "attention": label(found, *dims, units="1", about=about, coords=named),
            "attention_null": control.assign_attrs(control_of="attention", control="labels of another sequence"),
        }
    )


def _mass(
    pattern: Float[Tensor, "layer batch head query key"],
    asked: Int[Tensor, "batch query"],
    label_of: Int[Tensor, "batch key"],
    earlier: Bool[Tensor, "query key"],
    scored: Bool[Tensor, "batch query"],
    kinds: list[int],
) -> Float[Tensor, "layer head stat"]:
    """Attention of scored queries of each label to earlier keys of the same label, averaged."""
    alike = (asked[:, :, None] == label_of[:, None, :]) & earlier
    mass = torch.stack([(each * alike[:, None]).sum(-1) for each in pattern])  # layer by layer: patterns are large
    chosen = mass.double().transpose(2, 3)
    return torch.stack([chosen[:, scored & (asked == kind)].mean(1) for kind in kinds], -1)
