"""Learning-rate schedules as configuration values."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mesascope.argument_types import validate_fields


@runtime_checkable
class LearningRateSchedule(Protocol):
    """Learning-rate schedule from the end of warm-up to the end of training."""

    def rate_factor(self, progress: float) -> float:
        """Return the learning rate as a fraction of its peak.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """Constant learning rate."""

    def rate_factor(self, progress: float) -> float:
        """Return 1.

        Args:
            progress: The fraction of training done since warm-up; unused.
        """
        return 1.0


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Cosine decay from the peak learning rate to ``final_fraction`` of it.

    Attributes:
        final_fraction: The final learning rate, as a fraction of the peak.
    """

    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)

    def rate_factor(self, progress: float) -> float:
        """Return f + (1 - f) (1 + cos(pi progress)) / 2, with f = ``final_fraction``.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """Linear decay from the peak learning rate to ``final_fraction`` of it.

    Attributes:
        final_fraction: The final learning rate, as a fraction of the peak.
    """

    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)

    def rate_factor(self, progress: float) -> float:
        """Return 1 - (1 - f) progress, with f = ``final_fraction``.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        return 1 - (1 - self.final_fraction) * progress


@dataclass(frozen=True, kw_only=True)
class InverseSqrtSchedule:
    """Inverse square-root decay after a constant phase, as in T5 (Raffel et al. 2020).

    With ``constant_fraction`` = k / n, for the first k of n steps, this is T5's 1 / sqrt(max(t, k)), up to a constant
    factor.

    Attributes:
        constant_fraction: The fraction of training at the peak learning rate.

    Raises:
        ValueError: If ``constant_fraction`` is not between 0 and 1.
    """

    constant_fraction: float = 0.01

    def __post_init__(self) -> None:
        """Reject fractions whose learning rate would be infinite at the start, or would never decay."""
        validate_fields(self)
        if not 0 < self.constant_fraction < 1:
            raise ValueError(f"constant_fraction must be between 0 and 1, but got {self.constant_fraction}")

    def rate_factor(self, progress: float) -> float:
        """Return sqrt(c / max(progress, c)), with c = ``constant_fraction``.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        return math.sqrt(self.constant_fraction / max(progress, self.constant_fraction))


def scheduled_learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, schedule: LearningRateSchedule
) -> float:
    """Return the learning rate of one update: linear warm-up, then the schedule.

    Args:
        step: Updates taken before this one.
        steps: Total number of updates.
        warmup: Number of warm-up updates.
        peak: Peak learning rate.
        schedule: The schedule after warm-up.

    Returns:
        The learning rate.

    >>> [scheduled_learning_rate(n, steps=6, warmup=2, peak=1.0, schedule=LinearSchedule()) for n in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * schedule.rate_factor((step - warmup) / (steps - warmup))
