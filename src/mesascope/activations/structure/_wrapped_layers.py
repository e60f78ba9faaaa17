"""The layers of a wrapped module: those that the user has named, and checks of their axes."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.hooks._module_arguments import first_tensor
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.tolerances import bitwise_equal
from mesascope.activations.wrapping._wrapped_module import WrappedModule


def given_block_names(model: PreTrainedModel) -> tuple[str, ...] | None:
    """Return the names of the blocks that were given to `wrap`, or ``None``.

    Args:
        model: any model.
    """
    return model.block_names if isinstance(model, WrappedModule) else None


def advise_on_layers(model: PreTrainedModel) -> str:
    """Return what to do if layers cannot be found.

    Args:
        model: any model.
    """
    return "pass layers= to wrap" if isinstance(model, WrappedModule) else "pass the decoder only"


def name_attention_functions(model: PreTrainedModel) -> str:
    """Return the name of the attention functions that are intercepted in a model.

    Args:
        model: any model.
    """
    own = "torch.nn.functional.scaled_dot_product_attention or " if isinstance(model, WrappedModule) else ""
    return f"{own}the attention interface"


def check_stream_axes(model: PreTrainedModel, trace: Trace, blocks: Sequence[ModuleCall]) -> None:
    """Check that the blocks of a wrapped module have the batch and the positions of its inputs, in this order.

    Args:
        model: any model; those of transformers keep this order.
        trace: its traced forward pass, of one sequence.
        blocks: the calls of its blocks.

    Raises:
        UnsupportedModel: a block has other axes.
    """
    if not isinstance(model, WrappedModule):
        return
    for block in blocks:
        shape = block.output_tensor.shape
        if len(shape) != 3 or shape[:2] != trace.logits.shape[:2]:
            raise UnsupportedModel(
                f"a block must return (batch, pos, d_model) with the positions of the inputs, (batch, pos) = "
                f"{tuple(trace.logits.shape[:2])}, but {block.name} returns shape {tuple(shape)}; use batch_first, and "
                "omit positions that the module adds"
            )


def check_attention_axes(model: PreTrainedModel, trace: Trace, trace_shorter: Callable[[], Trace]) -> None:
    """Check that calls of PyTorch's attention function have the axes batch, head, pos and d_head, not pos and head.

    Their sizes tell, unless there are as many heads as positions; then a trace of one position fewer tells.

    Args:
        model: any model; in models of transformers, the attention interface has fixed axes.
        trace: its traced forward pass.
        trace_shorter: returns the trace of one position fewer.

    Raises:
        UnsupportedModel: a call has other axes.
    """
    length = trace.logits.shape[1]
    if not isinstance(model, WrappedModule) or length == 1:
        return
    is_ambiguous = any(each.call.query.shape[1] == length for each in trace.attentions)
    if is_ambiguous and len(trace_shorter().attentions) < len(trace.attentions):
        raise UnsupportedModel(
            "scaled_dot_product_attention must be called with queries (batch, head, pos, d_head), but "
            f"{type(model.module).__name__} calls it with (batch, pos, head, d_head); transpose them, or pass layers= "
            "to wrap and inputs with another number of positions, for the sites of the residual stream"
        )


def check_layers_given(model: PreTrainedModel) -> None:
    """Check that the layers of a model without attention calls were given to `wrap`.

    Args:
        model: a model that calls no attention function.

    Raises:
        UnsupportedModel: they were not.
    """
    if given_block_names(model) is None:
        _refuse_own_attention(model)


def _refuse_own_attention(model: PreTrainedModel) -> NoReturn:
    if isinstance(model, WrappedModule):
        raise UnsupportedModel(
            "attention must be computed by torch.nn.functional.scaled_dot_product_attention on (batch, head, pos, "
            f"d_head), or by modules of transformers, but {type(model.module).__name__} has no such call; pass layers= "
            "to wrap for the sites of the residual stream, and attention= for those of its updates"
        )
    raise UnsupportedModel(
        f"attention must go through transformers' attention interface, but {type(model).__name__} implements its own "
        "attention or has none; use a model whose modelling file dispatches attention through it"
    )


def find_named_attention(model: PreTrainedModel, trace: Trace, block: ModuleCall) -> ModuleCall | None:
    """Return the call of the attention module that was named to `wrap`, or ``None`` if none was.

    Args:
        model: any model.
        trace: its traced forward pass.
        block: the call of the block.

    Raises:
        UnsupportedModel: the block does not call it once, or it does not mix positions, as an MLP.
    """
    if not isinstance(model, WrappedModule) or model.attention_name is None:
        return None
    name = f"{block.name}.{model.attention_name}"
    calls = [call for call in trace.calls_of(name) if block.contains_call(call)]
    if len(calls) != 1:
        raise UnsupportedModel(
            f"the module named by attention= must be called once in a block, but {name} is called {len(calls)} times; "
            "name another one"
        )
    _check_mixes_positions(model, calls[0])
    return calls[0]


def _check_mixes_positions(model: WrappedModule, call: ModuleCall) -> None:
    """Check that the output at the last position depends on the first input, as that of attention and no MLP does."""
    output = call.output_tensor
    if output.ndim != 3 or sorted(at for at in call.inputs if isinstance(at, int)) != list(range(len(call.inputs))):
        raise UnsupportedModel(
            "the module named by attention= must map tensors given by position to (batch, pos, d_model), but "
            f"{call.name} is called with {', '.join(map(str, call.inputs))} and returns shape {tuple(output.shape)}; "
            "omit attention="
        )
    arguments = [call.inputs[at] for at in range(len(call.inputs))]
    if output.shape[1] == 1:
        return  # a single position: nothing to mix
    changed = [torch.cat([1 - 2 * x[:, :1], x[:, 1:]], 1) if x.shape == output.shape else x for x in arguments]
    module = model.get_submodule(call.name)
    if not bitwise_equal(_last_position(module(*arguments)), output[:, -1]):
        raise UnsupportedModel(
            f"the module named by attention= must depend on its tensor arguments only, but {call.name} called again "
            "with them returns another output; omit attention="
        )
    if bitwise_equal(_last_position(module(*changed)), output[:, -1]):
        raise UnsupportedModel(
            f"the module named by attention= must mix positions, but the output of {call.name} at the last position "
            "does not depend on the first one; name the module that computes attention"
        )


def _last_position(output: Any) -> Tensor:
    tensor = first_tensor(output)
    assert tensor is not None
    return tensor[:, -1]
