"""Submitted jobs of one call: their files, their messages, and how they end."""

import io
import math
import pickle
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mesascope.executors._jobs import ExecutorError, JobFn, JobLogFn, block_interrupts
from mesascope.executors._slurm_clusters import CLUSTERS, hide_job_variables
from mesascope.executors._slurm_job import ACTIVE_FILE, MESSAGES_FOLDER, MessageReader, run_submitted_job
from mesascope.user_cache import find_user_cache

if TYPE_CHECKING:
    import submitit

STOPPED_FILE = "stopped"  # in place of ACTIVE_FILE, when jobs must end
POLL_FRACTION = 0.02  # of the time since the start, between two looks at files
SUBMISSION_INTERVAL = 30.0  # seconds between two attempts, if Slurm has accepted jobs before and refuses more
MAX_SUBMISSION_SECONDS = 3600.0  # since jobs were last accepted; then the call ends
MAX_LOG_LINES, MAX_LOG_CHARACTERS = 3, 200  # of a lost job's stderr, in a message
_KILLED = re.compile(r"^\S*slurm_script: line \d+: +\d+ (.*?) {2,}.*")  # what bash says of a process: Killed


class SubmittedJobs:
    """The submitted jobs of one call; on exit, those that have not ended are cancelled.

    Args:
        fn: Called as ``fn(job, progress, log)`` on the machine of a job.
        cluster: The name of the cluster.
        parameters: What jobs request, as in :meth:`JobCluster.create_executor`.
        folder: A folder that no other process uses; None for a new one in the user's cache.
        log: Receives lines of text.

    Raises:
        ExecutorError: If the folder cannot be used.
    """

    def __init__(
        self, fn: JobFn, cluster: str, parameters: Mapping[str, Any], folder: Path | None, log: JobLogFn
    ) -> None:
        self._fn, self._cluster_name, self._parameters, self._log = fn, cluster, parameters, log
        self._former_jobs = folder
        base = (folder or find_user_cache() / "slurm").absolute()
        if "%" in str(base):
            raise ExecutorError(f"the folder of jobs must have no % in its path, which Slurm replaces, but is {base}")
        self._folder = base / uuid4().hex[:8]
        self._cluster = CLUSTERS[cluster](self._folder)
        self._jobs: dict[int, submitit.Job[Any]] = {}
        self._unsubmitted: dict[int, Any] = {}
        self._last_submission: float | None = None  # that was accepted
        self._is_refused, self._next_submission = False, -math.inf
        self._messages = MessageReader(self._folder)
        self._start = time.monotonic()

    def __enter__(self) -> "SubmittedJobs":
        if self._former_jobs is not None:
            _stop_former_jobs(self._former_jobs, self._log)
        try:
            (self._folder / MESSAGES_FOLDER).mkdir(parents=True)
            (self._folder / ACTIVE_FILE).write_text(self._cluster_name, encoding="utf-8")
        except OSError as error:
            raise ExecutorError(f"the folder of jobs must be writable, but {self._folder} is not: {error}") from error
        self._submitit = self._cluster.create_executor(self._parameters)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        (self._folder / ACTIVE_FILE).replace(self._folder / STOPPED_FILE)
        try:
            if error is not None:
                self._cluster.cancel_jobs(self._jobs.values())
        except ExecutorError as problem:  # the first error is raised
            self._log(str(problem))
            return
        (self._folder / STOPPED_FILE).unlink()
        if not isinstance(error, Exception):  # which may name a log
            shutil.rmtree(self._folder, ignore_errors=True)
            with suppress(OSError):
                self._folder.parent.rmdir()  # if it is empty

    @property
    def num_queued(self) -> int:
        """The number of jobs that were given to :meth:`submit` and have not ended."""
        return len(self._jobs) + len(self._unsubmitted)

    @property
    def num_refused(self) -> int:
        """The number of those that Slurm has not accepted yet."""
        return len(self._unsubmitted)

    def submit(self, jobs: Mapping[int, Any]) -> None:
        """Submit jobs, and those that Slurm has refused; several are one job array.

        Args:
            jobs: The jobs by index.

        Raises:
            ExecutorError: If Slurm refuses the first jobs of the call, or has accepted none for an hour.
        """
        self._unsubmitted |= jobs
        if not self._unsubmitted or time.monotonic() < self._next_submission:
            return
        try:
            self._jobs |= self._submit_array(self._unsubmitted)
        except ExecutorError as refusal:
            last = self._last_submission
            if last is None or time.monotonic() - last > MAX_SUBMISSION_SECONDS:
                raise
            if not self._is_refused:
                self._log(f"{refusal}; tried again every {SUBMISSION_INTERVAL:g} s")
            self._is_refused, self._next_submission = True, time.monotonic() + SUBMISSION_INTERVAL
            return
        self._unsubmitted, self._is_refused, self._last_submission = {}, False, time.monotonic()

    def _submit_array(self, jobs: Mapping[int, Any]) -> "dict[int, submitit.Job[Any]]":
        owns_process = self._cluster_name != "debug"
        calls = [partial(run_submitted_job, self._fn, *one, self._folder, owns_process) for one in jobs.items()]
        printed = io.StringIO()
        try:
            with block_interrupts(), hide_job_variables(), redirect_stderr(printed):
                return dict(zip(jobs, self._submitit.submit_array(calls), strict=True))
        except (OSError, RuntimeError) as error:  # submitit has no type of its own for all errors
            reason = " ".join((str(error) or printed.getvalue()).split())[:300]
            raise ExecutorError(f"Slurm must accept {len(jobs)} jobs, but refuses them: {reason}") from error

    def poll(self) -> Iterator[tuple]:
        """Wait a moment; yield messages of jobs as (kind, index, ...), and how jobs have ended.

        Yields:
            ``("started", index)``, ``("progress", index, done, total, loss)`` or ``("log", index, text)``; and the end
            of a job, ``("done", index, result)``, ``("failed", index, error, log file)`` or ``("lost", index, state,
            description)``.
        """
        minimum, maximum = self._cluster.poll_seconds
        time.sleep(min(max(minimum, POLL_FRACTION * (time.monotonic() - self._start)), maximum))
        ended = self._cluster.find_ended(self._jobs) if self._jobs else {}
        for index in list(self._jobs):  # all messages of jobs that have ended are there
            for kind, *content in self._messages.read_new(index):
                yield kind, index, *content
        for index, state in ended.items():
            job = self._jobs.pop(index)
            if state:
                yield "lost", index, state, _describe_loss(state, job.paths.stderr)
                continue
            outcome = self._read_outcome(index, job)
            yield outcome
            if outcome[0] == "done":
                _remove_files(job)

    def _read_outcome(self, index: int, job: "submitit.Job[Any]") -> tuple:
        try:
            kind, content = job.result()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            return "lost", index, "UNREADABLE", _describe_loss(f"its result cannot be read: {error}", job.paths.stderr)
        except RuntimeError as error:  # submitit's, for a job that cannot be loaded on the machine
            reason = _read_last_lines(job.paths.stderr) or " ".join(str(error).split())[:MAX_LOG_CHARACTERS]
            problem = ExecutorError(f"a job must start, but ends with {reason!r}; its log is {job.paths.stderr}")
            return "failed", index, problem, job.paths.stderr
        return (kind, index, content) if kind == "done" else (kind, index, content, job.paths.stderr)


