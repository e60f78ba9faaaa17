"""Types of the jobs of an executor, and the error that it raises."""

from collections.abc import Callable
from typing import Any, Literal

JobState = Literal["waiting", "running", "done", "set aside"]
JobFn = Callable[..., Any]
JobProgressFn = Callable[[int, int, int, float], None]
JobLogFn = Callable[[str], None]
JobStateFn = Callable[[int, JobState], None]


class ExecutorError(RuntimeError):
    """Raised when jobs cannot be run, or a process is lost; the message says why and what to do."""
