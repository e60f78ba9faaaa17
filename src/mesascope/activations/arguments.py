"""What capture is asked for, looked through before anything is run."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.edits import Edit
from mesascope.activations.layer_view import LayerReduction
from mesascope.activations.recorder import Reduction
from mesascope.activations.sites import SITES, UnsupportedModel, site
from mesascope.tasks.base import Batch


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model, if it is one of transformers' kind."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(
            f"a model must be a transformers.PreTrainedModel, but got {type(model).__name__}; "
            "wrap it as one whose attention goes through transformers' attention interface"
        )
    if not any(True for _ in model.parameters()):
        raise UnsupportedModel(
            f"a model must have parameters, but {type(model).__name__} has none; keep its weights as parameters, not "
            "as buffers"
        )
    return model


def on_device(
    model: PreTrainedModel, inputs: Tensor | Batch, mask: Tensor | None
) -> tuple[Shaped[Tensor, "batch pos *d_in"], Int[Tensor, "batch pos"] | None]:
    """Inputs and mask where the model is; a mask that hides nothing is none."""
    x = (inputs.inputs if isinstance(inputs, Batch) else inputs).to(model.device)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(f"inputs must be (batch, pos) or (batch, pos, d_in) and not empty, but got {tuple(x.shape)}")
    if mask is not None and mask.shape != x.shape[:2]:
        raise ValueError(f"attention_mask must be (batch, pos) = {tuple(x.shape[:2])}, but got {tuple(mask.shape)}")
    return x, None if mask is None or bool(mask.bool().all()) else mask.to(model.device).long()


def refuse_names(sites: Sequence[str], reduce: Mapping[str, Reduction | LayerReduction]) -> None:
    """Refuse sites that do not exist, and results named as a site or as one another."""
    for name in sites:
        site(name)
    names = [name for name, how in reduce.items() if isinstance(how, Reduction)]
    names += [name for how in reduce.values() if isinstance(how, LayerReduction) for name in how.axes]
    clash = sorted(set(names) & set(SITES))
    if clash:
        raise ValueError(f"a reduction must have a name of its own, but {clash[0]!r} is a site; choose another")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"a reduction must have a name of its own, but two give {twice[0]!r}; rename one")


def chosen_layers(layers: Sequence[int] | None, count: int) -> list[int]:
    """The layers to be recorded, counted from 0."""
    wrong = [layer for layer in layers or () if not -count <= layer < count]
    if wrong or (layers is not None and not layers):
        raise ValueError(f"layers must lie within the {count} layers of the model, but got {list(layers or ())}")
    chosen = list(range(count)) if layers is None else [layer % count for layer in layers]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"layers must be named once each, but got {list(layers or ())}")
    return chosen


def positions(queries: Sequence[int] | None, length: int, edits: Sequence[Edit]) -> Int[Tensor, " query"]:
    """The positions of the queries that are wanted."""
    if queries is None:
        return torch.arange(length)
    wrong = [query for query in queries if not 0 <= query < length]
    if wrong or not len(queries):
        raise ValueError(f"queries must be positions from 0 to {length - 1}, but got {list(queries)[:8]}")
    if any(edit.site in ("score", "pattern") for edit in edits):
        raise ValueError("score and pattern must be whole to be edited, but queries= picks rows; leave out either")
    return torch.tensor(sorted(set(queries)))


def stored_layers(sites: Sequence[str], chosen: Sequence[int]) -> dict[str, Sequence[int]]:
    """For every site the layers whose tensors are kept: all chosen ones, or one where the site has no layers."""
    return {name: chosen if "layer" in SITES[name].axes else chosen[:1] for name in sites}
