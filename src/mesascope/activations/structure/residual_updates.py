"""What a layer adds to the residual stream, found by arithmetic: pre + a * attention + b * MLP == post."""

from itertools import chain, product

import torch
from torch import Tensor

from mesascope.activations.layer_spec import Write
from mesascope.activations.structure.trace import Attention, Call, Trace
from mesascope.activations.tolerances import sums_to

Found = tuple[Write | None, Write | None, dict[str, str]]


def find_writes(trace: Trace, block: Call, attention: Attention, before: Tensor) -> Found:
    """The modules whose outputs, each times one gain, sum to what a layer adds.

    Args:
        trace: of a probe.
        block: the call of the layer.
        attention: its call of the attention function.
        before: the stream before the layer.

    Returns:
        what attention writes, what the MLP writes, and why either is missing.
    """
    after = block.result
    first, second = _attention_writes(trace, block, attention), _mlp_writes(trace, block, attention)
    for exact in (True, False):
        for attn, mlp in chain(product(first, second), ((attn, None) for attn in first)):
            gains = _gains(before, after, attn, mlp, exact)
            if gains is not None:
                return _found(attn, mlp, gains)
    why = (
        "no outputs of modules sum to the difference that the layer makes, as where a norm follows the sum; the best "
        f"fit leaves {_best(before, after, first, second):.1e} of it"
    )
    return None, None, dict.fromkeys(("attn_write", "mlp_write"), why)


def _found(attn: Call, mlp: Call | None, gains: list[float]) -> Found:
    """The writes that fit."""
    first = _write(attn, gains[0])
    if mlp is None:
        return first, None, {"mlp_write": "the layer has no MLP that writes to the residual stream"}
    return first, _write(mlp, gains[1]), {}


def _write(call: Call, gain: float) -> Write:
    """A call as a write."""
    return Write(module=call.name, gain=gain, flat=call.result.ndim == 2)


def _attention_writes(trace: Trace, block: Call, attention: Attention) -> list[Call]:
    """The attention module and what it feeds, bit for bit: post-norms, dropout, wrappers. The nearest first."""
    inside = [call for call in trace.within(block) if _writes(trace, call, block)]
    found = [call for call in inside if call.name == attention.name]
    if not found:
        return []
    module = found[0]
    for call in inside:
        wraps = call.encloses(module)
        fed = call.start > module.end and any(each.output is not None and call.reads(each.output) for each in found)
        if wraps or fed:
            found.append(call)
    return found


def _mlp_writes(trace: Trace, block: Call, attention: Attention) -> list[Call]:
    """Other modules of the layer whose output has the shape of the stream: shallow ones first, later ones first."""
    own = next(call for call in trace.calls if call.name == attention.name and call.start < attention.start < call.end)
    inside = [
        call
        for call in trace.within(block)
        if _writes(trace, call, block) and not own.encloses(call) and not call.encloses(own) and call is not own
    ]
    return sorted(inside, key=lambda call: (call.name.count("."), -call.end))


def _writes(trace: Trace, call: Call, block: Call) -> bool:
    """Whether a call gives something of the shape of the stream, and its module is called for this alone."""
    if call.output is None or len(trace.of(call.name)) > 1:
        return False
    return call.output.shape in (block.result.shape, block.result.flatten(0, 1).shape)


def _gains(before: Tensor, after: Tensor, attn: Call, mlp: Call | None, exact: bool) -> list[float] | None:
    """Gains by which the sum is right to rounding: ones, or fitted by least squares; nothing if none are."""
    parts = [call.result.reshape(after.shape) for call in (attn, mlp) if call is not None]
    if any(part.dtype != after.dtype for part in parts):
        return None
    if exact:
        return [1.0] * len(parts) if sums_to(after, before, *parts) else None
    columns = torch.stack([part.double().flatten().cpu() for part in parts], dim=1)
    fitted = (
        torch.linalg.lstsq(columns, (after.double() - before.double()).flatten().cpu()[:, None]).solution[:, 0].tolist()
    )
    for gains in ([float(f"{gain:.4g}") for gain in fitted], fitted):
        if sums_to(after, before, *(gain * part for gain, part in zip(gains, parts, strict=True))):
            return gains
    return None


def _best(before: Tensor, after: Tensor, first: list[Call], second: list[Call]) -> float:
    """The smallest share of the layer's difference that a fit leaves unexplained."""
    target = (after.double() - before.double()).flatten().cpu()
    left = [1.0]
    for attn, mlp in product(first, second):
        columns = torch.stack([call.result.double().flatten().cpu() for call in (attn, mlp)], dim=1)
        gains = torch.linalg.lstsq(columns, target[:, None]).solution
        left.append(((columns @ gains)[:, 0] - target).norm().item() / max(target.norm().item(), 1e-300))
    return min(left)
