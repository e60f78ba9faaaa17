"""From the last layer to the prediction: a final norm, a linear map, a scale and a soft cap, whichever there are."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure.trace import Call, Trace
from mesascope.activations.tolerances import close, distance, same

Stream = Float[Tensor, "*rest d_model"]
Prediction = Float[Tensor, "*rest d_out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """A norm, as numbers: bias + gain * x / size(x), where x is centred first or not.

    Attributes:
        centred: the mean over ``d_model`` is taken off first (LayerNorm), or not (RMSNorm).
        gain, bias: per coordinate.
    """

    centred: bool
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]

    def direction(self, x: Stream) -> Stream:
        """The linear part, before the division by the size."""
        return self.gain * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def transposed(self, row: Stream) -> Stream:
        """The same linear part from the other side: its product with x is that of ``row`` with ``direction(x)``."""
        row = self.gain * row
        return row - row.mean(-1, keepdim=True) if self.centred else row

    def size(self, x: Stream, normed: Stream) -> Float[Tensor, "*rest 1"]:
        """By what the norm divided ``x``, given what came out."""
        direction, out = self.direction(x.double()), normed.double() - self.bias
        return (direction.square().sum(-1, keepdim=True) / (direction * out).sum(-1, keepdim=True)).to(x.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tail:
    """The modules from the last layer to the prediction, each fed by the one before.

    Attributes:
        modules: in order.
        scales: by what the input of each is multiplied, and last the prediction.
        cap: the prediction is ``cap * tanh(prediction / cap)``, or as it is.
    """

    modules: tuple[nn.Module, ...]
    scales: tuple[float, ...]
    cap: float | None

    def __call__(self, resid: Stream, start: int = 0) -> Prediction:
        """The prediction before the cap, from the stream (or from what enters module ``start``).

        It has a graph where the stream asks for one, never for the weights alone.
        """
        x = resid
        with torch.set_grad_enabled(torch.is_grad_enabled() and resid.requires_grad):
            for module, scale in list(zip(self.modules, self.scales, strict=False))[start:]:
                x = module(x if scale == 1.0 else x * scale)
        return x if self.scales[-1] == 1.0 else x * self.scales[-1]

    def capped(self, prediction: Prediction) -> Prediction:
        """The prediction after the cap."""
        return prediction if self.cap is None else self.cap * torch.tanh(prediction / self.cap)


def find_tail(model: PreTrainedModel, trace: Trace, last: Call, cap: float | None) -> Tail:
    """The chain from the output of the last layer to the logits, checked by running it again.

    Args:
        model: the model of the trace.
        trace: of a probe.
        last: the call of the last layer.
        cap: where its configuration caps the logits.

    Raises:
        UnsupportedModel: no chain of modules leads to the logits.
    """
    now, x = last.end, last.result
    modules, scales = [], []
    while True:
        follower = _follower(trace, now, x)
        if follower is None:
            break
        modules.append(model.get_submodule(follower[0].name))
        scales.append(follower[1])
        now, x = follower[0].end, follower[0].result
    for scale in _last_scales(x, trace.logits, cap):
        tail = Tail(modules=tuple(modules), scales=(*scales, scale), cap=cap)
        again = tail.capped(tail(last.result)) if modules else None
        if again is not None and again.shape == trace.logits.shape and close(again, trace.logits):
            return tail
    raise UnsupportedModel(
        "the prediction must follow from the last layer through modules that feed each other, but "
        f"{type(model).__name__} does something else after {modules[-1]._get_name() if modules else last.name}"
    )


def find_norm(tail: Tail, resid: Float[Tensor, "batch pos d_model"]) -> Norm | None:
    """The final norm as numbers, found by probing; ``None`` where the tail begins with a linear map.

    Args:
        tail: from the last layer to the prediction.
        resid: some real entries of it.

    Raises:
        UnsupportedModel: the tail begins with neither, or what follows the norm is not linear.
    """
    if is_affine(lambda x: tail(x), resid):
        return None
    first = tail.modules[0]
    norm = read_norm(first, resid.flatten(0, -2) * tail.scales[0], "the final norm")
    with torch.no_grad():
        out = first(resid * tail.scales[0]).flatten(0, -2)
    if not is_affine(lambda u: tail(u, 1), out[:8]):
        raise UnsupportedModel(f"the prediction must follow linearly from {type(first).__name__}, but does not")
    return norm


def read_norm(module: nn.Module, x: Float[Tensor, "row d_model"], place: str) -> Norm:
    """A norm as numbers, found by running its module on noise and on real entries.

    Args:
        module: maps (row, d_model) to itself.
        x: some real entries of what it reads.
        place: which norm it is, for the refusal.

    Raises:
        UnsupportedModel: it is neither an RMSNorm nor a LayerNorm.
    """
    noise = 1e3 * torch.randn(256, x.shape[-1], generator=torch.Generator().manual_seed(0))
    noise = noise.to(x)
    every = torch.cat([x, noise])
    with torch.no_grad():
        bias, out, sampled = module(torch.zeros_like(x[:1]))[0], module(every), module(noise)
    if out.shape != every.shape:
        raise UnsupportedModel(
            f"{place} must map the stream to itself, but {type(module).__name__} is more than a norm"
        )
    for centred in (False, True):
        norm = Norm(centred=centred, gain=_gain(noise, sampled - bias, centred), bias=bias)
        again = norm.direction(every) / norm.size(every, out) + bias
        if close(again, out):
            return norm
    raise UnsupportedModel(
        f"{place} must be an RMSNorm or a LayerNorm, but {type(module).__name__} is neither: the nearer misses "
        f"by {distance(again, out):.1e}"
    )


def _gain(noise: Stream, out: Stream, centred: bool) -> Float[Tensor, " d_model"]:
    """Per coordinate, by what a norm multiplies unit-size noise: least squares over rows."""
    x = noise.double()
    x = x - x.mean(-1, keepdim=True) if centred else x
    unit = x / x.square().mean(-1, keepdim=True).sqrt()
    return ((unit * out.double()).sum(0) / unit.square().sum(0)).to(noise.dtype)


def is_affine(function, x: Stream) -> bool:
    """Whether f(2x) - f(0) is twice f(x) - f(0), and sums go to sums, to rounding."""
    rolled = x.roll(1, 0) if x.shape[0] > 1 else x.roll(1, -2)
    zero, one, other = function(torch.zeros_like(x)), function(x), function(rolled)
    scale = max(one.abs().max().item(), 1e-30)
    return close(function(2 * x) - one, one - zero, scale) and close(function(x + rolled) - one, other - zero, scale)


def _follower(trace: Trace, now: int, x: Tensor) -> tuple[Call, float] | None:
    """The next call whose only tensor is ``x``, or ``x`` times a number; the outermost of several."""
    later = sorted((call for call in trace.calls if call.start > now), key=lambda call: call.start)
    alone = [
        (call, next(iter(call.inputs.values()))) for call in later if len(call.inputs) == 1 and call.output is not None
    ]
    for call, given in alone:
        if same(given, x):
            return call, 1.0
    for call, given in alone:
        if given.shape == x.shape and given.is_floating_point():
            scale = _ratio(given, x)
            if scale and close(x * scale, given):
                return call, scale
    return None


def _last_scales(x: Tensor, logits: Tensor, cap: float | None) -> list[float]:
    """By what the last module's output may have been multiplied."""
    if x.shape != logits.shape:
        return [1.0]
    uncapped = logits if cap is None else cap * torch.atanh((logits.double() / cap).clamp(-0.999, 0.999))
    small = torch.ones_like(logits, dtype=torch.bool) if cap is None else logits.abs() < 0.9 * cap
    ratio = _ratio(uncapped[small], x[small])
    return [1.0, float(f"{ratio:.4g}"), ratio]


def _ratio(a: Tensor, b: Tensor) -> float:
    """The number by which ``b`` is nearest to ``a``."""
    size = b.double().square().sum().item()
    return (a.double() * b.double()).sum().item() / size if size else 0.0
