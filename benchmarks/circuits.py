"""Scores of all edges, compared with the same scores in auto-circuit: time, memory and agreement.

    python benchmarks/circuits.py GGUF [PEERS]

PEERS is the folder of the environments, as `make bench-circuits` leaves it. SmolLM2 is written there once as
safetensors, and as many prompt pairs as both libraries score: random tokens, and the first of them again; in the
counterfactual, nothing is repeated. Both libraries score edges into the query, key and value of each head and into each
MLP, by the same logit difference, two pairs at a time. Each method runs in a process of its own on one thread, and the
time of the processor is compared, which other processes on the machine change little.

EAP has one definition, so that both libraries must agree. EAP-IG is an average over a path, which differs: mesascope
moves the embedding, auto-circuit the terms on all edges at once. Both are therefore compared with measured effects too.
Exits with 1 if a bound does not hold.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from capturing import exported
from circuit_scores import BATCH, STEPS, Scores
from measuring import HERE, Peer, keep
from scipy.stats import rankdata
from transformers import PreTrainedTokenizerBase

from mesascope.circuits import patch_edges, rank_edges
from mesascope.circuits.faithfulness import name_edges
from mesascope.interventions import logit_difference
from mesascope.models.load import load_pretrained

LENGTH = 16  # tokens before the repetition
PAIRS, THREADS = 4, 1
NUM_PATCHED = 10  # highest-ranked edges of each library whose effect is measured
MIN_CORRELATION, MIN_OVERLAP = 0.9999, 0.98  # of EAP scores
MAX_TIME, MAX_MEMORY = 1.0, 1.0  # relative to auto-circuit
LIBRARIES, METHODS = ("mesascope", "auto-circuit"), ("eap", "eap-ig")

Run = tuple[str, str]  # library and method


def sample_pairs(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> list[dict[str, str]]:
    """Return prompt pairs as the lines of a pair file.

    The clean prompt is random words of one token and all but the last of them again; in the counterfactual prompt, the
    first half has other words. The answer is the last word of the first half.
    """
    texts = (str(tokenizer.decode([token])) for token in range(len(tokenizer)))
    words = [text for text in texts if text[:1] == " " and len(text) > 3 and text[1:].isascii() and text[1:].islower()]
    words = [word for word in words if word[1:].isalpha()]
    generator = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < count:
        drawn = generator.choice(words, 2 * LENGTH, replace=False).tolist()
        half, other = drawn[:LENGTH], drawn[LENGTH:]
        clean, counterfactual = "".join(half + half[:-1]), "".join(other + half[:-1])
        pair = {"clean": clean, "counterfactual": counterfactual, "answer": half[-1], "wrong_answer": other[-1]}
        expected = {"clean": 2 * LENGTH - 1, "counterfactual": 2 * LENGTH - 1, "answer": 1, "wrong_answer": 1}
        if {name: len(encode(tokenizer, text)) for name, text in pair.items()} == expected:
            pairs.append(pair)
    return pairs


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def write_tokens(model: Path) -> Path:
    """Write the tokens of prompt pairs beside the model."""
    file = model / "circuit-pairs.json"
    _, tokenizer = load_pretrained(model)
    assert tokenizer is not None
    pairs = sample_pairs(tokenizer, PAIRS, seed=0)
    prompts = {name: [encode(tokenizer, pair[name]) for pair in pairs] for name in ("clean", "counterfactual")}
    answers = {name: [encode(tokenizer, pair[name])[0] for pair in pairs] for name in ("answer", "wrong_answer")}
    file.write_text(json.dumps(prompts | answers), encoding="utf-8")
    return file


def measure(pythons: Mapping[str, str], model: Path, pairs: Path) -> tuple[dict[Run, dict[str, float]], dict]:
    """Return the seconds and the peak memory of each method, and its scores; each has a process of its own."""
    costs: dict[Run, dict[str, float]] = {}
    scores: dict[Run, Scores] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.npz"
        for library, method in [(library, method) for method in METHODS for library in LIBRARIES]:
            script = str(HERE / "circuit_scores.py")
            peer = Peer(pythons[library], script, library, str(model), str(pairs), str(THREADS))
            seconds, cpu_seconds, largest = map(float, peer.ask(method, file).split())
            peer.end()
            costs[library, method] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": largest}
            with np.load(file) as arrays:
                scores[library, method] = Scores(**{name: arrays[name] for name in arrays.files})
    return costs, scores


def label(scores: Scores) -> xr.DataArray:
    """Return scores with the names of senders and receivers."""
    coords = {"sender": list(scores.senders), "receiver": list(scores.receivers)}
    return xr.DataArray(scores.values, coords, ("sender", "receiver"))


def compare(ours: xr.DataArray, theirs: xr.DataArray) -> dict[str, float]:
    """Return rank and linear correlation over all edges, and the fraction of the top 1 % that both have."""
    if not ours.notnull().equals(theirs.notnull()):
        sys.exit("both libraries must score the same edges, but they do not")
    edges = ours.notnull().values
    first, second = ours.values[edges], theirs.values[edges]
    size = round(len(first) / 100)
    shared = set(rank_edges(ours)[:size].tolist()) & set(rank_edges(theirs)[:size].tolist())
    return {
        "edges": len(first),
        "spearman": correlate(rankdata(first), rankdata(second)),
        "pearson": correlate(first, second),
        "magnitude_spearman": correlate(rankdata(abs(first)), rankdata(abs(second))),
        "overlap": len(shared) / size,
        "largest_difference": float(abs(first - second).max() / abs(first).max()),
    }


def correlate(first: np.ndarray, second: np.ndarray) -> float:
    """Return Pearson's correlation; that of ranks is Spearman's."""
    return float(np.corrcoef(first, second)[0, 1])


def measure_effects(model: Path, pairs: Path, scores: Mapping[str, xr.DataArray]) -> dict[str, dict[str, float]]:
    """Compare scores with measured effects, over the highest-ranked edges of all of them."""
    loaded, _ = load_pretrained(model)
    tokens = {name: torch.tensor(values) for name, values in json.loads(pairs.read_text(encoding="utf-8")).items()}
    edges = sorted({edge for each in scores.values() for edge in name_edges(each, rank_edges(each)[:NUM_PATCHED])})
    metric = logit_difference(tokens["answer"], tokens["wrong_answer"])
    effect = patch_edges(loaded, tokens["clean"], tokens["counterfactual"], metric, edges)["effect"]
    measured = np.array([float(effect.sel(sender=sender, receiver=receiver)) for sender, receiver in edges])
    found = {}
    for name, each in scores.items():
        estimated = np.array([float(each.sel(sender=sender, receiver=receiver)) for sender, receiver in edges])
        error = abs(estimated - measured).sum() / abs(measured).sum()
        found[name] = {
            "edges": len(edges),
            "spearman": correlate(rankdata(estimated), rankdata(measured)),
            "pearson": correlate(estimated, measured),
            "relative_error": float(error),
        }
    return found


def main(gguf: Path, peers: Path) -> None:
    """Measure, print, and judge."""
    model = exported(gguf, peers)
    python = peers / "auto-circuit" / "bin" / "python"
    if not python.exists():
        sys.exit(f"the scores must be compared with auto-circuit, but there is no {python}; run `make bench-circuits`")
    pairs = write_tokens(model)
    costs, scores = measure({"mesascope": sys.executable, "auto-circuit": str(python)}, model, pairs)
    print(
        f"{PAIRS} pairs of {2 * LENGTH - 1} tokens, {BATCH} at a time; {STEPS} gradients of EAP-IG; {THREADS} threads"
    )
    print(f"{'':30}{'time':>10}{'processor':>12}{'peak':>12}")
    for (library, method), cost in costs.items():
        times = f"{cost['seconds']:8.1f} s{cost['cpu_seconds']:10.1f} s"
        print(f"{f'{library}, {method}':30}{times}{cost['peak'] / 1e9:9.2f} GB")
    named = {run: label(each) for run, each in scores.items()}
    agreement = {method: compare(named["mesascope", method], named["auto-circuit", method]) for method in METHODS}
    for method, found in agreement.items():
        print(f"{method}: {', '.join(f'{name} {value:.6g}' for name, value in found.items())}")
    columns = {f"{library}, {method}": named[library, method] for library in LIBRARIES for method in METHODS}
    effects = measure_effects(model, pairs, columns)
    for name, found in effects.items():
        print(f"{name} and measured effects: {', '.join(f'{key} {value:.4g}' for key, value in found.items())}")
    ends = scores["mesascope", "eap"].ends.mean(1)
    print(f"logit difference: clean {ends[0]:.2f}, counterfactual {ends[1]:.2f}")
    results = {"costs": {f"{library} {method}": cost for (library, method), cost in costs.items()}}
    keep("circuits", {**results, "agreement": agreement, "effects": effects, "threads": THREADS})
    sys.exit(not judge(costs, agreement["eap"]))


def judge(costs: Mapping[Run, dict[str, float]], eap: Mapping[str, float]) -> bool:
    """Return whether every bound holds; each is printed."""
    ours, theirs = (costs[library, "eap-ig"] for library in LIBRARIES)
    ratio = ours["cpu_seconds"] / theirs["cpu_seconds"]
    memory = ours["peak"] / theirs["peak"]
    bounds = {
        f"EAP scores, rank correlation {eap['spearman']:.6f} (at least {MIN_CORRELATION})": eap["spearman"]
        >= MIN_CORRELATION,
        f"EAP scores, correlation {eap['pearson']:.6f} (at least {MIN_CORRELATION})": eap["pearson"] >= MIN_CORRELATION,
        f"top 1 % by EAP, {eap['overlap']:.3f} of the edges shared (at least {MIN_OVERLAP})": eap["overlap"]
        >= MIN_OVERLAP,
        f"EAP-IG, {ratio:.2f} times the processor time of auto-circuit (at most {MAX_TIME})": ratio <= MAX_TIME,
        f"EAP-IG, {memory:.2f} times its peak memory (at most {MAX_MEMORY})": memory <= MAX_MEMORY,
    }
    for line, holds in bounds.items():
        print(line if holds else f"{line}: DOES NOT HOLD")
    return all(bounds.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ".peers"))
