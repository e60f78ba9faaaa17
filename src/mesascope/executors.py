"""Where jobs run: here, in processes of this machine, or on a Ray cluster.

Each executor has one method, :meth:`map`: it calls ``fn(job, progress, say)`` for every job and gives the results in
the jobs' order. ``fn`` and the jobs must be picklable: a function at the top of a module, and plain values.
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
from typing import Any, Protocol, runtime_checkable

from mesascope.store import ignore

Fn = Callable[..., Any]
JobProgress = Callable[[int, int, int, float], None]
JobSay = Callable[[str], None]

_FORKS = sys.platform == "linux"  # elsewhere libraries do not bear it


class ClusterError(RuntimeError):
    """Jobs could not be run, or a process was lost; one line says why and what to do."""


@runtime_checkable
class Executor(Protocol):
    """What runs jobs."""

    def map(self, fn: Fn, jobs: Sequence[Any], progress: JobProgress, say: JobSay = ...) -> list[Any]:
        """``fn(job, progress, say)`` of every job, in order; ``progress`` hears (job, done, total, loss)."""
        ...


def executor(text: str) -> Executor:
    """The executor of this name: ``here``, ``processes`` or ``ray[:ADDRESS]``.

    Raises:
        ValueError: there is none of this name.

    >>> executor("ray:10.0.0.1:6379")
    Ray(address='10.0.0.1:6379')
    """
    kind, _, address = text.partition(":")
    if kind == "ray":
        return Ray(address=address or None)
    if text not in ("here", "processes"):
        raise ValueError(f"an executor must be here, processes or ray[:ADDRESS], but got {text!r}")
    return Here() if text == "here" else Processes()


@dataclass(frozen=True)
class Here:
    """One job after another, in this process."""

    def map(self, fn: Fn, jobs: Sequence[Any], progress: JobProgress = ignore, say: JobSay = ignore) -> list[Any]:
        """``fn(job, progress, say)`` of every job, in order."""
        return [fn(job, partial(progress, index), say) for index, job in enumerate(jobs)]


@dataclass(frozen=True)
class Processes:
    """Processes of this machine; they end when this one does, however that is.

    On Linux they branch off one helper that has imported what the jobs need, once for all of them, and has done nothing
    else; it stays for the next time. Elsewhere each starts afresh.

    Attributes:
        workers: how many at once; as many as there are jobs by default, but at most two per processor.
    """

    workers: int | None = None

    def map(self, fn: Fn, jobs: Sequence[Any], progress: JobProgress = ignore, say: JobSay = ignore) -> list[Any]:
        """``fn(job, progress, say)`` of every job, in order.

        The first error of a job stops all others, and is raised here with its type and message.

        Raises:
            ClusterError: a process was killed, or could not start.
        """
        limit = self.workers or 2 * (os.cpu_count() or 1)
        waiting, results = list(enumerate(jobs))[::-1], {}
        with _workers(fn, min(limit, len(jobs))) as workers:
            for worker in workers:
                worker.take(waiting.pop())
            while len(results) < len(jobs):
                worker, (kind, *news) = _next(workers)
                if kind == "progress":
                    progress(*news)
                elif kind == "say":
                    say(*news)
                elif kind == "failed":
                    raise news[0]
                else:
                    results[news[0]] = news[1]
                    if waiting:
                        worker.take(waiting.pop())
        return [results[index] for index in range(len(jobs))]


@dataclass(frozen=True)
class Ray:
    """Tasks of a Ray cluster, one processor each; the run's directory must be one that all its machines see.

    Attributes:
        address: of a running cluster; ``None`` starts one on this machine, or joins the one in ``RAY_ADDRESS``.
    """

    address: str | None = None

    def map(self, fn: Fn, jobs: Sequence[Any], progress: JobProgress = ignore, say: JobSay = ignore) -> list[Any]:
        """``fn(job, progress, say)`` of every job, in order.

        Raises:
            ClusterError: Ray is not installed.
        """
        try:
            ray = import_module("ray")
            queues = import_module("ray.util.queue")
        except ImportError as error:
            raise ClusterError(
                "running on Ray needs the ray package, but it is not installed; pip install 'mesascope[ray]'"
            ) from error
        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False)
        news = queues.Queue()
        task = ray.remote(max_retries=0)(_ray_job)
        running = [task.remote(fn, index, job, news) for index, job in enumerate(jobs)]
        waiting = running
        try:
            while waiting:
                finished, waiting = ray.wait(waiting, timeout=0.2)
                _tell(news, progress, say)
                ray.get(finished)  # the error of a job is raised at once
            return ray.get(running)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            for one in waiting:
                ray.cancel(one, force=True)
            news.shutdown(force=True)


class _Worker:
    """The parent's side of one process."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe

    def take(self, message: object) -> None:
        """Give it the function, or a job."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone: `hear` says so
            self.pipe.send(message)

    def hear(self) -> tuple:
        """Its next message."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(5)
            raise ClusterError(
                f"a process must live until its job is done, but one ended with {_ending(self.process.exitcode)}; "
                "run again (a run resumes), with fewer processes if memory was short, and in a script of your own "
                "call it under `if __name__ == '__main__':`"
            ) from error


