"""mesascope identifies the algorithms that transformers run in their forward pass, and how training produces them.

The main functions are available here under short names. They are imported on first use, so that ``import mesascope`` is
fast:

- :func:`run`, :func:`inspect`: the main commands of the command line;
- :func:`capture`, :class:`Edit`, :class:`Reduction`: record and edit the activations of a forward pass;
- :mod:`analyses`, :mod:`tasks`, :mod:`studies`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesascope import analyses, studies, tasks
    from mesascope.activations import Edit, Reduction, UnsupportedModel, capture
    from mesascope.api import inspect, run

__version__ = "0.1.0"
__all__ = [
    "Edit",
    "Reduction",
    "UnsupportedModel",
    "analyses",
    "capture",
    "inspect",
    "run",
    "studies",
    "tasks",
]

_MODULE_OF_NAME = {
    "Edit": "mesascope.activations",
    "Reduction": "mesascope.activations",
    "UnsupportedModel": "mesascope.activations",
    "capture": "mesascope.activations",
    "inspect": "mesascope.api",
    "run": "mesascope.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name in _MODULE_OF_NAME:
        return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
    if name in __all__:
        return importlib.import_module(f"mesascope.{name}")
    raise AttributeError(f"module 'mesascope' has no attribute {name!r}")
