"""Affine recurrences in two dimensions: the paper's future work, with the claims of the study `affine`."""

from dataclasses import replace

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine import study
from mesascope.studies.affine.claims import make_recurrence_analyses, transferred_claims
from mesascope.studies.base import Condition, ScaleConfig

TASK = replace(study.TASK, dim=2, matrix="dense", unit_rms=True)  # unscaled, pilot runs did not learn it
LEARNING_RATE = 4e-3  # ours, after pilot runs: twice that of the scalar study

SCALES = {
    "smoke": ScaleConfig(training=study.make_affine_training(60, checkpoints=3, lr=LEARNING_RATE), sequences=64),
    "laptop": ScaleConfig(training=study.make_affine_training(5_000, checkpoints=8, lr=LEARNING_RATE), sequences=256),
    "paper": ScaleConfig(training=study.make_affine_training(40_000, checkpoints=20, lr=LEARNING_RATE), sequences=2048),
}

STUDY = replace(
    study.STUDY,
    name="affine-2d",
    title="Affine recurrences in two dimensions",
    description=(
        "Sequences $x' = A x + b$ in two dimensions; $A$ is a dense matrix of spectral radius up to 1. The paper "
        "names higher-dimensional recurrences as future work; the claims are those of the scalar study. The terms of "
        "every sequence are divided by their root mean square, which leaves $A$ unchanged. Without this scaling 1 % "
        "of the sequences carry about half of the squared error of copying, and pilot runs did not learn the task, at "
        "this learning rate or half of it; with it, five of five pilot seeds did."
    ),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(**{**study.SHAPE, "d_in": 2, "d_out": 2}),
            scales=SCALES,
            analyses=make_recurrence_analyses(TASK.identified_from + 1),
        ),
    ),
    grid={"paper": study.STUDY.grid["paper"]},
    minutes={**study.STUDY.minutes, "laptop": 8.0},
    claims=transferred_claims(first=TASK.identified_from + 1, layers=3),
)
