"""Training curves and evaluations of a run in TensorBoard, Weights & Biases or trackio, read from its directory."""

from mesascope.loggers._protocol import RunLogger
from mesascope.loggers._replay import LOGGER_NAMES, create_loggers, log_run

__all__ = ["LOGGER_NAMES", "RunLogger", "create_loggers", "log_run"]
