"""Affine recurrences in two dimensions: the paper's future work, with the claims of the study `affine`."""

from dataclasses import replace

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine import study
from mesascope.studies.affine.claims import make_recurrence_analyses, transferred_claims
from mesascope.studies.base import Condition, ScaleConfig

TASK = replace(study.TASK, dim=2, matrix="dense")

STUDY = replace(
    study.STUDY,
    name="affine-2d",
    title="Affine recurrences in two dimensions",
    description=(
        "Sequences x' = A x + b in two dimensions; A is a dense matrix of spectral radius up to 1. The paper names "
        "higher-dimensional recurrences as future work; the claims are those of the scalar study. The task needs "
        "longer training than laptop scale allows; the claims are judged only where the model has learned it."
    ),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(**{**study.SHAPE, "d_in": 2, "d_out": 2}),
            scales=study.SCALES | {"laptop": ScaleConfig(training=study.make_affine_training(8_000, checkpoints=10))},
            analyses=make_recurrence_analyses(TASK.identified_from + 1),
        ),
    ),
    minutes={**study.STUDY.minutes, "laptop": 13.0},
    claims=transferred_claims(first=TASK.identified_from + 1, layers=3),
)
