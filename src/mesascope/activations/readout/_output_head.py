"""Output head: the final norm, linear map, scale and soft cap between the last layer and the output."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.readout._norm import Norm, ResidualStream, identify_norm
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.tolerances import allclose, bitwise_equal

OutputTensor = Float[Tensor, "*rest d_out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputHead:
    """The chain of modules from the last layer to the output, each fed by the one before.

    Attributes:
        modules: in order.
        scales: factor on the input of each module, then the factor on the output.
        softcap: the output is ``softcap * tanh(output / softcap)``; ``None`` without a cap.
    """

    modules: tuple[nn.Module, ...]
    scales: tuple[float, ...]
    softcap: float | None

    def __call__(self, resid: ResidualStream, start: int = 0) -> OutputTensor:
        """Compute the output before the soft cap.

        Gradients are tracked only where ``resid`` requires them, never for the parameters alone.

        Args:
            resid: residual stream after the last layer, or the input of module ``start``.
            start: index of the first module to run.

        Returns:
            The output: logits, or predicted vectors.

        Raises:
            UnsupportedModel: If a gradient is lost in it.
        """
        x = resid
        with torch.set_grad_enabled(torch.is_grad_enabled() and resid.requires_grad):
            for module, scale in list(zip(self.modules, self.scales, strict=False))[start:]:
                x = module(x if scale == 1.0 else x * scale)
            if torch.is_grad_enabled() and not x.requires_grad:
                raise UnsupportedModel(
                    "gradients must pass the output head, but one of its modules loses them, as some quantised ones "
                    "do; omit what needs its gradient"
                )
        return x if self.scales[-1] == 1.0 else x * self.scales[-1]

    def tensors(self) -> list[Tensor]:
        """Return the parameters and buffers of all modules."""
        return [tensor for module in self.modules for tensor in (*module.parameters(), *module.buffers())]

    def apply_softcap(self, output: OutputTensor) -> OutputTensor:
        """Apply the soft cap.

        Args:
            output: output before the soft cap.

        Returns:
            Output after the soft cap, if the model has one.
        """
        return output if self.softcap is None else self.softcap * torch.tanh(output / self.softcap)


def find_head_of_average(
    model: PreTrainedModel, trace: Trace, last_call: ModuleCall, softcap: float | None
) -> OutputHead:
    """Find the chain of modules from an average of states to the output, in a model that halts.

    Args:
        model: the traced model.
        trace: traced forward pass.
        last_call: call of the last layer.
        softcap: soft cap of the logits in the configuration, if any.

    Returns:
        The output head. It begins with a module that reads a residual stream, not the output of another module.

    Raises:
        UnsupportedModel: If no chain of modules leads to the output.
    """
    later = sorted((call for call in trace.calls if call.start > last_call.end), key=lambda call: call.start)
    for call in later:
        inputs = list(call.inputs.values())
        if len(inputs) != 1 or inputs[0].shape != last_call.output_tensor.shape:
            continue
        if any(other.end < call.start and _is_multiple(inputs[0], other.output) for other in later):
            continue
        try:
            return find_output_head(model, trace, replace(last_call, output=inputs[0], end=call.start - 1), softcap)
        except UnsupportedModel:
            continue
    raise UnsupportedModel(
        "the output must be computed from an average of states by a chain of modules, but no module of "
        f"{type(model).__name__} that reads a residual stream begins one"
    )


def find_output_head(model: PreTrainedModel, trace: Trace, last_call: ModuleCall, softcap: float | None) -> OutputHead:
    """Find the chain of modules from the last layer to the output, and check it by running it again.

    Args:
        model: the traced model.
        trace: traced forward pass.
        last_call: call of the last layer.
        softcap: soft cap of the logits in the configuration, if any.

    Returns:
        The output head.

    Raises:
        UnsupportedModel: If no chain of modules leads to the output.
    """
    time, x = last_call.end, last_call.output_tensor
    modules, scales = [], []
    while True:
        next_call = _find_next_call(trace, time, x)
        if next_call is None:
            break
        modules.append(model.get_submodule(next_call[0].name))
        scales.append(next_call[1])
        time, x = next_call[0].end, next_call[0].output_tensor
    for scale in _list_output_scales(x, trace.logits, softcap):
        output_head = OutputHead(modules=tuple(modules), scales=(*scales, scale), softcap=softcap)
        output = output_head.apply_softcap(output_head(last_call.output_tensor)) if modules else None
        if output is not None and output.shape == trace.logits.shape and allclose(output, trace.logits):
            return output_head
    raise UnsupportedModel(
        "the output must be computed from the last layer by a chain of modules, but "
        f"{type(model).__name__} applies another operation after "
        f"{modules[-1]._get_name() if modules else last_call.name}"
    )


def find_final_norm(output_head: OutputHead, resid: Float[Tensor, "batch pos d_model"]) -> Norm | None:
    """Find the final norm in closed form by running the output head.

    Args:
        output_head: from the last layer to the output.
        resid: residual streams after the last layer, from a real input.

    Returns:
        The norm; ``None`` where the output head begins with a linear map.

    Raises:
        UnsupportedModel: If the output head begins with neither, or what follows the norm is not linear.
    """
    if is_affine(lambda x: output_head(x), resid):
        return None
    first = output_head.modules[0]
    norm = identify_norm(first, resid.flatten(0, -2) * output_head.scales[0], "the final norm")
    with torch.no_grad():
        out = first(resid * output_head.scales[0]).flatten(0, -2)
    if not is_affine(lambda u: output_head(u, 1), out[:8]):
        raise UnsupportedModel(
            f"the output must be a linear function of the output of {type(first).__name__}, but is not"
        )
    return norm


def is_affine(function, x: ResidualStream) -> bool:
    """Check that a function is affine, up to rounding.

    It is if f(2x) - f(x) = f(x) - f(0) and f(x + y) - f(x) = f(y) - f(0), where y is x rolled over its rows.

    Args:
        function: maps vectors to vectors.
        x: inputs (*rest, d_model) on which it is tried.

    Returns:
        True if both identities hold.
    """
    rolled = x.roll(1, 0) if x.shape[0] > 1 else x.roll(1, -2)
    f_zero, f_x, f_rolled = function(torch.zeros_like(x)), function(x), function(rolled)
    scale = max(f_x.abs().max().item(), 1e-30)
    return allclose(function(2 * x) - f_x, f_x - f_zero, scale) and allclose(
        function(x + rolled) - f_x, f_rolled - f_zero, scale
    )


def _find_next_call(trace: Trace, time: int, x: Tensor) -> tuple[ModuleCall, float] | None:
    """Return the next call whose only tensor is ``x`` times a constant, and that constant; the outermost of several."""
    later = sorted((call for call in trace.calls if call.start > time), key=lambda call: call.start)
    single_input_calls = [
        (call, next(iter(call.inputs.values()))) for call in later if len(call.inputs) == 1 and call.output is not None
    ]
    for call, value in single_input_calls:
        if bitwise_equal(value, x):
            return call, 1.0
    for call, value in single_input_calls:
        if _is_multiple(value, x):
            return call, _fit_ratio(value, x)
    return None


def _is_multiple(value: Tensor, x: Tensor | None) -> bool:
    """Return whether a tensor is another one times a constant."""
    if x is None or value.shape != x.shape or not value.is_floating_point():
        return False
    scale = _fit_ratio(value, x)
    return bool(scale) and allclose(x * scale, value)


def _list_output_scales(x: Tensor, logits: Tensor, softcap: float | None) -> Iterator[float]:
    """Yield candidate factors on the output of the last module."""
    yield 1.0
    if x.shape != logits.shape:
        return
    uncapped = logits if softcap is None else softcap * torch.atanh((logits.double() / softcap).clamp(-0.999, 0.999))
    unsaturated = torch.ones_like(logits, dtype=torch.bool) if softcap is None else logits.abs() < 0.9 * softcap
    ratio = _fit_ratio(uncapped[unsaturated], x[unsaturated])
    yield from (float(f"{ratio:.4g}"), ratio)


def _fit_ratio(a: Tensor, b: Tensor) -> float:
    """Return the factor c that minimises ``|a - c * b|``."""
    size = b.double().square().sum().item()
    return (a.double() * b.double()).sum().item() / size if size else 0.0
