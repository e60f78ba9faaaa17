"""Inspects hostile folders, each in a process of its own with bounded memory and time."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from faults.damages import DAMAGES
from faults.forked import EXTRA_BYTES, call_main, limit_memory, run_forked
from faults.hostile_models import MARKER, make_hostile_folder, save_victims
from faults.trial_result import TrialResult, format_range
from mesascope import api  # noqa: F401


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an inspection of one folder did."""

    kind: str
    seed: int
    code: int
    output: str
    seconds: float
    extra_bytes: int  # resident memory that the inspection added, at its peak
    code_has_run: bool

    @property
    def faults(self) -> list[str]:
        """What must not happen."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        checks = {
            f"exit code {self.code}": self.code not in (0, 2),
            "a traceback": "Traceback" in self.output or "panicked" in self.output,
            f"{len(lines)} lines for a refusal": self.code == 2 and len(lines) != 1,
            "code of the folder has run": self.code_has_run,
            f"{self.extra_bytes / 1e9:.1f} GB": self.extra_bytes > 500_000_000,
        }
        return [fault for fault, found in checks.items() if found]


def run_many(place: Path, numbers: range = range(200), kinds: Iterable[str] = DAMAGES) -> Iterator[Outcome]:
    """Inspect hostile folders by their numbers, which count one seed of every kind after the other."""
    kinds = list(kinds)
    save_victims(place / "victims")
    return (inspect_hostile(place, kinds[i % len(kinds)], i // len(kinds)) for i in numbers)


def run_folders(place: Path, seeds: range, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Inspect one hostile model folder per seed."""
    result = TrialResult(name="broken and hostile model folders", seeds=format_range(seeds))
    for one in run_many(place, seeds):
        fault = f"{one.kind}-{one.seed}: {one.faults}: {one.output}" if one.faults else ""
        result.add("refused in one line" if one.code else "opened", fault)
        if len(result.outcomes) % 20 == 0:
            log(f"{result.name}: {len(result.outcomes)}/{len(seeds)}")
    return result


def inspect_hostile(place: Path, kind: str, seed: int) -> Outcome:
    """Damage a copy of a model in ``place``, which has the folder ``victims``, and inspect it."""
    home = place / f"{kind}-{seed}-home"
    home.mkdir()
    folder = make_hostile_folder(place / "victims", home, kind, seed)
    words = ["inspect", str(folder), "--analyses", "norms", "--tokens", "16", "--sequences", "1"]
    started = time.perf_counter()
    peak = home / "output.peak"
    code = run_forked(lambda: _run_limited([*words, "--out", str(home / "out")], peak), home / "output")
    return Outcome(
        kind=kind,
        seed=seed,
        code=code,
        output=(home / "output").read_text(errors="replace"),
        seconds=time.perf_counter() - started,
        extra_bytes=int(peak.read_text()) if peak.exists() else EXTRA_BYTES,
        code_has_run=any(home.rglob(MARKER)),
    )


def _run_limited(words: list[str], peak: Path) -> int:
    """The command line with a limit of memory; its peak is written to a file."""
    before = psutil.Process().memory_info().rss
    limit_memory()
    try:
        return call_main(words)
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak.write_text(str(max(0, used - before)))


def report(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """One line for each folder."""
    for one in outcomes:
        last = " ".join(one.output.split())
        cost = f"{one.seconds:5.2f} s {one.extra_bytes / 1e6:5.0f} MB"
        yield f"{one.code} {cost} {one.kind}-{one.seed} {one.faults} {last}"
