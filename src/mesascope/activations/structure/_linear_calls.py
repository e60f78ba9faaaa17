"""Calls of modules that apply one linear map to every token, found by arithmetic."""

from collections.abc import Sequence

from torch import Tensor, nn

from mesascope.activations.structure._trace import ModuleCall
from mesascope.activations.tolerances import relative_difference, rounding_tolerance
from mesascope.models.quantized.weights import dequantize_weight, explain_unreadable, is_quantized


def detect_transposed(module: nn.Module, calls: Sequence[ModuleCall], block: ModuleCall) -> bool | str:
    """Return whether a module applies one linear map to every token.

    Args:
        module: the module.
        calls: its calls in a traced forward pass.
        block: the call of the block that contains it.

    Returns:
        True if its parameter holds the transpose of W, False if it holds W; or the reason why it is not linear.
    """
    arrays = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim > 1}
    if not arrays:
        return "it holds a packed matrix, as quantised layers do"
    if any(p.is_meta for p in arrays.values()):
        return "its weights are offloaded"
    if list(arrays) != ["weight"] or arrays["weight"].ndim != 2:
        return f"it holds {', '.join(f'{name} {tuple(p.shape)}' for name, p in arrays.items())}, not one weight matrix"
    if reason := explain_unreadable(module, "weight"):
        return reason
    if len(calls) != 1:
        return f"it was called {len(calls)} times in one forward pass"
    (call,) = calls
    if len(call.inputs) != 1 or call.output is None or not get_input(call).is_floating_point():
        return "it does not map one floating-point tensor to another"
    num_tokens, num_vectors = block.output_tensor.shape[:2].numel(), get_input(call).shape[:-1].numel()
    if num_vectors != num_tokens:
        return f"it read {num_vectors} vectors for {num_tokens} tokens"
    products = {transposed: _apply_weight(module, call, transposed) for transposed in (False, True)}
    differences = {
        transposed: relative_difference(y, call.output_tensor) for transposed, y in products.items() if y is not None
    }
    fitting = [transposed for transposed, gap in differences.items() if gap <= rounding_tolerance(call.output_tensor)]
    if not fitting:
        return (
            f"its output is not its weight times its input: they differ by {min(differences.values(), default=1.0):.1e}"
        )
    return fitting[0]


def _apply_weight(module: nn.Module, call: ModuleCall, transposed: bool) -> Tensor | None:
    """Return W x + bias, or ``None`` where its shape or precision differs from the output's."""
    parameters = dict(module.named_parameters(recurse=False))
    weight, x = dequantize_weight(module, "weight"), get_input(call)
    weight = weight.to(x.dtype) if is_quantized(module) else weight
    weight = weight.T if transposed else weight
    if weight.dtype != x.dtype or weight.shape != (call.output_tensor.shape[-1], x.shape[-1]):
        return None
    product = nn.functional.linear(x, weight, parameters["bias"].detach() if "bias" in parameters else None)
    return product if product.shape == call.output_tensor.shape else None


def get_input(call: ModuleCall) -> Tensor:
    """Return the first input of a call.

    Args:
        call: the call.
    """
    return next(iter(call.inputs.values()))
