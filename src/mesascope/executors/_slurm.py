"""Jobs on a Slurm cluster, submitted with submitit."""

import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from mesascope.executors._jobs import ExecutorError, JobFn, JobLogFn, JobProgressFn, JobStateFn
from mesascope.executors._retries import JobQueue, RetryPolicy, label_job
from mesascope.executors._slurm_clusters import CLUSTERS, COMMANDS, UNCOUNTED_STATES
from mesascope.executors._slurm_submission import SubmittedJobs
from mesascope.store import do_nothing

RUN_FOLDER = ".slurm"  # in the directory of a run; hidden, so that it is not sent to shared storage
MAX_QUEUED_JOBS = 1000  # the default; Slurm's own limit of the jobs of an array is 1001
ClusterName = Literal["slurm", "local", "debug"]
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class SlurmExecutor:
    """Runs jobs on a Slurm cluster, as job arrays that submitit submits; all machines must share the run's directory.

    Jobs of a command that was killed stay in the queue and go on. The next command in the same folder cancels them.

    Attributes:
        partition: Partition of the cluster; that of the cluster by default, like all that is not given.
        time: Time limit of a job, in minutes or as ``HH:MM:SS`` or ``D-HH:MM:SS``.
        num_cpus: CPUs of a job.
        num_gpus: GPUs of a job.
        memory: Bytes of memory of a job, which Slurm may enforce.
        account: Account that is charged.
        qos: Quality of service.
        constraint: Features that a machine must have.
        max_jobs: Maximum number of jobs in the queue, waiting or running; 1000 by default, and one per CPU for
            ``local``.
        cluster: ``slurm``, ``local`` (processes of this machine) or ``debug`` (this process).
        retries: Policy for jobs whose process ended before they did, or reached the time limit.
        folder: Folder for the files of jobs, which all machines share, and which one process uses at a time. Default:
            ``.slurm`` in the directory of a run, and the user's cache for other jobs.
    """

    partition: str | None = None
    time: int | str | None = None
    num_cpus: int = 1
    num_gpus: int = 0
    memory: int | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    max_jobs: int | None = None
    cluster: ClusterName = "slurm"
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    folder: Path | None = None
    _load_job: Callable[[Any], Any] = field(default=do_nothing, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.cluster not in CLUSTERS:
            raise ValueError(f"cluster must be one of {', '.join(get_args(ClusterName))}, but got {self.cluster!r}")
        for name, value, minimum in (
            ("num_cpus", self.num_cpus, 1),
            ("num_gpus", self.num_gpus, 0),
            ("memory", self.memory, 1),
            ("max_jobs", self.max_jobs, 1),
        ):
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be {minimum} or more, but got {value}")
        for name in ("partition", "account", "qos", "constraint"):
            text = getattr(self, name)
            if text is not None and not re.fullmatch(r"\S+", text):
                raise ValueError(f"{name} must be a text without spaces, but got {text!r}")
        parse_time_limit(self.time)

    def in_run(self, path: Path, load_job: Callable[[Any], Any]) -> "SlurmExecutor":
        """Return the executor for the jobs of a run, whose files are in the directory of the run.

        Args:
            path: The directory of the run.
            load_job: Returns the result of a job that has finished before, and None for any other; jobs that have
                finished are not submitted.

        Returns:
            The executor.

        Raises:
            ExecutorError: If jobs cannot be submitted from this machine.
        """
        self._check_installation()
        return replace(self, folder=self.folder or path / RUN_FOLDER, _load_job=load_job)

    def map_jobs(
        self,
        fn: JobFn,
        jobs: Sequence[Any],
        progress: JobProgressFn = do_nothing,
        log: JobLogFn = do_nothing,
        change_state: JobStateFn = do_nothing,
    ) -> list[Any]:
        """Apply ``fn`` to every job; the first error cancels all other jobs and is raised here with type and message.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.
            change_state: Receives (job index, state).

        Returns:
            The results, in the order of the jobs.

        Raises:
            ExecutorError: If submitit or Slurm is not installed, Slurm refuses a job, or, after all other jobs, if a
                job was set aside.
        """
        self._check_installation()
        queue = JobQueue(jobs, self.retries, log, change_state)
        default = (os.cpu_count() or 1) if self.cluster == "local" else MAX_QUEUED_JOBS
        max_jobs = self.max_jobs or default
        parameters = {**vars(self), "time": parse_time_limit(self.time), "max_jobs": max_jobs}
        with SubmittedJobs(fn, self.cluster, parameters, self.folder, log) as submitted:
            while not queue.is_finished:
                limit = min(max_jobs - submitted.num_queued, MAX_QUEUED_JOBS - submitted.num_refused)
                submitted.submit(self._take_unfinished_jobs(queue, jobs, limit, progress))
                for kind, index, *content in submitted.poll():
                    if kind == "started":
                        queue.mark_running(index)
                    elif kind == "progress":
                        progress(index, *content)
                    elif kind == "log":
                        log(*content)
                    elif kind == "lost":
                        state, text = content
                        queue.record_loss(index, text, is_counted=state not in UNCOUNTED_STATES)
                    elif kind == "failed":
                        error, file = content
                        log(f"{label_job(jobs[index])}: failed; its log is {file}")
                        raise error
                    else:
                        queue.complete(index, *content)
            return queue.collect_results()

    def _take_unfinished_jobs(
        self, queue: JobQueue, jobs: Sequence[Any], limit: int, progress: JobProgressFn
    ) -> dict[int, Any]:
        """Take jobs that may start, by index; those that have finished before are completed instead."""
        taken: dict[int, Any] = {}
        while len(taken) < limit and (index := queue.take_due()) is not None:
            result = self._load_job(jobs[index])
            if result is None:
                taken[index] = jobs[index]
            else:
                progress(index, 1, 1, math.nan)
                queue.complete(index, result)
        return taken

    def _check_installation(self) -> None:
        """Raise if submitit or the commands of Slurm are missing."""
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise ExecutorError(
                "running on Slurm needs the submitit package, but it is not installed; pip install 'mesascope[slurm]'"
            ) from error
        missing = [name for name in COMMANDS if shutil.which(name) is None] if self.cluster == "slurm" else []
        if missing:
            raise ExecutorError(
                f"running on Slurm needs the command {missing[0]}, but it is not on the PATH; start the run on a "
                "machine from which jobs are submitted, or use cluster=local"
            )


def parse_time_limit(limit: int | str | None) -> float | None:
    """Return a time limit in minutes.

    Args:
        limit: Minutes, ``HH:MM:SS`` or ``D-HH:MM:SS``; None for that of the cluster.

    Raises:
        ValueError: If it has another form, or is 0.

    >>> parse_time_limit("90"), parse_time_limit("1:30:00"), parse_time_limit("1-00:00:30")
    (90.0, 90.0, 1440.5)
    """
    if limit is None:
        return None
    text, minutes = str(limit), 0.0
    if match := _TIME.fullmatch(text):
        days, hours, whole, seconds = (int(part or 0) for part in match.groups())
        minutes = (days * 24 + hours) * 60 + whole + seconds / 60
    elif text.isdecimal():
        minutes = float(text)
    if not minutes:
        raise ValueError(f"time must be minutes, HH:MM:SS or D-HH:MM:SS, and more than 0, but got {limit!r}")
    return minutes
