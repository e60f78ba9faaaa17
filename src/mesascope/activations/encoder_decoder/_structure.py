"""The structure of an encoder-decoder: its two stacks of layers, found in one traced forward pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._cache import cached_structure
from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.encoder_decoder._forward import run_pair, run_pair_forward
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.readout._stack_inputs import StackInputs
from mesascope.activations.sites import DECODER, ENCODER, STACKS, UnsupportedModel, locate_site
from mesascope.activations.structure._describe_layer import describe_layer
from mesascope.activations.structure._find_layers import find_list_calls, list_layer_lists
from mesascope.activations.structure._trace import ModuleCall, Trace, trace_forward
from mesascope.activations.tolerances import bitwise_equal
from mesascope.activations.validation.fingerprint import Fingerprint
from mesascope.activations.validation.identities import check_output_unchanged
from mesascope.activations.validation.inputs import validate_weights_loaded
from mesascope.models.encoder_decoder.model import EncoderDecoder

TRACE_LENGTH = 8  # positions of the source and of the target that are traced


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderDecoderStructure:
    """The two stacks of an encoder-decoder.

    Attributes:
        encoder: the structure of the encoder.
        decoder: the structure of the decoder.
        validated: what has been validated: hook points with the lengths and kinds of padding.
    """

    encoder: ModelStructure
    decoder: ModelStructure
    validated: set[tuple[object, ...]] = field(default_factory=set, init=False, repr=False)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """The layers of the encoder, followed by those of the decoder, in the order of their calls."""
        return (*self.encoder.layers, *self.decoder.layers)

    def stack(self, name: str) -> ModelStructure:
        """Return the structure of one stack.

        Args:
            name: ``encoder`` or ``decoder``.
        """
        return self.encoder if name == ENCODER else self.decoder

    def locate_layer(self, number: int) -> tuple[str, int]:
        """Return the stack of a layer, and its index in the stack.

        Args:
            number: the index of the layer among all layers.
        """
        first = self.first_layer(DECODER)
        return (ENCODER, number) if number < first else (DECODER, number - first)

    def count_through(self, layers_by_site: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Return the layers of every site, counted through both stacks, by the names of sites within the stacks.

        Args:
            layers_by_site: layers within their stack, by site with the name of its stack.
        """
        counted: dict[str, list[int]] = {}
        for site, layers in layers_by_site.items():
            stack, local = locate_site(site)
            first = self.first_layer(stack or DECODER)
            counted.setdefault(local, []).extend(first + layer for layer in layers)
        return counted

    def first_layer(self, name: str) -> int:
        """Return the index of the first layer of a stack among all layers.

        Args:
            name: ``encoder`` or ``decoder``.
        """
        return 0 if name == ENCODER else len(self.encoder.layers)


def read_stacks(model: PreTrainedModel, inputs: SourceAndTarget) -> EncoderDecoderStructure:
    """Trace a model on up to 8 positions of the source and of the target, and find its stacks of layers.

    Args:
        model: the model.
        inputs: the source and the target.

    Returns:
        The structure.

    Raises:
        UnsupportedModel: the structure cannot be found, or tracing changes the output.
    """
    traced = _trace_inputs(model, inputs)
    kind = tuple((part.shape, part.dtype) for part in (traced.source, traced.target))
    masks = tuple(mask is not None for mask in (traced.source_mask, traced.target_mask))
    return cached_structure(model, (*kind, *masks, traced.prefix_length), partial(_find_structure, model, traced))


def _trace_inputs(model: PreTrainedModel, inputs: SourceAndTarget) -> SourceAndTarget:
    """Return the first positions without padding of the longest sequence; the whole source, if its length is fixed."""
    amounts = [sum(int(inputs.find_real(stack, row).sum()) for stack in STACKS) for row in range(len(inputs))]
    row = max(range(len(inputs)), key=amounts.__getitem__)
    one = inputs[row : row + 1]
    target = one.target[:, one.find_real(DECODER, 0)][:, :TRACE_LENGTH]
    has_fixed_length = isinstance(model, EncoderDecoder)
    source = one.source if has_fixed_length else one.source[:, one.find_real(ENCODER, 0)][:, :TRACE_LENGTH]
    # of different lengths where possible, so that states of one stack are not taken for those of the other
    target = target[:, :-1] if 1 < target.shape[1] == source.shape[1] else target
    source_mask = one.source_mask if has_fixed_length else None
    return replace(one, source=source, target=target, source_mask=source_mask, target_mask=None)


