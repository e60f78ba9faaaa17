"""The linear maps inside decoder blocks: found by arithmetic on a probe, never from names."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.layer_spec import Layer
from mesascope.activations.structure.trace import Call, Trace
from mesascope.activations.tolerances import distance, same, tolerance


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """A module that gives W x + bias for every vector x that it reads.

    Attributes:
        layer: its block, counted from 0.
        name: its name inside the block, such as ``self_attn.q_proj``.
        module: the module, whose parameter ``weight`` holds W.
        turned: the parameter holds the transpose of W, as GPT-2's do.
        reads: the first map of its block that read the same vectors on the probe: itself, where no earlier one did.
    """

    layer: int
    name: str
    module: nn.Module
    turned: bool
    reads: str

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """W, as it is now."""
        held = self.module.get_parameter("weight").detach()
        return held.T if self.turned else held

    @property
    def bias(self) -> Float[Tensor, " d_out"] | None:
        """What the map adds, if it adds anything."""
        found = dict(self.module.named_parameters(recurse=False)).get("bias")
        return None if found is None else found.detach()


@dataclass(frozen=True, kw_only=True, eq=False)
class Maps:
    """The linear maps of some layers.

    Attributes:
        found: layer by layer, in the order in which they are called.
        layers: the layers that were searched, in order.
        left_out: why another module with matrices is not among them, by layer and its name in the block.
    """

    found: tuple[LinearMap, ...]
    layers: tuple[int, ...]
    left_out: dict[tuple[int, str], str]


def find_maps(
    model: PreTrainedModel, layers: Sequence[Layer], trace: Trace, chosen: Sequence[int] | None = None
) -> Maps:
    """The modules inside the blocks that are linear maps, applied once to every token.

    A module counts if it was called once on the probe, with all tokens and nothing else, and gave the product of its
    own matrix with what it read, plus its own bias, to rounding. Others that hold matrices are named, with the reason:
    an expert, say, sees only the tokens that were sent to it.

    Args:
        model: any model whose layers are known.
        layers: where things are in it.
        trace: its forward pass on a probe.
        chosen: the layers to search; all by default.
    """
    searched = tuple(range(len(layers)) if chosen is None else chosen)
    found: list[LinearMap] = []
    left_out: dict[tuple[int, str], str] = {}
    for number in searched:
        maps, others = _search(model.get_submodule(layers[number].block), number, layers[number].block, trace)
        found += maps
        left_out |= {(number, name): why for name, why in others.items()}
    return Maps(found=tuple(found), layers=searched, left_out=left_out)


def _search(block: nn.Module, layer: int, path: str, trace: Trace) -> tuple[list[LinearMap], dict[str, str]]:
    """The maps of one block by the time of their call, and why other modules with matrices are none."""
    turned: dict[str, bool] = {}
    left_out: dict[str, str] = {}
    (whole,) = trace.of(path)
    calls = {name: trace.of(f"{path}.{name}") for name, _ in block.named_modules() if name}
    for name, each in calls.items():
        module = block.get_submodule(name)
        if any(p.ndim > 1 for p in module.parameters(recurse=False)):
            verdict = _orientation(module, each, whole)
            if isinstance(verdict, str):
                left_out[name] = verdict
            else:
                turned[name] = verdict
    ordered = sorted(turned, key=lambda name: calls[name][0].start)
    first = {name: next(o for o in ordered if same(_read(calls[o][0]), _read(calls[name][0]))) for name in ordered}
    found = [
        LinearMap(layer=layer, name=name, module=block.get_submodule(name), turned=turned[name], reads=first[name])
        for name in ordered
    ]
    return found, left_out


def _orientation(module: nn.Module, calls: Sequence[Call], block: Call) -> bool | str:
    """Whether a map's parameter is the transpose of its matrix; or why the module is no map that reads every token."""
    arrays = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim > 1}
    if list(arrays) != ["weight"] or arrays["weight"].ndim != 2:
        return f"it holds {', '.join(f'{name} {tuple(p.shape)}' for name, p in arrays.items())}, not one matrix"
    if len(calls) != 1:
        return f"it was called {len(calls)} times in a forward pass"
    (call,) = calls
    if len(call.inputs) != 1 or call.output is None or not _read(call).is_floating_point():
        return "it does not map one tensor of vectors to another"
    tokens, seen = block.result.shape[:2].numel(), _read(call).shape[:-1].numel()
    if seen != tokens:
        return f"it read {seen} vectors where there were {tokens} tokens"
    products = {turned: _product(module, call, turned) for turned in (False, True)}
    gaps = {turned: distance(y, call.result) for turned, y in products.items() if y is not None}
    fitting = [turned for turned, gap in gaps.items() if gap <= tolerance(call.result)]
    if not fitting:
        return f"what it gives is no product with its matrix, but misses it by {min(gaps.values(), default=1.0):.1e}"
    return fitting[0]


def _product(module: nn.Module, call: Call, turned: bool) -> Tensor | None:
    """The matrix times what was read, plus the bias, or nothing where that has another shape than what came out."""
    held = dict(module.named_parameters(recurse=False))
    weight, x = held["weight"].detach(), _read(call)
    weight = weight.T if turned else weight
    if weight.dtype != x.dtype or weight.shape != (call.result.shape[-1], x.shape[-1]):
        return None
    product = nn.functional.linear(x, weight, held["bias"].detach() if "bias" in held else None)
    return product if product.shape == call.result.shape else None


def _read(call: Call) -> Tensor:
    """The one tensor that a call was given."""
    return next(iter(call.inputs.values()))
