"""Training: fresh data at every step, atomic checkpoints, and bitwise identical weights after a resume."""

from mesascope.train._batches import derive_untrained_seed, sample_batches
from mesascope.train._config import TrainingConfig, log_spaced_steps
from mesascope.train._loop import limit_threads, train_model
from mesascope.train._model_card import CARD_HEADER
from mesascope.train._parallel_model import ParallelStrategy
from mesascope.train._step import TrainingDiverged
from mesascope.train.optim import SGD, AdaFactor, AdamW
from mesascope.train.parallel import train_parallel, validate_parallel
from mesascope.train.population import train_population
from mesascope.train.schedules import ConstantSchedule, CosineSchedule, InverseSqrtSchedule, LinearSchedule

__all__ = [
    "CARD_HEADER",
    "SGD",
    "AdaFactor",
    "AdamW",
    "ConstantSchedule",
    "CosineSchedule",
    "InverseSqrtSchedule",
    "LinearSchedule",
    "ParallelStrategy",
    "TrainingConfig",
    "TrainingDiverged",
    "derive_untrained_seed",
    "limit_threads",
    "log_spaced_steps",
    "sample_batches",
    "train_model",
    "train_parallel",
    "train_population",
    "validate_parallel",
]
