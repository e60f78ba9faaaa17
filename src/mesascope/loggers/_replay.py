"""Logging of a run from its directory, so that models that other processes train are logged too."""

from collections.abc import Sequence
from pathlib import Path

from mesascope.loggers._protocol import RunLogger
from mesascope.loggers._tensorboard import TensorBoardLogger
from mesascope.loggers._trackers import TrackioLogger, WandbLogger
from mesascope.loggers._values import ModelValues, list_models
from mesascope.store import LogFn, Run

LOGGER_NAMES = ("tensorboard[:FOLDER]", "wandb", "trackio")
TENSORBOARD_FOLDER = "tensorboard"  # in the directory of a run


def create_loggers(requested: Sequence[str | RunLogger], run_dir: Path) -> list[RunLogger]:
    """Create loggers by their names.

    Args:
        requested: ``tensorboard``, ``tensorboard:FOLDER``, ``wandb``, ``trackio``, or loggers of your own.
        run_dir: the run directory, in whose folder ``tensorboard`` event files are written by default.

    Returns:
        The loggers.

    Raises:
        ValueError: if there is no such logger, or its package is not installed.
    """
    return [_create_logger(one, run_dir) if isinstance(one, str) else _check_logger(one) for one in requested]


def _create_logger(name: str, run_dir: Path) -> RunLogger:
    kind, colon, folder = name.partition(":")
    if kind == "tensorboard" and bool(colon) == bool(folder):
        return TensorBoardLogger(Path(folder) if folder else run_dir / TENSORBOARD_FOLDER)
    if name == "wandb":
        return WandbLogger()
    if name == "trackio":
        return TrackioLogger()
    raise ValueError(f"a logger must be one of {', '.join(LOGGER_NAMES)}, but got {name!r}")


def _check_logger(logger: RunLogger) -> RunLogger:
    if not isinstance(logger, RunLogger):
        raise ValueError(
            f"a logger must be one of {', '.join(LOGGER_NAMES)}, or have the methods start_model, log_scalars and "
            f"finish_model, but got {type(logger).__name__}"
        )
    return logger


def log_run(run_dir: Path, loggers: Sequence[RunLogger], log: LogFn) -> int:
    """Log the values of every trained model of a run.

    A logger that fails is left out from then on.

    Args:
        run_dir: the run directory, also of a run that has not finished.
        loggers: the loggers.
        log: receives one line for each logger that fails, and for each damaged file.

    Returns:
        The number of models.

    Raises:
        RunError: if there is no run.
    """
    Run.open(run_dir)
    models, working = list(list_models(run_dir, log)), list(loggers)
    for model in models:
        working = [logger for logger in working if _log_model(model, logger, log)]
    return len(models)


def _log_model(model: ModelValues, logger: RunLogger, log: LogFn) -> bool:
    """Log the values of one model; return whether the logger works."""
    try:
        logger.start_model(model.name, model.config)
        for step, values in model.values.items():
            logger.log_scalars(step, values)
        logger.finish_model()
    except Exception as error:  # of any package: the run is complete without its curves
        line = " ".join(f"{type(error).__name__}: {error}".split())
        log(f"{type(logger).__name__} failed at {model.name} and is left out: {line}")
        return False
    return True
