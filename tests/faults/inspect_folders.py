"""Inspects hostile folders, each in a process of its own with bounded memory and time."""

import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

import mesascope.analyses
import mesascope.cli
import mesascope.inspection
import mesascope.report
from faults.damages import DAMAGES
from faults.hostile_models import MARKER, make_hostile_folder, save_victims
from mesascope import api  # noqa: F401

EXTRA_BYTES = 1_500_000_000  # address space that a child may add to that of its parent
MAX_SECONDS = 60


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


def run_many(place: Path, count: int = 200, kinds: Iterable[str] = DAMAGES) -> list[Outcome]:
    """Inspect that many hostile folders, one seed of every kind after the other."""
    kinds = list(kinds)
    save_victims(place / "victims")
    return [inspect_hostile(place, kinds[i % len(kinds)], i // len(kinds)) for i in range(count)]


def inspect_hostile(place: Path, kind: str, seed: int) -> Outcome:
    """Damage a copy of a model in ``place``, which has the folder ``victims``, and inspect it."""
    home = place / f"{kind}-{seed}-home"
    home.mkdir()
    folder = make_hostile_folder(place / "victims", home, kind, seed)
    words = ["inspect", str(folder), "--analyses", "norms", "--tokens", "16", "--sequences", "1"]
    started = time.perf_counter()
    code = _run_in_child([*words, "--out", str(home / "out")], home / "output")
    peak = home / "output.peak"
    return Outcome(
        kind=kind,
        seed=seed,
        code=code,
        output=(home / "output").read_text(errors="replace"),
        seconds=time.perf_counter() - started,
        extra_bytes=int(peak.read_text()) if peak.exists() else EXTRA_BYTES,
        code_has_run=any(home.rglob(MARKER)),
    )


def _run_in_child(words: list[str], output: Path) -> int:
    """Exit code of a command in a forked process; minus the signal if one ended it."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings(action="ignore"):  # the child uses no other thread of its parent
        child = os.fork()
    if child == 0:
        os._exit(_run_command(words, output))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run_command(words: list[str], output: Path) -> int:
    """The command line in this process, with limits; everything that it prints goes to a file."""
    memory = psutil.Process().memory_info()
    size = memory.vms + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(MAX_SECONDS)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["mesascope", *words]
    code = 0
    try:
        mesascope.cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    output.with_suffix(".peak").write_text(str(max(0, peak - memory.rss)))
    return code


def report(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """One line for each folder."""
    for one in outcomes:
        last = " ".join(one.output.split())
        cost = f"{one.seconds:5.2f} s {one.extra_bytes / 1e6:5.0f} MB"
        yield f"{one.code} {cost} {one.kind}-{one.seed} {one.faults} {last}"
