"""Training: fresh data at every step, checkpoints that a kill cannot spoil, the same weights after a resume."""

from mesascope.train.loop import Training, TrainingDiverged, batches, fit, log_spaced, threads
from mesascope.train.optim import SGD, AdamW, Constant, Cosine, Linear

__all__ = [
    "SGD",
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "Training",
    "TrainingDiverged",
    "batches",
    "fit",
    "log_spaced",
    "threads",
]
