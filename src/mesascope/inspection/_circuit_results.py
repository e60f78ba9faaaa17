"""Results of a search for a circuit, as the report shows them."""

import numpy as np
import xarray as xr

from mesascope.axes import to_data_array
from mesascope.circuits import rank_edges

MAX_LISTED_EDGES = 1000  # edges of the graph in the report
RANDOM_CIRCUITS = "random circuits"


def describe_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return the scores of all edges; the report names the file and draws the ranked edges instead.

    Args:
        scores: from `attribute_edges`.
    """
    hidden = {name: scores[name].assign_attrs(view="none") for name in ("score", "score_by_sequence")}
    attrs = {
        "title": "Scores of all edges",
        "description": "Estimated effect of every edge, mean over pairs and by pair",
        "analysis": "edge_scores",
    }
    return scores.assign(hidden).assign_attrs(attrs)


def list_edges(scores: xr.Dataset, stability: xr.Dataset, effects: xr.Dataset, size: int) -> xr.Dataset:
    """Return the highest-ranked edges as a list.

    Args:
        scores: from `attribute_edges`.
        stability: from `bootstrap_edges`.
        effects: from `patch_edges`, of some of the edges.
        size: number of edges of the circuit.

    Returns:
        ``score``, ``low``, ``high``, ``inclusion``, ``effect`` (rank) with the names ``sender_name`` and
        ``receiver_name`` (rank); the first ``size`` are the circuit.
    """
    ranking = rank_edges(scores["score"])[:MAX_LISTED_EDGES]
    senders, receivers = np.unravel_index(ranking, scores["score"].shape)
    units = str(scores["score"].attrs["units"])
    metric = str(scores["score"].attrs["description"])
    columns = {
        "score": (scores["score"], units, metric),
        "low": (stability["low"], units, "lower end of the 95 % interval of the score over pairs"),
        "high": (stability["high"], units, "upper end of the 95 % interval of the score over pairs"),
        "inclusion": (
            stability["inclusion"],
            "1",
            f"fraction of resampled sets of pairs whose circuit of {size} edges has this edge",
        ),
        "effect": (effects["effect"], units, str(effects["effect"].attrs["description"])),
    }
    variables = {
        name: to_data_array(matrix.values[senders, receivers], "rank", units=unit, description=about)
        for name, (matrix, unit, about) in columns.items()
    }
    for name, axis, numbers in (("sender_name", "sender", senders), ("receiver_name", "receiver", receivers)):
        values = scores[axis].values[numbers].astype(str)
        variables[name] = xr.DataArray(
            values, dims="rank", attrs={"units": "text", "description": f"the {axis} of the edge"}
        )
    variables["score"].attrs |= {"view": "graph", "title": "Circuit", "circuit_size": size, "headline": 1}
    attrs = {
        "title": "Circuit",
        "description": (
            f"The {len(ranking)} edges with the largest scores; the first {size} are the circuit. Scores are "
            "first-order estimates; the effect is measured, with the counterfactual on this edge alone"
        ),
        "analysis": "circuit",
    }
    return xr.Dataset(variables, attrs=attrs)


def describe_faithfulness(curves: xr.Dataset, control: xr.Dataset, stability: xr.Dataset, size: int) -> xr.Dataset:
    """Return faithfulness by size, and that of the circuit beside random circuits of its size.

    Args:
        curves: from `measure_faithfulness`, by size.
        control: from `measure_faithfulness`, at the size of the circuit, with more random draws.
        stability: from `bootstrap_edges`.
        size: number of edges of the circuit.
    """
    about = f"{{}} of {size} edges, on pairs that were not used to find it"
    at_size = {
        "circuit_faithfulness": control["faithfulness"].isel(circuit_size=0, drop=True),
        "circuit_completeness": control["completeness"].isel(circuit_size=0, drop=True),
        "circuit_random": control["random"].isel(circuit_size=0, drop=True),
    }
    at_size["circuit_faithfulness"].attrs |= {
        "title": "faithfulness of the circuit",
        "description": about.format("faithfulness of the circuit"),
        "headline": 1,
    }
    at_size["circuit_completeness"].attrs |= {
        "title": "completeness of the circuit",
        "description": about.format("completeness of the circuit"),
    }
    at_size["circuit_random"].attrs |= {
        "control_of": "circuit_faithfulness",
        "control": RANDOM_CIRCUITS,
        "description": about.format("faithfulness of random circuits"),
    }
    jaccard = stability["jaccard"].assign_attrs(title="stability of the circuit")
    dataset = curves.assign(**at_size, jaccard=jaccard)
    for name in ("faithfulness", "completeness"):
        dataset[name].attrs |= {"view": "curves", "headline": 1}
    for name, owner in (("random", "faithfulness"), ("random_cpr", "cpr"), ("random_cmd", "cmd")):
        dataset[name].attrs |= {"control_of": owner, "control": RANDOM_CIRCUITS}
    attrs = {
        "title": "Faithfulness of circuits",
        "description": (
            "What circuits of the highest-ranked edges keep of the metric, on pairs that were not used to rank them: 1 "
            "is the clean run, 0 the counterfactual run"
        ),
        "analysis": "circuit_faithfulness",
    }
    return dataset.assign_attrs(attrs)
