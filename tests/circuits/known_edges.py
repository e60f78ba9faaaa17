"""Precision and recall of instruments on known circuits: ``python -m tests.circuits.known_edges`` writes the table."""

import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import xarray as xr
from sklearn.metrics import roc_auc_score

from mesascope.circuits import attribute_edges, patch_edges, select_edges
from mesascope.ground_truth.models.circuits import PLANS, KnownCircuit, build_known_circuit
from mesascope.interventions import logit_difference

PAGE = Path(__file__).parents[2] / "docs" / "circuits.md"
START, END = "<!-- known circuits -->", "<!-- end of known circuits -->"
DRAWS = 20
OTHER_EDGES = 60  # edges outside the circuit that are patched, drawn at random


@dataclass(frozen=True, kw_only=True)
class Row:
    """What an instrument finds of a circuit.

    Attributes:
        precision: fraction of the selected edges that are in the circuit, mean over draws.
        recall: fraction of the edges of the circuit that are selected.
        auroc: probability that an edge of the circuit has a larger score than another edge.
        outside: largest score outside the circuit, as a fraction of the largest one.
    """

    precision: float
    recall: float
    auroc: float
    outside: float


def _attribute(steps: int) -> Callable[[KnownCircuit, int], xr.DataArray]:
    def attribute(known: KnownCircuit, seed: int) -> xr.DataArray:
        metric = logit_difference(known.answer, known.wrong_answer)
        return attribute_edges(known.model, known.clean, known.counterfactual, metric, steps=steps)["score"]

    return attribute


def _patch(known: KnownCircuit, seed: int) -> xr.DataArray:
    """Patch the circuit and some other edges: a run per edge takes too long for all of them."""
    metric = logit_difference(known.answer, known.wrong_answer)
    arguments = (known.model, known.clean, known.counterfactual, metric)
    score = attribute_edges(*arguments, steps=0)["score"]
    others = [
        (str(sender), str(receiver))
        for sender, row in zip(score["sender"].values, score.values, strict=True)
        for receiver, value in zip(score["receiver"].values, row, strict=True)
        if np.isfinite(value) and (sender, receiver) not in known.edges
    ]
    edges = [*sorted(known.edges), *random.Random(seed).sample(others, OTHER_EDGES)]
    return patch_edges(*arguments, edges)["effect"]


METHODS: Mapping[str, Callable[[KnownCircuit, int], xr.DataArray]] = {
    "EAP": _attribute(0),
    "EAP-IG": _attribute(5),
    "exact patching": _patch,
}


def evaluate_method(method: str, circuit: str, draws: int = DRAWS) -> Row:
    """Return what an instrument finds of a circuit, mean over draws of heads, decoys and prompts."""
    found = [_evaluate_once(METHODS[method], circuit, seed) for seed in range(draws)]
    numbers = {name: mean(getattr(row, name) for row in found) for name in ("precision", "recall", "auroc")}
    return Row(**numbers, outside=max(row.outside for row in found))


def _evaluate_once(score_edges: Callable[[KnownCircuit, int], xr.DataArray], circuit: str, seed: int) -> Row:
    known = build_known_circuit(circuit, seed, num_pairs=2)
    score = score_edges(known, seed)
    selected = set(select_edges(score))
    sizes = np.abs(score.values)
    inside = np.array([[(s, r) in known.edges for r in score["receiver"].values] for s in score["sender"].values])
    finite = np.isfinite(sizes)
    return Row(
        precision=len(selected & known.edges) / len(selected),
        recall=len(selected & known.edges) / len(known.edges),
        auroc=float(roc_auc_score(inside[finite], sizes[finite])),
        outside=float(sizes[finite & ~inside].max() / sizes[finite].max()),
    )


def format_table() -> str:
    """Return the table."""
    head = "| circuit | edges | " + " | ".join(METHODS) + " |"
    lines = [head, "|---" * (2 + len(METHODS)) + "|"]
    for circuit, plan in PLANS.items():
        cells = []
        for method in METHODS:
            row = evaluate_method(method, circuit)
            outside = f"{row.outside:.0e}" if row.outside else "0"
            cells.append(f"{row.precision:.2f} / {row.recall:.2f} / {row.auroc:.2f} / {outside}")
        lines.append(f"| {circuit}: {plan.description} | {len(plan.edges)} | {' | '.join(cells)} |")
        sys.stdout.write(lines[-1] + "\n")
        sys.stdout.flush()
    return "\n".join(lines)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{format_table()}\n{END}{after}", encoding="utf-8")
