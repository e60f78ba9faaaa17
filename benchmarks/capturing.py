"""What a capture costs, next to the same capture in other libraries, to the model alone, and to its arithmetic alone.

    python benchmarks/capturing.py GGUF [PEERS]

PEERS is the folder of their environments, as `make bench-capturing` leaves it; who is not there is left out, and named.
SmolLM2 is written there once as safetensors, which all can read. All capture the residual stream, the attention
patterns and what each head gives, of 4 sequences of 256 tokens of prose, in float32, and give the logits unless it
says otherwise. They take turns in one session, since machines are noisy; medians are compared. The first capture of a
process, with its checks or its set-up, has a process of its own, in which memory is measured too: from when the model
is loaded. What the others found is held against what we found. Exits with 1 if a bound does not hold.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from captures import SITES
from measuring import HERE, Peer, keep, products_per_second

from mesascope.models.load import load_pretrained
from mesascope.tasks.corpora import load_prose

SEQUENCES, LENGTH, ROUNDS, THREADS = 4, 256, 7, 2
LEAST_SPEED, MOST_MEMORY, MOST_DISTANCE = 1.3, 0.6, 1e-4  # next to the cache of everything, and of the values
LEAST_SPEED_EAGER = 0.98  # next to those who also keep what is asked for only; with logits, as they have
OURS, THEIRS = ("mesascope", "inside"), ("lens", "everything")  # the bounds are on these two: what was asked for
CALLED = {
    ("mesascope", "inside"): "mesascope, without logits",
    ("mesascope", "whole"): "mesascope",
    ("mesascope", "separate"): "mesascope, sdpa and patterns apart",
    ("lens", "everything"): "TransformerLens 4.3, everything",
    ("lens", "filtered"): "TransformerLens 4.3, names_filter",
    ("nnsight", "trace"): "nnsight 0.8",
    ("plain", "outputs"): "transformers, without what heads give",
}

Way = tuple[str, str]


def exported(gguf: Path, peers: Path) -> Path:
    """The model as all can read it, and the tokens that all read, written once."""
    folder = peers / "models" / gguf.stem
    if not (folder / "tokens.json").exists():
        loaded, tokenizer = load_pretrained(gguf)
        assert tokenizer is not None
        config = deepcopy(loaded.config)
        delattr(config, "quantization_config")  # the weights are no longer quantized
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ids = tokenizer(load_prose()[: 20 * SEQUENCES * LENGTH])["input_ids"][: SEQUENCES * LENGTH]
        tokens = torch.tensor(ids).view(SEQUENCES, LENGTH).tolist()
        (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")
    return folder


def operations(model: Path) -> int:
    """Multiplications and additions of the products: linear maps, attention and logits."""
    config = json.loads((model / "config.json").read_text())
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    keys = width // heads * config["num_key_value_heads"]
    tokens, layers = SEQUENCES * LENGTH, config["num_hidden_layers"]
    linear = 2 * width * width + 2 * width * keys + 3 * width * inner
    attention = 2 * LENGTH * width
    return 2 * tokens * (layers * (linear + attention) + width * config["vocab_size"])


def begun(python: str, who: str, model: Path) -> Peer:
    """A process that captures when it is told to."""
    return Peer(python, str(HERE / "captures.py"), who, str(model), str(THREADS))


def timed(pythons: dict[str, str], model: Path) -> dict[Way, float]:
    """The median seconds of each way, all in turns."""
    ways = [way for way in CALLED if way[0] in pythons]
    peers = {who: begun(python, who, model) for who, python in pythons.items()}
    for who, way in ways:
        peers[who].ask("seconds", way)
    rounds = [{(who, way): float(peers[who].ask("seconds", way)) for who, way in ways} for _ in range(ROUNDS)]
    for peer in peers.values():
        peer.end()
    return {way: statistics.median(each[way] for each in rounds) for way in ways}


def first(pythons: dict[str, str], model: Path) -> dict[Way, dict[str, float]]:
    """What the first capture of a process takes, seconds and peak memory in bytes, and how far from ours its sites are.

    A distance is the largest difference, relative to the largest entry in its layer.
    """
    found: dict[Way, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = str(Path(folder) / "ours.npz"), str(Path(folder) / "theirs.npz")
        for who, way in [OURS, *(way for way in CALLED if way[0] in pythons and way != OURS)]:
            peer = begun(pythons[who], who, model)
            seconds, peak = peer.ask("first", way).split()
            found[who, way] = {"seconds": float(seconds), "peak": float(peak)}
            peer.ask("values", way, ours if (who, way) == OURS else theirs)
            peer.end()
            if (who, way) != OURS:
                with np.load(ours) as a, np.load(theirs) as b:
                    found[who, way] |= {site: farthest(a[site], b[site]) for site in SITES if site in b.files}
    return found


def farthest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of any layer, relative to the largest entry of that layer."""
    if a.shape != b.shape:
        sys.exit(f"peers must find arrays of one shape, but got {b.shape} and ours is {a.shape}")
    return max(float(abs(x - y).max() / abs(x).max()) for x, y in zip(a, b, strict=True))


