"""Linear modules inside decoder blocks, found by arithmetic on a traced forward pass, never from names."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.tolerances import bitwise_equal, relative_difference, rounding_tolerance

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
        """The current W."""
        parameter = self.module.get_parameter("weight").detach()
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
    if structure.num_iterations is not None:
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
            verdict = _detect_transposed(module, each, block_call)
            if isinstance(verdict, str):
                excluded[name] = verdict
            else:
                transposed[name] = verdict
    ordered = sorted(transposed, key=lambda name: calls[name][0].start)
    first = {
        name: next(o for o in ordered if bitwise_equal(_get_input(calls[o][0]), _get_input(calls[name][0])))
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


def _detect_transposed(module: nn.Module, calls: Sequence[ModuleCall], block: ModuleCall) -> bool | str:
    """Return True if the parameter holds the transpose of W; a reason if the module is not linear in every token."""
    arrays = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim > 1}
    if not arrays:
        return "it holds a packed matrix, as quantised layers do"
    if any(p.is_meta for p in arrays.values()):
        return "its weights are offloaded"
    if list(arrays) != ["weight"] or arrays["weight"].ndim != 2:
        return f"it holds {', '.join(f'{name} {tuple(p.shape)}' for name, p in arrays.items())}, not one weight matrix"
    if len(calls) != 1:
        return f"it was called {len(calls)} times in one forward pass"
    (call,) = calls
    if len(call.inputs) != 1 or call.output is None or not _get_input(call).is_floating_point():
        return "it does not map one floating-point tensor to another"
    num_tokens, num_vectors = block.output_tensor.shape[:2].numel(), _get_input(call).shape[:-1].numel()
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
    weight, x = parameters["weight"].detach(), _get_input(call)
    weight = weight.T if transposed else weight
    if weight.dtype != x.dtype or weight.shape != (call.output_tensor.shape[-1], x.shape[-1]):
        return None
    product = nn.functional.linear(x, weight, parameters["bias"].detach() if "bias" in parameters else None)
    return product if product.shape == call.output_tensor.shape else None


def _get_input(call: ModuleCall) -> Tensor:
    return next(iter(call.inputs.values()))
