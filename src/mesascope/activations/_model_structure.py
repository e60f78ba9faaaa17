"""The structure of a model: its layers, the trace in which they were found, and its readouts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.readout._build import build_readout
from mesascope.activations.readout._readout import Readout
from mesascope.activations.structure._trace import Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelStructure:
    """The layers of a model, and the traced forward pass in which they were found.

    Attributes:
        layers: the specification of every layer.
        trace: the traced forward pass.
    """

    layers: tuple[LayerSpec, ...]
    trace: Trace
    # built on first use; the model itself is not stored, so that a cached structure does not keep it alive
    _readouts: dict[tuple[int, ...], Readout] = field(default_factory=dict, init=False, repr=False)

    def readout(self, model: PreTrainedModel, layers: Sequence[int]) -> Readout:
        """Return the readout of some layers; it is built on the first call.

        Args:
            model: the model that has this structure.
            layers: the indices of the layers.

        Returns:
            The readout; the same object for the same layers.
        """
        key = tuple(layers)
        if key not in self._readouts:
            self._readouts[key] = build_readout(model, self.layers, key, self.trace)
        return self._readouts[key]
