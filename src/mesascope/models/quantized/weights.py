"""Weights that torchao or bitsandbytes hold as packed integers, read as floating-point numbers in one place."""

import copy
import sys
from collections import Counter
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from mesascope.models.quantized.schemes import get_stored_method

UNPACK_ADVICE = "set support_avx512bf16_for_cpu = False on its modules before they run, as load_pretrained does"


def is_quantized(model: nn.Module) -> bool:
    """Return whether torchao or bitsandbytes holds a weight of a model as packed integers.

    Args:
        model: a model or a module of one.
    """
    return any(_name_kind(module, weight) for module in model.modules() for weight in module._parameters.values())


def dequantize_weight(module: nn.Module, name: str) -> Shaped[Tensor, "*shape"]:
    """Return a weight as the floating-point numbers that its integers stand for.

    Args:
        module: the module that holds it.
        name: the name of the parameter.

    Returns:
        The matrix in the precision in which the module multiplies with it; of a weight that is not quantised, the
        weight itself, which may have any shape.

    Raises:
        ValueError: the library cannot unpack it; see `explain_unreadable`.
    """
    if reason := explain_unreadable(module, name):
        raise ValueError(f"a weight must be readable as numbers, but {reason}")
    weight: Any = module.get_parameter(name).detach()
    if _has_own_dequantize(weight):
        return weight.dequantize()
    library = _find_bitsandbytes(module)
    if library is None or not holds_packed_bytes(module, name):
        return weight
    if isinstance(module, library.nn.Linear8bitLt):
        return library.functional.int8_vectorwise_dequant(weight, _list_scales(module)[0])
    four_bit: Any = module
    state = copy.copy(four_bit.weight.quant_state)
    state.dtype = four_bit.compute_dtype or state.dtype
    return library.functional.dequantize_4bit(weight, state)


def explain_unreadable(module: nn.Module, name: str) -> str | None:
    """Return why a weight cannot be read as floating-point numbers; ``None`` if it can.

    Args:
        module: the module that holds it.
        name: the name of the parameter.
    """
    weight: Any = module.get_parameter(name)
    library = _find_bitsandbytes(module)
    if library is not None and isinstance(module, library.nn.Linear4bit):
        if weight.quant_state is None:
            return "its 4-bit weight has no scales"
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            return f"bitsandbytes has packed its 4-bit weight for a kernel of this processor; {UNPACK_ADVICE}"
    if library is not None and isinstance(module, library.nn.Linear8bitLt) and not _list_scales(module):
        return "its 8-bit weight has no scales"
    if type(weight).__module__.startswith("torchao.") and not _has_own_dequantize(weight):
        return f"its weight is a {type(weight).__name__}, which cannot be dequantised"
    return None


def read_matrices(module: nn.Module) -> list[Shaped[Tensor, "rows columns"]]:
    """Return the matrices among the parameters of a module as floating-point numbers.

    Args:
        module: the module; parameters of its children are left out.

    Returns:
        Parameters with two axes, dequantised if they are quantised. Those that are offloaded or cannot be unpacked are
        left out.
    """
    names = [name for name, weight in module.named_parameters(recurse=False) if weight.ndim == 2 and not weight.is_meta]
    return [dequantize_weight(module, name) for name in names if not explain_unreadable(module, name)]


