"""The input of one layer's attention."""

from dataclasses import dataclass

from torch import nn

from mesascope.activations.readout._value_projection import BatchedStream, BatchedValues


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerAttentionInput:
    """The input of one layer's attention, and its value on the trace input.

    Attributes:
        attention_module: the module that calls the attention function.
        input_module: the module whose argument is the input: the attention module, or one around it.
        argument: position or keyword of that argument.
        norm: the module between the residual stream and that argument; ``None`` where the stream itself is the input.
        resid_pre: residual stream before the layer.
        normed: input of attention.
        value: values that the attention function received.
    """

    attention_module: nn.Module
    input_module: nn.Module
    argument: int | str
    norm: nn.Module | None
    resid_pre: BatchedStream
    normed: BatchedStream
    value: BatchedValues
