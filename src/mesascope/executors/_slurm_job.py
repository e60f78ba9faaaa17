"""One job in the process that submitit has started; its messages are lines of a file that the driver reads."""

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from mesascope.executors._jobs import JobFn, copy_error

ACTIVE_FILE = "active"  # as long as a driver waits for the jobs, or was killed; jobs end without it
MESSAGES_FOLDER = "messages"
PROGRESS_INTERVAL = 2.0  # minimum seconds between two messages on the progress of a job
CHECK_INTERVAL = 5.0  # seconds between two checks whether the job is still wanted
UNWANTED_EXIT_CODE = 3

JobOutcome = tuple[Literal["done", "failed"], Any]


def run_submitted_job(fn: JobFn, index: int, job: Any, folder: Path, owns_process: bool) -> JobOutcome:
    """Run one job; its process ends at once when it is told to, or when no driver wants it any more.

    Args:
        fn: Called as ``fn(job, progress, log)``.
        index: The index of the job.
        job: The job.
        folder: The folder of the driver's call.
        owns_process: Whether this is a process of the job alone, and not that of the driver.

    Returns:
        ``done`` and the result, or ``failed`` and the error.
    """
    if owns_process:
        for number in (signal.SIGTERM, signal.SIGCONT):  # which submitit ignores, and Slurm sends before SIGKILL
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # at which submitit stops jobs before the time limit
    messages = _MessageFile(folder, index, owns_process)
    messages.send("started")
    try:
        return "done", fn(job, messages.send_progress, messages.send_log)
    except Exception as error:
        return "failed", copy_error(error)


class _MessageFile:
    """The messages of a job, for the driver."""

    def __init__(self, folder: Path, index: int, owns_process: bool) -> None:
        self._folder, self._owns_process = folder, owns_process
        self._file = folder / MESSAGES_FOLDER / str(index)
        self._last_progress = self._last_check = -math.inf

    def send_progress(self, done: int, total: int, loss: float) -> None:
        if done == total or time.monotonic() - self._last_progress > PROGRESS_INTERVAL:
            self._last_progress = time.monotonic()
            self.send("progress", int(done), int(total), float(loss))
        else:
            self._exit_if_unwanted()

    def send_log(self, text: str) -> None:
        self.send("log", text)

    def send(self, *message: Any) -> None:
        self._exit_if_unwanted()
        with suppress(OSError), self._file.open("a", encoding="utf-8") as file:  # a job does not fail with its messages
            file.write(json.dumps(message) + "\n")

    def _exit_if_unwanted(self) -> None:
        if self._owns_process and time.monotonic() - self._last_check > CHECK_INTERVAL:
            self._last_check = time.monotonic()
            if not (self._folder / ACTIVE_FILE).exists():
                os._exit(UNWANTED_EXIT_CODE)


class MessageReader:
    """The driver's end of the files of messages.

    Args:
        folder: The folder of the driver's call.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / MESSAGES_FOLDER
        self._offsets: dict[int, int] = {}

    def read_new(self, index: int) -> Iterator[list[Any]]:
        """Read the messages of a job since the last call.

        Args:
            index: The index of the job.

        Yields:
            The kind of a message, followed by its content.
        """
        try:
            with (self._folder / str(index)).open("rb") as file:
                file.seek(self._offsets.get(index, 0))
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return
        if not whole:
            return
        self._offsets[index] = self._offsets.get(index, 0) + len(whole) + 1
        for line in whole.split(b"\n"):
            with suppress(ValueError):  # begun by a process that was killed
                yield json.loads(line)
