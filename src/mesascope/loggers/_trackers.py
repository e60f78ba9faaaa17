"""Weights & Biases and trackio, whose functions have the same names."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mesascope.loggers._missing import explain_missing_package

PROJECT = "mesascope"


class WandbLogger:
    """Logs models to Weights & Biases; offline, unless the user has set ``WANDB_MODE``.

    Raises:
        ValueError: if wandb is not installed.
    """

    def __init__(self) -> None:
        self._wandb = _import_package("wandb")

    def start_model(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a run of Weights & Biases.

        Args:
            name: the name of the model.
            config: the parameters.
        """
        mode = None if "WANDB_MODE" in os.environ else "offline"  # None: wandb reads the variable
        self._run = self._wandb.init(project=PROJECT, name=name, config=dict(config), mode=mode)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values at one step.

        Args:
            step: optimizer steps taken.
            values: numbers by name.
        """
        self._run.log(dict(values), step=step)

    def finish_model(self) -> None:
        """Finish the run."""
        self._run.finish()


class TrackioLogger:
    """Logs models to the local database of trackio, unless the user has set ``TRACKIO_SPACE_ID``.

    Raises:
        ValueError: if trackio is not installed.
    """

    def __init__(self) -> None:
        self._trackio = _import_package("trackio")

    def start_model(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a run of trackio.

        Args:
            name: the name of the model.
            config: the parameters.
        """
        self._trackio.init(project=PROJECT, name=name, config=dict(config))

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values at one step.

        Args:
            step: optimizer steps taken.
            values: numbers by name.
        """
        self._trackio.log(dict(values), step=step)

    def finish_model(self) -> None:
        """Finish the run."""
        self._trackio.finish()


def _import_package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise explain_missing_package(name) from error
