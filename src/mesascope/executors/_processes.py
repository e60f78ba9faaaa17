"""Jobs in processes of this machine."""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mesascope.executors._jobs import ExecutorError, JobFn, JobLogFn, JobProgressFn
from mesascope.store import do_nothing

SHARED_CPU_SPEED = 0.85  # of two processes on one CPU, relative to one after the other; measured in training
RESTART_PAUSES = (0.0, 0.1, 1.0)  # seconds before each new attempt to start a process
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # read by glibc when a program starts; others ignore it
_USE_FORKSERVER = sys.platform == "linux"  # on other systems, libraries are not safe to fork


@dataclass(frozen=True)
class ProcessExecutor:
    """Runs jobs in processes of this machine, which end when this process ends for any reason.

    On Linux they are forked from a server process that has imported the modules of the jobs once, and that is reused by
    later calls. On other systems each process is spawned.

    Attributes:
        max_workers: Maximum number of processes; by default one per CPU, or one per job where that is faster.
    """

    max_workers: int | None = None

    def map_jobs(
        self, fn: JobFn, jobs: Sequence[Any], progress: JobProgressFn = do_nothing, log: JobLogFn = do_nothing
    ) -> list[Any]:
        """Apply ``fn`` to every job; the first error stops all other jobs and is raised here with its type and message.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.

        Returns:
            The results, in the order of the jobs.

        Raises:
            ExecutorError: If a process was killed or could not start.
        """
        limit = self.max_workers or count_workers(len(jobs), os.cpu_count() or 1)
        pending, results = list(enumerate(jobs))[::-1], {}
        with _start_workers(fn, min(limit, len(jobs))) as workers:
            for worker in workers:
                worker.send_message(pending.pop())
            while len(results) < len(jobs):
                worker, (kind, *payload) = _next_message(workers)
                if kind == "progress":
                    progress(*payload)
                elif kind == "log":
                    log(*payload)
                elif kind == "failed":
                    raise payload[0]
                else:
                    results[payload[0]] = payload[1]
                    if pending:
                        worker.send_message(pending.pop())
        return [results[index] for index in range(len(jobs))]


def count_workers(jobs: int, cpus: int) -> int:
    """Return the number of processes that run equal jobs in the shortest time.

    With one process per CPU, jobs run in rounds, and the last round can leave CPUs idle. With more processes than CPUs
    every job runs at once, but caches are shared.

    Args:
        jobs: Number of jobs.
        cpus: Number of CPUs.

    >>> [count_workers(jobs, 2) for jobs in (1, 2, 3, 4, 10)]
    [1, 2, 3, 2, 2]
    """
    rounds = -(-jobs // cpus)
    return jobs if rounds <= 2 and jobs / cpus < SHARED_CPU_SPEED * rounds else min(jobs, cpus)


class _Worker:
    """The parent's handle of one worker process."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe

    def send_message(self, message: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the process has ended; receiving raises
            self.pipe.send(message)

    def receive_message(self) -> tuple:
        """Receive the next message, or raise if the process has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(5)
            raise ExecutorError(
                "a worker process must run until its job is done, but one ended with "
                f"{_describe_exit_code(self.process.exitcode)}; "
                "run again to resume, with fewer processes if memory ran out; scripts must call this under "
                "`if __name__ == '__main__':`"
            ) from error


@contextmanager
def _start_workers(fn: JobFn, count: int) -> Iterator[list[_Worker]]:
    """Start worker processes that wait for jobs, and kill them on exit."""
    context = get_context("forkserver") if _USE_FORKSERVER else get_context("spawn")
    if _USE_FORKSERVER:
        context.set_forkserver_preload([__name__, *({fn.__module__} - {"__main__"})])
    workers: list[_Worker] = []
    try:
        with _block_interrupts():
            for _ in range(count):
                workers.append(_start_worker(context))
        for worker in workers:
            worker.send_message(fn)
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


def _start_worker(context: Any) -> _Worker:
    for pause in RESTART_PAUSES:
        try:
            return _start_process(context)
        except (ConnectionError, EOFError):
            time.sleep(pause)  # the fork server was killed; once it has ended, the next attempt starts it again
    try:
        return _start_process(context)
    except (OSError, EOFError) as error:
        raise ExecutorError(
            f"a worker process must start, but none could ({error or type(error).__name__}); run again to resume"
        ) from error


def _start_process(context: Any) -> _Worker:
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_run_worker, args=(child_end,), daemon=True)
    with child_end, _huge_pages():
        process.start()
    return _Worker(process, parent_end)


@contextmanager
def _huge_pages() -> Iterator[None]:
    """Let programs that start inside the context allocate huge pages, unless the user sets ``GLIBC_TUNABLES``.

    The activations of a training step are spread over thousands of small pages. With huge ones a step of the affine
    study took a seventh less time.
    """
    name, value = _HUGE_PAGES
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Block SIGINT and SIGTERM, which terminals and `timeout` send to a group: only their parent stops the workers."""
    resource_tracker.ensure_running()  # starting it later would unblock them
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def _next_message(workers: Sequence[_Worker]) -> tuple[_Worker, tuple]:
    pipe = connection.wait([worker.pipe for worker in workers])[0]
    worker = next(worker for worker in workers if worker.pipe is pipe)
    return worker, worker.receive_message()


def _describe_exit_code(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _run_worker(pipe: Connection) -> None:
    """Run a worker process: receive the function, then run jobs until it is killed or its parent is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)  # the fork server may have them unblocked
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            fn = pipe.recv()
            while True:
                index, job = pipe.recv()
                result = fn(job, partial(_send_message, pipe, "progress", index), partial(_send_message, pipe, "log"))
                _send_message(pipe, "done", index, result)
        except EOFError:
            raise
        except Exception as error:
            _send_message(pipe, "failed", _picklable_error(error))
            pipe.recv()


def _send_message(pipe: Connection, *message: Any) -> None:
    pipe.send(message)


def _picklable_error(error: Exception) -> Exception:
    """Return a picklable copy of an error, with the traceback as a note."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # pickling a class can raise anything
        copy = ExecutorError(f"a job failed: {type(error).__name__}: {error}")
    copy.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    return copy


def _exit_with_parent() -> None:
    """Exit as soon as the parent process is gone, even if it was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
