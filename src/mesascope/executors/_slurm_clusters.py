"""Clusters for submitted jobs: the queue of Slurm, processes of this machine, or this process."""

import math
import os
import subprocess
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil

from mesascope.executors._jobs import ExecutorError

if TYPE_CHECKING:
    import submitit

LOGS_FOLDER = "jobs"  # submitit's files
MIN_STATE_INTERVAL, MAX_STATE_INTERVAL = 2.0, 30.0  # seconds between two calls of squeue
RESULT_DELAY = 5.0  # seconds after the end of a job in which a file server must show its result
CANCEL_SECONDS = 45.0  # for cancelled jobs to end; Slurm kills them after 30 by default
COMMAND_TIMEOUT = 60.0
UNLIMITED_MINUTES = 10 * 365 * 24 * 60  # submitit has no value for it
ENDED_STATES = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()
)
LEFT_QUEUE = "not in the queue"
UNCOUNTED_STATES = frozenset(["BOOT_FAIL", "NODE_FAIL", "PREEMPTED"])  # which no job causes
COMMANDS = ("sbatch", "srun", "squeue", "scancel")  # submitit looks for srun


class JobCluster(Protocol):
    """A place where the submitted jobs of a driver's call run.

    Attributes:
        poll_seconds: Minimum and maximum of the seconds between two looks at files.
    """

    poll_seconds: tuple[float, float]

    def __init__(self, folder: Path) -> None:
        """Remember the folder of the driver's call."""
        ...

    def create_executor(self, parameters: Mapping[str, Any]) -> "submitit.Executor":
        """Create submitit's executor.

        Args:
            parameters: Fields of a :class:`mesascope.executors.SlurmExecutor`; the time in minutes.

        Returns:
            The executor.
        """
        ...

    def find_ended(self, jobs: Mapping[int, "submitit.Job[Any]"]) -> dict[int, str]:
        """Find jobs that have ended.

        Args:
            jobs: Jobs of submitit, by index.

        Returns:
            By index, how a job ended without a result; empty if it has one.
        """
        ...

    def cancel_jobs(self, jobs: "Iterable[submitit.Job[Any]]" = ()) -> None:
        """Cancel all jobs of the call, also those that a process submitted which was killed; wait for their end.

        Args:
            jobs: Those that this process has submitted.

        Raises:
            ExecutorError: If they have not ended; the message says how to cancel them.
        """
        ...


class SlurmQueue(JobCluster):
    """The queue of a Slurm cluster; the jobs of a call are those with its name, also if their numbers are not known.

    Args:
        folder: The folder of the driver's call.
    """

    poll_seconds = (0.5, 5.0)

    def __init__(self, folder: Path) -> None:
        self._logs, self._name = folder / LOGS_FOLDER, f"mesascope-{folder.name}"
        self._start = time.monotonic()
        self._next_states = self._start + MIN_STATE_INTERVAL
        self._ended_since: dict[str, float] = {}

    def create_executor(self, parameters: Mapping[str, Any]) -> "submitit.Executor":
        """Create submitit's executor; Slurm's own defaults hold for what is not given."""
        import submitit

        memory, minutes = parameters["memory"], parameters["time"]
        executor = submitit.SlurmExecutor(self._logs)
        executor.update_parameters(
            job_name=self._name,
            time=minutes and math.ceil(minutes),
            cpus_per_task=parameters["num_cpus"],
            gpus_per_node=parameters["num_gpus"] or None,
            mem=memory and f"{math.ceil(memory / 2**20)}M",
            array_parallelism=parameters["max_jobs"],
            use_srun=False,  # a step of its own would get one CPU
            wckey=None,
            **{name: parameters[name] for name in ("partition", "account", "qos", "constraint")},
        )
        return executor

    def find_ended(self, jobs: Mapping[int, "submitit.Job[Any]"]) -> dict[int, str]:
        """Find jobs with a result, and from time to time those that have none and are not in the queue."""
        names = _list_fresh(self._logs)
        ended = {index: "" for index, job in jobs.items() if job.paths.result_pickle.name in names}
        now = time.monotonic()
        if now < self._next_states or len(ended) == len(jobs):
            return ended
        states = self._read_states()
        self._next_states = now + min(max(MIN_STATE_INTERVAL, 0.05 * (now - self._start)), MAX_STATE_INTERVAL)
        for index, job in jobs.items():
            state = states.get(job.job_id, LEFT_QUEUE) if states is not None else "UNKNOWN"
            if state not in (*ENDED_STATES, LEFT_QUEUE):
                self._ended_since.pop(job.job_id, None)
            elif now - self._ended_since.setdefault(job.job_id, now) > RESULT_DELAY:
                ended.setdefault(index, state)
        return ended

    def cancel_jobs(self, jobs: "Iterable[submitit.Job[Any]]" = ()) -> None:
        """Cancel all jobs of the call's name, and wait until none is in the queue."""
        problem = "they have not ended"
        end = time.monotonic() + CANCEL_SECONDS
        while time.monotonic() < end:
            try:
                _run_command("scancel", "--quiet", f"--name={self._name}")
                if not _run_command("squeue", "--noheader", "--format=%i", f"--name={self._name}").strip():
                    return
            except subprocess.SubprocessError as error:  # Slurm may answer later
                problem = _describe_command_error(error)
            except OSError as error:
                problem = str(error)
                break
            time.sleep(0.5)
        raise ExecutorError(
            f"the jobs named {self._name} must be cancelled, but {problem}; cancel them with "
            f"`scancel --name={self._name}`"
        )

    def _read_states(self) -> dict[str, str] | None:
        """Return the states of all jobs of the call by their number; None if Slurm does not answer."""
        options = ("--noheader", "--array", "--states=all", "--format=%i|%T", f"--name={self._name}")
        try:
            lines = _run_command("squeue", *options).splitlines()
        except (OSError, subprocess.SubprocessError):
            return None
        return dict(line.strip().split("|", 1) for line in lines if "|" in line)


