"""Training: fresh data at every step, checkpoints that a kill cannot spoil, the same weights after a resume."""

from mesascope.train.loop import Training, TrainingDiverged, batches, evenly_spaced, fit, log_spaced, threads
from mesascope.train.optim import SGD, AdaFactor, AdamW, Constant, Cosine, InverseSqrt, Linear
from mesascope.train.population import fit_population

__all__ = [
    "SGD",
    "AdaFactor",
    "AdamW",
    "Constant",
    "Cosine",
    "InverseSqrt",
    "Linear",
    "Training",
    "TrainingDiverged",
    "batches",
    "evenly_spaced",
    "fit",
    "fit_population",
    "log_spaced",
    "threads",
]
