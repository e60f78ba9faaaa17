"""Residual updates of a layer, found by arithmetic: resid_pre + a * attn_out + b * mlp_out == resid_post.

A decoder layer of an encoder-decoder also adds c * cross_attn_out.
"""

from collections.abc import Sequence
from itertools import chain, product

import torch
from torch import Tensor

from mesascope.activations._layer_spec import ResidualUpdate
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._trace import ModuleCall, Trace, TracedAttention
from mesascope.activations.tolerances import terms_sum_to

ResidualUpdates = tuple[list[ResidualUpdate | None], ResidualUpdate | None, dict[str, str]]
ATTENTION_UPDATES = ("attn_out", "cross_attn_out")


def find_residual_updates(
    trace: Trace, block: ModuleCall, attentions: Sequence[TracedAttention | ModuleCall], resid_pre: Tensor
) -> ResidualUpdates:
    """Find the modules whose outputs, each times a constant gain, sum to the change that a layer makes.

    Args:
        trace: traced forward pass.
        block: call of the layer.
        attentions: the layer's calls of the attention function: one, or self-attention and cross-attention; or the call
            of the module that computes attention.
        resid_pre: residual stream before the layer.

    Returns:
        The update of each attention, the update of the MLP (``None`` where missing), and the reason for each missing
        one.

    Raises:
        UnsupportedModel: the residual stream is not finite.
    """
    resid_post = block.output_tensor
    if not (resid_pre.isfinite().all() and block.is_finite):
        raise UnsupportedModel(
            f"the residual stream must be finite, but that before or after {block.name} has NaN or infinity; scale the "
            "inputs, or use weights of a larger range such as float32"
        )
    attn_candidates = [_list_attention_candidates(trace, block, attention) for attention in attentions]
    mlp_candidates = _list_mlp_candidates(trace, block, attentions)
    for exact in (True, False):
        for calls in chain(product(*attn_candidates, mlp_candidates), product(*attn_candidates)):
            gains = _fit_gains(resid_pre, resid_post, calls, exact) if _are_distinct(calls) else None
            if gains is not None:
                return _collect_updates(calls, gains, len(attentions))
    reason = (
        "no module outputs sum to the layer's change of the residual stream; a norm or a gate may follow the sum; the "
        "best fit leaves a fraction of "
        f"{_min_unexplained_fraction(resid_pre, resid_post, attn_candidates, mlp_candidates):.1e} unexplained"
    )
    updates: list[ResidualUpdate | None] = [None] * len(attentions)
    return updates, None, dict.fromkeys((*ATTENTION_UPDATES[: len(attentions)], "mlp_out"), reason)


def _are_distinct(calls: Sequence[ModuleCall]) -> bool:
    return len({id(call) for call in calls}) == len(calls)


def _collect_updates(calls: Sequence[ModuleCall], gains: list[float], num_attentions: int) -> ResidualUpdates:
    updates: list[ResidualUpdate | None] = [_make_update(*each) for each in zip(calls, gains, strict=True)]
    if len(calls) == num_attentions:
        return updates, None, {"mlp_out": "the layer has no MLP whose output is added to the residual stream"}
    return updates[:-1], updates[-1], {}


def _make_update(call: ModuleCall, gain: float) -> ResidualUpdate:
    return ResidualUpdate(module=call.name, gain=gain, flat=call.output_tensor.ndim == 2)


def _list_attention_candidates(
    trace: Trace, block: ModuleCall, attention: TracedAttention | ModuleCall
) -> list[ModuleCall]:
    """List the attention module and the modules it feeds (post-norm, dropout, wrappers), nearest first."""
    inside = [call for call in trace.calls_within(block) if _has_stream_shape(trace, call, block)]
    candidates = [call for call in inside if call.name == attention.name]
    if not candidates:
        return []
    module = candidates[0]
    for call in inside:
        wraps = call.contains_call(module)
        fed = call.start > module.end and any(
            each.output is not None and call.reads_tensor(each.output) for each in candidates
        )
        if wraps or fed:
            candidates.append(call)
    return candidates


def _list_mlp_candidates(
    trace: Trace, block: ModuleCall, attentions: Sequence[TracedAttention | ModuleCall]
) -> list[ModuleCall]:
    """List the other modules of the layer with outputs of the stream's shape: shallow ones first, later ones first."""
    attention_calls = [
        next(call for call in trace.calls if call.name == each.name and (call is each or call.contains_call(each)))
        for each in attentions
    ]
    inside = [
        call
        for call in trace.calls_within(block)
        if _has_stream_shape(trace, call, block)
        and not any(each.contains_call(call) or call.contains_call(each) or call is each for each in attention_calls)
    ]
    return sorted(inside, key=lambda call: (call.name.count("."), -call.end))


def _has_stream_shape(trace: Trace, call: ModuleCall, block: ModuleCall) -> bool:
    """Return True if the output is finite and has the shape of the stream, and the block calls the module only once."""
    batch, length, width = block.output_tensor.shape
    if call.output is None or call.output.shape not in ((batch, length, width), (batch * length, width)):
        return False
    return is_called_once(trace, call, block) and call.is_finite


def is_called_once(trace: Trace, call: ModuleCall, block: ModuleCall) -> bool:
    """Return whether every call of a block calls a module once, and nothing else calls it.

    Args:
        trace: traced forward pass.
        call: a call of the module within a call of the block.
        block: this call of the block.
    """
    calls, block_calls = trace.calls_of(call.name), trace.calls_of(block.name)
    return len(calls) == len(block_calls) and all(map(ModuleCall.contains_call, block_calls, calls))


def _fit_gains(resid_pre: Tensor, resid_post: Tensor, calls: Sequence[ModuleCall], exact: bool) -> list[float] | None:
    """Return gains for which the sum is exact up to rounding: ones, or a least-squares fit; ``None`` if none are."""
    parts = [call.output_tensor.reshape(resid_post.shape) for call in calls]
    if any(part.dtype != resid_post.dtype for part in parts):
        return None
    if exact:
        return [1.0] * len(parts) if terms_sum_to(resid_post, resid_pre, *parts) else None
    columns = torch.stack([part.double().flatten().cpu() for part in parts], dim=1)
    fitted = (
        torch.linalg.lstsq(columns, (resid_post.double() - resid_pre.double()).flatten().cpu()[:, None])
        .solution[:, 0]
        .tolist()
    )
    for gains in ([float(f"{gain:.4g}") for gain in fitted], fitted):
        if terms_sum_to(resid_post, resid_pre, *(gain * part for gain, part in zip(gains, parts, strict=True))):
            return gains
    return None


def _min_unexplained_fraction(
    resid_pre: Tensor, resid_post: Tensor, attn_candidates: list[list[ModuleCall]], mlp_candidates: list[ModuleCall]
) -> float:
    """Return the smallest fraction of the layer's change that a fit leaves unexplained."""
    target = (resid_post.double() - resid_pre.double()).flatten().cpu()
    fractions = [1.0]
    for calls in product(*attn_candidates, mlp_candidates):
        columns = torch.stack([call.output_tensor.double().flatten().cpu() for call in calls], dim=1)
        gains = torch.linalg.lstsq(columns, target[:, None]).solution
        fractions.append(((columns @ gains)[:, 0] - target).norm().item() / max(target.norm().item(), 1e-300))
    return min(fractions)
