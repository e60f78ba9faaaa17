"""Hooks inside one attention call: queries, keys, values, scores, weights and head outputs."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.activations.sites import UnsupportedModel

# hook_fn(site, layer, value) returns a replacement, or None to leave the value unchanged, like PyTorch's forward hooks;
# a replacement of a gradient is ignored
SiteHook = Callable[[str, int, Tensor], Tensor | None]
BufferAllocator = Callable[[str, int, Tensor], Tensor | None]
HookPointSet = set[tuple[str, int]]
MAX_CHUNK_SCORES = 2**19  # scores of one chunk, few enough to stay in the CPU cache until their softmax is computed


def run_hooked_attention(
    call: AttentionCall,
    layer: LayerSpec,
    layer_index: int,
    hook_points: HookPointSet,
    hook_fn: SiteHook,
    queries: Int[Tensor, " query"] | None,
    allocate: BufferAllocator | None,
) -> tuple[Tensor, Tensor | None]:
    """Run one attention call with hooks; mix values by hand only if scores or weights were edited.

    Args:
        call: the attention call.
        layer: the specification of its layer.
        layer_index: the index of the layer.
        hook_points: the (site, layer) pairs that have hooks.
        hook_fn: the hook function ``hook_fn(site, layer, value)``, which returns a replacement or ``None`` (unchanged).
        queries: the only positions whose rows of ``attn_scores`` and ``pattern`` are computed; all if ``None``.
        allocate: returns a preallocated output buffer for a site.

    Returns:
        What the attention function returns: ``z`` (batch, pos, head, d_head), and attention weights or ``None``.
    """

    def call_hook(site: str, value: Tensor) -> Tensor | None:
        return hook_fn(site, layer_index, value) if (site, layer_index) in hook_points else None

    def apply_hook(site: str, value: Tensor) -> Tensor:
        replacement = call_hook(site, value)
        return value if replacement is None else replacement

    query, key, value = apply_hook("query", call.query), apply_hook("key", call.key), apply_hook("value", call.value)
    out, returned = call.run_original(query, key, value)
    if queries is not None:
        with torch.no_grad():
            _hook_query_rows(
                call, layer, (query.detach(), key.detach(), returned), queries, call_hook, hook_points, layer_index
            )
    elif ("attn_scores", layer_index) in hook_points or ("pattern", layer_index) in hook_points:
        with torch.no_grad():
            pattern = _hook_all_rows(
                call, layer, (query.detach(), key.detach(), returned), call_hook, hook_points, layer_index, allocate
            )
        if pattern is not None:
            out = attention_math.mix_values(pattern, value)
    return apply_hook("z", out), returned


def _hook_all_rows(
    call: AttentionCall,
    layer: LayerSpec,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    call_hook: Callable[[str, Tensor], Tensor | None],
    hook_points: HookPointSet,
    layer_index: int,
    allocate: BufferAllocator | None,
) -> Tensor | None:
    """Call the hooks of scores and pattern; return the pattern if either was edited."""
    query, key, returned = tensors
    allocate_pattern = (
        partial(allocate, "pattern", layer_index)
        if allocate is not None and ("pattern", layer_index) in hook_points
        else None
    )
    pattern, edited = compute_attention_weights(call, layer, query, key, returned, allocate_pattern), None
    if ("attn_scores", layer_index) in hook_points:
        scores = attention_math.mask_scores(call.scaled_scores(query, key), call.additive_mask(query, key))
        edited_scores = call_hook("attn_scores", scores)
        edited = None if edited_scores is None else attention_math.scores_to_pattern(edited_scores)
    replacement = call_hook("pattern", pattern if edited is None else edited)
    return edited if replacement is None else replacement


def _hook_query_rows(
    call: AttentionCall,
    layer: LayerSpec,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    queries: Int[Tensor, " query"],
    call_hook: Callable[[str, Tensor], Tensor | None],
    hook_points: HookPointSet,
    layer_index: int,
) -> None:
    """Call the hooks with the rows of some queries; compute no other rows if the softmax of scores is the pattern."""
    query, key, returned = tensors
    plain = layer.weights_method is not None and layer.weights_method.kind == "plain"
    if ("attn_scores", layer_index) in hook_points or (("pattern", layer_index) in hook_points and plain):
        score, added = call.scaled_scores(query[:, :, queries], key), call.additive_mask(query, key)[:, :, queries]
        if ("attn_scores", layer_index) in hook_points:
            call_hook("attn_scores", attention_math.mask_scores(score, added))
        if ("pattern", layer_index) in hook_points and plain:
            call_hook("pattern", attention_math.masked_softmax(score, added))
    if ("pattern", layer_index) in hook_points and not plain:
        call_hook("pattern", compute_attention_weights(call, layer, query, key, returned)[:, :, queries])


def compute_attention_weights(
    call: AttentionCall,
    layer: LayerSpec,
    query: Tensor,
    key: Tensor,
    returned: Tensor | None,
    allocate: Callable[[Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Return the attention weights of one call, by the method of its layer.

    Args:
        call: the attention call.
        layer: the specification of its layer.
        query: queries (batch, head, pos, d_head).
        key: keys (batch, kv_head, pos, d_head).
        returned: the weights that the attention function returned, if any.
        allocate: returns a preallocated output buffer, given a tensor of its shape.

    Returns:
        Attention weights (batch, head, query, key).

    Raises:
        UnsupportedModel: the attention implementation returned no weights.
    """
    kind = layer.weights_method.kind if layer.weights_method else "returned"
    if kind == "plain":
        like = query.new_empty(()).expand(*query.shape[:3], key.shape[2])
        buffer = None if allocate is None else allocate(like)
        return _softmax_in_chunks(call, query, key, like.new_empty(like.shape) if buffer is None else buffer)
    if kind == "unit":
        return call.run_one_hot(query, key)
    weights = returned if kind == "returned" else call.run_eager(query, key, call.value)
    if weights is None:
        raise UnsupportedModel(
            f"the attention of {layer.block} must return its weights, but {call.attn_implementation} attention "
            "returned none; load "
            "the model with attn_implementation='eager'"
        )
    return weights


def _softmax_in_chunks(call: AttentionCall, query: Tensor, key: Tensor, out: Tensor) -> Tensor:
    """Compute the softmax of the scores into a buffer, a few sequences at a time so that they stay in the CPU cache."""
    mask_bias = call.additive_mask(query, key).expand(len(query), -1, -1, -1)
    chunk = max(1, MAX_CHUNK_SCORES // out[0].numel()) if out.device.type == "cpu" else len(out)
    for start in range(0, len(out), chunk):
        rows = slice(start, start + chunk)
        pattern = attention_math.masked_softmax(call.scaled_scores(query[rows], key[rows]), mask_bias[rows], out[rows])
        if pattern.data_ptr() != out[rows].data_ptr():
            out[rows] = pattern
    return out
