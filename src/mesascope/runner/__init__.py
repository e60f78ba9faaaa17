"""Execution of a study: train, load checkpoints, run analyses, apply interventions, judge the claims."""

from mesascope.runner._callbacks import Executor, JobProgress, JobStateCallback, ProgressCallback
from mesascope.runner._description import describe_run
from mesascope.runner._dry_run import dry_run
from mesascope.runner._evaluation import EVALUATION_SEED
from mesascope.runner._jobs import SimulationJob, TrainingJob, run_job, train_seed_group
from mesascope.runner._preflight import StudyInvalid, check_models
from mesascope.runner._study import POPULATION_DEVICES, load_verdicts, run_study
from mesascope.runner._texts import check_texts

__all__ = [
    "EVALUATION_SEED",
    "POPULATION_DEVICES",
    "Executor",
    "JobProgress",
    "JobStateCallback",
    "ProgressCallback",
    "SimulationJob",
    "StudyInvalid",
    "TrainingJob",
    "check_models",
    "check_texts",
    "describe_run",
    "dry_run",
    "load_verdicts",
    "run_job",
    "run_study",
    "train_seed_group",
]
