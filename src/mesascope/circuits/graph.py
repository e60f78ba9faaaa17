"""Circuits as graphs of networkx."""

import re

import networkx as nx
import xarray as xr

from mesascope.argument_types import validate_arguments
from mesascope.circuits.faithfulness import name_edges, rank_edges

_NAME = re.compile(r"L(\d+)\.H(\d+)\.([qkv])")


@validate_arguments
def build_graph(score: xr.DataArray, size: int, *, by: str = "magnitude") -> nx.DiGraph:
    """Return the highest-ranked edges as a directed graph.

    The nodes are senders and receivers by name; the queries, keys and values of a head are nodes of their own, with
    edges of ``kind="part"`` into the head, or into the heads that share a key-value head. ``nx.descendants`` and other
    functions then follow paths from the embedding to the output.

    Args:
        score: (sender, receiver), as from `attribute_edges` or `patch_edges`.
        size: number of edges.
        by: as in `rank_edges`.

    Returns:
        A graph with ``score`` and ``kind="edge"`` on each of the edges.

    Raises:
        ValueError: If there are no scores, or fewer than ``size``.

    >>> import numpy as np
    >>> values = np.array([[3.0, 0.1, np.nan], [np.nan, np.nan, 2.0]])
    >>> coords = {"sender": ["embedding", "L0.H0"], "receiver": ["L0.H0.q", "L0.H0.k", "output"]}
    >>> graph = build_graph(xr.DataArray(values, coords, ("sender", "receiver")), 2)
    >>> sorted(graph.edges)
    [('L0.H0', 'output'), ('L0.H0.q', 'L0.H0'), ('embedding', 'L0.H0.q')]
    >>> "output" in nx.descendants(graph, "embedding")
    True
    """
    ranking = rank_edges(score, by)
    if not 1 <= size <= len(ranking):
        raise ValueError(f"size must be from 1 to {len(ranking)} edges, but got {size}")
    graph = nx.DiGraph()
    for sender, receiver in name_edges(score, ranking[:size]):
        value = float(score.sel(sender=sender, receiver=receiver))
        graph.add_edge(sender, receiver, score=value, kind="edge")
    for part, head in _list_parts([str(name) for name in score["receiver"].values]):
        if part in graph and head in graph:
            graph.add_edge(part, head, kind="part")
    return graph


def _list_parts(receivers: list[str]) -> list[tuple[str, str]]:
    """Return each query, key and value with the heads that read it."""
    found = [(match[0], int(match[1]), int(match[2]), match[3]) for match in map(_NAME.fullmatch, receivers) if match]
    counts: dict[tuple[int, str], int] = {}
    for _, layer, _, letter in found:
        counts[layer, letter] = counts.get((layer, letter), 0) + 1
    pairs = []
    for name, layer, head, letter in found:
        group = counts[layer, "q"] // counts[layer, letter]
        pairs += [(name, f"L{layer}.H{one}") for one in range(head * group, (head + 1) * group)]
    return pairs
