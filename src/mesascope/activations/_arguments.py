"""Validation of the arguments of `capture`, before anything is run."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_view import LayerReduction
from mesascope.activations.edits import Edit
from mesascope.activations.recording._micro_batch import Reduction
from mesascope.activations.sites import SITES, UnsupportedModel, get_site
from mesascope.tasks.base import Batch


# where wrappers keep the model: PEFT; torch.compile; DataParallel, DistributedDataParallel and FSDP; TRL's value heads
WRAPPED_MODELS = ("get_base_model", "_orig_mod", "module", "pretrained_model")


def validate_model(model: nn.Module) -> PreTrainedModel:
    """Check that a model can be captured, and return it.

    Args:
        model: the model.

    Raises:
        UnsupportedModel: it is not a ``PreTrainedModel`` or has no parameters.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(
            f"a model must be a transformers.PreTrainedModel, but got {type(model).__name__}; {_advise(model)}"
        )
    if not any(True for _ in model.parameters()):
        raise UnsupportedModel(
            f"a model must have parameters, but {type(model).__name__} has none; register its weights as parameters, "
            "not as buffers"
        )
    return model


def _advise(model: object) -> str:
    """Return what to pass in place of a wrapper around a transformers model."""
    for path in WRAPPED_MODELS:
        try:
            inner = attrgetter(path)(model)
        except AttributeError:
            continue
        if isinstance(inner, nn.Module):
            return f"pass the model inside it, model.{path}"
        if callable(inner) and path == "get_base_model":
            return "pass model.get_base_model(), which contains the adapters"
    return "wrap it in one whose attention goes through transformers' attention interface"


def prepare_inputs(
    model: PreTrainedModel, inputs: Tensor | Batch, attention_mask: Tensor | None
) -> tuple[Shaped[Tensor, "batch pos *d_in"], Int[Tensor, "batch pos"] | None]:
    """Move inputs and mask to the model's device, and check their shapes; a mask that is 1 everywhere becomes ``None``.

    Args:
        model: the model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        attention_mask: (batch, pos), 1 where an input is not padding.

    Returns:
        The inputs, and the mask or ``None``.

    Raises:
        ValueError: the inputs are empty, or a shape is wrong.
    """
    x = (inputs.inputs if isinstance(inputs, Batch) else inputs).to(model.device)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(f"inputs must be (batch, pos) or (batch, pos, d_in) and not empty, but got {tuple(x.shape)}")
    if attention_mask is not None and attention_mask.shape != x.shape[:2]:
        shape, given = tuple(x.shape[:2]), tuple(attention_mask.shape)
        raise ValueError(f"attention_mask must be (batch, pos) = {shape}, but got {given}")
    if attention_mask is None or bool(attention_mask.bool().all()):
        return x, None
    return x, attention_mask.to(model.device).long()


def validate_names(
    sites: Sequence[str], reduce: Mapping[str, Reduction | LayerReduction], inputs: Shaped[Tensor, "batch pos *d_in"]
) -> None:
    """Check that sites exist and that reductions have unique names of their own.

    Args:
        sites: names of the sites to record.
        reduce: reductions by name.
        inputs: the model inputs; ``logits`` exist only for tokens.

    Raises:
        ValueError: a site does not exist or is not available for these inputs, or the name of a reduction is taken.
    """
    for name in sites:
        get_site(name)
    requested = {*sites, *(how.site for how in reduce.values() if isinstance(how, Reduction))}
    if "logits" in requested and inputs.is_floating_point():
        raise ValueError("logits need a model of tokens, but the inputs are vectors; use 'output'")
    _validate_unique(reduce)


def _validate_unique(reduce: Mapping[str, Reduction | LayerReduction]) -> None:
    names = [name for name, how in reduce.items() if isinstance(how, Reduction)]
    names += [name for how in reduce.values() if isinstance(how, LayerReduction) for name in how.axes]
    conflicts = sorted(set(names) & set(SITES))
    if conflicts:
        raise ValueError(f"a reduction must have a unique name, but {conflicts[0]!r} is a site; choose another name")
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"a reduction must have a unique name, but two return {duplicates[0]!r}; rename one")


def select_layers(layers: Sequence[int] | None, num_layers: int) -> list[int]:
    """Return the layers to record, counted from 0.

    Args:
        layers: indices, negative ones counted from the last layer; ``None`` for all layers.
        num_layers: the number of layers of the model.

    Returns:
        Indices from 0 to ``num_layers - 1``, in the given order.

    Raises:
        ValueError: an index is out of range or repeated, or there is none.
    """
    invalid = [layer for layer in layers or () if not -num_layers <= layer < num_layers]
    if invalid or (layers is not None and not layers):
        raise ValueError(f"layers must lie within the {num_layers} layers of the model, but got {list(layers or ())}")
    selected = list(range(num_layers)) if layers is None else [layer % num_layers for layer in layers]
    if len(set(selected)) < len(selected):
        raise ValueError(f"layers must not be repeated, but got {list(layers or ())}")
    return selected


def select_query_positions(queries: Sequence[int] | None, length: int, edits: Sequence[Edit]) -> Int[Tensor, " query"]:
    """Return the query positions whose rows of ``attn_scores`` and ``pattern`` are recorded, sorted.

    Args:
        queries: positions; ``None`` for all.
        length: the number of positions of a sequence.
        edits: the edits of the run; none may edit ``attn_scores`` or ``pattern`` if queries are selected.

    Raises:
        ValueError: a position is out of range, or an edit needs all rows.
    """
    if queries is None:
        return torch.arange(length)
    invalid = [query for query in queries if not 0 <= query < length]
    if invalid or not len(queries):
        raise ValueError(f"queries must be positions from 0 to {length - 1}, but got {list(queries)[:8]}")
    if any(edit.site in ("attn_scores", "pattern") for edit in edits):
        raise ValueError(
            "edits of attn_scores and pattern need all rows, but queries= selects some; omit queries= or the edits"
        )
    return torch.tensor(sorted(set(queries)))


def stored_layers_by_site(sites: Sequence[str], selected_layers: Sequence[int]) -> dict[str, Sequence[int]]:
    """Return for every site the layers to store.

    Args:
        sites: names of the sites to store.
        selected_layers: the recorded layers.

    Returns:
        By site: all recorded layers, or one if the site has no layer axis.
    """
    return {name: selected_layers if "layer" in SITES[name].axes else selected_layers[:1] for name in sites}
