"""Stability of circuits over prompts: intervals of scores, and how much circuits of resampled prompts agree."""

import numpy as np
import xarray as xr

from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array
from mesascope.circuits.faithfulness import rank_edges

LEVEL = 0.95


@validate_arguments
def bootstrap_edges(
    score_by_sequence: xr.DataArray, size: int, *, draws: int = 200, by: str = "magnitude", seed: int = 0
) -> xr.Dataset:
    """Resample pairs, and return intervals of the scores and the agreement of the circuits.

    Pairs are drawn with replacement (percentile bootstrap). The agreement is the number of edges that are in both
    circuits over the number in either (Jaccard index), between the circuit of all pairs and that of each draw.

    Args:
        score_by_sequence: (batch, sender, receiver), as from `attribute_edges`.
        size: number of edges of a circuit.
        draws: number of draws.
        by: as in `rank_edges`.
        seed: seed of the draws.

    Returns:
        ``low`` and ``high`` (sender, receiver): 95 % intervals of the mean scores; ``inclusion`` (sender, receiver):
        the fraction of draws whose circuit has an edge; ``jaccard`` (draw).

    Raises:
        ValueError: If there are fewer than two pairs, or no circuit of this size.
    """
    if set(score_by_sequence.dims) != {"batch", "sender", "receiver"} or seed < 0:
        raise ValueError(
            "scores must have the axes batch, sender and receiver, and seed must be 0 or more, but got the axes "
            f"({', '.join(map(str, score_by_sequence.dims))}) and {seed}; pass score_by_sequence of attribute_edges"
        )
    scores = score_by_sequence.transpose("batch", "sender", "receiver")
    ranking = rank_edges(scores.mean("batch"), by)
    if scores.sizes["batch"] < 2:
        raise ValueError("a bootstrap over pairs needs two pairs or more, but got one; pass more pairs")
    if not 1 <= size <= len(ranking) or draws < 1:
        raise ValueError(f"size must be from 1 to {len(ranking)} edges and draws 1 or more, but got {size} and {draws}")
    generator = np.random.default_rng(seed)
    flat = scores.values.reshape(len(scores), -1)[:, np.sort(ranking)].astype(float)
    number = {edge: index for index, edge in enumerate(np.sort(ranking))}
    whole = np.zeros(flat.shape[1], dtype=bool)
    whole[[number[edge] for edge in ranking[:size]]] = True
    means = np.stack([flat[generator.integers(len(flat), size=len(flat))].mean(0) for _ in range(draws)])
    keys = np.argsort(-abs(means) if by == "magnitude" else means, axis=1, kind="stable")[:, :size]
    chosen = np.zeros(means.shape, dtype=bool)
    np.put_along_axis(chosen, keys, True, axis=1)
    jaccard = (chosen & whole).sum(1) / (chosen | whole).sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    units = str(score_by_sequence.attrs.get("units", "1"))
    edges = {
        "low": (low, units, "lower end of the 95 % interval of the score over pairs"),
        "high": (high, units, "upper end of the 95 % interval of the score over pairs"),
        "inclusion": (chosen.mean(0), "1", f"fraction of draws whose circuit of {size} edges has this edge"),
    }
    coords = {axis: scores[axis].values for axis in ("sender", "receiver")}
    variables = {
        "jaccard": to_data_array(
            jaccard, "draw", units="1", description=f"agreement of circuits of {size} edges with that of all pairs"
        )
    }
    for name, (values, unit, about) in edges.items():
        full = np.full(scores.sizes["sender"] * scores.sizes["receiver"], np.nan)
        full[np.sort(ranking)] = values
        variables[name] = to_data_array(
            full.reshape(scores.shape[1:]), "sender", "receiver", units=unit, description=about, coords=coords
        )
    return xr.Dataset(variables)
