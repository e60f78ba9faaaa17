"""Recording and editing what happens inside a forward pass: one path for every model."""

from mesascope.capturing.capture import Capture, NotRecorded, attending, capture, estimate_bytes
from mesascope.capturing.edits import Edit, NothingChanged
from mesascope.capturing.frame import Frame
from mesascope.capturing.hooks import attach
from mesascope.capturing.memory import NotEnoughMemory
from mesascope.capturing.recorder import Reduction
from mesascope.capturing.sites import FORWARD, SITES, Site, UnsupportedModel, site
from mesascope.capturing.stem import Stem
from mesascope.capturing.view import SUBLAYERS, WRITES, LayerReduction, LayerView

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
