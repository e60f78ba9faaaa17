"""The method by which a layer's attention weights are computed, found on the trace input."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mesascope.activations._layer_spec import AttentionWeightsMethod
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._trace import TracedAttention
from mesascope.activations.tolerances import allclose, relative_difference, rounding_tolerance

SOFTCAP_TEST_FACTOR = 16.0  # factor on queries that makes a soft cap of the scores visible


def find_weights_method(attention: TracedAttention) -> tuple[AttentionWeightsMethod | None, dict[str, str]]:
    """Find a method that reproduces ``z`` from attention weights on the trace input.

    Args:
        attention: the traced call of the attention function.

    Returns:
        The method, or ``None``; and the reasons why ``pattern`` or ``attn_scores`` is not available.
    """
    value, out = attention.call.value, attention.output
    failures: list[str] = []
    for kind in ("returned", "plain", "delegate", "unit"):
        pattern = _try_weights_method(kind, attention)
        if pattern is None:
            continue
        z = attention_math.mix_values(pattern, value)
        if z.shape == out.shape and allclose(z, out):
            return _describe_weights_method(kind, attention, pattern)
        difference = f"by {relative_difference(z, out):.1e}" if z.shape == out.shape else "in shape"
        failures.append(f"{kind} weights give a z that differs {difference}")
    why = "; ".join(failures) or "the attention implementation returns none"
    return None, dict.fromkeys(("pattern", "attn_scores"), f"attention weights are not available: {why}")


def _try_weights_method(kind: str, attention: TracedAttention) -> Tensor | None:
    """Compute the attention weights of the trace input by one method; ``None`` where the method does not apply."""
    call = attention.call
    if kind == "returned":
        shape = (*call.query.shape[:3], call.key.shape[2])
        return (
            attention.returned_weights
            if attention.returned_weights is not None and attention.returned_weights.shape == shape
            else None
        )
    eager_pattern = _run_eager_attention(call, call.query)
    if kind == "delegate":
        return eager_pattern
    if kind == "unit":
        return _call_or_none(lambda: call.run_one_hot(call.query, call.key))
    return (
        attention_math.masked_softmax(call.scaled_scores(call.query, call.key), call.score_bias(call.query, call.key))
        if (eager_pattern is None or _max_eager_difference(call) <= rounding_tolerance(eager_pattern))
        else None
    )


def _max_eager_difference(call: AttentionCall) -> float:
    """Return the largest relative difference between the softmax of the scaled scores and the model's eager weights.

    It is measured for the traced queries and for scaled ones, on which a soft cap of the scores would show; infinite
    where the model has no eager function.
    """
    worst = 0.0
    for query in (call.query, SOFTCAP_TEST_FACTOR * call.query):
        eager_pattern = _run_eager_attention(call, query)
        if eager_pattern is None:
            return math.inf
        score = attention_math.mask_scores(call.scaled_scores(query, call.key), call.score_bias(query, call.key))
        worst = max(
            worst,
            relative_difference(attention_math.scores_to_pattern(score), eager_pattern)
            if eager_pattern.shape == score.shape
            else math.inf,
        )
    return worst


def _run_eager_attention(call: AttentionCall, query: Tensor) -> Tensor | None:
    return _call_or_none(lambda: call.run_eager(query, call.key, call.value))


def _call_or_none(eager: Callable[[], Tensor | None]) -> Tensor | None:
    """Run the model's eager function; return ``None`` where it cannot be called."""
    try:
        return eager()
    except (UnsupportedModel, TypeError, AttributeError, RuntimeError, ValueError):
        return None


def _describe_weights_method(
    kind: str, attention: TracedAttention, pattern: Tensor
) -> tuple[AttentionWeightsMethod, dict[str, str]]:
    """Describe a method whose weights reproduce ``z``: availability of scores, normalisation of rows."""
    call = attention.call
    score = attention_math.mask_scores(call.scaled_scores(call.query, call.key), call.score_bias(call.query, call.key))
    difference = relative_difference(attention_math.scores_to_pattern(score), pattern)
    eager_difference = _max_eager_difference(call)
    difference = difference if math.isinf(eager_difference) else max(difference, eager_difference)
    total = pattern.double().sum(-1)
    softmax = allclose(total.to(pattern.dtype), torch.ones_like(total, dtype=pattern.dtype))
    has_scores = difference <= rounding_tolerance(pattern)
    reason = f"the softmax of the scaled scores differs from the attention weights by {difference:.1e}"
    return AttentionWeightsMethod(
        kind=kind, softmax_of_scores=has_scores, rows_sum_to_one=softmax
    ), {} if has_scores else {"attn_scores": reason}
