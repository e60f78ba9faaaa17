"""Linear modules inside decoder blocks, found by arithmetic on a traced forward pass, never from names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._linear_calls import detect_transposed, get_input
from mesascope.activations.structure._trace import Trace
from mesascope.activations.tolerances import bitwise_equal
from mesascope.models.quantized.weights import dequantize_weight, explain_unreadable

PACKED_DTYPES = {torch.int8, torch.uint8, torch.int16, torch.int32}


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModule:
    """A module that computes W x + bias for every vector of its input.

    Attributes:
        layer: index of its block.
        name: its name inside the block, such as ``self_attn.q_proj``.
        module: the module; its parameter ``weight`` holds W.
        transposed: the parameter holds the transpose of W, as in GPT-2.
        same_input_as: name of the first linear module of the block that has the same input; its own name if it is the
            first.
    """

    layer: int
    name: str
    module: nn.Module
    transposed: bool
    same_input_as: str

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The current W, dequantised if it is quantised.

        Raises:
            UnsupportedModel: it can no longer be dequantised.
        """
        if reason := explain_unreadable(self.module, "weight"):
            raise UnsupportedModel(f"the weight of {self.name} in layer {self.layer} must be readable, but {reason}")
        parameter = dequantize_weight(self.module, "weight")
        return parameter.T if self.transposed else parameter

    @property
    def bias(self) -> Float[Tensor, " d_out"] | None:
        """The current bias, or ``None`` without one."""
        parameter = dict(self.module.named_parameters(recurse=False)).get("bias")
        return None if parameter is None else parameter.detach()


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModules:
    """The linear modules of some layers.

    Attributes:
        modules: layer by layer, in the order in which they are called.
        layers: indices of the layers that were searched, in order.
        excluded: the reason why another module with matrices is not listed, by layer and its name in the block.
    """

    modules: tuple[LinearModule, ...]
    layers: tuple[int, ...]
    excluded: dict[tuple[int, str], str]


def find_linear_modules(
    model: PreTrainedModel, structure: ModelStructure, layer_indices: Sequence[int] | None = None
) -> LinearModules:
    """Find the modules inside the blocks that apply one linear map to every token.

    A module counts if it is called once, its only input holds one vector per token, and its output is the product of
    its own matrix and the input, plus its own bias, up to rounding. Other modules that hold matrices are excluded with
    the reason: an expert, for example, receives only the tokens that are routed to it.

    Args:
        model: the model.
        structure: its structure.
        layer_indices: indices of the layers to search; all by default.

    Returns:
        The linear modules, and the reasons why other modules are excluded.

    Raises:
        UnsupportedModel: the model repeats its layers.
    """
    if structure.num_iterations is not None or structure.chunks is not None:
        raise UnsupportedModel(
            f"the inputs of linear modules need a model that calls each layer once, but {type(model).__name__} repeats "
            "its layers; record resid_pre, attn_out or mlp_out"
        )
    searched = tuple(range(len(structure.layers)) if layer_indices is None else layer_indices)
    modules: list[LinearModule] = []
    excluded: dict[tuple[int, str], str] = {}
    for number in searched:
        path = structure.layers[number].block
        block_modules, block_excluded = _search_block(model.get_submodule(path), number, path, structure.trace)
        modules += block_modules
        excluded |= {(number, name): why for name, why in block_excluded.items()}
    return LinearModules(modules=tuple(modules), layers=searched, excluded=excluded)


def _search_block(block: nn.Module, layer: int, path: str, trace: Trace) -> tuple[list[LinearModule], dict[str, str]]:
    """Return the linear modules of one block in call order, and the reasons why others are excluded."""
    transposed: dict[str, bool] = {}
    excluded: dict[str, str] = {}
    (block_call,) = trace.calls_of(path)
    calls = {name: trace.calls_of(f"{path}.{name}") for name, _ in block.named_modules() if name}
    for name, each in calls.items():
        module = block.get_submodule(name)
        if any(p.ndim > 1 for p in module.parameters(recurse=False)) or _has_packed_matrix(module):
            verdict = detect_transposed(module, each, block_call)
            if isinstance(verdict, str):
                excluded[name] = verdict
            else:
                transposed[name] = verdict
    ordered = sorted(transposed, key=lambda name: calls[name][0].start)
    first = {
        name: next(o for o in ordered if bitwise_equal(get_input(calls[o][0]), get_input(calls[name][0])))
        for name in ordered
    }
    modules = [
        LinearModule(
            layer=layer,
            name=name,
            module=block.get_submodule(name),
            transposed=transposed[name],
            same_input_as=first[name],
        )
        for name in ordered
    ]
    return modules, excluded


def _has_packed_matrix(module: nn.Module) -> bool:
    """Return True if a module holds a matrix as integers in a buffer, or packed in an object of torch.ao."""
    buffers = module.named_buffers(recurse=False)
    return any(b.ndim > 1 and b.dtype in PACKED_DTYPES for _, b in buffers) or hasattr(module, "_packed_params")
