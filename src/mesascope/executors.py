"""Executors: run jobs in this process, in processes of this machine, or on a Ray cluster.

Each executor has one method, ``map_jobs``: it calls ``fn(job, progress, log)`` for every job and returns the results in
the order of the jobs. ``fn`` and the jobs must be picklable: a module-level function, and plain values.
"""

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from mesascope.store import do_nothing

_JobFn = Callable[..., Any]
_JobProgress = Callable[[int, int, int, float], None]
_JobLog = Callable[[str], None]

_USE_FORKSERVER = sys.platform == "linux"  # on other systems, libraries are not safe to fork


class ExecutorError(RuntimeError):
    """Raised when jobs cannot be run, or a process is lost; the message says why and what to do."""


def create_executor(name: str) -> "SerialExecutor | ProcessExecutor | RayExecutor":
    """Create an executor from its name.

    Args:
        name: ``serial``, ``processes`` or ``ray[:ADDRESS]``.

    Returns:
        The executor.

    Raises:
        ValueError: If there is no executor of this name.

    >>> create_executor("ray:10.0.0.1:6379")
    RayExecutor(address='10.0.0.1:6379')
    """
    kind, _, address = name.partition(":")
    if kind == "ray":
        return RayExecutor(address=address or None)
    if name not in ("serial", "processes"):
        raise ValueError(f"an executor must be serial, processes or ray[:ADDRESS], but got {name!r}")
    return SerialExecutor() if name == "serial" else ProcessExecutor()


@dataclass(frozen=True)
class SerialExecutor:
    """Runs jobs one after another, in this process."""

    def map_jobs(
        self, fn: _JobFn, jobs: Sequence[Any], progress: _JobProgress = do_nothing, log: _JobLog = do_nothing
    ) -> list[Any]:
        """Apply ``fn`` to every job.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.

        Returns:
            The results, in the order of the jobs.
        """
        return [fn(job, partial(progress, index), log) for index, job in enumerate(jobs)]


@dataclass(frozen=True)
class ProcessExecutor:
    """Runs jobs in processes of this machine, which end when this process ends for any reason.

    On Linux they are forked from a server process that has imported the modules of the jobs once, and that is reused by
    later calls. On other systems each process is spawned.

    Attributes:
        max_workers: Maximum number of processes; by default the number of jobs, limited to two per CPU.
    """

    max_workers: int | None = None

    def map_jobs(
        self, fn: _JobFn, jobs: Sequence[Any], progress: _JobProgress = do_nothing, log: _JobLog = do_nothing
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
        limit = self.max_workers or 2 * (os.cpu_count() or 1)
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


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs as tasks of a Ray cluster, one CPU each; all machines must share the run's directory.

    Attributes:
        address: The address of a running cluster; ``None`` joins the one in ``RAY_ADDRESS``, or starts a local one.
    """

    address: str | None = None

    def map_jobs(
        self, fn: _JobFn, jobs: Sequence[Any], progress: _JobProgress = do_nothing, log: _JobLog = do_nothing
    ) -> list[Any]:
        """Apply ``fn`` to every job.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.

        Returns:
            The results, in the order of the jobs.

        Raises:
            ExecutorError: If Ray is not installed.
        """
        try:
            ray = import_module("ray")
            queues = import_module("ray.util.queue")
        except ImportError as error:
            raise ExecutorError(
                "running on Ray needs the ray package, but it is not installed; pip install 'mesascope[ray]'"
            ) from error
        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False)
        messages = queues.Queue()
        task = ray.remote(max_retries=0)(_run_ray_job)
        tasks = [task.remote(fn, index, job, messages) for index, job in enumerate(jobs)]
        unfinished = tasks
        try:
            while unfinished:
                finished, unfinished = ray.wait(unfinished, timeout=0.2)
                _forward_messages(messages, progress, log)
                ray.get(finished)  # raises the error of a job immediately
            return ray.get(tasks)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            for task_ref in unfinished:
                ray.cancel(task_ref, force=True)
            messages.shutdown(force=True)


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
                "a process must live until its job is done, but one ended with "
                f"{_describe_exit_code(self.process.exitcode)}; "
                "run again to resume, with fewer processes if memory was short; scripts must call this under "
                "`if __name__ == '__main__':`"
            ) from error


@contextmanager
def _start_workers(fn: _JobFn, count: int) -> Iterator[list[_Worker]]:
    """Start worker processes that wait for jobs, and kill them on exit."""
    context = get_context("forkserver") if _USE_FORKSERVER else get_context("spawn")
    if _USE_FORKSERVER:
        context.set_forkserver_preload([__name__, *({fn.__module__} - {"__main__"})])
    workers: list[_Worker] = []
    try:
        with _block_interrupts():
            for _ in range(count):
                parent_end, child_end = context.Pipe()
                process = context.Process(target=_run_worker, args=(child_end,), daemon=True)
                process.start()
                child_end.close()
                workers.append(_Worker(process, parent_end))
        for worker in workers:
            worker.send_message(fn)
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Block SIGINT; processes started inside never receive it, so that only their parent stops them."""
    resource_tracker.ensure_running()  # starting it later would unblock SIGINT
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
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
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the fork server may have it unblocked
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


def _run_ray_job(fn: _JobFn, index: int, job: Any, messages: Any) -> Any:
    return fn(
        job, lambda *numbers: messages.put(("progress", index, *numbers)), lambda text: messages.put(("log", text))
    )


def _forward_messages(messages: Any, progress: _JobProgress, log: _JobLog) -> None:
    for kind, *message in messages.get_nowait_batch(messages.qsize()):
        (progress if kind == "progress" else log)(*message)
