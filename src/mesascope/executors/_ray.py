"""Jobs on a Ray cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from mesascope.executors._jobs import ExecutorError, JobFn, JobLogFn, JobProgressFn
from mesascope.store import do_nothing


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs as tasks of a Ray cluster, one CPU each; all machines must share the run's directory.

    Attributes:
        address: The address of a running cluster; ``None`` joins the one in ``RAY_ADDRESS``, or starts a local one.
    """

    address: str | None = None

    def map_jobs(
        self, fn: JobFn, jobs: Sequence[Any], progress: JobProgressFn = do_nothing, log: JobLogFn = do_nothing
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
        ray, queues = _import_ray()
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


def _import_ray() -> tuple[ModuleType, ModuleType]:
    try:
        return import_module("ray"), import_module("ray.util.queue")
    except ImportError as error:
        raise ExecutorError(
            "running on Ray needs the ray package, but it is not installed; pip install 'mesascope[ray]'"
        ) from error


def _run_ray_job(fn: JobFn, index: int, job: Any, messages: Any) -> Any:
    return fn(
        job, lambda *numbers: messages.put(("progress", index, *numbers)), lambda text: messages.put(("log", text))
    )


def _forward_messages(messages: Any, progress: JobProgressFn, log: JobLogFn) -> None:
    for kind, *message in messages.get_nowait_batch(messages.qsize()):
        (progress if kind == "progress" else log)(*message)
