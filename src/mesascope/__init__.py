"""mesascope shows which algorithm runs inside a transformer's forward pass, and how it gets there in training.

What a notebook needs is here under short names, imported when first used, so that ``import mesascope`` is quick:

- :func:`run`, :func:`inspect`: what the command line does;
- :func:`capture`, :class:`Edit`, :class:`Reduction`: record and change a forward pass;
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

_HOMES = {
    "Edit": "mesascope.activations",
    "Reduction": "mesascope.activations",
    "UnsupportedModel": "mesascope.activations",
    "capture": "mesascope.activations",
    "inspect": "mesascope.api",
    "run": "mesascope.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"mesascope.{name}")
    raise AttributeError(f"module 'mesascope' has no attribute {name!r}")
