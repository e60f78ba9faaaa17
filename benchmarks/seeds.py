"""Three seeds of the affine study, 6,000 steps each, next to training them one after another in TransformerLens 2.18.

    python benchmarks/seeds.py [PEERS]

Ours is the whole training of a study, as `mesascope run affine` does it: processes that are started, fresh sequences,
warm-up and schedule, log and checkpoints on disk. The other side takes the same number of steps, each the least that
trains: fresh sequences, forward, mean squared error, backward, clipping, update. Its steps cost the same from first to
last, so some of them are timed, half before ours and half after, and counted as often as they are taken; it has the
number of threads at which it is fastest. Exits with 1 if the bound does not hold.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from measuring import keep
from training import THREADS, timed

from mesascope.executors import ProcessExecutor
from mesascope.runner import describe_run
from mesascope.store import Run, do_nothing
from mesascope.studies.registry import load_study
from mesascope.train import train_model

SEEDS, LEAST = 3, 2.2
STUDY = load_study("affine")
TRAINING = replace(STUDY.main.scales["laptop"].training, steps=6_000)  # as in docs/performance.md


def train(
    job: tuple[Path, int], progress: Callable[[int, int, float], None] = do_nothing, say: object = do_nothing
) -> None:
    """One seed of the study."""
    place, seed = job
    train_model(STUDY.main.task, STUDY.main.model, TRAINING, seed, Run.open(place), progress=progress)


def ours() -> float:
    """Seconds that the training of all seeds takes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        Run.create(place, describe_run(STUDY, "laptop", range(SEEDS)))
        began = time.perf_counter()
        ProcessExecutor().map_jobs(train, [(place, seed) for seed in range(SEEDS)])
        return time.perf_counter() - began


def theirs(python: str) -> list[float]:
    """Seconds of a step, by the number of threads."""
    return [timed({"lens_affine": python}, threads)["lens_affine"] for threads in THREADS]


def main(peers: Path) -> None:
    """Measure, print, and judge."""
    python = peers / "lens2" / "bin" / "python"
    if not python.exists():
        print(f"TransformerLens 2.18 must be in {peers / 'lens2'}, but is not; run `make bench-seeds`", file=sys.stderr)
        sys.exit(2)
    steps = SEEDS * TRAINING.steps
    before, took, after = theirs(str(python)), ours(), theirs(str(python))
    step = min(map(statistics.mean, zip(before, after, strict=True)))
    ratio = step * steps / took
    print(f"{'mesascope':40s} {took:6.1f} s for {SEEDS} seeds of {steps // SEEDS} steps")
    print(f"{'TransformerLens 2.18':40s} {step * steps:6.1f} s one after another ({1e3 * step:.1f} ms a step)")
    print(f"{ratio:.2f} times as fast (at least {LEAST}){'' if ratio >= LEAST else ': DOES NOT HOLD'}")
    told = {"ours": took, "theirs": step * steps, "steps": steps, "before": before, "after": after}
    keep("seeds", {**told, "ratio": ratio})
    sys.exit(ratio < LEAST)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".peers"))
