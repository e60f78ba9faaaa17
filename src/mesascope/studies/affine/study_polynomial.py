"""Polynomial recurrences x' = p(x): the paper's future work, with the claims of the study `affine`."""

from dataclasses import replace

from mesascope.studies.affine import study
from mesascope.studies.affine.claims import make_recurrence_analyses, transferred_claims
from mesascope.studies.affine.factors import FACTORS
from mesascope.studies.base import Condition, ScaleConfig
from mesascope.tasks.affine import Polynomial
from mesascope.tasks.distributions import Uniform

TASK = Polynomial(degree=2, length=20, coefficient_norm=Uniform(0.5, 1.0), unidentified_weight=0.05)  # all ours

LAPTOP = ScaleConfig(training=study.make_affine_training(3_000, checkpoints=8, lr=4e-3), sequences=256)

STUDY = replace(
    study.STUDY,
    name="polynomial",
    title="Polynomial recurrences in context",
    description=(
        "Sequences $x' = p(x)$ with a polynomial $p$ of degree 2, bounded by 1. The paper names polynomial "
        "recurrences as future work; the claims are those of the affine study."
    ),
    conditions=(
        Condition(
            task=TASK,
            model=study.STUDY.main.model,
            scales=study.SCALES | {"laptop": LAPTOP},
            analyses=make_recurrence_analyses(TASK.identified_from + 1),
        ),
    ),
    grid={"laptop": study.STUDY.grid["laptop"], "paper": {"block": ("bare", "prenorm"), "heads": ("4", "1")}},
    minutes={**study.STUDY.minutes, "laptop": 8.0},
    claims=transferred_claims(first=TASK.identified_from + 1, layers=3),
    factors=tuple(factor for factor in FACTORS if factor.name != "range"),  # the terms of a polynomial are bounded
)
