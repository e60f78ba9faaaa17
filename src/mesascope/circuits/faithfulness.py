"""Faithfulness of circuits: how much of a model's behaviour the edges of a circuit keep, by the size of the circuit."""

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mesascope.activations import InputsLike
from mesascope.argument_types import describe_value, validate_arguments
from mesascope.axes import to_data_array
from mesascope.circuits.edges import Edges
from mesascope.circuits.runs import CircuitRuns, track_progress, validate_ends
from mesascope.interventions import ProgressFn
from mesascope.interventions.metrics import Metric

FRACTIONS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the edges, as in the benchmark MIB
DEFAULT_FRACTION = 0.1  # of the largest score: edges with less are not selected
RANKINGS = ("magnitude", "signed")


@validate_arguments
def rank_edges(score: xr.DataArray, by: str = "magnitude") -> Int[np.ndarray, " edge"]:
    """Return the edges by their scores, the most important first, as indices into the flattened scores.

    Args:
        score: (sender, receiver), NaN where there is no edge; an estimated or measured change of the metric by the
            counterfactual.
        by: ``magnitude``, or ``signed``: edges whose counterfactual lowers the metric first.

    Returns:
        The indices of all edges. Edges of the same score keep their order.

    Raises:
        ValueError: If there is no such ranking, or there are no scores.

    >>> rank_edges(xr.DataArray([[0.5, np.nan, -2.0]], dims=("sender", "receiver"))).tolist()
    [2, 0]
    """
    validate_ranking(by)
    if set(score.dims) != {"sender", "receiver"} or score.dtype.kind not in "fiu":
        raise ValueError(
            f"scores must be numbers with the axes sender and receiver, but got {score.dtype} with the axes "
            f"({', '.join(map(str, score.dims))}); pass a result of attribute_edges or patch_edges"
        )
    values = np.asarray(score.transpose("sender", "receiver"), dtype=float).reshape(-1)
    edges = np.flatnonzero(np.isfinite(values))
    if not len(edges):
        raise ValueError("a ranking needs scores of edges, but all are NaN; run attribute_edges or patch_edges first")
    keys = -np.abs(values[edges]) if by == "magnitude" else values[edges]
    return edges[np.argsort(keys, kind="stable")]


def validate_ranking(by: str) -> None:
    """Check the name of a ranking.

    Args:
        by: one of `RANKINGS`.

    Raises:
        ValueError: If there is no such ranking.
    """
    if by not in RANKINGS:
        raise ValueError(f"edges must be ranked by {' or '.join(RANKINGS)}, but got {by!r}")


def name_edges(score: xr.DataArray, edges: Int[np.ndarray, " edge"]) -> list[tuple[str, str]]:
    """Return the names of the sender and the receiver of edges.

    Args:
        score: (sender, receiver).
        edges: indices into the flattened scores, as from `rank_edges`.

    Returns:
        Pairs of names, in the same order.
    """
    senders, receivers = np.unravel_index(edges, (score.sizes["sender"], score.sizes["receiver"]))
    names = zip(score["sender"].values[senders], score["receiver"].values[receivers], strict=True)
    return [(str(sender), str(receiver)) for sender, receiver in names]


