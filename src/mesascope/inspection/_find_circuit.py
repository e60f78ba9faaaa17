"""Search for the circuit of a behaviour: scores of all edges, their stability, effects and faithfulness."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mesascope.activations.split_forward import SplitForward
from mesascope.circuits import bootstrap_edges, rank_edges
from mesascope.circuits.edge_attribution import attribute_in_runs
from mesascope.circuits.edge_patching import patch_in_runs
from mesascope.circuits.edges import Edges, find_edges
from mesascope.circuits.faithfulness import FRACTIONS, measure_in_batches, name_edges, validate_ranking
from mesascope.circuits.references import ABLATIONS, ReferenceMean, draw_references, validate_ablation
from mesascope.circuits.runs import CircuitRuns, validate_ends
from mesascope.formulas import escape_dollars
from mesascope.inspection._circuit_inputs import CircuitInputs
from mesascope.inspection._circuit_results import describe_faithfulness, describe_scores, describe_test, list_edges
from mesascope.inspection._inspection import StageProgressFn, describe_model, record_duration
from mesascope.store import Run

MAX_BYTES_PER_BATCH = 2**27  # of the terms of all senders: pairs whose edges are attributed together
NUM_PATCHED = 20  # highest-ranked edges whose effect is measured
RESAMPLE_SEED = 0
HALVES = (slice(0, None, 2), slice(1, None, 2))  # pairs on which a circuit is found and tested
RANDOM_DRAWS, CURVE_DRAWS = 20, 3  # random circuits of the size of the circuit, and of the other sizes


@dataclass(frozen=True, kw_only=True)
class CircuitSearch:
    """Settings of a search.

    Attributes:
        steps: gradients that are averaged (EAP-IG), or 0 for one gradient (EAP).
        ablation: what ablated edges carry, as in `attribute_edges`.
        by: how edges are ranked, as in `rank_edges`.
        size: number of edges of the circuit; by default 1 % of all edges, and three at least.
        draws: resamples of the bootstrap over pairs.
    """

    steps: int = 5
    ablation: str = "counterfactual"
    by: str = "magnitude"
    size: int | None = None
    draws: int = 200

    def __post_init__(self) -> None:
        """Check the settings."""
        validate_ablation(self.ablation)
        validate_ranking(self.by)
        for name, least in (("steps", 0), ("size", 1), ("draws", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, but got {value}")


@dataclass(kw_only=True)
class Stages:
    """Stages of a search; the result of each is saved, so that a stopped search can resume.

    Attributes:
        run: the run.
        progress: called with (current stage, stages done, total stages).
        total: number of stages.
        done: number of finished stages.
        seconds: duration of each kind of stage.
    """

    run: Run
    progress: StageProgressFn
    total: int
    done: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def compute(self, kind: str, name: str, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """Return the saved result of a stage, or compute and save it.

        Args:
            kind: what the stage does.
            name: name of the result.
            compute: computes it.
        """
        self.progress(kind, self.done, self.total)
        result = self.run.load_partial(name)
        with record_duration(self.seconds, kind):
            if result is None:
                result = compute()
                self.run.save_partial(name, result)
        self.done += 1
        self.progress(kind, self.done, self.total)
        return result


def find_circuit(inputs: CircuitInputs, search: CircuitSearch, path: Path, progress: StageProgressFn) -> Run:
    """Find the circuit of a behaviour on one half of the pairs, and test it on the other half.

    Args:
        inputs: the model and its pairs.
        search: the settings.
        path: the run's directory.
        progress: called with (current stage, stages done, total stages).

    Returns:
        The run, with the results ``circuit``, ``circuit_test``, ``circuit_faithfulness`` and ``edge_scores``.

    Raises:
        UnsupportedModel: If the model has no such edges.
        ValueError: If the metric is the same on both runs, or there are fewer edges than ``size``.
    """
    split = SplitForward(
        inputs.model, inputs.clean[:1], attention_mask=None if inputs.mask is None else inputs.mask[:1]
    )
    edges = find_edges(split)
    size = search.size or max(3, round(len(edges) / 100))
    if size > len(edges):
        raise ValueError(f"size must be at most {len(edges)}, the number of edges, but got {size}")
    run = Run.create(path, describe_search(inputs, search, edges, size))
    batches, tested_batches = (list(_split_pairs(inputs, edges, half)) for half in HALVES)
    open_runs = _prepare_ablation(inputs, search.ablation)
    with run.exclusive_lock():
        stages = Stages(run=run, progress=progress, total=len(batches) + 3)
        scores = _attribute(open_runs, search, batches, stages)
        metric = inputs.make_metric(slice(0, 1))
        validate_ends(scores["clean"], scores["ablated"], metric.name, ABLATIONS[search.ablation])
        stability = bootstrap_edges(scores["score_by_sequence"], size, draws=search.draws, by=search.by)
        top = name_edges(scores["score"], rank_edges(scores["score"], search.by)[: min(NUM_PATCHED, size)])
        effects = stages.compute(
            "effects of the highest-ranked edges",
            "effects",
            lambda: _join_batches([patch_in_runs(open_runs(rows), top) for rows in batches], "effect"),
        )
        curves, control = (
            stages.compute(
                kind,
                name,
                lambda fractions=fractions, draws=draws: measure_in_batches(
                    map(open_runs, tested_batches),
                    scores["score"],
                    fractions=fractions,
                    by=search.by,
                    random_draws=draws,
                ),
            )
            for kind, name, fractions, draws in (
                ("faithfulness by size", "faithfulness", FRACTIONS, CURVE_DRAWS),
                ("random circuits of the same size", "random", [size / len(edges)], RANDOM_DRAWS),
            )
        )
        run.write_results("edge_scores", describe_scores(scores))
        run.write_results("circuit", list_edges(scores, stability, effects, size, edges, search.ablation, search.by))
        run.write_results("circuit_test", describe_test(control, stability, size, search.ablation))
        run.write_results("circuit_faithfulness", describe_faithfulness(curves, search.ablation))
        run.write_json("model", {**describe_model(inputs.model), "skipped": {}, "seconds": stages.seconds})
    return run


def describe_search(inputs: CircuitInputs, search: CircuitSearch, edges: Edges, size: int) -> dict[str, Any]:
    """Return the description of a run.

    Args:
        inputs: the model and its pairs.
        search: the settings.
        edges: the edges of the model.
        size: number of edges of the circuit.
    """
    metric = inputs.make_metric(slice(0, 1))
    method = f"integrated gradients of {search.steps} steps" if search.steps else "one gradient"
    return {
        "study": "circuit",
        "title": f"A circuit of {escape_dollars(Path(inputs.name).name)}",
        "description": (
            "Edges between the components of a model, ranked by their estimated effect on a behaviour "
            f"({method}; half of the pairs), and tested on the other half."
        ),
        **inputs.record,
        "parameters": {
            "metric": metric.description,
            "pairs": len(inputs),
            "steps": search.steps,
            "ablation": search.ablation,
            "ranking": search.by,
            "edges": len(edges),
            "size": size,
            "draws": search.draws,
        },
    }


def _split_pairs(inputs: CircuitInputs, edges: Edges, rows: slice) -> Iterator[slice]:
    """Yield the pairs in batches whose terms fit into memory, in steps of the given slice."""
    _, length = inputs.clean.shape[:2]
    width = inputs.model.config.get_text_config().hidden_size
    batch = max(1, MAX_BYTES_PER_BATCH // (4 * len(edges.senders) * length * width))
    indices = range(len(inputs))[rows]
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        yield slice(part[0], part[-1] + 1, rows.step)


def _prepare_ablation(inputs: CircuitInputs, ablation: str) -> Callable[[slice], CircuitRuns]:
    """Return a function from pairs of one half to their runs; references come from the same half."""
    masks = [None if inputs.mask is None else inputs.mask[half] for half in HALVES]
    if ablation == "mean":
        means = [
            ReferenceMean(inputs.model, inputs.source[half], mask) for half, mask in zip(HALVES, masks, strict=True)
        ]

        def open_runs(rows: slice) -> CircuitRuns:
            mean = means[rows.start % 2]
            references = {"source": mean.references, "source_attention_mask": mean.mask}
            return CircuitRuns(**inputs.select(rows) | references, ablation=ablation, mean=mean)

        return open_runs
    if ablation == "resample":  # drawn once, so that the batches of pairs do not matter
        source = inputs.source.clone()
        for half, mask in zip(HALVES, masks, strict=True):
            references = inputs.source[half]
            drawn = draw_references(inputs.clean[half], references, mask, mask, RESAMPLE_SEED)
            source[half] = references[drawn.to(references.device)]
        inputs = replace(inputs, source=source)
    return lambda rows: CircuitRuns(**inputs.select(rows), ablation=ablation)


def _attribute(
    open_runs: Callable[[slice], CircuitRuns], search: CircuitSearch, batches: list[slice], stages: Stages
) -> xr.Dataset:
    """Return the scores of all edges on all pairs, batch by batch."""
    parts = [
        stages.compute(
            "scores of all edges",
            f"scores-{rows.start}",
            lambda rows=rows: attribute_in_runs(open_runs(rows), steps=search.steps),
        )
        for rows in batches
    ]
    return _join_batches(parts, "score")


def _join_batches(parts: list[xr.Dataset], name: str) -> xr.Dataset:
    """Return the numbers of edges on all batches of pairs, with their mean."""
    joined = xr.concat(parts, dim="batch", data_vars="minimal", coords="minimal", compat="override", join="exact")
    joined = joined.assign_coords(batch=np.arange(joined.sizes["batch"]))
    mean = joined[f"{name}_by_sequence"].astype(float).mean("batch")
    return joined.assign({name: mean.assign_attrs(parts[0][name].attrs)})
