"""Graph of a circuit: components as boxes, layers from bottom to top, and edges as curves."""

import re
from typing import Any

import numpy as np

from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable
from mesascope.report.text import format_count, round_significant

NAME = re.compile(r"L(\d+)\.(?:H(\d+)(?:\.([qkv]))?|MLP)")
INPUTS = {"q": "query", "k": "key", "v": "value"}
COLUMNS = ("low", "high", "inclusion", "effect")


def draw_circuit_graph(variable: PlotVariable) -> Panel:
    """Draw the highest-ranked edges as a graph; a slider sets their number.

    Args:
        variable: scores with the axis ``rank``, and coordinates ``sender_name``, ``receiver_name`` and others; the
            attributes ``circuit_size``, ``heads_by_layer``, ``kv_heads_by_layer``, ``mlps_by_layer`` and
            ``ablated_by``.

    Returns:
        The panel.

    Raises:
        ValueError: if the edges have no names.
    """
    array = variable.array.isel(seed=0)
    if variable.plot_dims != ("rank",) or not {"sender_name", "receiver_name"} <= set(array.coords):
        raise ValueError("a graph needs the axis rank, and coordinates sender_name and receiver_name")
    heads, kv_heads, mlps = (
        _read_counts(variable, name) for name in ("heads_by_layer", "kv_heads_by_layer", "mlps_by_layer")
    )
    nodes = _place_nodes(heads, mlps)
    number = {node["name"]: index for index, node in enumerate(nodes)}
    coords = {str(name): coord.values for name, coord in array.coords.items()}
    senders, receivers = (coords[name].astype(str) for name in ("sender_name", "receiver_name"))
    columns = {name: _read_column(coords[name]) for name in COLUMNS if name in coords}
    edges = {
        "sender": [number[name] for name in senders],
        "receiver": [_place_receiver(name, heads, kv_heads) for name in receivers],
        "readers": [[number[reader] for reader in _list_readers(name, heads, kv_heads)] for name in receivers],
        "name": [_describe_edge(*names) for names in zip(senders, receivers, strict=True)],
        "score": _read_column(array.values),
        **columns,
    }
    size = int(array.attrs["circuit_size"])
    data = {"nodes": nodes, "rows": 2 * len(heads) + 2, "edges": edges, "size": size, "units": variable.units}
    data["ablated_by"] = str(array.attrs.get("ablated_by", "the counterfactual run"))
    caption = variable.build_caption(
        f"the {format_count(len(senders), 'edge')} with the largest scores, the first {size} of which are the circuit",
        "each curve is an edge from a component to one that reads what it adds; width: size of the score",
        *(["brackets join the heads that share a key-value head"] if heads != kv_heads else []),
    )
    hint = "Click an edge or a row for its numbers."
    return Panel(kind="graph", title=variable.title, caption=caption, data=data, hint=hint)


def _read_counts(variable: PlotVariable, name: str) -> list[int]:
    return [int(count) for count in str(variable.array.attrs[name]).split(",")]


def _read_column(values: np.ndarray) -> list[float | None]:
    return [round_significant(float(value)) if np.isfinite(value) else None for value in values]


def _place_nodes(heads: list[int], mlps: list[int]) -> list[dict[str, Any]]:
    """Return the components with their place: x from 0 to 1, and the row, counted from the bottom."""
    nodes = [_make_node("embedding", "embedding", 0.5, 0)]
    for layer, count in enumerate(heads):
        nodes += [
            _make_node(f"L{layer}.H{head}", f"layer {layer}, head {head}", (head + 0.5) / count, 2 * layer + 1)
            for head in range(count)
        ]
        nodes += [_make_node(f"L{layer}.MLP", f"layer {layer}, MLP", 0.5, 2 * layer + 2)] * mlps[layer]
    return [*nodes, _make_node("output", "output", 0.5, 2 * len(heads) + 1)]


def _make_node(name: str, label: str, x: float, row: int) -> dict[str, Any]:
    return {"name": name, "label": label, "x": x, "row": row}


def _place_receiver(name: str, heads: list[int], kv_heads: list[int]) -> list[float]:
    """Return x and row of a receiver; a key-value head stands below the middle of the heads that read it."""
    match = NAME.fullmatch(name)
    if match is None or match[3] is None:
        return [0.5, 2 * len(heads) + 1 if match is None else 2 * int(match[1]) + 2]
    layer, head = int(match[1]), int(match[2])
    return [(head + 0.5) / (heads if match[3] == "q" else kv_heads)[layer], 2 * layer + 1]


def _list_readers(name: str, heads: list[int], kv_heads: list[int]) -> list[str]:
    """Return the components that an edge leads to: all heads that share a key-value head."""
    match = NAME.fullmatch(name)
    if match is None or match[3] is None:
        return [name]
    layer, head = int(match[1]), int(match[2])
    group = 1 if match[3] == "q" else heads[layer] // kv_heads[layer]
    return [f"L{layer}.H{one}" for one in range(head * group, (head + 1) * group)]


def _describe_edge(sender: str, receiver: str) -> str:
    match = NAME.fullmatch(receiver)
    into = f" ({INPUTS[match[3]]})" if match is not None and match[3] else ""
    return f"{sender} → {receiver}{into}"