@validate_arguments
def select_edges(score: xr.DataArray, fraction: float = DEFAULT_FRACTION) -> list[tuple[str, str]]:
    """Return the edges whose score has at least a given fraction of the size of the largest score.

    Args:
        score: (sender, receiver), as from `attribute_edges` or `patch_edges`.
        fraction: the fraction, from 0 to 1.

    Returns:
        Names of senders and receivers, the most important first.

    Raises:
        ValueError: If the fraction is invalid, or there are no scores.

    >>> coords = {"sender": ["embedding", "L0.H0"], "receiver": ["L0.H0.v", "output"]}
    >>> select_edges(xr.DataArray([[0.5, 0.01], [np.nan, -2.0]], coords, ("sender", "receiver")))
    [('L0.H0', 'output'), ('embedding', 'L0.H0.v')]
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be from 0 to 1, but got {fraction}")
    ranking = rank_edges(score)
    sizes = np.abs(score.transpose("sender", "receiver").values.reshape(-1)[ranking])
    return name_edges(score, ranking[sizes >= fraction * sizes[0]])


@validate_arguments
def measure_faithfulness(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    metric: Metric | str | Callable[[Tensor], Tensor],
    score: xr.DataArray,
    *,
    fractions: Sequence[float] = FRACTIONS,
    by: str = "magnitude",
    random_draws: int = 5,
    seed: int = 0,
    ablation: str = "counterfactual",
    attention_mask: Any = None,
    source_attention_mask: Any = None,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Measure what circuits of the highest-ranked edges keep of the metric, and what random circuits keep.

    All edges outside a circuit are ablated. The faithfulness of a circuit is the metric of this run, from that with all
    edges ablated (0) to that of the clean run (1). Its integral over the fraction of the edges is CPR (circuit
    performance ratio); that of its distance from 1 is CMD (circuit-model distance), as in the Mechanistic
    Interpretability Benchmark (Mueller et al. 2025).

    Args:
        model: any model that `SplitForward` supports.
        inputs: clean inputs; other pairs than those of the scores show whether the circuit generalises.
        source: counterfactual inputs, as many sequences of the same lengths; with another ablation, reference inputs:
            any number of sequences of the same length.
        metric: one number per sequence, as in `patch`.
        score: (sender, receiver), as from `attribute_edges` or `patch_edges`.
        fractions: sizes of the circuits, as fractions of the number of edges.
        by: as in `rank_edges`.
        random_draws: number of random circuits of each size, 1 or more.
        seed: seed of the random circuits, and of the draw of references (``resample``).
        ablation: what ablated edges carry, as in `attribute_edges`.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.
        progress: called with the number of finished runs and the number of all runs.

    Returns:
        ``faithfulness`` (circuit_size), ``completeness`` (circuit_size): 1 minus the faithfulness of all other edges,
        ``random`` (draw, circuit_size), ``cpr``, ``cmd``, ``random_cpr`` and ``random_cmd`` (draw).

    Raises:
        UnsupportedModel: If the model has no such edges, or they do not determine its output.
        ValueError: If an argument is invalid, the scores are those of another model, or as in `attribute_edges`.
    """
    runs = CircuitRuns(
        model, inputs, source, metric, attention_mask, source_attention_mask, ablation=ablation, seed=seed
    )
    validate_ends(*runs.ends, runs.metric.name, runs.ablated_name)
    return measure_in_batches(
        [runs], score, fractions=fractions, by=by, random_draws=random_draws, seed=seed, progress=progress
    )