def list_stored_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the tensors in which a quantised or otherwise composed one is stored; itself if it is an ordinary one.

    Args:
        tensor: a parameter or a buffer.
    """
    if type(tensor) is Tensor or not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    parts = [getattr(tensor, name) for name in names]
    return [stored for part in parts if part is not None for stored in list_stored_tensors(part)]


def holds_packed_bytes(module: nn.Module, name: str) -> bool:
    """Return whether a parameter is bytes that bitsandbytes has packed; they may have the dtype of any numbers.

    Args:
        module: the module that holds it.
        name: the name of the parameter.
    """
    return name == "weight" and _find_bitsandbytes(module) is not None


def list_scales(module: nn.Module) -> list[Tensor]:
    """Return the tensors that bitsandbytes keeps beside the integers of a module; empty for other modules.

    Args:
        module: the module.
    """
    return [] if _find_bitsandbytes(module) is None else _list_scales(module)


def describe_quantization(model: PreTrainedModel) -> str | None:
    """Return how the weights of a model are quantised, for a record; ``None`` if they are not.

    Args:
        model: the model.

    Returns:
        The kinds of its packed weights and their fraction of all parameters, or the method of its config.
    """
    kinds: Counter[str] = Counter()
    for module in model.modules():
        for weight in module._parameters.values():
            if weight is not None and (kind := _name_kind(module, weight)):
                kinds[kind] += _count_entries(module, weight)
    if not kinds:
        method = get_stored_method(model.config)
        return None if method == "gguf" else method  # weights of such files are dequantised when they are loaded
    fraction = sum(kinds.values()) / max(1, model.num_parameters())
    return f"{' and '.join(sorted(kinds))}, {100 * fraction:.0f} % of the parameters"


def runs_kernel_without_gradient(module: nn.Module) -> bool:
    """Return whether a module runs a kernel that has no gradient with respect to its input.

    On processors with AVX512-BF16, 4-bit modules of bitsandbytes run such a kernel once they have run without a
    gradient. Before that, they compute other numbers where a gradient is recorded.

    Args:
        module: the module.
    """
    library = _find_bitsandbytes(module)
    if library is None or not isinstance(module, library.nn.Linear4bit) or module.weight.device.type != "cpu":
        return False
    four_bit: Any = module
    packed = getattr(four_bit.weight.quant_state, "packing_format_for_cpu", False)
    return bool(packed or (four_bit.support_avx512bf16_for_cpu and not four_bit.training))


def compute_in_model_dtype(model: nn.Module) -> None:
    """Make 4-bit modules of bitsandbytes multiply in the precision of the model on every processor.

    On processors with AVX512-BF16, they would otherwise round inputs, scales and outputs to bfloat16, and lose
    gradients.

    Args:
        model: a model that has not run yet.
    """
    module: Any
    for module in model.modules():
        library = _find_bitsandbytes(module)
        if library is not None and isinstance(module, library.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _find_bitsandbytes(module: Any) -> Any:
    """Return bitsandbytes if a module is one of its quantised linear modules. A module of it implies its import."""
    library = sys.modules.get("bitsandbytes")
    if library is None or not type(module).__module__.startswith("bitsandbytes."):
        return None
    if isinstance(module, library.nn.Linear8bitLt):
        return None if module.state.has_fp16_weights else library
    return library if isinstance(module, library.nn.Linear4bit) else None


def _list_scales(module: Any) -> list[Tensor]:
    """Return the scales of a linear module of bitsandbytes; it moves those of 8 bits when it first runs."""
    state = getattr(module.weight, "quant_state", None)
    if state is None:
        found = [getattr(module.weight, "SCB", None), getattr(module, "state", None) and module.state.SCB]
        return [one for one in found if one is not None][:1]
    nested = getattr(state, "state2", None)
    found = [state.absmax, getattr(state, "offset", None), None if nested is None else nested.absmax]
    return [one for one in found if isinstance(one, Tensor)]


def _has_own_dequantize(weight: Any) -> bool:
    kind: Any = type(weight)
    return is_traceable_wrapper_subclass(weight) and kind.dequantize is not Tensor.dequantize


def _name_kind(module: Any, weight: Tensor | None) -> str | None:
    """Return the kind of a packed weight, ``None`` for an ordinary one."""
    if weight is None:
        return None
    if _has_own_dequantize(weight):
        target = getattr(weight, "target_dtype", None)  # of integers that are stored in a larger type
        bits = "" if target is None else f" of {str(target).removeprefix('torch.')}"
        return f"torchao {type(weight).__name__}{bits}"
    library = _find_bitsandbytes(module)
    if library is None or weight is not module.weight:
        return None
    if isinstance(module, library.nn.Linear8bitLt):
        return "bitsandbytes LLM.int8"
    return f"bitsandbytes {module.weight.quant_type}"


def _count_entries(module: nn.Module, weight: Any) -> int:
    """Return the number of entries of the matrix that a packed weight stands for."""
    library = _find_bitsandbytes(module)
    if library is not None and isinstance(module, library.nn.Linear4bit) and weight.quant_state is not None:
        return torch.Size(weight.quant_state.shape).numel()
    return weight.numel()
