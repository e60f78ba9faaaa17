"""What opening a language model costs: time next to plain forward passes over the same tokens, and memory.

    python benchmarks/opening.py GGUF

The whole command is measured, loading and report included, on 8 sequences of 2,048 tokens with all default measures.
Plain passes, which do not count loading, are timed before and after it, since machines are noisy. What it takes without
reading the weights is printed too. Exits with 1 if a bound does not hold.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEQUENCES, LENGTH = 8, 2048
MOST_TIME = 8.0  # times the plain passes
MOST_MEMORY = 4.0  # GB, of the whole process


def plain(path: str) -> None:
    """Time forward passes alone, one sequence at a time, and print the seconds."""
    import torch

    from mesascope.models.load import load_pretrained
    from mesascope.tasks.corpora import load_prose

    model, tokenizer = load_pretrained(path)
    assert tokenizer is not None
    ids = torch.tensor(tokenizer(load_prose())["input_ids"][: SEQUENCES * LENGTH]).view(SEQUENCES, LENGTH)
    with torch.no_grad():
        model(input_ids=ids[:1], use_cache=False)
        began = time.perf_counter()
        for row in ids:
            model(input_ids=row[None], use_cache=False)
        print(time.perf_counter() - began)


def timed(path: str) -> float:
    """Seconds of the plain passes, in a process of their own."""
    found = subprocess.run([sys.executable, __file__, path, "plain"], check=True, capture_output=True, text=True)
    return float(found.stdout)


def opened(path: str, out: Path) -> tuple[float, float]:
    """Seconds and peak memory, in GB, of `mesascope inspect`."""
    command = [sys.executable, "-m", "mesascope", "inspect", path, "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--tokens", str(LENGTH), "--sequences", str(SEQUENCES)])
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"mesascope inspect failed with {status}")
    return time.perf_counter() - began, used.ru_maxrss * 1024 / 1e9


def main(path: str) -> None:
    """Measure, print, and judge."""
    with tempfile.TemporaryDirectory() as folder:
        before = timed(path)
        seconds, memory = opened(path, Path(folder) / "run")
        after = timed(path)
        parts = json.loads((Path(folder) / "run" / "model.json").read_text())["seconds"]
    plain_seconds, measuring = (before + after) / 2, seconds - parts["opening the model"]
    ratio = seconds / plain_seconds
    for name, value in parts.items():
        print(f"  {name:<24}{value:8.1f} s")
    print(f"plain forward passes    {before:8.1f} s before, {after:.1f} s after")
    print(f"the whole command       {seconds:8.1f} s, {ratio:.2f} times (at most {MOST_TIME})")
    print(f"but for reading weights {measuring:8.1f} s, {measuring / plain_seconds:.2f} times")
    print(f"peak memory             {memory:8.2f} GB (at most {MOST_MEMORY})")
    sys.exit(ratio > MOST_TIME or memory > MOST_MEMORY)


if __name__ == "__main__":
    plain(sys.argv[1]) if len(sys.argv) > 2 else main(sys.argv[1])
