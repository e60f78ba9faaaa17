"""What a training step costs, next to the same step in other libraries and to its arithmetic alone.

    python benchmarks/training.py [PEERS]

PEERS is the folder of their environments, as `make bench-training` leaves it; who is not there is left out, and named.
All take turns in one session, since machines are noisy; medians are compared, each with the number of threads at which
it is fastest. Exits with 1 if a bound does not hold.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from steps import BATCH, LAYERS, LENGTH, WIDTH

from mesascope.train import threads as using

HERE = Path(__file__).parent
ROUNDS, STEPS, THREADS = 15, 10, (1, 2)
LEAST = {"lens": 2.0, "plain": 1.8}  # times as fast
CALLED = {
    "mesascope": "mesascope",
    "plain": "PyTorch, scaled_dot_product_attention",
    "lens": "TransformerLens 2.18",
    "gpt2": "transformers, GPT-2 (with its MLP)",
}


class Peer:
    """A process that steps when it is told to."""

    def __init__(self, python: str, who: str, threads: int) -> None:
        words = [python, str(HERE / "steps.py"), who, str(threads)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.times: list[float] = []
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready.startswith("ready"):
            sys.exit(f"{who} must be able to take a step, but it ended; run `{' '.join(words)}` to see why")

    def turn(self) -> None:
        """A few steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{STEPS}\n")
        self.process.stdin.flush()
        self.times.append(float(self.process.stdout.readline()) / STEPS)

    def end(self) -> float:
        """Let it go; its median."""
        self.process.communicate()
        return statistics.median(self.times)


def operations() -> int:
    """Multiplications and additions of the products of one step: forward, and twice as much backward."""
    tokens = BATCH * LENGTH
    projections = 4 * 2 * tokens * WIDTH * WIDTH
    attention = 2 * 2 * tokens * LENGTH * WIDTH
    return 3 * LAYERS * (projections + attention)


def products_per_second(threads: int) -> float:
    """Operations a second in a large product of matrices."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    with using(threads):
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(times)


def main(peers: Path) -> None:
    """Take turns, print, and judge."""
    pythons = {"lens": str(peers / "lens2" / "bin" / "python")}
    there = {who: pythons.get(who, sys.executable) for who in CALLED}
    for who in [who for who, python in there.items() if python != sys.executable and not Path(python).exists()]:
        print(f"{CALLED[who]} is left out: there is no {there.pop(who)}; `make bench-training` installs it")
    found: dict[str, dict[int, float]] = {who: {} for who in there}
    for threads in THREADS:
        running = {who: Peer(python, who, threads) for who, python in there.items()}
        for _ in range(ROUNDS):
            for peer in running.values():
                peer.turn()
        for who, peer in running.items():
            found[who][threads] = peer.end()
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
    told = {"seconds": found, "floor": floor, "steps": STEPS * ROUNDS, "torch": torch.__version__}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    sys.exit(not held)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".peers"))