def _stop_former_jobs(folder: Path, log: JobLogFn) -> None:
    """Cancel the jobs of commands that were killed, wait until they have ended, and remove the files of former jobs."""
    for former in sorted(folder.absolute().glob("*/")):
        active, stopped = former / ACTIVE_FILE, former / STOPPED_FILE
        if active.exists():
            active.replace(stopped)  # at which the jobs end themselves, too
        if stopped.exists():
            CLUSTERS[stopped.read_text(encoding="utf-8")](former).cancel_jobs()
            log("jobs of an earlier command were cancelled; each resumes from its last checkpoint")
        shutil.rmtree(former, ignore_errors=True)


def _describe_loss(state: str, log_file: Path) -> str:
    """Describe how a job was lost, with the end of its log."""
    lines = _read_last_lines(log_file)
    return f"{state}; its log {log_file} ends with {lines!r}" if lines else f"{state}; its log is {log_file}"


def _read_last_lines(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = [_KILLED.sub(r"\1", line) for line in lines if line.strip()][-MAX_LOG_LINES:]
    text = " ".join(" ".join(line.split()) for line in last)
    return text if len(text) <= MAX_LOG_CHARACTERS else f"...{text[3 - MAX_LOG_CHARACTERS :]}"


def _remove_files(job: "submitit.Job[Any]") -> None:
    """Remove the files of a job that has ended."""
    paths = job.paths
    for file in (paths.submitted_pickle, paths.result_pickle, paths.stdout, paths.stderr):
        with suppress(OSError):
            file.unlink()
