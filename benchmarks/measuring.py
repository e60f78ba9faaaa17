"""What benchmarks share: peers in processes of their own, memory, the speed of large products, and kept results."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent


class Peer:
    """A process that says that it is ready, and then answers every line with a line."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._line("get ready")

    def ask(self, *request: object) -> str:
        """Its answer."""
        asked = " ".join(map(str, request))
        assert self.process.stdin is not None
        self.process.stdin.write(f"{asked}\n")
        self.process.stdin.flush()
        return self._line(f"answer {asked!r}")

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()

    def _line(self, what: str) -> str:
        """What it says next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            sys.exit(f"a peer must {what}, but it ended; run `{' '.join(self.words)}` to see why")
        return line


def forget_peak() -> None:
    """Count the largest resident size of this process from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The largest resident size of this process, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def products_per_second(threads: int) -> float:
    """Operations a second in a large product of matrices."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    before, times = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    torch.set_num_threads(before)
    return 2 * 2048**3 / statistics.median(times)


def keep(name: str, told: dict) -> None:
    """Write what was found, and by which torch."""
    (HERE / "results").mkdir(exist_ok=True)
    text = json.dumps({**told, "torch": torch.__version__}, indent=1)
    (HERE / "results" / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
