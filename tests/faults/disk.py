"""Seeded trials: the disk is full or read-only from a random moment of a run on; later the run is resumed."""

import errno
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults.file_events import REMOVALS, FileEvents
from faults.forked import call_main, run_forked
from faults.kills import MAX_SECONDS, Stoppable, list_left_over
from faults.small_study import list_differences
from faults.trial_result import TrialResult, run_seeds

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES)  # raised by every change of a file
FILE_LIMIT, SMALL_DISK = "a limit of the size of a file", "a small disk"
MIN_FILE_BYTES, MAX_FILE_BYTES, MAX_DISK_BYTES = 2_000, 40_000, 400_000  # a run of the small study needs more


class FullDisk:
    """An undisturbed run, and trials in which the same run finds the disk full or read-only.

    Args:
        folder: A folder.
        run: The undisturbed run.
    """

    def __init__(self, folder: Path, run: Stoppable) -> None:
        self.folder, self.run, self.disk = folder, run, folder / "disk"
        self.disk.mkdir()
        self.kinds = [*ERRORS, FILE_LIMIT, *([SMALL_DISK] if can_mount(self.disk) else [])]

    def try_once(self, seed: int) -> tuple[str, str]:
        """Run until the disk refuses a write, then resume; return the outcome and the faults."""
        draw, kind = random.Random(seed), self.kinds[seed % len(self.kinds)]
        path = (self.disk if kind == SMALL_DISK else self.folder) / "run"
        if kind == SMALL_DISK:
            mount(self.disk, draw.randrange(MAX_DISK_BYTES))
        try:
            code = run_forked(partial(self._run_short_of_space, kind, draw, path), self.run.output, MAX_SECONDS)
            printed = self.run.output.read_text()
            faults = judge_refusal(code, printed, path)
            if kind == SMALL_DISK:
                subprocess.run(["mount", "-o", "remount,size=1g", str(self.disk)], check=True)
            faults += self._resume(path)
        finally:
            shutil.rmtree(path, ignore_errors=True)
            if kind == SMALL_DISK:
                subprocess.run(["umount", str(self.disk)], check=True)
        name = kind if isinstance(kind, str) else errno.errorcode[kind]
        outcome = "named, then resumed, bit-identical" if code else "not reached"
        return outcome, "; ".join(f"{name}, seed {seed}: {fault}" for fault in faults)

    def _run_short_of_space(self, kind: int | str, draw: random.Random, path: Path) -> int:
        if isinstance(kind, int):

            def fail(event: str, file: str) -> None:
                if kind == errno.EROFS or event not in REMOVALS:  # a full disk allows to remove files
                    raise OSError(kind, os.strerror(kind), file)

            FileEvents(path, draw.randrange(self.run.changes), fail)
        elif kind == FILE_LIMIT:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit := draw.randrange(MIN_FILE_BYTES, MAX_FILE_BYTES), limit))
        return call_main(self.run.words(path))

    def _resume(self, path: Path) -> list[str]:
        code = run_forked(lambda: call_main(self.run.words(path)), self.run.output, MAX_SECONDS)
        faults = [f"resumed with exit code {code}: {self.run.output.read_text()}"] if code else []
        faults += [f"other values in {name}" for name in list_differences(path, self.run.outputs)]
        return faults + [f"left over: {name}" for name in list_left_over(path)]


def judge_refusal(code: int, printed: str, path: Path) -> list[str]:
    """Return what is wrong with the end of a run on a disk that refuses writes; it may not have noticed."""
    lines = [line for line in printed.splitlines() if line.startswith("mesascope: ")]
    checks = {
        f"a traceback: {printed}": "Traceback" in printed,
        f"exit code {code}": code not in (0, 2),
        f"{len(lines)} messages: {printed}": code == 2 and len(lines) != 1,
        f"the file is not named: {lines}": code == 2 and len(lines) == 1 and str(path) not in lines[0],
    }
    return [name for name, is_wrong in checks.items() if is_wrong]


def mount(folder: Path, size: int) -> bool:
    """Mount a small file system in memory; return whether that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "none", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def can_mount(folder: Path) -> bool:
    """Return whether this user may mount a file system."""
    if not mount(folder, 4096):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def run_full_disks(folder: Path, seeds: range, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Run on one full disk per seed."""
    full = FullDisk(folder, Stoppable(folder, "serial"))
    return run_seeds("disk full or read-only at random moments", seeds, full.try_once, log)
