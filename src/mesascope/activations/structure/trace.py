"""One small forward pass, seen whole: which module was called when, with what, and what it gave."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.hooks.attention_interface import Attended, dispatching
from mesascope.activations.hooks.module_hooks import first_tensor
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import same


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a module, from ``start`` to ``end`` on a clock that counts calls."""

    name: str
    start: int
    end: int
    inputs: Mapping[int | str, Tensor]
    output: Tensor | None

    @property
    def result(self) -> Tensor:
        """Its output, which must be a tensor, or begin with one.

        Raises:
            UnsupportedModel: it is none.
        """
        if self.output is None:
            raise UnsupportedModel(f"{self.name} must give a tensor, but gave none")
        return self.output

    def encloses(self, other: "Call | Attention") -> bool:
        """Whether the other call happened within this one."""
        return self.start < other.start and other.end < self.end

    def reads(self, value: Tensor) -> bool:
        """Whether one of its inputs is this tensor, bit for bit."""
        return any(same(given, value) for given in self.inputs.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One call of the attention function: by which module, with what, and what came out."""

    name: str
    start: int
    end: int
    call: Attended
    output: Tensor
    returned: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A forward pass on a probe.

    Attributes:
        calls: of modules, in the order in which they ended.
        attentions: calls of the attention function, in order.
        logits: the prediction for the probe.
    """

    calls: list[Call] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    logits: Float[Tensor, "batch pos d_out"]

    def of(self, name: str) -> list[Call]:
        """The calls of one module."""
        return [call for call in self.calls if call.name == name]

    def within(self, outer: Call) -> list[Call]:
        """The calls that happened within another, in the order in which they ended."""
        return [call for call in self.calls if outer.encloses(call)]


def trace(model: PreTrainedModel, forward: Callable[[], Float[Tensor, "batch pos d_out"]]) -> Trace:
    """Watch every module and every attention call of one forward pass; tensors are copied as they are seen.

    Args:
        model: whose modules are watched.
        forward: runs it once and gives its prediction.
    """
    calls: list[Call] = []
    attentions: list[Attention] = []
    clock = iter(range(10**9))
    names = {module: name for name, module in model.named_modules()}

    def see(call: Attended) -> tuple[Tensor, Tensor | None]:
        start = next(clock)
        copy = _copied(call)
        output, returned = call.run(call.query, call.key, call.value)
        attentions.append(
            Attention(
                name=names[call.module],
                start=start,
                end=next(clock),
                call=copy,
                output=output.clone(),
                returned=returned,
            )
        )
        return output, returned

    with dispatching(model, see), _watching(model, calls, clock):
        logits = forward()
    return Trace(calls=calls, attentions=attentions, logits=logits)


@contextmanager
def _watching(model: PreTrainedModel, calls: list[Call], clock: Iterator[int]) -> Iterator[None]:
    """While this lasts, every call of a module is written down."""
    open_calls: list[tuple[int, dict[int | str, Tensor]]] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [*enumerate(args), *kwargs.items()]
        open_calls.append((next(clock), {at: x.clone() for at, x in given if isinstance(x, Tensor)}))

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        start, inputs = open_calls.pop()
        given = first_tensor(output)
        copied = None if given is None else given.clone()
        calls.append(Call(name=name, start=start, end=next(clock), inputs=inputs, output=copied))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(partial(leave, name)).remove)
        yield


def _copied(call: Attended) -> Attended:
    """The same call with queries, keys and values of its own."""
    return Attended(
        module=call.module,
        kernel=call.kernel,
        query=call.query.clone(),
        key=call.key.clone(),
        value=call.value.clone(),
        mask=None if call.mask is None else torch.clone(call.mask),
        rest=call.rest,
        options=call.options,
    )
