"""States of the jobs of a run, shown to the user; those that are set aside are also recorded in their runs."""

from collections.abc import Mapping, Sequence

from mesascope.runner._callbacks import JobStateCallback, ProgressCallback
from mesascope.runner._jobs import SimulationJob, TrainingJob
from mesascope.store import Run

SET_ASIDE_FILE = "set_aside"  # without the extension .json


class JobStates:
    """Receives the states of jobs.

    Args:
        jobs: The jobs.
        runs: Their runs, by path.
        progress: Receives the states too, if it is a `JobStateCallback`.
    """

    def __init__(
        self, jobs: Sequence[TrainingJob | SimulationJob], runs: Mapping[str, Run], progress: ProgressCallback
    ) -> None:
        self._jobs, self._runs, self._progress = jobs, runs, progress
        self._set_aside: dict[str, list[dict[str, str | int]]] = {path: [] for path in runs}
        for run in runs.values():
            if (run.path / f"{SET_ASIDE_FILE}.json").exists():  # all jobs are tried again
                run.write_json(SET_ASIDE_FILE, [])

    def __call__(self, index: int, state: str) -> None:
        """Receive the new state of a job.

        Args:
            index: The index of the job.
            state: ``waiting``, ``running``, ``done`` or ``set aside``.
        """
        if state == "set aside":
            job, path = self._jobs[index], str(self._jobs[index].path)
            self._set_aside[path].append(_describe_job(job))
            self._runs[path].write_json(SET_ASIDE_FILE, self._set_aside[path])
        if isinstance(self._progress, JobStateCallback):
            self._progress.change_state(index, state)


def _describe_job(job: TrainingJob | SimulationJob) -> dict[str, str | int]:
    name = {"simulation": job.simulation} if isinstance(job, SimulationJob) else {"condition": job.condition}
    return {**name, "seed": job.seed}
