"""The protocol of loggers."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class RunLogger(Protocol):
    """Receives the values of one trained model after the other."""

    def start_model(self, name: str, config: Mapping[str, Any]) -> None:
        """Start a model.

        Args:
            name: study, scale, cell, condition and seed, separated by ``/``.
            config: study, scale, cell, condition and seed, and the task, the model and the training, in JSON types.
        """
        ...

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values at one step.

        Args:
            step: optimizer steps taken; steps ascend.
            values: finite numbers by name, such as ``train/loss``.
        """
        ...

    def finish_model(self) -> None:
        """Finish the current model; all of its values have been logged."""
        ...
