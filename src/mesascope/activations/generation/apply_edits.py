"""The context manager in which forward passes, and generation with its key-value cache, are edited."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._memory import site_shape
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.edits import Edit, EditHadNoEffect
from mesascope.activations.exclusive_use import exclusive_use, guard_hook
from mesascope.activations.forward import evaluation_mode
from mesascope.activations.generation._pass_edits import PassEdits
from mesascope.activations.generation._validate_edits import validate_cached_edit
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.padding.masks import POSITION_AXES
from mesascope.activations.sites import UnsupportedModel, get_site
from mesascope.activations.structure._read_structure import TRACE_LENGTH, read_structure
from mesascope.activations.validation.arguments import validate_model
from mesascope.activations.validation.identities import check_sites_available
from mesascope.activations.wrapping._wrapped_module import WrappedModule
from mesascope.argument_types import validate_arguments


@validate_arguments
@contextmanager
def apply_edits(model: nn.Module, edits: Edit | Sequence[Edit]) -> Iterator[None]:
    """Apply edits in every forward pass inside a ``with`` block, such as those of ``model.generate``.

    With a key-value cache, every position is computed once, and later positions read the cached keys and values of
    edited ones. An edit must therefore treat every sequence and every position on its own; tokens and logits are then
    those of forward passes over the whole sequence without a cache, with the same edits. Edits for which this does not
    hold are refused.

    Positions in ``where`` are columns of the padded prompt and the generated tokens that follow it, counted from 0.
    A column that does not exist yet is edited when it is computed: ``{"pos": slice(10, None)}`` edits all from column
    10 on. Padding is never edited. The model is in evaluation mode inside the block, and other threads wait for it.

    Args:
        model: a causal language model of transformers.
        edits: edits, applied in order.

    Yields:
        Nothing.

    Raises:
        UnsupportedModel: a layer lacks a site, or capturing it changes the output; or inside the block, the cache does
            not have all positions (a sliding window, a static cache) and the edit needs them.
        ValueError: an edit selects sequences, counts positions from the end, or has a source; or inside the block, an
            edit mixes sequences or positions, or reaches positions that were computed before the block.
        IndexError: an index is out of range.

    >>> import torch
    >>> from mesascope.interventions import steer
    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)).eval()
    >>> tokens = torch.arange(6)[None]
    >>> with apply_edits(model, steer("resid_post", torch.ones(8), 5.0, {"layer": 0})):
    ...     steered = model(input_ids=tokens).logits
    >>> bool((steered != model(input_ids=tokens).logits).any())
    True
    """
    model = validate_model(model)
    if isinstance(model, WrappedModule):
        raise UnsupportedModel(
            "edits of forward passes need a model of transformers, but a wrapped module is not what its own code runs; "
            "use edits of capture"
        )
    edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
    for edit in edits:
        validate_cached_edit(edit)
    with exclusive_use(model), evaluation_mode(model):
        with torch.no_grad():
            structure = read_structure(model, _make_trace_tokens(model))
        if structure.chunks is not None:
            raise UnsupportedModel(
                "edits of forward passes need a model that processes all positions at once, but "
                f"{type(model).__name__} has chunks with a memory between them; use edits of capture"
            )
        if structure.is_dynamic:
            raise UnsupportedModel(
                f"edits need the same calls of layers at every position, but {type(model).__name__} halts by position; "
                "use edits of capture"
            )
        edited_layers = [edit.edited_layers(structure.num_blocks, structure.num_iterations) for edit in edits]
        for edit, layers in zip(edits, edited_layers, strict=True):
            check_sites_available(type(model).__name__, structure.layers, {edit.site: layers})
            _validate_indices(edit, structure, layers)
        pass_edits = PassEdits(model, structure, edits, edited_layers)
        with ExitStack() as hooks:

            def attach() -> None:
                hooks.enter_context(attach_hooks(model, structure.layers, pass_edits.layers_by_site, pass_edits))

            start = guard_hook(partial(pass_edits.start_pass, attach))
            hooks.callback(model.register_forward_pre_hook(start, with_kwargs=True).remove)
            hooks.callback(model.register_forward_hook(guard_hook(pass_edits.end_pass), with_kwargs=True).remove)
            yield
    for edit in pass_edits.edits_without_effect:
        where = f" at {dict(edit.where)}" if edit.where else ""
        warnings.warn(f"an edit of {edit.site}{where} had no effect (bitwise)", EditHadNoEffect, stacklevel=3)


def _make_trace_tokens(model: PreTrainedModel) -> Int[Tensor, "1 pos"]:
    """Return tokens on which the structure of a model is found, before its inputs are known."""
    try:
        embedding = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        raise UnsupportedModel(
            f"edits of forward passes need a model of tokens, but {type(model).__name__} embeds none; use edits of "
            "capture"
        )
    return (torch.arange(TRACE_LENGTH, device=model.device) % embedding.num_embeddings)[None]


def _validate_indices(edit: Edit, structure: ModelStructure, layers: Sequence[int]) -> None:
    """Check the indices that do not depend on the inputs."""
    for layer in layers:
        sizes = site_shape(structure, layer, edit.site, 1, 1)
        for axis, size in zip(get_site(edit.site).axes_within_layer, sizes, strict=True):
            if axis not in (*POSITION_AXES, "batch"):
                edit.edited_indices(axis, size)
