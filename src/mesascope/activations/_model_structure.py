"""The structure of a model: its layers, the trace in which they were found, and its readouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedModel

from mesascope.activations._layer_spec import ChunkSpec, LayerSpec
from mesascope.activations.readout._build import build_readout
from mesascope.activations.readout._readout import Readout
from mesascope.activations.readout._stack_inputs import StackInputs
from mesascope.activations.sites import ALL_SITES, strip_gradient_suffix
from mesascope.activations.structure._trace import Trace
from mesascope.activations.validation.fingerprint import Fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelStructure:
    """The layers of a model, and the traced forward pass in which they were found.

    Attributes:
        layers: the specification of every layer; in a model that repeats its layers, of every call, in order.
        trace: the traced forward pass.
        weights: the fingerprint of the weights for which it was found.
        stack: the stack of an encoder-decoder that the layers are in; ``None`` in a model with one stack.
        chunks: the chunks of positions, in a model that processes them one after the other; its layers are the calls in
            one chunk.
        validated: the hook points (site, layer) that have been validated.
        validated_lengths: validated lengths of sequences, with padding or not, with attention weights or not, with the
            output at all positions or not.
        validated_padding: validated lengths with numbers of pads on the left, on the right, and between inputs.
    """

    layers: tuple[LayerSpec, ...]
    trace: Trace
    weights: Fingerprint
    stack: StackInputs | None = None
    chunks: ChunkSpec | None = None
    validated: set[tuple[str, int]] = field(default_factory=set, init=False, repr=False)
    validated_lengths: set[tuple[int, bool, bool, bool]] = field(default_factory=set, init=False, repr=False)
    validated_padding: set[tuple[int, int, int, int]] = field(default_factory=set, init=False, repr=False)
    # built on first use; the model itself is not stored, so that a cached structure does not keep it alive
    _readouts: dict[tuple[int, ...], Readout] = field(default_factory=dict, init=False, repr=False)

    def note_length(self, key: tuple[int, bool, bool, bool]) -> None:
        """Note that a length has been validated, and with it what is less.

        Args:
            key: an entry of `validated_lengths`.
        """
        length, has_mask, has_weights, has_output = key
        self.validated_lengths.update(
            (length, has_mask, weights, output) for weights in {False, has_weights} for output in {False, has_output}
        )

    @property
    def num_iterations(self) -> int | None:
        """The largest number of iterations; ``None`` in a model that calls each layer once."""
        last = self.layers[-1].iteration
        return None if last is None else last + 1

    @property
    def is_repeated(self) -> bool:
        """``True`` if a forward pass may call a layer several times."""
        return self.num_iterations is not None or self.chunks is not None

    @property
    def num_blocks(self) -> int:
        """The number of different layers."""
        return len(self.layers) // (self.num_iterations or 1)

    @property
    def is_dynamic(self) -> bool:
        """``True`` if the number of iterations depends on the inputs."""
        return any(layer.is_optional for layer in self.layers)

    @cached_property
    def layers_without_site(self) -> dict[str, list[int]]:
        """The layers without each site or its gradient, by site."""
        return {
            name: [
                number
                for number, layer in enumerate(self.layers)
                if (strip_gradient_suffix(name) or name) in layer.missing
            ]
            for name in ALL_SITES
        }

    def readout(self, model: PreTrainedModel, layers: Sequence[int]) -> Readout:
        """Return a readout of some layers; what it consists of is found on the first call, and its numbers on use.

        Args:
            model: the model that has this structure.
            layers: indices into `layers`.

        Returns:
            A new readout, which reads numbers from the weights when it is first used.
        """
        key = tuple(layers)
        if key not in self._readouts:
            self._readouts[key] = build_readout(model, self.layers, key, self.trace, self.weights, self.stack)
        return self._readouts[key].without_numbers()
