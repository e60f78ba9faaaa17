"""Edge attribution: first-order estimates of the effect of every edge, with one gradient or integrated gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import InputsLike
from mesascope.activations.split_forward import InputGradients
from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array
from mesascope.circuits.edges import Edges
from mesascope.circuits.runs import CircuitRuns, track_progress, validate_ends
from mesascope.interventions import ProgressFn
from mesascope.interventions.metrics import Metric


@validate_arguments
def attribute_edges(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    metric: Metric | str | Callable[[Tensor], Tensor],
    *,
    steps: int = 5,
    ablation: str = "counterfactual",
    seed: int = 0,
    attention_mask: Any = None,
    source_attention_mask: Any = None,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Estimate, for every edge, the effect on the metric if only this edge is ablated.

    An ablated edge carries the term that its sender has in the counterfactual run, the mean of the terms that it has in
    reference runs, or its term in the run of a drawn reference. The estimate is this term minus the clean one, times
    the gradient of the metric with respect to the stream that the receiver reads (edge attribution patching, EAP: Syed
    et al. 2023). With ``steps``, the gradient is averaged while the embedding moves on a straight line from the clean
    to the ablated one (EAP-IG: Hanna et al. 2024); it is taken at the midpoints of equal steps. Both are exact only
    where everything after the edge is linear: `patch_edges` measures the effect itself.

    Args:
        model: any model that `SplitForward` supports.
        inputs: clean inputs.
        source: counterfactual inputs, as many sequences of the same lengths; with another ablation, reference inputs:
            any number of sequences of the same length.
        metric: one number per sequence, as in `patch`.
        steps: number of gradients that are averaged; with 0, the gradient is that of the clean run (EAP).
        ablation: what ablated edges carry. ``counterfactual``: the terms of the sequence in the same row of ``source``;
            ``mean``: the mean terms of all sequences of ``source``, by position; ``resample``: the terms of a sequence
            of ``source`` that is drawn for each of ``inputs``, and is another one.
        seed: seed of the draw (``resample``).
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding.
        source_attention_mask: the same for ``source``.
        progress: called with the number of finished gradients and the number of all gradients.

    Returns:
        ``score`` (sender, receiver), mean over sequences, and ``score_by_sequence`` (batch, sender, receiver); NaN
        where there is no edge. ``clean`` and ``ablated`` (batch): the metric of the clean run, and with all edges
        ablated.

    Raises:
        UnsupportedModel: If the model has no such edges, or they do not determine its output.
        ValueError: If an argument is invalid, the runs differ in shape or padding, the references have no mean at a
            position or no other sequence, or the metric is the same in the clean run and with all edges ablated.

    >>> from mesascope.interventions import logit_difference
    >>> from mesascope.ground_truth.models.tokens import build_planted_language_model
    >>> first, second = torch.randperm(39, generator=torch.Generator().manual_seed(0))[:32].add(1).view(2, 1, 16)
    >>> clean, other = (torch.cat([half[:, :1] * 0, half, half], 1) for half in (first, second))
    >>> metric = logit_difference(first[:, 0], second[:, 0])
    >>> found = attribute_edges(build_planted_language_model(), clean, other, metric)
    >>> found["score"].dims
    ('sender', 'receiver')
    """
    runs = CircuitRuns(
        model, inputs, source, metric, attention_mask, source_attention_mask, ablation=ablation, seed=seed
    )
    validate_ends(*runs.ends, runs.metric.name, runs.ablated_name)
    return attribute_in_runs(runs, steps=steps, progress=progress)


def attribute_in_runs(runs: CircuitRuns, *, steps: int, progress: ProgressFn | None = None) -> xr.Dataset:
    """Estimate the effect of every edge on some of the sequences, as `attribute_edges` does on all.

    Args:
        runs: the clean run, and what ablated edges carry.
        steps: number of gradients that are averaged.
        progress: called with the number of finished gradients and the number of all gradients.

    Returns:
        The results of `attribute_edges`.

    Raises:
        UnsupportedModel: If the edges do not determine the output of the model.
        ValueError: If ``steps`` is negative.
    """
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, but got {steps}")
    runs.validate_edges()
    scores = _average_scores(runs, steps, progress)
    scores = scores.masked_fill(~runs.edges.exist.to(scores.device), torch.nan)
    how = f"integrated gradients of {steps} steps" if steps else "one gradient"
    about = f"{runs.metric.description}: estimated change by {runs.ablated_name} on one edge ({how})"
    return label_edges(runs.edges, "score", scores, about, runs.metric.units).assign(label_ends(runs))


def label_edges(
    edges: Edges, name: str, by_sequence: Float[Tensor, "batch sender receiver"], about: str, units: str
) -> xr.Dataset:
    """Return numbers of edges with names, and their mean over sequences.

    Args:
        edges: the edges.
        name: the name of the mean.
        by_sequence: the numbers, NaN where there is no edge.
        about: description.
        units: units of the numbers.
    """
    coords = {"sender": [each.name for each in edges.senders], "receiver": [each.name for each in edges.receivers]}
    mean = to_data_array(
        by_sequence.double().mean(0), "sender", "receiver", units=units, description=about, coords=coords
    )
    each = to_data_array(
        by_sequence.float(),
        "batch",
        "sender",
        "receiver",
        units=units,
        description=f"{about}, by sequence",
        coords=coords,
    )
    layers = {
        f"{axis}_layer": (axis, np.array([component.layer for component in components]))
        for axis, components in (("sender", edges.senders), ("receiver", edges.receivers))
    }
    dataset = xr.Dataset({name: mean.assign_attrs(headline=1), f"{name}_by_sequence": each})
    return dataset.assign_coords(layers)


def label_ends(runs: CircuitRuns) -> dict[str, xr.DataArray]:
    """Return the metric of the clean run, and with all edges ablated, with names.

    Args:
        runs: the runs.
    """
    about = {"clean": "in the clean run", "ablated": f"with {runs.ablated_name} on all edges"}
    return {
        name: to_data_array(
            values, "batch", units=runs.metric.units, description=f"{runs.metric.description}, {about[name]}"
        )
        for name, values in zip(about, runs.ends, strict=True)
    }


def _average_scores(
    runs: CircuitRuns, steps: int, progress: ProgressFn | None
) -> Float[Tensor, "batch sender receiver"]:
    """Return the scores, averaged along the path, with the gradients of one step in memory at a time."""
    clean, ablated = runs.clean.terms[0], runs.ablated.terms[0]
    difference = runs.difference.transpose(0, 1).flatten(2)
    scores = difference.new_zeros(len(difference), *runs.edges.exist.shape)
    fractions = [(step + 0.5) / steps for step in range(steps)] or [0.0]
    for fraction in track_progress(fractions, progress):
        embedding = clean + fraction * (ablated - clean) if fraction else clean
        by_layer, at_output = runs.split.input_gradients(embedding, lambda output: runs.metric(output, runs.mask))
        start = 0
        for gradients in (*map(_stack_receivers, by_layer), at_output[None]):
            stop = start + len(gradients)
            count = runs.edges.receivers[stop - 1].num_senders
            by_sequence = gradients.transpose(0, 1).flatten(2)
            scores[:, :count, start:stop] += difference[:, :count] @ by_sequence.mT
            start = stop
    return scores / len(fractions)


def _stack_receivers(gradients: InputGradients) -> Float[Tensor, "receiver batch pos d_model"]:
    """Return the gradients of one layer in the order of the receivers."""
    parts = [part.transpose(0, 1) for part in (gradients.query, gradients.key, gradients.value)]
    return torch.cat(parts if gradients.mlp is None else [*parts, gradients.mlp[None]])
