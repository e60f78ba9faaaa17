"""The circuit of induction in a language model: cost of the search, ranks of the heads of induction, faithfulness.

    python benchmarks/induction.py GGUF [OUT]

Searches the circuit of SmolLM2 as `mesascope circuit` does, on 32 prompt pairs of circuits.py: 16 random tokens and the
first 15 of them again; in the counterfactual, the first half has other tokens. Half of the pairs rank the edges by
EAP-IG of 5 steps, the other half tests the circuit of the top 1 %, beside 20 random ones. The previous-token and
induction heads are those that `mesascope inspect` reports on repeated random tokens; their edges are looked up in the
ranking, beside those of all other heads. OUT is a folder for the run, which must be new; by default it is not kept.
Exits with 1 if a bound does not hold.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from measuring import forget_peak, keep, peak
from scipy.stats import mannwhitneyu

from circuits import LENGTH, sample_pairs
from mesascope import api
from mesascope.analyses import repeated_token_heads
from mesascope.circuits import rank_edges
from mesascope.circuits.faithfulness import name_edges
from mesascope.inspection._passes import PASSES, InspectionInputs
from mesascope.inspection._text import non_special_tokens
from mesascope.models.load import load_pretrained
from mesascope.store import Run
from mesascope.train import limit_threads

PAIRS, STEPS, THREADS = 32, 5, 1
MAX_SECONDS, MAX_BYTES = 240, 6e9  # of a processor, for the scores of all edges on 32 pairs
PREVIOUS, INDUCTION = "previous token", "induction"


class Costs:
    """Seconds of a process and of its threads together, and peak memory, by stage of a search."""

    def __init__(self) -> None:
        self.by_stage: dict[str, dict[str, float]] = {}
        self._begin()

    def note(self, stage: str, done: int, total: int) -> None:
        """Add what has passed since the last call to a stage."""
        costs = self.by_stage.setdefault(stage, {"seconds": 0.0, "cpu_seconds": 0.0, "peak": 0.0})
        costs["seconds"] += time.perf_counter() - self._wall
        costs["cpu_seconds"] += time.process_time() - self._cpu
        costs["peak"] = max(costs["peak"], peak())
        print(f"{done} of {total}: {stage}", file=sys.stderr, flush=True)
        self._begin()

    def _begin(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        forget_peak()


def search(gguf: Path, folder: Path) -> tuple[Run, Costs]:
    """Search the circuit."""
    _, tokenizer = load_pretrained(gguf)
    assert tokenizer is not None
    file = folder.with_suffix(".jsonl")
    lines = [json.dumps(pair) for pair in sample_pairs(tokenizer, PAIRS, seed=1)]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    costs = Costs()
    run = api.circuit(gguf, pairs=file, steps=STEPS, out=folder, progress=costs.note)
    return run, costs


def find_heads(gguf: Path) -> dict[str, list[str]]:
    """Return the heads that attend to the previous token, those of induction, and all others."""
    model, tokenizer = load_pretrained(gguf)
    assert tokenizer is not None
    inputs = InspectionInputs(
        token_ids=torch.zeros(1, 1, dtype=torch.long), allowed_tokens=non_special_tokens(tokenizer, model)
    )
    (part,) = (each for each in PASSES if repeated_token_heads.name in each.analyses)
    roles = part.run(model, inputs, [repeated_token_heads])[repeated_token_heads.name]["role"]
    names: dict[str, list[str]] = {PREVIOUS: [], INDUCTION: [], "other": []}
    for layer, head in np.ndindex(roles.shape):
        found = [role for role in (PREVIOUS, INDUCTION) if role in str(roles.values[layer, head]).split(", ")]
        for role in found or ["other"]:
            names[role].append(f"L{layer}.H{head}")
    return names


def rank_heads(score: xr.DataArray, heads: dict[str, list[str]]) -> dict[str, Any]:
    """Return the best rank of an edge out of each head, from 1, by role; and of edges between roles."""
    edges = name_edges(score, rank_edges(score))
    best: dict[str, int] = {}
    for rank, (sender, _) in enumerate(edges, 1):
        best.setdefault(sender, rank)
    by_role = {role: sorted((best[name], name) for name in names) for role, names in heads.items()}
    groups = count_groups(score)
    keys = {f"{layer}.H{int(head) // groups}.k" for layer, head in (name.split(".H") for name in heads[INDUCTION])}
    between = [
        (rank, f"{sender} -> {receiver}")
        for rank, (sender, receiver) in enumerate(edges, 1)
        if sender in heads[PREVIOUS] and receiver in keys
    ]
    others = [rank for rank, _ in by_role["other"]]
    return {
        "edges": len(edges),
        "best": by_role,
        "previous_to_induction_keys": between,
        "p": {
            role: float(mannwhitneyu([rank for rank, _ in by_role[role]], others, alternative="less").pvalue)
            for role in (PREVIOUS, INDUCTION)
            if by_role[role]
        },
    }


def count_groups(score: xr.DataArray) -> int:
    """Return the number of heads that share a key-value head in layer 0."""
    queries, keys = (
        sum(str(name).startswith("L0.H") and str(name).endswith(letter) for name in score["receiver"].values)
        for letter in (".q", ".k")
    )
    return queries // keys


def describe(ranks: list[tuple[int, str]], count: int = 8) -> str:
    """Return the best ranks as text."""
    return ", ".join(f"{name} {rank}" for rank, name in ranks[:count]) + (" ..." if len(ranks) > count else "")


def main(gguf: Path, out: Path | None) -> None:
    """Search, print, and judge."""
    with limit_threads(THREADS), tempfile.TemporaryDirectory() as folder:
        run, costs = search(gguf, out or Path(folder) / "run")
        score, test = run.read_results("edge_scores")["score"], run.read_results("circuit_test")
        edges = run.read_results("circuit")
        curve = run.read_results("circuit_faithfulness")
        ranks = rank_heads(score, find_heads(gguf))
    print(f"{PAIRS} pairs of {2 * LENGTH - 1} tokens, {ranks['edges']} edges, {THREADS} threads")
    for stage, each in costs.by_stage.items():
        print(
            f"{stage:40}{each['seconds']:8.1f} s{each['cpu_seconds']:8.1f} s of processors{each['peak'] / 1e9:7.2f} GB"
        )
    for rank in range(20):
        edge = edges.isel(rank=rank)
        numbers = ", ".join(f"{name} {float(edge[name]):.3g}" for name in ("score", "low", "high", "effect"))
        print(f"{rank + 1:3} {edge['sender_name'].item()} -> {edge['receiver_name'].item()}: {numbers}")
    for role, found in ranks["best"].items():
        middle = np.median([rank for rank, _ in found]) if found else float("nan")
        print(f"{role}: {len(found)} heads, median of the best rank of an edge {middle:.0f}: {describe(found)}")
    print(f"previous token to the keys of induction: {describe(ranks['previous_to_induction_keys'])}")
    print(f"p (rank sum): {ranks['p']}")
    print(test.attrs["description"])
    means = {name: curve[name].values for name in ("faithfulness", "completeness")} | {
        "random": curve["random"].mean("draw").values
    }
    for name, values in means.items():
        by_size = zip(curve["circuit_size"].values.tolist(), values, strict=True)
        print(f"{name}: {', '.join(f'{size}: {value:.3f}' for size, value in by_size)}")
    keep("induction", {"costs": costs.by_stage, "ranks": ranks, "test": test.attrs["description"], "threads": THREADS})
    sys.exit(not judge(costs, test, ranks))


def judge(costs: Costs, test: xr.Dataset, ranks: dict[str, Any]) -> bool:
    """Return whether every bound holds; each is printed."""
    scores = costs.by_stage["scores of all edges"]
    seconds = 2 * scores["cpu_seconds"]  # half of the pairs are scored
    faithfulness, largest = float(test["faithfulness"]), float(test["random"].max())
    circuit = round(ranks["edges"] / 100)
    inside = [min((rank for rank, _ in ranks["best"][role]), default=sys.maxsize) for role in (PREVIOUS, INDUCTION)]
    bounds = {
        f"scores of all edges on {PAIRS} pairs, {seconds:.0f} s of a processor (at most {MAX_SECONDS})": seconds
        <= MAX_SECONDS,
        f"their peak memory, {scores['peak'] / 1e9:.2f} GB (at most {MAX_BYTES / 1e9:.0f})": scores["peak"]
        <= MAX_BYTES,
        f"faithfulness of the top 1 %, {faithfulness:.3f} (above {largest:.3f}, the largest of the random ones)": (
            faithfulness > largest
        ),
        f"best ranks of a previous-token and an induction head, {inside} (at most {circuit})": max(inside) <= circuit,
    }
    for line, holds in bounds.items():
        print(line if holds else f"{line}: DOES NOT HOLD")
    return all(bounds.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
