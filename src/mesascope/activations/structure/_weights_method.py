"""The method by which a layer's attention weights are computed, found on the trace input."""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from mesascope.activations._layer_spec import AttentionWeightsMethod
from mesascope.activations.hooks import _attention_math as attention_math
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
    value, out, candidates = attention.call.value, attention.output, _CandidateWeights(attention)
    failures: list[str] = []
    for kind in ("returned", "plain", "delegate", "unit"):
        pattern = candidates.compute(kind)
        if pattern is None:
            continue
        z = attention_math.mix_values(pattern, value)
        if z.shape == out.shape and allclose(z, out):
            return _describe_weights_method(kind, candidates, pattern)
        difference = f"by {relative_difference(z, out):.1e}" if z.shape == out.shape else "in shape"
        failures.append(f"{kind} weights give a z that differs {difference}")
    why = "; ".join(failures) or "the attention implementation returns none"
    return None, dict.fromkeys(("pattern", "attn_scores"), f"attention weights are not available: {why}")


class _CandidateWeights:
    """The attention weights of one traced call by every method, each computed once.

    Args:
        attention: the traced call of the attention function.
    """

    def __init__(self, attention: TracedAttention) -> None:
        self._returned, self._call = attention.returned_weights, attention.call

    def compute(self, kind: str) -> Tensor | None:
        """Compute the weights by one method; ``None`` where the method does not apply."""
        call = self._call
        if kind == "returned":
            shape = (*call.query.shape[:3], call.key.shape[2])
            return self._returned if self._returned is not None and self._returned.shape == shape else None
        if kind == "delegate":
            return self._eager
        if kind == "unit":
            return _call_or_none(lambda: call.run_one_hot(call.query, call.key))
        if self._eager is not None and self.eager_difference > rounding_tolerance(self._eager):
            return None
        return attention_math.masked_softmax(
            call.scaled_scores(call.query, call.key), call.score_bias(call.query, call.key)
        )

    @cached_property
    def softmax_of_scores(self) -> Tensor:
        """The softmax of the scaled scores."""
        return self._softmax(self._call.query)

    @cached_property
    def eager_difference(self) -> float:
        """The largest relative difference between the softmax of the scaled scores and the model's eager weights.

        It is measured for the traced queries and for scaled ones, on which a soft cap of the scores would show;
        infinite where the model has no eager function.
        """
        scaled = SOFTCAP_TEST_FACTOR * self._call.query
        worst = 0.0
        for eager, softmax in (
            (self._eager, lambda: self.softmax_of_scores),
            (self._run_eager(scaled), lambda: self._softmax(scaled)),
        ):
            if eager is None:
                return math.inf
            expected = softmax()
            worst = max(worst, relative_difference(expected, eager) if eager.shape == expected.shape else math.inf)
        return worst

    @cached_property
    def _eager(self) -> Tensor | None:
        return self._run_eager(self._call.query)

    def _softmax(self, query: Tensor) -> Tensor:
        score, bias = self._call.scaled_scores(query, self._call.key), self._call.score_bias(query, self._call.key)
        return attention_math.scores_to_pattern(attention_math.mask_scores(score, bias))

    def _run_eager(self, query: Tensor) -> Tensor | None:
        return _call_or_none(lambda: self._call.run_eager(query, self._call.key, self._call.value))


def _call_or_none(eager: Callable[[], Tensor | None]) -> Tensor | None:
    """Run the model's eager function; return ``None`` where it cannot be called."""
    try:
        return eager()
    except (UnsupportedModel, TypeError, AttributeError, RuntimeError, ValueError):
        return None


def _describe_weights_method(
    kind: str, candidates: _CandidateWeights, pattern: Tensor
) -> tuple[AttentionWeightsMethod, dict[str, str]]:
    """Describe a method whose weights reproduce ``z``: availability of scores, normalisation of rows."""
    difference = relative_difference(candidates.softmax_of_scores, pattern)
    eager_difference = candidates.eager_difference
    difference = difference if math.isinf(eager_difference) else max(difference, eager_difference)
    total = pattern.double().sum(-1)
    softmax = allclose(total.to(pattern.dtype), torch.ones_like(total, dtype=pattern.dtype))
    has_scores = difference <= rounding_tolerance(pattern)
    reason = f"the softmax of the scaled scores differs from the attention weights by {difference:.1e}"
    return AttentionWeightsMethod(
        kind=kind, softmax_of_scores=has_scores, rows_sum_to_one=softmax
    ), {} if has_scores else {"attn_scores": reason}
