"""Results of a search for a circuit, as the report shows them."""

import numpy as np
import xarray as xr

from mesascope.axes import to_data_array
from mesascope.circuits import Edges, rank_edges
from mesascope.circuits.references import ABLATIONS

MAX_LISTED_EDGES = 1000  # edges of the graph in the report
RANDOM_CIRCUITS = "random circuits"
_RANKED_BY = {"magnitude": "largest scores in magnitude", "signed": "lowest scores"}


def describe_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return the scores of all edges; the report names the file and draws the ranked edges instead.

    Args:
        scores: from `attribute_edges`.
    """
    hidden = {name: one.assign_attrs(view="none") for name, one in scores.data_vars.items()}
    attrs = {
        "title": "Scores of all edges",
        "description": "Estimated effect of every edge, mean over pairs and by pair",
        "analysis": "edge_scores",
    }
    return scores.assign(hidden).assign_attrs(attrs)


def list_edges(
    scores: xr.Dataset, stability: xr.Dataset, effects: xr.Dataset, size: int, edges: Edges, ablation: str, by: str
) -> xr.Dataset:
    """Return the highest-ranked edges as a list.

    Args:
        scores: from `attribute_edges`.
        stability: from `bootstrap_edges`.
        effects: from `patch_edges`, of some of the edges.
        size: number of edges of the circuit.
        edges: all edges of the model.
        ablation: what ablated edges carry.
        by: how edges are ranked, as in `rank_edges`.

    Returns:
        ``score``, ``low``, ``high``, ``inclusion``, ``effect`` (rank) with the names ``sender_name`` and
        ``receiver_name`` (rank); the first ``size`` are the circuit.
    """
    ranking = rank_edges(scores["score"], by)[:MAX_LISTED_EDGES]
    layers = range(edges.receivers[-1].layer)
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
    variables["score"].attrs["ablated_by"] = ABLATIONS[ablation]
    kinds = [(each.kind, each.layer) for each in edges.receivers]
    variables["score"].attrs |= {
        name: ",".join(str(kinds.count((kind, layer))) for layer in layers)
        for name, kind in (("heads_by_layer", "query"), ("kv_heads_by_layer", "key"), ("mlps_by_layer", "mlp"))
    }
    attrs = {
        "title": "Circuit",
        "description": (
            f"The {len(ranking)} edges with the {_RANKED_BY[by]}; the first {size} are the circuit. Scores are "
            f"first-order estimates; the effect is measured, with {ABLATIONS[ablation]} on this edge alone"
        ),
        "analysis": "circuit",
    }
    return xr.Dataset(variables, attrs=attrs)


def describe_test(control: xr.Dataset, stability: xr.Dataset, size: int, ablation: str) -> xr.Dataset:
    """Return what the circuit keeps of the metric beside random circuits of its size, and how stable its edges are.

    Args:
        control: from `measure_faithfulness`, at the size of the circuit.
        stability: from `bootstrap_edges`.
        size: number of edges of the circuit.
        ablation: what ablated edges carry.

    Returns:
        ``faithfulness``, ``completeness``, ``random`` (draw), ``jaccard``, ``jaccard_low`` and ``jaccard_high``; the
        description states all of them.
    """
    at_size = control.isel(circuit_size=0, drop=True)
    variables = {name: at_size[name] for name in ("faithfulness", "completeness", "random")}
    jaccard = stability["jaccard"]
    for name, value in (
        ("jaccard", jaccard.mean()),
        ("jaccard_low", jaccard.quantile(0.025)),
        ("jaccard_high", jaccard.quantile(0.975)),
    ):
        variables[name] = to_data_array(float(value), units="1", description=str(jaccard.attrs["description"]))
    numbers = {name: float(value) for name, value in variables.items() if not value.ndim}
    low, high = float(at_size["random"].min()), float(at_size["random"].max())
    attrs = {
        "title": "Test of the circuit",
        "description": (
            f"On pairs that were not used to find it, the circuit of {size} edges has a faithfulness of "
            f"{numbers['faithfulness']:z.3f} (1: the clean run, 0: {ABLATIONS[ablation]}) and a completeness of "
            f"{numbers['completeness']:z.3f} (1 minus the faithfulness of all other edges); {at_size.sizes['draw']} "
            f"random circuits of this size have a faithfulness from {low:z.3f} to {high:z.3f}. Circuits of resampled "
            f"pairs share {numbers['jaccard']:.0%} of the edges with it (Jaccard index; 95 % of "
            f"{jaccard.sizes['draw']} draws: {numbers['jaccard_low']:.0%} to {numbers['jaccard_high']:.0%})"
        ),
        "analysis": "circuit_test",
    }
    return xr.Dataset({name: one.assign_attrs(view="none") for name, one in variables.items()}, attrs=attrs)


def describe_faithfulness(curves: xr.Dataset, ablation: str) -> xr.Dataset:
    """Return the faithfulness of circuits by size, as the report shows it.

    Args:
        curves: from `measure_faithfulness`.
        ablation: what ablated edges carry.
    """
    dataset = curves.copy()
    for name, headline in (("faithfulness", 1), ("completeness", 0)):
        dataset[name].attrs |= {"view": "curves", "headline": headline}
    for name in ("cpr", "cmd", "random_cpr", "random_cmd"):
        dataset[name].attrs |= {"view": "none"}
    dataset["random"].attrs |= {"control_of": "faithfulness", "control": RANDOM_CIRCUITS}
    attrs = {
        "title": "Faithfulness by size",
        "description": (
            "What circuits of the highest-ranked edges keep of the metric, on pairs that were not used to rank them: 1 "
            f"is the clean run, 0 {ABLATIONS[ablation]}. CPR (integral of the faithfulness) is "
            f"{float(curves['cpr']):z.3f}, that of random circuits {float(curves['random_cpr'].mean()):z.3f}; CMD "
            f"(integral of its distance from 1) is {float(curves['cmd']):z.3f}, that of random circuits "
            f"{float(curves['random_cmd'].mean()):z.3f}"
        ),
        "analysis": "circuit_faithfulness",
    }
    return dataset[["faithfulness", *(name for name in dataset.data_vars if name != "faithfulness")]].assign_attrs(
        attrs
    )
