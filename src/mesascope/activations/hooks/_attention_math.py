"""Attention weights from queries and keys, and values mixed by them."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

QueryHeads = Float[Tensor, "batch head query d_head"]
KeyHeads = Float[Tensor, "batch kv_head key d_head"]
AttentionScores = Float[Tensor, "batch head query key"]
AdditiveMask = Float[Tensor, "#batch #head query key"]


def scaled_dot_products(query: QueryHeads, key: KeyHeads, scaling: float) -> AttentionScores:
    """Return the scaled dot products of queries with the keys of their group, without a mask.

    Args:
        query: queries (batch, head, query, d_head).
        key: keys (batch, kv_head, key, d_head).
        scaling: the factor, such as d_head ** -0.5.

    Returns:
        Scores (batch, head, query, key).
    """
    return torch.matmul(query, _repeat_kv(key, query.shape[1]).mT).mul_(scaling)


def masked_softmax(scores: AttentionScores, mask: AdditiveMask, out: AttentionScores | None = None) -> AttentionScores:
    """Return the softmax over keys of the scores plus the additive mask; rows without any key are uniform.

    The scores are overwritten to save memory.

    Args:
        scores: unmasked scores (batch, head, query, key).
        mask: the additive mask.
        out: a buffer for the result; it is used if it has the precision of the softmax.

    Returns:
        Attention weights (batch, head, query, key).
    """
    masked = scores.add_(mask)
    if masked.dtype == torch.float16:  # the lowest number plus a score would be minus infinity
        masked = masked.clamp_(min=torch.finfo(masked.dtype).min)
    return _precise_softmax(masked, out)


def mask_scores(scores: AttentionScores, mask: AdditiveMask) -> AttentionScores:
    """Return the scores plus the additive mask, with minus infinity at masked keys.

    Args:
        scores: unmasked scores (batch, head, query, key).
        mask: the additive mask.

    Returns:
        Masked scores (batch, head, query, key).
    """
    return (scores + mask).masked_fill(_is_masked(mask), -torch.inf)


def scores_to_pattern(scores: AttentionScores) -> AttentionScores:
    """Return the softmax over keys of masked scores; rows without any key are uniform.

    Args:
        scores: masked scores (batch, head, query, key).

    Returns:
        Attention weights (batch, head, query, key).
    """
    return _precise_softmax(scores.clamp(min=torch.finfo(scores.dtype).min))


def mix_values(
    pattern: AttentionScores, value: Float[Tensor, "batch kv_head key d_value"]
) -> Float[Tensor, "batch query head d_value"]:
    """Return the attention-weighted values of every head: z = pattern @ value.

    Args:
        pattern: attention weights (batch, head, query, key).
        value: values (batch, kv_head, key, d_value).

    Returns:
        ``z`` (batch, query, head, d_value).
    """
    return torch.matmul(pattern, _repeat_kv(value, pattern.shape[1])).transpose(1, 2).contiguous()


def to_additive_mask(
    mask: Shaped[Tensor, "..."] | None, query: QueryHeads, key: KeyHeads, causal: bool
) -> AdditiveMask:
    """Return the additive form of an attention mask: 0 at visible keys, the lowest finite number at masked ones.

    Args:
        mask: ``None``; 2-D (batch, key), 1 where a key is not padding; or 4-D, boolean or additive.
        query: queries, which give shape and precision.
        key: keys, which give the number of positions.
        causal: apply the causal mask if the mask is ``None`` or 2-D.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None and mask.ndim == 4 and mask.is_floating_point():
        return mask[..., :keys].to(query.dtype)
    allowed = find_visible_keys(mask, queries, keys, causal, query.device)
    return torch.zeros_like(allowed, dtype=query.dtype).masked_fill(~allowed, torch.finfo(query.dtype).min)


def find_visible_keys(
    mask: Shaped[Tensor, "..."] | None, queries: int, keys: int, causal: bool, device: torch.device
) -> Bool[Tensor, "#batch #head query key"]:
    """Return where a query can attend to a key.

    Args:
        mask: ``None``; 2-D (batch, key), 1 where a key is not padding; or 4-D, boolean or additive.
        queries: the number of queries.
        keys: the number of keys.
        causal: apply the causal mask if the mask is ``None`` or 2-D.
        device: the device of the result.
    """
    if mask is not None and mask.ndim == 4:
        return ~_is_masked(mask[..., :keys]) if mask.is_floating_point() else mask[..., :keys].bool()
    allowed = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
    allowed = allowed.tril(keys - queries) if causal else allowed
    return allowed if mask is None else allowed & mask[:, None, None, -keys:].bool()


def _is_masked(mask: AdditiveMask) -> Bool[Tensor, "#batch #head query key"]:
    """Return where a mask adds minus infinity, or a number nearly as low."""
    return mask <= torch.finfo(mask.dtype).min / 4


def _repeat_kv(grouped: Float[Tensor, "batch kv_head key d"], heads: int) -> Float[Tensor, "batch head key d"]:
    return grouped.repeat_interleave(heads // grouped.shape[1], dim=1)


def _precise_softmax(masked: AttentionScores, out: AttentionScores | None = None) -> AttentionScores:
    """Return the softmax over keys, computed in float32 or better, in ``out`` if dtype and device match."""
    precise = torch.promote_types(masked.dtype, torch.float32)
    if out is not None and out.dtype == precise == masked.dtype and out.device == masked.device:
        return torch.softmax(masked, -1, out=out)
    return masked.softmax(-1, dtype=precise).to(masked.dtype)