def main(gguf: Path, peers: Path) -> None:
    """Take turns, print, and judge."""
    model = exported(gguf, peers)
    pythons = {"mesascope": sys.executable, "plain": sys.executable}
    for who, folder in {"lens": "lens4", "nnsight": "nnsight"}.items():
        python = peers / folder / "bin" / "python"
        if python.exists():
            pythons[who] = str(python)
        else:
            print(f"{who} is left out: there is no {python}; `make bench-capturing` installs it")
    if THEIRS[0] not in pythons:
        sys.exit("the bounds must be held against TransformerLens 4.3, but it is not there; run `make bench-capturing`")
    seconds, began = timed(pythons, model), first(pythons, model)
    floor = operations(model) / products_per_second(THREADS)
    show(seconds, began, floor)
    keep(
        "capturing",
        {"seconds": named(seconds), "first": named(began), "floor": floor, "rounds": ROUNDS, "threads": THREADS},
    )
    sys.exit(not judged(seconds, began))


def named(found: Mapping[Way, object]) -> dict[str, object]:
    """The same by one word for each way."""
    return {f"{who} {way}": each for (who, way), each in found.items()}


def show(seconds: dict[Way, float], began: dict[Way, dict[str, float]], floor: float) -> None:
    """The table."""
    print(f"{'':40}{'a capture':>20}{'the first':>14}{'peak':>10}  farthest from ours")
    for way, once in began.items():
        each = f"{seconds[way]:9.2f} s, {seconds[way] / seconds[OURS]:5.2f} x"
        gaps = ", ".join(f"{site} {once[site]:.0e}" for site in SITES if site in once)
        print(f"{CALLED[way]:40}{each}{once['seconds']:12.2f} s{once['peak'] / 1e9:7.2f} GB  {gaps}")
    print(f"{'arithmetic alone, with logits':40}{floor:9.2f} s, {floor / seconds[OURS]:5.2f} x")


def judged(seconds: dict[Way, float], began: dict[Way, dict[str, float]]) -> bool:
    """Whether every bound holds; each is printed."""
    speed, memory = seconds[THEIRS] / seconds[OURS], began[OURS]["peak"] / began[THEIRS]["peak"]
    gap = max(once[site] for once in began.values() for site in SITES if site in once)
    whole = seconds["mesascope", "whole"]
    held = {
        f"{speed:.2f} times as fast as its cache of everything (at least {LEAST_SPEED})": speed >= LEAST_SPEED,
        f"peak memory, {memory:.2f} of its cache of everything (at most {MOST_MEMORY})": memory <= MOST_MEMORY,
        f"farthest value, {gap:.1e} (at most {MOST_DISTANCE:.0e})": gap <= MOST_DISTANCE,
    }
    for way in (("nnsight", "trace"), ("plain", "outputs")):
        if way in seconds:
            ratio = seconds[way] / whole
            line = f"{ratio:.2f} times as fast as {CALLED[way]} (at least {LEAST_SPEED_EAGER})"
            held[line] = ratio >= LEAST_SPEED_EAGER
    for line, fine in held.items():
        print(line if fine else f"{line}: DOES NOT HOLD")
    return all(held.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ".peers"))
