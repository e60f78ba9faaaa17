"""Hooks inside one attention call: queries, keys, values, scores, weights and head outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from mesascope.activations._layer_spec import AttentionWeightsMethod
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.activations.sites import UnsupportedModel

# hook_fn(site, layer, value) returns a replacement, or None to leave the value unchanged, like PyTorch's forward hooks;
# a replacement of a gradient is ignored
SiteHook = Callable[[str, int, Tensor], Tensor | None]
BufferAllocator = Callable[[str, int, Tensor], Tensor | None]
HookPointSet = set[tuple[str, int]]
MAX_CHUNK_SCORES = 2**19  # scores of one chunk, few enough to stay in the CPU cache until their softmax is computed


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionHooks:
    """The hooks of one attention: the only one of a layer, or its cross-attention.

    Attributes:
        weights_method: the method for its attention weights.
        layer: the index of the layer.
        hook_points: the (site, layer) pairs that have hooks.
        hook_fn: the hook function ``hook_fn(site, layer, value)``, which returns a replacement or ``None`` (unchanged).
        allocate: returns a preallocated output buffer for a site.
        prefix: what the names of its sites begin with: ``cross_`` for cross-attention.
    """

    weights_method: AttentionWeightsMethod | None
    layer: int
    hook_points: HookPointSet
    hook_fn: SiteHook
    allocate: BufferAllocator | None = None
    prefix: str = ""

    def has(self, site: str) -> bool:
        """Return whether a site has a hook.

        Args:
            site: the name of the site, without the prefix.
        """
        return (self.prefix + site, self.layer) in self.hook_points

    def call(self, site: str, value: Tensor) -> Tensor | None:
        """Call the hook of a site, and return the replacement, if there is one.

        Args:
            site: the name of the site, without the prefix.
            value: its activation.
        """
        return self.hook_fn(self.prefix + site, self.layer, value) if self.has(site) else None

    def apply(self, site: str, value: Tensor) -> Tensor:
        """Call the hook of a site, and return the activation or its replacement.

        Args:
            site: the name of the site, without the prefix.
            value: its activation.
        """
        replacement = self.call(site, value)
        return value if replacement is None else replacement


def run_hooked_attention(
    call: AttentionCall, hooks: AttentionHooks, queries: Int[Tensor, " query"] | None
) -> tuple[Tensor, Tensor | None]:
    """Run one attention call with hooks; mix values by hand only if scores or weights were edited.

    Args:
        call: the attention call.
        hooks: its hooks.
        queries: the only positions whose rows of ``attn_scores`` and ``pattern`` are computed; all if ``None``.

    Returns:
        What the attention function returns: ``z`` (batch, pos, head, d_head), and attention weights or ``None``.
    """
    query, key, value = (
        hooks.apply(*each) for each in (("query", call.query), ("key", call.key), ("value", call.value))
    )
    out, returned = call.run_original(query, key, value)
    tensors = query.detach(), key.detach(), returned
    if queries is not None:
        with torch.no_grad():
            _hook_query_rows(call, hooks, tensors, queries)
    elif hooks.has("attn_scores") or hooks.has("pattern"):
        with torch.no_grad():
            pattern = _hook_all_rows(call, hooks, tensors)
        if pattern is not None:
            out = attention_math.mix_values(pattern, value)
    return hooks.apply("z", out), returned


def _hook_all_rows(
    call: AttentionCall, hooks: AttentionHooks, tensors: tuple[Tensor, Tensor, Tensor | None]
) -> Tensor | None:
    """Call the hooks of scores and pattern; return the pattern if either was edited."""
    query, key, returned = tensors
    allocate = None
    if hooks.allocate is not None and hooks.has("pattern"):
        allocate = partial(hooks.allocate, f"{hooks.prefix}pattern", hooks.layer)
    pattern, edited = compute_attention_weights(call, hooks.weights_method, query, key, returned, allocate), None
    if hooks.has("attn_scores"):
        scores = attention_math.mask_scores(call.scaled_scores(query, key), call.score_bias(query, key))
        edited_scores = hooks.call("attn_scores", scores)
        edited = None if edited_scores is None else attention_math.scores_to_pattern(edited_scores)
    replacement = hooks.call("pattern", pattern if edited is None else edited)
    return edited if replacement is None else replacement


def _hook_query_rows(
    call: AttentionCall,
    hooks: AttentionHooks,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    queries: Int[Tensor, " query"],
) -> None:
    """Call the hooks with the rows of some queries; compute no other rows if the softmax of scores is the pattern."""
    query, key, returned = tensors
    plain = hooks.weights_method is not None and hooks.weights_method.kind == "plain"
    if hooks.has("attn_scores") or (hooks.has("pattern") and plain):
        score, added = call.scaled_scores(query[:, :, queries], key), call.score_bias(query, key)[:, :, queries]
        if hooks.has("attn_scores"):
            hooks.call("attn_scores", attention_math.mask_scores(score, added))
        if hooks.has("pattern") and plain:
            hooks.call("pattern", attention_math.masked_softmax(score, added))
    if hooks.has("pattern") and not plain:
        pattern = compute_attention_weights(call, hooks.weights_method, query, key, returned)
        hooks.call("pattern", pattern[:, :, queries])


def compute_attention_weights(
    call: AttentionCall,
    weights_method: AttentionWeightsMethod | None,
    query: Tensor,
    key: Tensor,
    returned: Tensor | None,
    allocate: Callable[[Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Return the attention weights of one call, by a given method.

    Args:
        call: the attention call.
        weights_method: the method.
        query: queries (batch, head, pos, d_head).
        key: keys (batch, kv_head, pos, d_head).
        returned: the weights that the attention function returned, if any.
        allocate: returns a preallocated output buffer, given a tensor of its shape.

    Returns:
        Attention weights (batch, head, query, key).

    Raises:
        UnsupportedModel: the attention implementation returned no weights.
    """
    kind = weights_method.kind if weights_method else "returned"
    if kind == "plain":
        like = query.new_empty(()).expand(*query.shape[:3], key.shape[2])
        buffer = None if allocate is None else allocate(like)
        return _softmax_in_chunks(call, query, key, like.new_empty(like.shape) if buffer is None else buffer)
    if kind == "unit":
        return call.run_one_hot(query, key)
    weights = returned if kind == "returned" else call.run_eager(query, key, call.value)
    if weights is None:
        raise UnsupportedModel(
            f"the attention of {type(call.module).__name__} must return its weights, but {call.attn_implementation} "
            "attention returned none; load the model with attn_implementation='eager'"
        )
    return weights


def _softmax_in_chunks(call: AttentionCall, query: Tensor, key: Tensor, out: Tensor) -> Tensor:
    """Compute the softmax of the scores into a buffer, a few sequences at a time so that they stay in the CPU cache."""
    mask_bias = call.score_bias(query, key).expand(len(query), -1, -1, -1)
    chunk = max(1, MAX_CHUNK_SCORES // out[0].numel()) if out.device.type == "cpu" else len(out)
    for start in range(0, len(out), chunk):
        rows = slice(start, start + chunk)
        pattern = attention_math.masked_softmax(call.scaled_scores(query[rows], key[rows]), mask_bias[rows], out[rows])
        if pattern.data_ptr() != out[rows].data_ptr():
            out[rows] = pattern
    return out
