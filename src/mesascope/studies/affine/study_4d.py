"""Affine recurrences in four dimensions: what the paper names as future work, with the same claims."""

from dataclasses import replace

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine import study
from mesascope.studies.affine.claims import claims, instruments, sweeps
from mesascope.studies.base import Scale

TASK = replace(study.TASK, dim=4, matrix="dense")

STUDY = replace(
    study.STUDY,
    name="affine-4d",
    title="Affine recurrences in four dimensions",
    about=(
        "Sequences x' = A x + b in four dimensions, A a dense matrix of spectral radius up to 1. The paper names "
        "higher-dimensional recurrences as future work; the claims are its claims for numbers, carried over. At laptop "
        "scale the model has not learned the task yet, so the claims are decided at paper scale alone."
    ),
    task=TASK,
    model=DecoderConfig(**{**study.SHAPE, "d_in": 4, "d_out": 4}),
    scales=study.SCALES | {"laptop": Scale(training=study.training(8_000, checkpoints=10), minutes=8.0)},
    measures=instruments(first=TASK.identified_from + 1),
    sweeps=sweeps(first=TASK.identified_from + 1),
    claims=claims(first=TASK.identified_from + 1, layers=3, scales=("paper",)),  # laptop: not yet learned
)
