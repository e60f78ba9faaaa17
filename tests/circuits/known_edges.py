"""Precision and recall of instruments on known circuits.

``python -m tests.circuits.known_edges`` writes the tables; with names of circuits, their rows only.
"""

import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import xarray as xr
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mesascope.activations.split_forward import SplitForward
from mesascope.circuits import attribute_edges, find_edges, patch_edges, select_edges
from mesascope.ground_truth.models.circuits import PLANS, KnownCircuit, build_known_circuit
from mesascope.interventions import Metric, logit_difference
from mesascope.models.transformer import Decoder

PAGE = Path(__file__).parents[2] / "docs" / "circuits.md"
MARKS = "<!-- known circuits -->", "<!-- end of known circuits -->"
REFERENCE_MARKS = "<!-- known circuits by reference -->", "<!-- end of known circuits by reference -->"
DRAWS, REFERENCE_DRAWS = 20, 5
OTHER_EDGES = 60  # edges outside the circuit that are patched, drawn at random
ScoreEdges = Callable[[KnownCircuit, int], xr.DataArray]


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


def _list_arguments(known: KnownCircuit, ablation: str) -> tuple[Decoder, Tensor, Tensor, Metric]:
    source = known.counterfactual if ablation == "counterfactual" else known.references
    return known.model, known.clean, source, logit_difference(known.answer, known.wrong_answer)


def _attribute(steps: int, ablation: str = "counterfactual") -> ScoreEdges:
    def attribute(known: KnownCircuit, seed: int) -> xr.DataArray:
        return attribute_edges(*_list_arguments(known, ablation), steps=steps, ablation=ablation, seed=seed)["score"]

    return attribute


def _patch(ablation: str = "counterfactual") -> ScoreEdges:
    """Patch the circuit and some other edges: a run per edge takes too long for all of them."""

    def patch(known: KnownCircuit, seed: int) -> xr.DataArray:
        circuit = select_known_edges(known, ablation)
        every = find_edges(SplitForward(known.model, known.clean))
        others = [
            (every.senders[sender].name, every.receivers[receiver].name)
            for sender, receiver in every.exist.nonzero().tolist()
        ]
        others = [edge for edge in others if edge not in circuit]
        edges = [*sorted(circuit), *random.Random(seed).sample(others, OTHER_EDGES)]
        return patch_edges(*_list_arguments(known, ablation), edges, ablation=ablation, seed=seed)["effect"]

    return patch


@dataclass(frozen=True, kw_only=True)
class Method:
    """An instrument with an ablation.

    Attributes:
        score: scores the edges of a circuit, with a seed.
        ablation: what ablated edges carry.
    """

    score: ScoreEdges
    ablation: str = "counterfactual"


METHODS: Mapping[str, Method] = {
    "EAP": Method(score=_attribute(0)),
    "EAP-IG": Method(score=_attribute(5)),
    "exact patching": Method(score=_patch()),
}
REFERENCE_METHODS: Mapping[str, Method] = {
    "mean: EAP-IG": Method(score=_attribute(5, "mean"), ablation="mean"),
    "mean: EAP-IG, 20 steps": Method(score=_attribute(20, "mean"), ablation="mean"),
    "mean: exact patching": Method(score=_patch("mean"), ablation="mean"),
    "resample: EAP-IG": Method(score=_attribute(5, "resample"), ablation="resample"),
    "resample: exact patching": Method(score=_patch("resample"), ablation="resample"),
}


def select_known_edges(known: KnownCircuit, ablation: str) -> frozenset[tuple[str, str]]:
    """Return the edges that matter with an ablation."""
    return known.edges if ablation == "counterfactual" else known.reference_edges


def evaluate_method(method: str, circuit: str, draws: int = DRAWS) -> Row:
    """Return what an instrument finds of a circuit, mean over draws of heads, decoys and prompts."""
    found = [_evaluate_once((METHODS | REFERENCE_METHODS)[method], circuit, seed) for seed in range(draws)]
    numbers = {name: mean(getattr(row, name) for row in found) for name in ("precision", "recall", "auroc")}
    return Row(**numbers, outside=max(row.outside for row in found))


def _evaluate_once(method: Method, circuit: str, seed: int) -> Row:
    known = build_known_circuit(circuit, seed, num_pairs=2)
    score, edges = method.score(known, seed), select_known_edges(known, method.ablation)
    selected = set(select_edges(score))
    sizes = np.abs(score.values)
    inside = np.array([[(s, r) in edges for r in score["receiver"].values] for s in score["sender"].values])
    finite = np.isfinite(sizes)
    return Row(
        precision=len(selected & edges) / len(selected),
        recall=len(selected & edges) / len(edges),
        auroc=float(roc_auc_score(inside[finite], sizes[finite])),
        outside=float(sizes[finite & ~inside].max() / sizes[finite].max()),
    )


def format_row(methods: Mapping[str, Method], circuit: str, draws: int) -> str:
    """Return the row of a circuit in the table of some methods."""
    cells = []
    for method in methods:
        row = evaluate_method(method, circuit, draws)
        outside = f"{row.outside:.0e}" if row.outside else "0"
        cells.append(f"{row.precision:.2f} / {row.recall:.2f} / {row.auroc:.2f} / {outside}")
    plan, by_reference = PLANS[circuit], methods is REFERENCE_METHODS
    edges = (plan.reference_edges or plan.edges) if by_reference else plan.edges
    return f"| {circuit}{'' if by_reference else f': {plan.description}'} | {len(edges)} | {' | '.join(cells)} |"


def write_table(marks: tuple[str, str], methods: Mapping[str, Method], circuits: Sequence[str], draws: int) -> None:
    """Write a table between two marks of the page; the rows of other circuits stay as they are."""
    before, rest = PAGE.read_text(encoding="utf-8").split(marks[0])
    old, after = rest.split(marks[1])
    rows = {re.split(r"[:|]", line)[1].strip(): line for line in old.splitlines() if line.startswith("| ")}
    for circuit in circuits:
        rows[circuit] = format_row(methods, circuit, draws)
        sys.stdout.write(rows[circuit] + "\n")
        sys.stdout.flush()
    head = ["| circuit | edges | " + " | ".join(methods) + " |", "|---" * (2 + len(methods)) + "|"]
    table = "\n".join([*head, *(rows[circuit] for circuit in PLANS if circuit in rows)])
    PAGE.write_text(f"{before}{marks[0]}\n{table}\n{marks[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    named = sys.argv[1:] or list(PLANS)
    write_table(MARKS, METHODS, named, DRAWS)
    write_table(REFERENCE_MARKS, REFERENCE_METHODS, named, REFERENCE_DRAWS)
