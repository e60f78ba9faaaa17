"""Protocols of executors and of progress callbacks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mesascope.store import LogFn

JobProgress = Callable[[int, int, int, float], None]


@runtime_checkable
class Executor(Protocol):
    """Applies a function to jobs, in parallel or one after another."""

    def map_jobs(
        self,
        fn: Callable[..., Any],
        jobs: Sequence[Any],
        progress: JobProgress,
        log: LogFn,
        change_state: Callable[[int, Any], None],
    ) -> list[Any]:
        """Apply ``fn`` to every job.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.
            change_state: Receives (job index, state): ``waiting``, ``running``, ``done`` or ``set aside``.

        Returns:
            The results, in the order of the jobs.
        """
        ...


@runtime_checkable
class FolderExecutor(Protocol):
    """An executor that keeps files in the directory of a run, and whose jobs wait in a queue."""

    def in_run(self, path: Path, load_job: Callable[[Any], Any]) -> Executor:
        """Return the executor for the jobs of a run.

        Args:
            path: The directory of the run, which need not exist.
            load_job: Returns the result of a job that has finished before, and None for any other job.
        """
        ...


@runtime_checkable
class ProgressCallback(Protocol):
    """Receives progress updates of a run."""

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        """Start a stage.

        Args:
            name: The name of the stage.
            parts: The names of its parts, which run in parallel.
        """
        ...

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        """Update the progress of one part of the current stage.

        Args:
            index: The index of the part.
            done: Units of work done.
            total: Units of work in total.
            loss: The last training loss; not a number where there is none.
        """
        ...

    def log_message(self, line: str) -> None:
        """Receive a message for the user.

        Args:
            line: One line of text.
        """
        ...


@runtime_checkable
class JobStateCallback(Protocol):
    """A progress callback that also receives the states of jobs."""

    def change_state(self, index: int, state: str) -> None:
        """Receive the new state of one part of the current stage.

        Args:
            index: The index of the part.
            state: ``waiting``, ``running``, ``done`` or ``set aside``.
        """
        ...
