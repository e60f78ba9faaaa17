"""Recording and editing what happens inside a forward pass: one path for every model."""

from mesascope.activations.batched_edits import Stem
from mesascope.activations.capture import Capture, NotRecorded, attending, capture, estimate_bytes
from mesascope.activations.edits import Edit, NothingChanged
from mesascope.activations.hooks.module_hooks import attach
from mesascope.activations.layer_view import SUBLAYERS, WRITES, LayerReduction, LayerView
from mesascope.activations.memory import NotEnoughMemory
from mesascope.activations.readout.readout import Frame
from mesascope.activations.recorder import Reduction
from mesascope.activations.sites import FORWARD, SITES, Site, UnsupportedModel, site

__all__ = [
    "FORWARD",
    "SITES",
    "SUBLAYERS",
    "WRITES",
    "Capture",
    "Edit",
    "Frame",
    "LayerReduction",
    "LayerView",
    "NotEnoughMemory",
    "NotRecorded",
    "NothingChanged",
    "Reduction",
    "Site",
    "Stem",
    "UnsupportedModel",
    "attach",
    "attending",
    "capture",
    "estimate_bytes",
    "site",
]