@contextmanager
def _workers(fn: Fn, count: int) -> Iterator[list[_Worker]]:
    """Processes that wait for jobs; none is left afterwards."""
    context = get_context("forkserver") if _FORKS else get_context("spawn")
    if _FORKS:
        context.set_forkserver_preload([__name__, *({fn.__module__} - {"__main__"})])
    workers: list[_Worker] = []
    try:
        with _no_interrupts():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs,), daemon=True)
                process.start()
                theirs.close()
                workers.append(_Worker(process, ours))
        for worker in workers:
            worker.take(fn)
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block is over; processes started inside never hear of it: their parent stops them."""
    resource_tracker.ensure_running()  # it would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(workers: Sequence[_Worker]) -> tuple[_Worker, tuple]:
    """Whoever speaks next, and what it says."""
    pipe = connection.wait([worker.pipe for worker in workers])[0]
    worker = next(worker for worker in workers if worker.pipe is pipe)
    return worker, worker.hear()


def _ending(code: int | None) -> str:
    """An exit code in words."""
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"


def _work(pipe: Connection) -> None:
    """The life of a process: read the function, then do jobs until it is killed or its parent is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # whoever started the helper that it branched off
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            fn = pipe.recv()
            while True:
                index, job = pipe.recv()
                result = fn(job, partial(_send, pipe, "progress", index), partial(_send, pipe, "say"))
                _send(pipe, "done", index, result)
        except EOFError:
            raise
        except Exception as error:
            _send(pipe, "failed", _portable(error))
            pipe.recv()


def _send(pipe: Connection, *message: Any) -> None:
    """Tell the parent."""
    pipe.send(message)


def _portable(error: Exception) -> Exception:
    """The error as the parent can raise it, with the place where it came from as a note."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # any class may fail in its own way
        copy = ClusterError(f"a job failed: {type(error).__name__}: {error}")
    copy.add_note("in another process:\n" + "".join(traceback.format_exception(error)))
    return copy


def _end_with_parent() -> None:
    """End as soon as the parent is gone, even if it had no time to say so."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _ray_job(fn: Fn, index: int, job: Any, news: Any) -> Any:
    """One job on a machine of the cluster; its news go through a queue."""
    return fn(job, lambda *numbers: news.put(("progress", index, *numbers)), lambda text: news.put(("say", text)))


def _tell(news: Any, progress: JobProgress, say: JobSay) -> None:
    """Pass on what the jobs have said so far."""
    for kind, *message in news.get_nowait_batch(news.qsize()):
        (progress if kind == "progress" else say)(*message)