def measure_in_batches(
    batches: Iterable[CircuitRuns],
    score: xr.DataArray,
    *,
    fractions: Sequence[float] = FRACTIONS,
    by: str = "magnitude",
    random_draws: int = 5,
    seed: int = 0,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Measure the faithfulness of circuits by size, as `measure_faithfulness` does, on batches of sequences.

    Args:
        batches: for every batch, the clean run and what ablated edges carry; only one is held in memory at a time.
        score: (sender, receiver).
        fractions: sizes of the circuits, as fractions of the number of edges.
        by: as in `rank_edges`.
        random_draws: number of random circuits of each size, 1 or more.
        seed: seed of the random circuits.
        progress: called with the number of finished runs of a batch and the number of all runs of a batch.

    Returns:
        The results of `measure_faithfulness`.

    Raises:
        UnsupportedModel: If the edges do not determine the output of the model.
        ValueError: If an argument is invalid, or the scores are those of another model.
    """
    sizes_valid = all(isinstance(fraction, Real) and 0 <= fraction <= 1 for fraction in fractions)
    if not len(fractions) or not sizes_valid or random_draws < 1 or seed < 0:
        raise ValueError(
            "fractions must be from 0 to 1, random_draws 1 or more and seed 0 or more, but got "
            f"{describe_value(fractions)}, {random_draws} and {seed}"
        )
    generator, ranking = np.random.default_rng(seed), rank_edges(score, by)
    orders = [ranking, *(generator.permutation(ranking) for _ in range(random_draws))]
    metrics: list[Float[Tensor, "run batch"]] = []
    runs, sizes = None, []
    for runs in batches:
        _validate_scores(runs.edges, score)
        runs.validate_edges()
        sizes = sorted({round(fraction * len(runs.edges)) for fraction in fractions})
        circuits = [_select(order[:size], runs.edges) for order in orders for size in sizes]
        circuits += [runs.edges.exist & ~_select(ranking[:size], runs.edges) for size in sizes]
        values = [runs.compute_metric(circuit[None])[0] for circuit in track_progress(circuits, progress)]
        metrics.append(torch.stack([*runs.ends, *values]).double().cpu())
    if runs is None:
        raise ValueError("the faithfulness of a circuit needs at least one batch of sequences, but got none")
    metric = torch.cat(metrics, 1)
    validate_ends(metric[0], metric[1], runs.metric.name, runs.ablated_name)
    clean, ablated, *means = metric.mean(1).tolist()
    table = (np.array(means).reshape(len(orders) + 1, len(sizes)) - ablated) / (clean - ablated)
    return _label_curves(table, sizes, runs)


def _validate_scores(edges: Edges, score: xr.DataArray) -> None:
    senders, receivers = ([each.name for each in group] for group in (edges.senders, edges.receivers))
    if list(score["sender"].values) != senders or list(score["receiver"].values) != receivers:
        raise ValueError(
            f"scores must be of the edges of this model ({len(senders)} senders, {len(receivers)} receivers), but got "
            f"{score.sizes['sender']} senders and {score.sizes['receiver']} receivers with other names"
        )


def _select(numbers: Int[np.ndarray, " edge"], edges: Edges) -> Bool[Tensor, "sender receiver"]:
    """Return a circuit of the edges with the given indices."""
    chosen = torch.zeros(edges.exist.numel(), dtype=torch.bool)
    chosen[torch.from_numpy(numbers.copy())] = True
    return chosen.view(edges.exist.shape)


def _label_curves(table: Float[np.ndarray, "run size"], sizes: Sequence[int], runs: CircuitRuns) -> xr.Dataset:
    coords, metric = {"circuit_size": list(sizes)}, runs.metric
    description = f"{metric.name}: from {runs.ablated_name} (0) to the clean run (1), with the edges of a circuit"
    curves = {
        "faithfulness": to_data_array(table[0], "circuit_size", units="1", description=description, coords=coords),
        "completeness": to_data_array(
            1 - table[-1],
            "circuit_size",
            units="1",
            description=f"{metric.name}: 1 minus the faithfulness of all edges outside the circuit",
            coords=coords,
        ),
        "random": to_data_array(
            table[1:-1],
            "draw",
            "circuit_size",
            units="1",
            description=f"{metric.name}: faithfulness of random circuits of the same size",
            coords=coords,
        ),
    }
    fraction = np.array(sizes) / len(runs.edges)
    areas = {
        "cpr": ((), table[0], "integral of the faithfulness over the fraction of edges (CPR)"),
        "cmd": ((), abs(1 - table[0]), "integral of the distance of the faithfulness from 1 (CMD)"),
        "random_cpr": (("draw",), table[1:-1], "CPR of random circuits"),
        "random_cmd": (("draw",), abs(1 - table[1:-1]), "CMD of random circuits"),
    }
    for name, (axes, values, about) in areas.items():
        curves[name] = to_data_array(np.trapezoid(values, fraction, axis=-1), *axes, units="1", description=about)
    return xr.Dataset(curves)
