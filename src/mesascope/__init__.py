"""mesascope identifies the algorithms that transformers run in their forward pass, and how training produces them.

The main functions are available here under short names. They are imported on first use, so that ``import mesascope`` is
fast:

- :func:`run`, :func:`inspect`, :func:`circuit`, :func:`rank_algorithms`: the main commands of the command line;
- :func:`figures`, :func:`tables`: the figures and the tables of the report of a run;
- :func:`show_patterns`, :func:`show_heads`, :func:`show_text`: attention patterns, scores of heads and coloured text
  in a notebook;
- :func:`push`: share a run on the Hugging Face Hub;
- :func:`sync`, :func:`fetch`: send a run to shared storage such as S3, and read it from there;
- :class:`Run`: a finished run, its results and verdicts;
- :func:`capture`, :class:`Edit`, :class:`Reduction`: record and edit the activations of a forward pass;
- :func:`wrap`: a plain PyTorch module as a model for all of these;
- :mod:`analyses`, :mod:`circuits`, :mod:`interventions`, :mod:`probes`, :mod:`tasks`, :mod:`studies`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mesascope.auto_classes import register_auto_classes

if TYPE_CHECKING:
    from mesascope import analyses, circuits, interventions, probes, studies, tasks
    from mesascope.activations import Edit, Reduction, UnsupportedModel, capture, wrap
    from mesascope.api import circuit, fetch, figures, inspect, rank_algorithms, run, sync, tables
    from mesascope.hub import push
    from mesascope.notebook_views import show_heads, show_patterns, show_text
    from mesascope.store import Run

__version__ = "0.1.0"
__all__ = [
    "Edit",
    "Reduction",
    "Run",
    "UnsupportedModel",
    "analyses",
    "capture",
    "circuit",
    "circuits",
    "fetch",
    "figures",
    "inspect",
    "interventions",
    "probes",
    "push",
    "rank_algorithms",
    "run",
    "show_heads",
    "show_patterns",
    "show_text",
    "studies",
    "sync",
    "tables",
    "tasks",
    "wrap",
]

_MODULE_OF_NAME = {
    "Edit": "mesascope.activations",
    "Reduction": "mesascope.activations",
    "UnsupportedModel": "mesascope.activations",
    "Run": "mesascope.store",
    "capture": "mesascope.activations",
    "circuit": "mesascope.api",
    "fetch": "mesascope.api",
    "figures": "mesascope.api",
    "inspect": "mesascope.api",
    "push": "mesascope.hub",
    "rank_algorithms": "mesascope.api",
    "run": "mesascope.api",
    "show_heads": "mesascope.notebook_views",
    "show_patterns": "mesascope.notebook_views",
    "show_text": "mesascope.notebook_views",
    "sync": "mesascope.api",
    "tables": "mesascope.api",
    "wrap": "mesascope.activations",
}


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name in _MODULE_OF_NAME:
        return getattr(importlib.import_module(_MODULE_OF_NAME[name]), name)
    if name in __all__:
        return importlib.import_module(f"mesascope.{name}")
    raise AttributeError(f"module 'mesascope' has no attribute {name!r}")


register_auto_classes()
