"""Jobs one after another, in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mesascope.executors._jobs import JobFn, JobLogFn, JobProgressFn, JobStateFn
from mesascope.store import do_nothing


@dataclass(frozen=True)
class SerialExecutor:
    """Runs jobs one after another, in this process."""

    def map_jobs(
        self,
        fn: JobFn,
        jobs: Sequence[Any],
        progress: JobProgressFn = do_nothing,
        log: JobLogFn = do_nothing,
        change_state: JobStateFn = do_nothing,
    ) -> list[Any]:
        """Apply ``fn`` to every job.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.
            change_state: Receives (job index, state).

        Returns:
            The results, in the order of the jobs.
        """
        results = []
        for index, job in enumerate(jobs):
            change_state(index, "running")
            results.append(fn(job, partial(progress, index), log))
            change_state(index, "done")
        return results