class LocalProcesses(JobCluster):
    """Processes of this machine, one per job, which go on when the driver is killed.

    Args:
        folder: The folder of the driver's call.
    """

    poll_seconds = (0.1, 0.5)

    def __init__(self, folder: Path) -> None:
        self._logs = folder / LOGS_FOLDER

    def create_executor(self, parameters: Mapping[str, Any]) -> "submitit.Executor":
        """Create submitit's executor, which knows a time limit and the number of GPUs only."""
        import submitit

        executor = submitit.LocalExecutor(self._logs)
        executor.update_parameters(
            timeout_min=parameters["time"] or UNLIMITED_MINUTES, gpus_per_node=parameters["num_gpus"], signal_delay_s=0
        )
        return executor

    def find_ended(self, jobs: Mapping[int, "submitit.Job[Any]"]) -> dict[int, str]:
        """Find jobs whose process has ended."""
        ended = {index: job for index, job in jobs.items() if job.done()}
        return {index: "" if job.paths.result_pickle.exists() else "killed or crashed" for index, job in ended.items()}

    def cancel_jobs(self, jobs: "Iterable[submitit.Job[Any]]" = ()) -> None:
        """Kill all processes that submitit has started in the call's folder, and their children."""
        end = time.monotonic() + CANCEL_SECONDS
        while processes := list(self._find_processes()):
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=5)
            if time.monotonic() > end:
                raise ExecutorError(
                    f"the processes of jobs must end, but {', '.join(str(one.pid) for one in processes)} have not; "
                    "kill them"
                )
        for job in jobs:
            job.done()  # so that Python knows that its child has ended

    def _find_processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                if str(self._logs) in words and any(word.startswith("submitit.") for word in words):
                    yield from process.children(recursive=True)
                    yield process


class DriverProcess(JobCluster):
    """The process of the driver, for debugging: each job runs when it is looked at.

    Args:
        folder: The folder of the driver's call.
    """

    poll_seconds = (0.0, 0.0)

    def __init__(self, folder: Path) -> None:
        self._logs = folder / LOGS_FOLDER

    def create_executor(self, parameters: Mapping[str, Any]) -> "submitit.Executor":
        """Create submitit's executor, which needs no parameters."""
        import submitit

        return submitit.DebugExecutor(self._logs)

    def find_ended(self, jobs: Mapping[int, "submitit.Job[Any]"]) -> dict[int, str]:
        """Run the first job."""
        index, job = next(iter(jobs.items()))
        with warnings.catch_warnings(category=ResourceWarning, action="ignore"):  # submitit does not close its logs
            job.results()
        return {index: ""}

    def cancel_jobs(self, jobs: "Iterable[submitit.Job[Any]]" = ()) -> None:
        """Do nothing: no job runs."""


CLUSTERS: dict[str, type[JobCluster]] = {"slurm": SlurmQueue, "local": LocalProcesses, "debug": DriverProcess}


@contextmanager
def hide_job_variables() -> Iterator[None]:
    """Hide the variables of the job in which the driver itself may run, which submitted jobs would inherit.

    Returns:
        A context manager. The path of Slurm's configuration and defaults of sbatch stay.
    """
    names = [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_")) and name != "SLURM_CONF"]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _run_command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT).stdout


def _describe_command_error(error: subprocess.SubprocessError) -> str:
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    return " ".join(str(text).split())[:300]


def _list_fresh(folder: Path) -> set[str]:
    """Return the names in a folder, as they are now on its file server."""
    with suppress(OSError):
        folder.chmod(folder.stat().st_mode & 0o7777)  # a change, after which NFS asks the server again
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
