"""Affine recurrences in two dimensions: the paper's future work, with the claims of the study `affine`."""

from dataclasses import replace

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine import study
from mesascope.studies.affine.claims import affine_claims, make_recurrence_analyses
from mesascope.studies.base import Condition, ScaleConfig

TASK = replace(study.TASK, dim=2, matrix="dense")

STUDY = replace(
    study.STUDY,
    name="affine-2d",
    title="Affine recurrences in two dimensions",
    description=(
        "Sequences x' = A x + b in two dimensions; A is a dense matrix of spectral radius up to 1. The paper names "
        "higher-dimensional recurrences as future work; the claims are those of the scalar study. The model does not "
        "learn this task at laptop scale, so the claims are tested at paper scale only."
    ),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(**{**study.SHAPE, "d_in": 2, "d_out": 2}),
            scales=study.SCALES | {"laptop": ScaleConfig(training=study.make_affine_training(8_000, checkpoints=10))},
            analyses=make_recurrence_analyses(TASK.identified_from + 1),
        ),
    ),
    minutes={**study.STUDY.minutes, "laptop": 8.0},
    claims=affine_claims(
        first=TASK.identified_from + 1, layers=3, scales=("paper",)
    ),  # the task is not learned at laptop scale
)
