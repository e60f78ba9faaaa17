"""Trace of one small forward pass: order, inputs and outputs of all module calls and attention calls."""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.hooks._module_arguments import first_tensor
from mesascope.activations.hooks.attention_interface import AttentionCall, route_attention
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import bitwise_equal


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleCall:
    """One call of a module, from ``start`` to ``end`` on a clock that counts calls.

    Attributes:
        name: name of the module.
        start, end: ticks of the clock.
        inputs: tensor arguments, by position or keyword.
        output: the first tensor that the module returned, if any.
    """

    name: str
    start: int
    end: int
    inputs: Mapping[int | str, Tensor]
    output: Tensor | None

    @property
    def output_tensor(self) -> Tensor:
        """The output, where there must be one.

        Raises:
            UnsupportedModel: If the module returned no tensor.
        """
        if self.output is None:
            raise UnsupportedModel(f"{self.name} must return a tensor, but returned none")
        return self.output

    @cached_property
    def is_finite(self) -> bool:
        """``True`` if it returned a tensor without NaN and infinity."""
        return self.output is not None and bool(self.output.isfinite().all())

    def contains_call(self, other: "ModuleCall | TracedAttention") -> bool:
        """Return True if another call happened within this one.

        Args:
            other: call of a module or of the attention function.

        Returns:
            True if the other call started later and ended earlier.
        """
        return self.start < other.start and other.end < self.end

    def reads_tensor(self, value: Tensor) -> bool:
        """Return True if one of the inputs is bitwise equal to a tensor.

        Args:
            value: the tensor to look for.

        Returns:
            True if an input is bitwise equal to it.
        """
        return any(bitwise_equal(given, value) for given in self.inputs.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedAttention:
    """One call of the attention function.

    Attributes:
        name: name of the module that made the call.
        start, end: ticks of the clock that counts calls.
        call: its arguments, copied.
        output: mixed values ``z`` (batch, pos, head, d_head).
        returned_weights: attention weights, where the function returned them.
    """

    name: str
    start: int
    end: int
    call: AttentionCall
    output: Tensor
    returned_weights: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A traced forward pass.

    Attributes:
        calls: module calls, in the order in which they ended.
        attentions: calls of the attention function, in order.
        logits: output of the model on the trace input.
        max_iterations: the largest number of iterations, in a model whose output has halting probabilities.
    """

    calls: list[ModuleCall] = field(default_factory=list)
    attentions: list[TracedAttention] = field(default_factory=list)
    logits: Float[Tensor, "batch pos d_out"]
    max_iterations: int | None = None

    def calls_of(self, name: str) -> list[ModuleCall]:
        """Return the calls of one module.

        Args:
            name: name of the module.

        Returns:
            Its calls, in the order in which they ended.
        """
        return list(self._calls_by_name.get(name, ()))

    def block_call(self, layer: LayerSpec) -> ModuleCall:
        """Return the traced call of a block in which its specification was found.

        Args:
            layer: the specification.
        """
        return self.calls_of(layer.block)[layer.traced_call]

    def call_within(self, outer: ModuleCall, name: str) -> ModuleCall:
        """Return the only call of one module within another call.

        Args:
            outer: the enclosing call.
            name: name of the module.
        """
        (call,) = (call for call in self.calls_of(name) if outer.contains_call(call))
        return call

    def attention_within(self, outer: ModuleCall, name: str) -> TracedAttention:
        """Return the only call of the attention function that a module makes within a call.

        Args:
            outer: the enclosing call.
            name: name of the module.
        """
        (attention,) = (each for each in self.attentions if each.name == name and outer.contains_call(each))
        return attention

    def calls_within(self, outer: ModuleCall) -> list[ModuleCall]:
        """Return the calls that happened within another one.

        Args:
            outer: the enclosing call.

        Returns:
            The enclosed calls, in the order in which they ended.
        """
        first = bisect_right(self._ends, outer.start)  # calls are in the order in which they ended
        last = bisect_left(self._ends, outer.end)
        return [call for call in self.calls[first:last] if outer.contains_call(call)]

    @cached_property
    def _calls_by_name(self) -> dict[str, list[ModuleCall]]:
        by_name: dict[str, list[ModuleCall]] = {}
        for call in self.calls:
            by_name.setdefault(call.name, []).append(call)
        return by_name

    @cached_property
    def _ends(self) -> list[int]:
        return [call.end for call in self.calls]


def trace_forward(model: PreTrainedModel, forward: Callable[[], Mapping[str, Any]]) -> Trace:
    """Record every module call and every attention call of one forward pass.

    Args:
        model: model whose modules are recorded.
        forward: runs the model once and returns its output.

    Returns:
        The trace; its tensors are copies, since modules may work in place.

    Raises:
        UnsupportedModel: The model fails when its attention function is wrapped.
    """
    calls: list[ModuleCall] = []
    attentions: list[TracedAttention] = []
    clock = itertools.count()
    names = {module: name for name, module in model.named_modules()}

    def intercept_attention(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        start = next(clock)
        copy = _copy_call(call)
        output, returned = call.run_original(call.query, call.key, call.value)
        attentions.append(
            TracedAttention(
                name=names[call.module],
                start=start,
                end=next(clock),
                call=copy,
                output=output.clone(),
                returned_weights=returned,
            )
        )
        return output, returned

    try:
        with route_attention(model, intercept_attention), _record_module_calls(model, calls, clock):
            output = forward()
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(
            f"a model must run with its attention function wrapped, but {type(model).__name__} fails: {error}; its "
            "modelling file may branch on the name of the attention implementation"
        ) from error
    return Trace(
        calls=calls, attentions=attentions, logits=output["logits"], max_iterations=_read_max_iterations(output)
    )


def _read_max_iterations(output: Mapping[str, Any]) -> int | None:
    """Return the first size of halting probabilities (iteration, batch, pos); ``None`` if the output has none."""
    probabilities, shape = output.get("halting_probabilities"), output["logits"].shape[:2]
    if isinstance(probabilities, Tensor) and probabilities.shape[1:] == shape:
        return len(probabilities)
    return None


@contextmanager
def _record_module_calls(model: PreTrainedModel, calls: list[ModuleCall], clock: Iterator[int]) -> Iterator[None]:
    """Context manager: record every module call."""
    open_calls: list[tuple[int, dict[int | str, Tensor]]] = []

    def record_start(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [*enumerate(args), *kwargs.items()]
        open_calls.append((next(clock), {at: x.clone() for at, x in given if isinstance(x, Tensor)}))

    def record_end(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        start, inputs = open_calls.pop()
        given = first_tensor(output)
        copied = None if given is None else given.clone()
        calls.append(ModuleCall(name=name, start=start, end=next(clock), inputs=inputs, output=copied))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(guard_hook(record_start), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(guard_hook(partial(record_end, name))).remove)
        yield


def _copy_call(call: AttentionCall) -> AttentionCall:
    """Copy a call, with its own queries, keys and values."""
    return replace(
        call,
        query=call.query.clone(),
        key=call.key.clone(),
        value=call.value.clone(),
        mask=None if call.mask is None else torch.clone(call.mask),
    )
