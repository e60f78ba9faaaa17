"""Affine recurrences in four dimensions: the paper's future work, with the claims of the study `affine`."""

from dataclasses import replace

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine import study, study_2d
from mesascope.studies.affine.claims import make_recurrence_analyses, transferred_claims
from mesascope.studies.affine.factors import FACTORS
from mesascope.studies.base import Condition, ScaleConfig

TASK = replace(study_2d.TASK, dim=4)
LAPTOP = study.make_affine_training(8_000, checkpoints=8, lr=study_2d.LEARNING_RATE)
PRENORM = study.make_affine_training(8_000, checkpoints=8, lr=1e-3)  # ours: slower at 2e-3 and 4e-3 in pilot runs

BLOCK, *OTHER_FACTORS = FACTORS
_bare, _prenorm = BLOCK.levels
BLOCK = replace(BLOCK, levels=(_bare, replace(_prenorm, training={"optimizer": PRENORM.optimizer})))

STUDY = replace(
    study.STUDY,
    name="affine-4d",
    title="Affine recurrences in four dimensions",
    description=(
        "Sequences $x' = A x + b$ in four dimensions; $A$ is a dense matrix of spectral radius up to 1. The paper "
        "names higher-dimensional recurrences as future work; the claims are those of the scalar study. As in two "
        "dimensions, the terms of every sequence are divided by their root mean square. Models with layer norm and "
        "MLPs are trained at a quarter of the learning rate of the attention-only ones: in pilot runs of one seed, "
        "their error was over 25 % of that of copying at higher rates, after 3,000 steps and 6,000 steps."
    ),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(**{**study.SHAPE, "d_in": 4, "d_out": 4}),
            scales=study_2d.SCALES | {"laptop": ScaleConfig(training=LAPTOP, sequences=256)},
            analyses=make_recurrence_analyses(TASK.identified_from + 1),
        ),
    ),
    grid={"paper": study.STUDY.grid["paper"]},
    minutes={**study.STUDY.minutes, "laptop": 13.0},
    claims=transferred_claims(first=TASK.identified_from + 1, layers=3),
    factors=(BLOCK, *OTHER_FACTORS),
)
