"""The hidden activations of an MLP, found as the input of the linear map that computes its output."""

from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import MLPHidden, ModuleArgument, ResidualUpdate
from mesascope.activations.structure._linear_calls import detect_transposed
from mesascope.activations.structure._residual_updates import is_called_once
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.tolerances import bitwise_equal


def find_mlp_hidden(
    model: PreTrainedModel, trace: Trace, block: ModuleCall, mlp_out: ResidualUpdate | None
) -> tuple[MLPHidden | None, str]:
    """Find the linear map whose output is the output of the MLP, for every position.

    Args:
        model: the model.
        trace: traced forward pass.
        block: call of the layer.
        mlp_out: the residual update of the MLP, if known.

    Returns:
        The input of the map and its width, or ``None`` and the reason why there is no such map.
    """
    if mlp_out is None:
        return None, "mlp_out is not available"
    out = trace.call_within(block, mlp_out.module).output_tensor  # of the MLP, or of dropout after it
    ends = [call for call in trace.calls_within(block) if call.output is not None and _has_values(call.output, out)]
    reason = "no single linear map computes the output of the MLP: a norm, a gate or experts follow its neurons"
    for call in sorted(ends, key=lambda call: call.start, reverse=True):  # the innermost first
        module = model.get_submodule(call.name)
        if not any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            continue
        verdict = detect_transposed(module, [call], block)
        if isinstance(verdict, str):
            reason = f"{call.name} computes the output of the MLP, but {verdict}"
        elif is_called_once(trace, call, block):
            ((argument, hidden),) = call.inputs.items()
            return MLPHidden(input=ModuleArgument(module=call.name, argument=argument), width=hidden.shape[-1]), ""
    return None, reason


def _has_values(output: Tensor, expected: Tensor) -> bool:
    return output.numel() == expected.numel() and bitwise_equal(output.reshape(expected.shape), expected)
