"""Recording and editing what happens inside a forward pass: one path for every model."""

from mesascope.capture.capture import Capture, NotRecorded, capture, estimate_bytes
from mesascope.capture.edits import Edit, NothingChanged
from mesascope.capture.frame import Frame
from mesascope.capture.hooks import attach
from mesascope.capture.memory import NotEnoughMemory
from mesascope.capture.recorder import Reduction
from mesascope.capture.sites import SITES, Site, UnsupportedModel

__all__ = [
    "SITES",
    "Capture",
    "Edit",
    "Frame",
    "NotEnoughMemory",
    "NotRecorded",
    "NothingChanged",
    "Reduction",
    "Site",
    "UnsupportedModel",
    "attach",
    "capture",
    "estimate_bytes",
]
