"""What a training step costs, next to the same step in other libraries and to its arithmetic alone.

    python benchmarks/training.py [PEERS]

PEERS is the folder of their environments, as `make bench-training` leaves it; who is not there is left out, and named.
All take turns in one session, since machines are noisy; medians are compared, each with the number of threads at which
it is fastest. Exits with 1 if a bound does not hold.
"""

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from measuring import HERE, Peer, keep, products_per_second
from steps import BATCH, LAYERS, LENGTH, WIDTH

ROUNDS, STEPS, THREADS = 15, 10, (1, 2)
LEAST = {"lens": 2.0, "plain": 1.8}  # times as fast
CALLED = {
    "mesascope": "mesascope",
    "plain": "PyTorch, scaled_dot_product_attention",
    "lens": "TransformerLens 2.18",
    "gpt2": "transformers, GPT-2 (with its MLP)",
}


def operations() -> int:
    """Multiplications and additions of the products of one step: forward, and twice as much backward."""
    tokens = BATCH * LENGTH
    projections = 4 * 2 * tokens * WIDTH * WIDTH
    attention = 2 * 2 * tokens * LENGTH * WIDTH
    return 3 * LAYERS * (projections + attention)


def timed(pythons: Mapping[str, str], threads: int) -> dict[str, float]:
    """The median seconds of a step of each, by turns."""
    peers = {who: Peer(python, str(HERE / "steps.py"), who, str(threads)) for who, python in pythons.items()}
    rounds = [{who: float(peer.ask(STEPS)) / STEPS for who, peer in peers.items()} for _ in range(ROUNDS)]
    for peer in peers.values():
        peer.end()
    return {who: statistics.median(each[who] for each in rounds) for who in peers}


def main(peers: Path) -> None:
    """Take turns, print, and judge."""
    pythons = {"lens": str(peers / "lens2" / "bin" / "python")}
    there = {who: pythons.get(who, sys.executable) for who in CALLED}
    for who in [who for who, python in there.items() if python != sys.executable and not Path(python).exists()]:
        print(f"{CALLED[who]} is left out: there is no {there.pop(who)}; `make bench-training` installs it")
    found: dict[str, dict[int, float]] = {who: {} for who in there}
    for threads in THREADS:
        for who, seconds in timed(there, threads).items():
            found[who][threads] = seconds
    best = {who: min(times.values()) for who, times in found.items()}
    floor = min(operations() / products_per_second(threads) for threads in THREADS)
    held = True
    for who, times in found.items():
        each = ", ".join(f"{1e3 * seconds:6.1f} ms with {threads}" for threads, seconds in times.items())
        ratio, least = best[who] / best["mesascope"], LEAST.get(who)
        fine = least is None or ratio >= least
        held &= fine
        bound = "" if least is None else f" (at least {least})"
        print(f"{CALLED[who]:40s} {each}: {ratio:.2f} times ours{bound}{'' if fine else ': DOES NOT HOLD'}")
    print(f"{'arithmetic alone':40s} {1e3 * floor:6.1f} ms, {floor / best['mesascope']:.2f} of ours")
    keep("training", {"seconds": found, "floor": floor, "steps": STEPS * ROUNDS})
    sys.exit(not held)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".peers"))
