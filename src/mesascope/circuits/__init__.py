"""Circuits: the edges between components that a behaviour depends on, how faithful a circuit is, and how stable."""

from mesascope.circuits.edge_attribution import attribute_edges
from mesascope.circuits.edge_patching import patch_edges
from mesascope.circuits.edges import Edges, find_edges
from mesascope.circuits.faithfulness import measure_faithfulness, rank_edges, select_edges
from mesascope.circuits.graph import build_graph
from mesascope.circuits.stability import bootstrap_edges

__all__ = [
    "Edges",
    "attribute_edges",
    "bootstrap_edges",
    "build_graph",
    "find_edges",
    "measure_faithfulness",
    "patch_edges",
    "rank_edges",
    "select_edges",
]
