"""Jobs in processes of this machine."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mesascope.executors._jobs import (
    INTERRUPTS,
    ExecutorError,
    JobFn,
    JobLogFn,
    JobProgressFn,
    JobStateFn,
    block_interrupts,
    copy_error,
)
from mesascope.executors._retries import JobQueue, RetryPolicy
from mesascope.store import do_nothing

SHARED_CPU_SPEED = 0.85  # of two processes on one CPU, relative to one after the other; measured in training
RESTART_PAUSES = (0.0, 0.1, 1.0)  # seconds before each new attempt to start a process
_HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # read by glibc when a program starts; others ignore it
_USE_FORKSERVER = sys.platform == "linux"  # on other systems, libraries are not safe to fork


@dataclass(frozen=True)
class ProcessExecutor:
    """Runs jobs in processes of this machine, which end when this process ends for any reason.

    On Linux they are forked from a server process that has imported the modules of the jobs once, and that is reused by
    later calls. On other systems each process is spawned. A job whose process ends before it is started again.

    Attributes:
        max_workers: Maximum number of processes; by default one per CPU, or one per job where that is faster.
        retries: Policy for jobs whose process ended.
    """

    max_workers: int | None = None
    retries: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.max_workers is not None and self.max_workers < 1:
            raise ValueError(f"max_workers must be 1 or more, but got {self.max_workers}")

    def map_jobs(
        self,
        fn: JobFn,
        jobs: Sequence[Any],
        progress: JobProgressFn = do_nothing,
        log: JobLogFn = do_nothing,
        change_state: JobStateFn = do_nothing,
    ) -> list[Any]:
        """Apply ``fn`` to every job; the first error stops all other jobs and is raised here with its type and message.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.
            change_state: Receives (job index, state).

        Returns:
            The results, in the order of the jobs.

        Raises:
            ExecutorError: If processes cannot start, or, after all other jobs, if a job was set aside.
        """
        limit = self.max_workers or count_workers(len(jobs), os.cpu_count() or 1)
        queue = JobQueue(jobs, self.retries, log, change_state)
        with _open_pool(fn) as pool:
            while not queue.is_finished:
                while pool.num_busy < limit and (index := queue.take_due()) is not None:
                    pool.start_job(index, jobs[index])
                    queue.mark_running(index)
                for worker in pool.wait(queue.seconds_until_due if pool.num_busy < limit else None):
                    try:
                        kind, *payload = worker.receive_message()
                    except _WorkerLostError as loss:
                        self._replace_worker(pool, worker, loss, queue)
                        continue
                    if kind == "progress":
                        progress(*payload)
                    elif kind == "log":
                        log(*payload)
                    elif kind == "failed":
                        raise payload[0]
                    elif kind == "done":
                        worker.job = None
                        queue.complete(*payload)
        return queue.collect_results()

    def _replace_worker(self, pool: "_Pool", worker: "_Worker", loss: "_WorkerLostError", queue: JobQueue) -> None:
        """Let the job of a lost worker wait again; raise if processes end repeatedly before they can run a job."""
        pool.remove(worker)
        if not worker.is_ready and pool.failed_starts > self.retries.max_retries:
            raise ExecutorError(
                f"a worker process must start, but {pool.failed_starts} ended with {loss}; run again to resume, with "
                "fewer processes if memory ran out; scripts must call this under `if __name__ == '__main__':`"
            ) from loss
        if worker.job is not None:
            queue.record_loss(worker.job, str(loss), is_counted=worker.is_ready)


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


class _WorkerLostError(Exception):
    """Raised when a worker process has ended; the message says how."""


class _Worker:
    """The parent's handle of one worker process."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.job: int | None = None  # the index of the job that it runs
        self.is_ready = False  # whether it has received the function and can run jobs

    def send_message(self, message: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the process has ended; receiving raises
            self.pipe.send(message)

    def receive_message(self) -> tuple:
        """Receive the next message, or raise if the process has ended."""
        try:
            message = self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(5)
            raise _WorkerLostError(_describe_exit_code(self.process.exitcode)) from error
        self.is_ready = True
        return message


class _Pool:
    """Worker processes, started when there are jobs for them."""

    def __init__(self, fn: JobFn) -> None:
        self._fn, self._context = fn, get_context("forkserver") if _USE_FORKSERVER else get_context("spawn")
        if _USE_FORKSERVER:
            self._context.set_forkserver_preload([__name__, *({fn.__module__} - {"__main__"})])
        self._workers: list[_Worker] = []
        self.failed_starts = 0  # processes in a row that ended before they could run a job

    @property
    def num_busy(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    def start_job(self, index: int, job: Any) -> None:
        """Give a job to an idle worker, or to a new one."""
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            with block_interrupts():
                worker = _start_worker(self._context)
                self._workers.append(worker)
            worker.send_message(self._fn)
        worker.job = index
        worker.send_message((index, job))

    def wait(self, timeout: float | None) -> list[_Worker]:
        """Return the workers that have sent a message or have ended, after waiting for one of them."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        if not by_pipe:
            time.sleep(timeout or 0.0)
            return []
        return [by_pipe[pipe] for pipe in connection.wait(list(by_pipe), timeout) if isinstance(pipe, Connection)]

    def remove(self, worker: _Worker) -> None:
        """Remove a worker whose process has ended."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self.failed_starts = 0 if worker.is_ready else self.failed_starts + 1

    def close(self) -> None:
        """Kill all processes."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()


@contextmanager
def _open_pool(fn: JobFn) -> Iterator[_Pool]:
    """Open a pool of worker processes, and kill them on exit."""
    pool = _Pool(fn)
    try:
        yield pool
    finally:
        pool.close()


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
    study without MLPs took a seventh less processor time.
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


def _describe_exit_code(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _run_worker(pipe: Connection) -> None:
    """Run a worker process: receive the function, then run jobs until it is killed or its parent is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # the fork server may have them unblocked
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            fn = pipe.recv()
            _send_message(pipe, "ready")
            while True:
                index, job = pipe.recv()
                result = fn(job, partial(_send_message, pipe, "progress", index), partial(_send_message, pipe, "log"))
                _send_message(pipe, "done", index, result)
        except EOFError:
            raise
        except Exception as error:
            _send_message(pipe, "failed", copy_error(error))
            pipe.recv()


def _send_message(pipe: Connection, *message: Any) -> None:
    pipe.send(message)


def _exit_with_parent() -> None:
    """Exit as soon as the parent process is gone, even if it was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
