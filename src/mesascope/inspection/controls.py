"""What the same numbers are where there is nothing to find: the architecture untrained, the text disordered."""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr

from mesascope.inspection.passes import Material

PLACES = frozenset({"batch", "pos", "query", "key", "rank"})  # what lies along these differs from draw to draw


def disordered(material: Material, draw: int) -> Material:
    """The text of one draw, the tokens of each sequence in a random order; the first token stays first."""
    some = excerpted(material, draw)
    generator = torch.Generator().manual_seed(material.seed + draw)
    order = torch.stack([1 + torch.randperm(some.ids.shape[1] - 1, generator=generator) for _ in some.ids])
    first = torch.zeros(len(order), 1, dtype=torch.long)
    return Material(ids=some.ids.gather(1, torch.cat([first, order], 1)), allowed=some.allowed, seed=draw + 1)


def excerpted(material: Material, draw: int) -> Material:
    """One sequence of the text for each draw, as long as the others, for numbers may depend on the length."""
    row = draw % len(material.ids)
    return Material(ids=material.ids[row : row + 1], allowed=material.allowed, seed=draw + 1)


def beside(main: xr.Dataset, control: str, draws: Sequence[xr.Dataset]) -> xr.Dataset:
    """A dataset with a control: every number that is none of single tokens, in every draw of the control."""
    added: Mapping[str, xr.DataArray] = {
        f"{name}_{control.replace(' ', '_')}": _stacked(str(name), control, draws)
        for name, array in main.data_vars.items()
        if _comparable(array) and all(name in draw for draw in draws)
    }
    return main.assign(added)


def _comparable(array: xr.DataArray) -> bool:
    """Whether a number means the same in another draw."""
    return array.dtype.kind in "fiu" and not PLACES & set(array.dims) and "control_of" not in array.attrs


def _stacked(name: str, control: str, draws: Sequence[xr.Dataset]) -> xr.DataArray:
    """A variable along ``draw``."""
    kept = {key: value for key, value in draws[0][name].attrs.items() if key != "headline"}
    joined = xr.concat([draw[name].drop_attrs() for draw in draws], dim="draw").assign_coords(draw=range(len(draws)))
    return joined.assign_attrs({**kept, "control_of": name, "control": control})
