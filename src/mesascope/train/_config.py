"""Configuration of a training."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from mesascope.argument_types import validate_fields
from mesascope.statistics import evenly_spaced_steps
from mesascope.train.optim import AdamW, OptimizerConfig
from mesascope.train.schedules import CosineSchedule, LearningRateSchedule, scheduled_learning_rate


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training configuration.

    Attributes:
        steps: Number of optimizer updates.
        batch_size: Fresh sequences per update.
        optimizer: Configuration of the optimizer, with its peak learning rate.
        warmup: Updates over which the learning rate rises linearly from 0 to its peak.
        schedule: Learning-rate schedule after warm-up.
        clip: Maximum gradient norm; ``None`` disables clipping.
        checkpoints: Number of checkpoints, including the first and the last step.
        spacing: Spacing of the checkpoints: ``log`` (evenly in the logarithm of the step) or ``even``.
        threads: CPU threads. One thread is fastest for small models, and several seeds run in parallel.
        dtype: Data type of weights and activations: float32 or float64.
        history: Record the inputs and output gradients of every linear module at every step.

    >>> TrainingConfig(steps=10, checkpoints=4).checkpoint_steps
    (0, 1, 3, 10)
    """

    steps: int
    batch_size: int = 64
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    warmup: int = 0
    schedule: LearningRateSchedule = field(default_factory=CosineSchedule)
    clip: float | None = 1.0
    checkpoints: int = 12
    spacing: Literal["log", "even"] = "log"
    threads: int = 1
    dtype: Literal["float32", "float64"] = "float32"
    history: bool = False

    def __post_init__(self) -> None:
        """Validate the configuration."""
        validate_fields(self)
        for name, minimum in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("checkpoints", 2), ("threads", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, but got {getattr(self, name)}")
        if self.spacing not in ("log", "even"):
            raise ValueError(f"spacing must be log or even, but got {self.spacing!r}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, but got {self.dtype!r}")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup must be less than steps, but got {self.warmup} and {self.steps}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or None for no clipping, but got {self.clip}")

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps at which a checkpoint is saved, in ascending order."""
        spaced = log_spaced_steps if self.spacing == "log" else evenly_spaced_steps
        return spaced(self.steps, self.checkpoints)

    @property
    def weight_dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of an update.

        Args:
            step: Updates taken before this one.

        Returns:
            The learning rate, warm-up and schedule included.
        """
        peak, schedule = self.optimizer.lr, self.schedule
        return scheduled_learning_rate(step, steps=self.steps, warmup=self.warmup, peak=peak, schedule=schedule)


def log_spaced_steps(steps: int, n: int) -> tuple[int, ...]:
    """Return ``n`` steps from 0 to ``steps``, evenly spaced in the logarithm.

    Args:
        steps: The last step.
        n: Number of steps to return; fewer if there are not enough distinct ones.

    Returns:
        Steps in ascending order, including 0 and ``steps``.

    >>> log_spaced_steps(1000, 5)
    (0, 1, 10, 100, 1000)
    """
    n = min(n, steps + 1)
    points = [0]
    for target in np.geomspace(1, steps, n - 1) if n > 2 else [steps]:
        points.append(max(round(float(target)), points[-1] + 1))
    return tuple(points)
