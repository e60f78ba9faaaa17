"""Types of the jobs of an executor, the error that it raises, and signals while it starts processes."""

import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, Literal

JobState = Literal["waiting", "running", "done", "set aside"]
"""State of a job: ``set aside`` after it has ended too many worker processes."""

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)

JobFn = Callable[..., Any]
JobProgressFn = Callable[[int, int, int, float], None]
JobLogFn = Callable[[str], None]
JobStateFn = Callable[[int, JobState], None]


class ExecutorError(RuntimeError):
    """Raised when jobs cannot be run, or a process is lost; the message says why and what to do."""


def copy_error(error: Exception) -> Exception:
    """Return a picklable copy of an error, with the traceback as a note.

    Args:
        error: The error of a job in another process.

    Returns:
        The copy; an :class:`ExecutorError` with its message if it cannot be pickled.
    """
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # pickling a class can raise anything
        copy = ExecutorError(f"a job failed: {type(error).__name__}: {error}")
    copy.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    return copy


@contextmanager
def block_interrupts() -> Iterator[None]:
    """Block SIGINT and SIGTERM, which terminals and `timeout` send to a group: only their parent stops the workers.

    Returns:
        A context manager; processes that are started inside it have the signals blocked.
    """
    resource_tracker.ensure_running()  # starting it later would unblock them
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
