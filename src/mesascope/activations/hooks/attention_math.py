"""Attention weights from queries and keys, and values mixed by them, in plain sight."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Heads = Float[Tensor, "batch head query d_head"]
KeyHeads = Float[Tensor, "batch kv_head key d_head"]
Scores = Float[Tensor, "batch head query key"]
Added = Float[Tensor, "#batch #head query key"]


def scores(query: Heads, key: KeyHeads, scaling: float) -> Scores:
    """Scaled products of every query with every key of its group, nothing masked."""
    return torch.matmul(query, _per_head(key, query.shape[1]).mT).mul_(scaling)


def pattern_of(scores: Scores, added: Added, out: Scores | None = None) -> Scores:
    """Softmax over keys of the scores plus what the mask adds; rows with no key left are uniform.

    The scores are written over: they are as large as everything else that is made here.

    Args:
        scores: nothing masked.
        added: by the mask.
        out: where the result is put, if it is as precise as the softmax is computed.
    """
    masked = scores.add_(added)
    if masked.dtype == torch.float16:  # whose lowest number and a score make minus infinity
        masked = masked.clamp_(min=torch.finfo(masked.dtype).min)
    return _softmax(masked, out)


def score_of(scores: Scores, added: Added) -> Scores:
    """Scores plus what the mask adds, minus infinity where it forbids."""
    return (scores + added).masked_fill(_forbidden(added), -torch.inf)


def pattern_of_score(score: Scores) -> Scores:
    """Softmax over keys of finished scores; rows with no key left are uniform."""
    return _softmax(score.clamp(min=torch.finfo(score.dtype).min))


def mix(
    pattern: Scores, value: Float[Tensor, "batch kv_head key d_value"]
) -> Float[Tensor, "batch query head d_value"]:
    """Values mixed by attention weights, head by head."""
    return torch.matmul(pattern, _per_head(value, pattern.shape[1])).transpose(1, 2).contiguous()


def additive(mask: Shaped[Tensor, "..."] | None, query: Heads, key: KeyHeads, causal: bool) -> Added:
    """What a kernel's mask adds to the scores: 0 where it allows, the lowest number where it forbids.

    Args:
        mask: ``None`` (causal, or nothing masked), 2-D (which keys are real), or 4-D, of truth values or added.
        query, key: give shapes and precision.
        causal: whether no mask, or a 2-D one, means that a query sees no later key.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None and mask.ndim == 4 and mask.is_floating_point():
        return mask[..., :keys].to(query.dtype)
    if mask is not None and mask.ndim == 4:
        allowed = mask[..., :keys].bool()
    else:
        allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
        allowed = allowed.tril(keys - queries) if causal else allowed
        allowed = allowed if mask is None else allowed & mask[:, None, None, -keys:].bool()
    return torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, torch.finfo(query.dtype).min)


def seeing(added: Added) -> Bool[Tensor, "#batch #head query"]:
    """Which queries may look at any key: rows of padding may not."""
    return ~_forbidden(added).all(-1)


def _forbidden(added: Added) -> Bool[Tensor, "#batch #head query key"]:
    """Where a mask forbids: it adds minus infinity, or a number nearly as low."""
    return added <= torch.finfo(added.dtype).min / 4


def _per_head(grouped: Float[Tensor, "batch kv_head key d"], heads: int) -> Float[Tensor, "batch head key d"]:
    """Keys or values repeated for every query head of their group."""
    return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)


def _softmax(masked: Scores, out: Scores | None = None) -> Scores:
    """Softmax over keys in float32 at least, put into ``out`` where that is as precise and as near."""
    precise = torch.promote_types(masked.dtype, torch.float32)
    if out is not None and out.dtype == precise == masked.dtype and out.device == masked.device:
        return torch.softmax(masked, -1, out=out)
    return masked.softmax(-1, dtype=precise).to(masked.dtype)
