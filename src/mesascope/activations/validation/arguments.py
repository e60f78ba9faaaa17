"""Validation of the arguments of `capture`, before anything is run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, index
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import ChunkSpec
from mesascope.activations._layer_view import LayerReduction
from mesascope.activations.edits import Edit
from mesascope.activations.padding.masks import validate_accepts_mask
from mesascope.activations.recording._micro_batch import Reduction
from mesascope.activations.sites import ALL_SITES, HALTING_SITES, MEMORY_SITES, UnsupportedModel, get_site
from mesascope.argument_types import describe_value

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
    return "pass mesascope.wrap(model)" if isinstance(model, nn.Module) else "pass a model in memory"


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
    if isinstance(sites, str):
        raise ValueError(f"sites must be a list of names, but got the text {sites!r}; pass [{sites!r}]")
    for name in sites:
        get_site(name)
    reduced = {how.site for how in reduce.values() if isinstance(how, Reduction)}
    if not reduced.isdisjoint(HALTING_SITES):
        raise ValueError(f"{sorted(reduced & set(HALTING_SITES))[0]} cannot be reduced; record it as a site")
    requested = {*sites, *reduced}
    if "logits" in requested and inputs.is_floating_point():
        raise ValueError("logits need a model of tokens, but the inputs are vectors; use 'output'")
    _validate_unique(reduce)


def _validate_unique(reduce: Mapping[str, Reduction | LayerReduction]) -> None:
    names = [name for name, how in reduce.items() if isinstance(how, Reduction)]
    names += [name for how in reduce.values() if isinstance(how, LayerReduction) for name in how.axes]
    conflicts = sorted(set(names) & set(ALL_SITES))
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
    return _select_indices("layers", layers, num_layers)


def select_iterations(
    model_name: str, iterations: Sequence[int] | None, num_iterations: int | None
) -> list[int] | None:
    """Return the iterations to record, counted from 0.

    Args:
        model_name: the class name of the model.
        iterations: indices, negative ones counted from the last iteration; ``None`` for all iterations.
        num_iterations: the largest number of iterations; ``None`` in a model that calls each layer once.

    Returns:
        Indices from 0 to ``num_iterations - 1``, in the given order; ``None`` in a model that calls each layer once.

    Raises:
        ValueError: an index is out of range or repeated, there is none, or the model has no iterations.
    """
    if num_iterations is not None:
        return _select_indices("iterations", iterations, num_iterations)
    if iterations is not None:
        raise ValueError(
            f"iterations= needs a model that repeats its layers, but {model_name} calls each layer once; omit it"
        )
    return None


def _select_indices(name: str, indices: Sequence[int] | None, size: int) -> list[int]:
    if indices is None:
        return list(range(size))
    chosen = _as_integers(name, indices)
    if not chosen or any(not -size <= each < size for each in chosen):
        raise ValueError(f"{name} must lie within the {size} {name} of the model, but got {chosen}")
    selected = [each % size for each in chosen]
    if len(set(selected)) < len(selected):
        raise ValueError(f"{name} must not be repeated, but got {chosen}")
    return selected


def validate_halting_sites(model_name: str, sites: Sequence[str], max_iterations: int | None) -> None:
    """Check that a model halts if sites of halting are requested.

    Args:
        model_name: the class name of the model.
        sites: names of the sites to record.
        max_iterations: the largest number of iterations of a model that halts; ``None`` for other models.

    Raises:
        UnsupportedModel: the model returns no halting probabilities.
    """
    requested = [name for name in sites if name in HALTING_SITES]
    if requested and max_iterations is None:
        raise UnsupportedModel(
            f"{requested[0]} needs a model that returns halting_probabilities, but {model_name} returns none; omit the "
            "site"
        )


def validate_memory_sites(model_name: str, sites: Iterable[str], chunks: ChunkSpec | None) -> None:
    """Check that a model updates a memory between chunks if sites of the update are requested.

    Args:
        model_name: the class name of the model.
        sites: names of the requested sites.
        chunks: the chunks of the model; ``None`` in a model that processes all positions at once.

    Raises:
        UnsupportedModel: the model has no memory, the inputs are one chunk, or the update lacks a site.
    """
    for site in (name for name in sites if name in MEMORY_SITES):
        if chunks is None:
            raise UnsupportedModel(
                f"{site} needs a model that processes chunks of positions with a memory between them, but {model_name} "
                "has none; omit the site"
            )
        if chunks.update is None:
            raise UnsupportedModel(
                f"{site} needs inputs of two or more chunks, between which the memory of {model_name} is updated, but "
                f"they have at most {chunks.length} positions, one chunk; omit the site, or pass longer inputs"
            )
        if site in chunks.update.missing:
            raise UnsupportedModel(
                f"{site} must exist in the update of the memory, but {model_name} lacks it "
                f"({chunks.update.missing[site]}); omit the site"
            )


def validate_gradients_unedited(need_gradients: Sequence[bool], edits: Sequence[Edit]) -> None:
    """Check that gradients are of the unedited model.

    Activation checkpointing runs a layer again, without edits, when its gradient is computed.

    Args:
        need_gradients: whether gradients are recorded, by stack.
        edits: the edits of the run.

    Raises:
        ValueError: gradients and edits are requested together.
    """
    if edits and any(need_gradients):
        raise ValueError("gradients must be of the unedited model, but edits were given; omit either")


def validate_objective(
    objective: Callable[..., Tensor] | None, batch_size: int | None, mask: Int[Tensor, "batch pos"] | None
) -> None:
    """Check that the objective of gradients receives all sequences, and can leave out padding.

    Args:
        objective: a function from outputs (batch, pos, d_out) to (batch), if there is one.
        batch_size: sequences per forward pass; all at once if ``None``.
        mask: 1 where an input is not padding.

    Raises:
        ValueError: the batch is split, or the objective would take padding for inputs.
    """
    if objective is None:
        return
    if batch_size is not None:
        raise ValueError("an objective needs the whole batch, but batch_size splits it; omit objective or batch_size")
    validate_accepts_mask(objective, "an objective", mask)


def _as_integers(name: str, values: Sequence[int]) -> list[int]:
    """Return the integers of a list, tuple, range, array or tensor."""
    try:
        integers = [index(value) for value in values]
    except TypeError:
        raise ValueError(
            f"{name} must be a list of integers, but got {describe_value(values)}; pass {name}=[0], for example"
        ) from None
    if any(isinstance(value, bool) for value in values):
        raise ValueError(
            f"{name} must be a list of integers, but got the booleans {describe_value(values)}; pass their indices"
        )
    return integers


def select_query_positions(queries: Any, length: int, edits: Sequence[Edit]) -> Int[Tensor, " query"]:
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
    chosen = _as_integers("queries", queries)
    if not chosen or any(not 0 <= query < length for query in chosen):
        raise ValueError(f"queries must be positions from 0 to {length - 1}, but got {chosen[:8]}")
    if any(edit.site in ("attn_scores", "pattern") for edit in edits):
        raise ValueError(
            "edits of attn_scores and pattern need all rows, but queries= selects some; omit queries= or the edits"
        )
    return torch.tensor(sorted(set(chosen)))


def stored_layers_by_site(sites: Sequence[str], selected_layers: Sequence[int]) -> dict[str, Sequence[int]]:
    """Return for every site the layers to store.

    Args:
        sites: names of the sites to store.
        selected_layers: the recorded layers.

    Returns:
        By site: all recorded layers, or one if the site has no layer axis.
    """
    return {name: selected_layers if "layer" in get_site(name).axes else selected_layers[:1] for name in sites}
