"""Exact edge patching: the measured effect of ablating single edges."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.activations import InputsLike
from mesascope.argument_types import describe_value, validate_arguments
from mesascope.circuits.edge_attribution import label_edges, label_ends
from mesascope.circuits.runs import CircuitRuns, validate_ends
from mesascope.interventions import ProgressFn
from mesascope.interventions.metrics import Metric

MAX_EDGES_PER_RUN = 64


@validate_arguments
def patch_edges(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    metric: Metric | str | Callable[[Tensor], Tensor],
    edges: Sequence[tuple[str, str]] | None = None,
    *,
    ablation: str = "counterfactual",
    seed: int = 0,
    attention_mask: Any = None,
    source_attention_mask: Any = None,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Measure, edge by edge, the effect on the metric if only this edge is ablated.

    The receiver reads the clean stream with the sender's term replaced; everything after it is computed from there.
    There is a run for every edge: choose edges in large models.

    Args:
        model: any model that `SplitForward` supports.
        inputs: clean inputs.
        source: counterfactual inputs, as many sequences of the same lengths; with another ablation, reference inputs:
            any number of sequences of the same length.
        metric: one number per sequence, as in `patch`.
        edges: pairs of the names of a sender and a receiver, such as ``("L0.H2", "L1.H3.k")``; all by default.
        ablation: what ablated edges carry, as in `attribute_edges`.
        seed: seed of the draw of references (``resample``).
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.
        progress: called with the number of finished edges and the number of all edges.

    Returns:
        ``effect`` (sender, receiver), mean over sequences, and ``effect_by_sequence`` (batch, sender, receiver); NaN
        for other edges. ``clean`` and ``ablated`` (batch), as in `attribute_edges`.

    Raises:
        UnsupportedModel: If the model has no such edges, or they do not determine its output.
        ValueError: If an edge does not exist, or as in `attribute_edges`.

    >>> from mesascope.interventions import logit_difference
    >>> from mesascope.ground_truth.models.tokens import build_planted_language_model
    >>> first, second = torch.randperm(39, generator=torch.Generator().manual_seed(0))[:32].add(1).view(2, 1, 16)
    >>> clean, other = (torch.cat([half[:, :1] * 0, half, half], 1) for half in (first, second))
    >>> metric = logit_difference(first[:, 0], second[:, 0])
    >>> edges = [("L0.H3", "L1.H5.k"), ("L0.H2", "L1.H5.k")]  # from the previous-token head to the induction head
    >>> effect = patch_edges(build_planted_language_model(), clean, other, metric, edges)["effect"]
    >>> previous, decoy = (abs(float(effect.sel(sender=name, receiver="L1.H5.k"))) for name in ("L0.H3", "L0.H2"))
    >>> previous > 10 * decoy
    True
    """
    runs = CircuitRuns(
        model, inputs, source, metric, attention_mask, source_attention_mask, ablation=ablation, seed=seed
    )
    validate_ends(*runs.ends, runs.metric.name, runs.ablated_name)
    return patch_in_runs(runs, edges, progress=progress)


def patch_in_runs(
    runs: CircuitRuns, edges: Sequence[tuple[str, str]] | None = None, *, progress: ProgressFn | None = None
) -> xr.Dataset:
    """Measure the effect of edges one by one on some of the sequences, as `patch_edges` does on all.

    Args:
        runs: the clean run, and what ablated edges carry.
        edges: pairs of the names of a sender and a receiver; all by default.
        progress: called with the number of finished edges and the number of all edges.

    Returns:
        The results of `patch_edges`.

    Raises:
        UnsupportedModel: If the edges do not determine the output of the model.
        ValueError: If an edge does not exist, or none is given.
    """
    exist = runs.edges.exist
    if edges is None:
        pairs = exist.nonzero().tolist()
    else:
        validate_pairs_of_names(edges)
        pairs = [runs.edges.index(*edge) for edge in edges]
    pairs.sort(key=lambda pair: pair[1])  # in one run, most receivers then read one stream
    clean, _ = runs.ends
    runs.validate_edges()
    shape = (runs.num_sequences, *exist.shape)
    effects = torch.full(shape, torch.nan, dtype=torch.float64, device=clean.device)
    for start in range(0, len(pairs), MAX_EDGES_PER_RUN):
        if progress is not None:
            progress(start, len(pairs))
        part = pairs[start : start + MAX_EDGES_PER_RUN]
        in_circuit = exist.repeat(len(part), 1, 1)
        for branch, (sender, receiver) in enumerate(part):
            in_circuit[branch, sender, receiver] = False
        for (sender, receiver), value in zip(part, runs.compute_metric(in_circuit), strict=True):
            effects[:, sender, receiver] = value - clean
    if progress is not None:
        progress(len(pairs), len(pairs))
    about = f"{runs.metric.description}: change by {runs.ablated_name} on one edge"
    return label_edges(runs.edges, "effect", effects, about, runs.metric.units).assign(label_ends(runs))


def validate_pairs_of_names(edges: Any) -> None:
    """Check that edges are given by the names of their ends.

    Args:
        edges: pairs of the names of a sender and a receiver.

    Raises:
        ValueError: If there are none, or one is no pair of names.
    """
    given = list(edges) if isinstance(edges, Sequence) and not isinstance(edges, str) else []
    wrong = [edge for edge in given if not _is_pair_of_names(edge)]
    if wrong or not given:
        raise ValueError(
            "edges must be one or more pairs of the names of a sender and a receiver, but got "
            f'{describe_value(wrong[0] if wrong else edges)}; write [("L0.H2", "output")]'
        )


def _is_pair_of_names(edge: object) -> bool:
    return isinstance(edge, tuple | list) and len(edge) == 2 and all(isinstance(name, str) for name in edge)