def _find_structure(model: PreTrainedModel, traced: SourceAndTarget, weights: Fingerprint) -> EncoderDecoderStructure:
    validate_weights_loaded(model)
    name = type(model).__name__
    expected = run_pair(model, traced)
    trace = trace_forward(model, lambda: run_pair_forward(model, traced))
    encoder, decoder = _find_stacks(model, trace)
    check_output_unchanged(name, expected, trace.logits)

    def run_source(model: PreTrainedModel, source: Tensor) -> object:
        return run_pair(model, _repeat(traced, source=source))

    def run_target(model: PreTrainedModel, target: Tensor) -> object:
        return run_pair(model, _repeat(traced, target=target))

    inputs = {
        ENCODER: StackInputs(name=ENCODER, trace_input=traced.source, run_fn=run_source),
        DECODER: StackInputs(name=DECODER, trace_input=traced.target, run_fn=run_target),
    }
    return EncoderDecoderStructure(
        encoder=ModelStructure(layers=encoder, trace=trace, weights=weights, stack=inputs[ENCODER]),
        decoder=ModelStructure(layers=decoder, trace=trace, weights=weights, stack=inputs[DECODER]),
    )


def _repeat(traced: SourceAndTarget, source: Tensor | None = None, target: Tensor | None = None) -> SourceAndTarget:
    """Return the traced inputs with other rows of one side, and as many rows of the other one."""
    rows = len(source) if source is not None else 1 if target is None else len(target)
    return replace(
        traced,
        source=traced.source.repeat_interleave(rows, 0) if source is None else source,
        target=traced.target.repeat_interleave(rows, 0) if target is None else target,
        source_mask=None if traced.source_mask is None else traced.source_mask.repeat_interleave(rows, 0),
        target_mask=None if traced.target_mask is None else traced.target_mask.repeat_interleave(rows, 0),
    )


def _find_stacks(model: PreTrainedModel, trace: Trace) -> tuple[tuple[LayerSpec, ...], tuple[LayerSpec, ...]]:
    """Find the layers of the encoder and of the decoder, and the cross-attention between them."""
    name = type(model).__name__
    if not trace.attentions:
        raise UnsupportedModel(
            f"attention must go through transformers' attention interface, but {name} implements its own attention; "
            "use a model whose modelling file dispatches attention through it"
        )
    lists = list_layer_lists(model, trace)
    if len(lists) != 2 or "" in lists:
        raise UnsupportedModel(
            "attention modules of an encoder-decoder must be in two lists of layers (nn.ModuleList), but those of "
            f"{name} are in {', '.join(repr(each) for each in lists)}; its other attention does not go through "
            "transformers' attention interface, or it has more parts"
        )
    calls = [find_list_calls(model, trace, each) for each in lists]
    if any(len(iterations) != 1 for iterations in calls):
        raise UnsupportedModel(f"an encoder-decoder must call each layer once, but {name} repeats its layers")
    (encoder_calls,), (decoder_calls,) = calls
    if encoder_calls[-1].end > decoder_calls[0].start:
        raise UnsupportedModel(f"an encoder must run before the decoder, but {name} calls their layers in turns")
    states = _source_states(trace, encoder_calls[-1], decoder_calls[0])
    encoder = tuple(describe_layer(model, trace, call) for call in encoder_calls)
    decoder = tuple(describe_layer(model, trace, call, states) for call in decoder_calls)
    if not any(layer.cross for layer in decoder):
        raise UnsupportedModel(
            f"a layer of the decoder must attend to the states of the encoder, but none of {name} does through "
            "transformers' attention interface"
        )
    return encoder, decoder


def _source_states(trace: Trace, last: ModuleCall, first: ModuleCall) -> Sequence[Tensor]:
    """Return the states after the last layer of the encoder, and all that modules compute from these alone."""
    states = [last.output_tensor]
    later = sorted((call for call in trace.calls if last.end < call.end < first.start), key=lambda call: call.end)
    for call in later:
        reads_states = any(call.reads_tensor(each) for each in states)
        if call.output is not None and (reads_states or any(bitwise_equal(call.output, each) for each in states)):
            states.append(call.output)
    return [each for each in states if each.is_floating_point() and each.numel() > 0]
