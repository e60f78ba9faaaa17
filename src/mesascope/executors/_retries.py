"""Jobs that wait, run, are done or are set aside, and the policy for jobs whose worker process ended."""

import heapq
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesascope.executors._jobs import ExecutorError, JobLogFn, JobStateFn

MAX_NAMED_JOBS = 5  # in an error
MAX_LABEL_LENGTH = 80


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Policy for jobs whose worker process ended before they did: it was killed, or memory ran out.

    An exception that a job raises is not retried.

    Attributes:
        max_retries: Number of times that a job is started again. A job that ends one more worker process is set aside.
        pause: Seconds before a job is started again, doubled at every further loss of the same job.
        max_pause: Maximum of these seconds.
    """

    max_retries: int = 1
    pause: float = 1.0
    max_pause: float = 60.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be 0 or more, but got {self.max_retries}; pass 0 for no retries")
        if not 0 <= self.pause <= self.max_pause:
            raise ValueError(f"pause must be from 0 to max_pause ({self.max_pause:g}), but got {self.pause:g}")

    def pause_after(self, losses: int) -> float:
        """Return the seconds before a job is started again.

        Args:
            losses: Worker processes that it has lost, at least 1.

        >>> [RetryPolicy(pause=1.0, max_pause=5.0).pause_after(losses) for losses in (1, 2, 3, 4)]
        [1.0, 2.0, 4.0, 5.0]
        """
        return min(self.pause * 2.0 ** min(losses - 1, 60), self.max_pause)


class JobQueue:
    """The jobs of one call of an executor, with their states and results.

    Args:
        jobs: The jobs.
        retries: Policy for jobs whose worker process ended.
        log: Receives one line for every job that is started again or set aside.
        change_state: Receives (job index, state) when the state of a job changes.
    """

    def __init__(self, jobs: Sequence[Any], retries: RetryPolicy, log: JobLogFn, change_state: JobStateFn) -> None:
        self._jobs, self._retries, self._log, self._change_state = jobs, retries, log, change_state
        self._waiting = [(0.0, index) for index in range(len(jobs))]  # a heap of (time from which it may start, index)
        self._counted_losses, self._losses = Counter[int](), Counter[int]()
        self._results: dict[int, Any] = {}
        self._set_aside: dict[int, str] = {}

    @property
    def is_finished(self) -> bool:
        """Return whether every job is done or set aside."""
        return len(self._results) + len(self._set_aside) == len(self._jobs)

    @property
    def seconds_until_due(self) -> float | None:
        """Return the seconds until the next job may start; None if no job waits."""
        return max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None

    def take_due(self) -> int | None:
        """Return the index of a job that may start, and remove it from those that wait; None if there is none."""
        if not self._waiting or self._waiting[0][0] > time.monotonic():
            return None
        return heapq.heappop(self._waiting)[1]

    def mark_running(self, index: int) -> None:
        """Record that a job has started.

        Args:
            index: The index of the job.
        """
        self._change_state(index, "running")

    def complete(self, index: int, result: Any) -> None:
        """Record the result of a job.

        Args:
            index: The index of the job.
            result: Its result.
        """
        self._results[index] = result
        self._change_state(index, "done")

    def record_loss(self, index: int, reason: str, *, is_counted: bool = True) -> None:
        """Let a job whose worker process ended wait again, or set it aside.

        Args:
            index: The index of the job.
            reason: How the process ended, such as ``signal SIGKILL``.
            is_counted: Whether the job may be the cause; it is not if the whole machine is gone.
        """
        self._losses[index] += 1
        self._counted_losses[index] += is_counted
        label = label_job(self._jobs[index])
        if self._counted_losses[index] > self._retries.max_retries:
            self._set_aside[index] = reason
            self._log(f"{label}: its worker process ended ({reason}) for the last time; the job is set aside")
            self._change_state(index, "set aside")
            return
        pause = self._retries.pause_after(self._losses[index])
        self._log(f"{label}: its worker process ended ({reason}); the job starts again in {pause:g} s")
        heapq.heappush(self._waiting, (time.monotonic() + pause, index))
        self._change_state(index, "waiting")

    def collect_results(self) -> list[Any]:
        """Return the results in the order of the jobs.

        Raises:
            ExecutorError: If a job was set aside.
        """
        if self._set_aside:
            named = [f"{label_job(self._jobs[one])} ({reason})" for one, reason in sorted(self._set_aside.items())]
            more = f" and {len(named) - MAX_NAMED_JOBS} more" if len(named) > MAX_NAMED_JOBS else ""
            raise ExecutorError(
                f"every job must finish, but {len(named)} of {len(self._jobs)} were set aside because they ended "
                f"{self._retries.max_retries + 1} worker processes: {', '.join(named[:MAX_NAMED_JOBS])}{more}; the "
                "others have finished; run again to try these again, with fewer processes if memory ran out"
            )
        return [self._results[index] for index in range(len(self._jobs))]


def label_job(job: object) -> str:
    """Return the text by which messages name a job.

    Args:
        job: The job.
    """
    label = str(job)
    return label if len(label) <= MAX_LABEL_LENGTH else label[: MAX_LABEL_LENGTH - 3] + "..."
