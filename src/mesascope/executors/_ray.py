"""Jobs on a Ray cluster."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from mesascope.executors._jobs import ExecutorError, JobFn, JobLogFn, JobProgressFn, JobStateFn, copy_error
from mesascope.executors._ray_start import check_resources, import_ray, join_cluster
from mesascope.executors._retries import JobQueue, RetryPolicy
from mesascope.store import do_nothing

POLL_SECONDS = 0.5  # between two looks at messages of jobs
PROGRESS_INTERVAL = 0.5  # minimum seconds between two messages on the progress of a job
CANCEL_SECONDS = 10.0  # for cancelled jobs to end


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs as tasks of a Ray cluster; all machines must share the run's directory.

    Jobs wait until a machine has room for them, also if it joins the cluster later. If a machine is gone, its jobs
    start again on others; if the worker process of a job ended, the job starts again as the policy for retries says.

    Attributes:
        address: The address of a running cluster; ``None`` joins the one in ``RAY_ADDRESS``, or starts a local one that
            other machines cannot reach, without dashboard and usage statistics.
        num_cpus: CPUs that one job requests.
        num_gpus: GPUs that one job requests; a fraction lets jobs share a GPU.
        memory: Bytes of memory that one job requests; Ray uses it to place jobs, and does not limit them.
        retries: Policy for jobs whose worker process ended.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    memory: int | None = None
    retries: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name, value in (("num_cpus", self.num_cpus), ("num_gpus", self.num_gpus), ("memory", self.memory or 0)):
            if value < 0:
                raise ValueError(f"{name} of a job must be 0 or more, but got {value}")

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
            ExecutorError: If Ray is not installed or cannot be reached, if no machine can ever run a job, or, after all
                other jobs, if a job was set aside.
        """
        ray = import_ray(self.address)
        is_local = join_cluster(ray, self.address, log)
        needed = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory or 0}
        check_resources(ray, needed, log, can_grow=not is_local)
        queue = JobQueue(jobs, self.retries, log, change_state)
        with _RayTasks(ray, fn, self) as tasks:
            while not queue.is_finished:
                while (index := queue.take_due()) is not None:
                    tasks.submit(index, jobs[index])
                finished = tasks.wait()
                for kind, index, *content in tasks.take_messages():  # all those of the finished tasks are there
                    if kind == "started":
                        queue.mark_running(index)
                    elif kind == "progress":
                        progress(index, *content)
                    elif kind == "log":
                        log(*content)
                for task in finished:
                    index, outcome = tasks.take_outcome(task)
                    if isinstance(outcome, _TaskLost):
                        queue.record_loss(index, outcome.reason, is_counted=outcome.is_counted)
                    else:
                        queue.complete(index, outcome)
        return queue.collect_results()


@dataclass(frozen=True)
class _TaskLost:
    """The outcome of a task whose process or machine is gone."""

    reason: str
    is_counted: bool  # whether the job may be the cause


class _RayTasks:
    """The tasks of one call; on exit, those that are not finished are ended."""

    def __init__(self, ray: ModuleType, fn: JobFn, executor: RayExecutor) -> None:
        self._ray, self._fn = ray, ray.put(fn)
        resources = {"num_cpus": executor.num_cpus, "num_gpus": executor.num_gpus, "memory": executor.memory}
        self._remote = ray.remote(max_retries=0, **resources)(_run_ray_job)
        self._indices: dict[Any, int] = {}  # of the jobs, by the reference of the task
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )  # the machine of this process, without which nobody receives messages
        self._mailbox = ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=here).remote()

    def __enter__(self) -> "_RayTasks":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        cluster_error = self._ray.exceptions.RayError
        with suppress(cluster_error):
            for task in self._indices:
                self._ray.cancel(task, force=True)
            if self._indices:
                self._ray.wait(list(self._indices), num_returns=len(self._indices), timeout=CANCEL_SECONDS)
            self._ray.kill(self._mailbox)
        if isinstance(error, cluster_error):
            reason = " ".join(str(error).split())[:300]
            raise ExecutorError(
                f"a Ray cluster must run until all jobs are done, but has an error: {reason}; run again to resume"
            ) from error

    def submit(self, index: int, job: Any) -> None:
        self._indices[self._remote.remote(self._fn, index, job, self._mailbox)] = index

    def take_messages(self) -> list[tuple]:
        return self._ray.get(self._mailbox.take.remote())

    def wait(self) -> list[Any]:
        """Wait a moment; return the tasks that are finished."""
        tasks = list(self._indices)
        if not tasks:
            time.sleep(POLL_SECONDS)
            return []
        return self._ray.wait(tasks, num_returns=len(tasks), timeout=POLL_SECONDS)[0]

    def take_outcome(self, task: Any) -> tuple[int, Any]:
        """Return the index and the outcome of a finished task, and forget it."""
        return self._indices.pop(task), self._get_outcome(task)

    def _get_outcome(self, task: Any) -> Any:
        """Return the result of a task, or how it was lost; raise the error of its job."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, errors.RayError):  # the error of a job that cannot be pickled, for example
                raise ExecutorError(f"a job failed: {error}") from error
            raise error.cause from None
        except errors.OutOfMemoryError:
            return _TaskLost("out of memory", is_counted=True)
        except errors.WorkerCrashedError:
            return _TaskLost("killed or crashed", is_counted=True)
        except (errors.NodeDiedError, errors.LocalRayletDiedError, errors.ObjectLostError) as error:
            return _TaskLost(f"its machine is gone: {type(error).__name__}", is_counted=False)


class _Mailbox:
    """An actor that holds the messages of jobs until they are taken."""

    def __init__(self) -> None:
        self._messages: list[tuple] = []

    def add(self, *message: Any) -> None:
        self._messages.append(message)

    def take(self) -> list[tuple]:
        taken, self._messages = self._messages, []
        return taken


def _run_ray_job(fn: JobFn, index: int, job: Any, mailbox: Any) -> Any:
    """Run one job in a process of Ray; its messages are sent without waiting, but have arrived when it is finished."""
    add, last_time = mailbox.add.remote, -math.inf

    def send_progress(done: int, total: int, loss: float) -> None:
        nonlocal last_time
        if done == total or time.monotonic() - last_time > PROGRESS_INTERVAL:
            last_time = time.monotonic()
            add("progress", index, done, total, loss)

    add("started", index)
    try:
        result = fn(job, send_progress, lambda text: add("log", index, text))
    except Exception as error:  # as Ray copies it, it may be an error that cannot be read in the other process
        raise copy_error(error) from None
    import_module("ray").get(add("finished", index))
    return result
