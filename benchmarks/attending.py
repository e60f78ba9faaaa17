"""What attention over a long training history costs: time, and memory that does not grow with the history.

    python benchmarks/attending.py

1,000 queries against histories of 10^5 and of 10^6 instances of 256 features on disk, the 10 most and the 10 least
attended of each, every history in a process of its own. Beside it stands what the machine itself needs: the products
alone at the speed at which it multiplies matrices of this shape, and the bytes alone at the speed at which it reads
the file. Exits with 1 if a bound does not hold.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import peak

from mesascope.analyses.training.attended_instances import BLOCK_ROWS, find_attended_instances
from mesascope.store import HistoryColumn, HistoryReader, HistoryWriter

WIDTH, QUERIES, ROWS = 256, 1000, 10_000
SIZES = (100_000, 1_000_000)
MOST_SECONDS, MOST_BYTES, MOST_GROWTH = 60.0, 1e9, 1.1


def written(folder: Path, instances: int) -> HistoryReader:
    """A history of random inputs."""
    columns = {"map.in": HistoryColumn(rows=ROWS, width=WIDTH)}
    writer, random = HistoryWriter(folder, columns, {}, keep_steps=0), np.random.default_rng(0)
    for _ in range(instances // ROWS):
        writer.append_step({"map.in": random.standard_normal((ROWS, WIDTH), dtype=np.float32)})
    writer.sync_to_disk()
    writer.close()
    return HistoryReader(folder)


def queries() -> torch.Tensor:
    """The vectors that attend."""
    return torch.randn(QUERIES, WIDTH, generator=torch.Generator().manual_seed(1))


def measured(folder: Path) -> dict[str, float]:
    """Seconds of one pass and the highest resident size in bytes; in a process of its own."""
    history, x = HistoryReader(folder), queries()
    began = time.perf_counter()
    found = find_attended_instances(history, "map.in", x)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": peak(), "check": float(found.top_weight.sum())}


def floor(history: HistoryReader) -> tuple[float, float]:
    """Seconds of the products alone, and of reading alone."""
    x, block = queries(), torch.randn(BLOCK_ROWS, WIDTH)
    out = torch.empty(QUERIES, BLOCK_ROWS)
    torch.mm(x, block.T, out=out)
    began = time.perf_counter()
    for _ in range(5):
        torch.mm(x, block.T, out=out)
    product = (time.perf_counter() - began) / 5 / BLOCK_ROWS * history.steps * ROWS
    began = time.perf_counter()
    for _ in history.iterate_blocks("map.in", rows=BLOCK_ROWS):
        pass
    return product, time.perf_counter() - began


def main() -> None:
    """Measure, print, and judge."""
    results = {}
    with tempfile.TemporaryDirectory() as place:
        for size in SIZES:
            history = written(Path(place) / str(size), size)
            command = [sys.executable, __file__, str(history.folder)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[size] = json.loads(told)
            product, reading = floor(history)
            gigaflop = 2 * size * WIDTH * QUERIES / 1e9
            print(
                f"{size:>9,} instances  {results[size]['seconds']:6.1f} s  peak {results[size]['peak'] / 1e6:6.0f} MB"
            )
            print(
                f"          products alone {product:6.1f} s ({gigaflop:.0f} GFLOP at {gigaflop / product:.0f} a second)"
            )
            print(f"          reading alone  {reading:6.1f} s ({history.size_on_disk / 1e9:.2f} GB)")
    small, large = (results[size] for size in SIZES)
    growth = large["peak"] / small["peak"]
    print(f"memory, ten times the history: {growth:.2f} times (at most {MOST_GROWTH})")
    held = large["seconds"] <= MOST_SECONDS and large["peak"] <= MOST_BYTES and growth <= MOST_GROWTH
    sys.exit(not held)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measured(Path(sys.argv[1]))))
    else:
        main()
