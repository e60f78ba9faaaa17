"""Polynomial recurrences x' = p(x): what the paper names as future work, with the same claims."""

from dataclasses import replace

from mesascope.studies.affine import study
from mesascope.studies.affine.claims import claims, instruments, sweeps
from mesascope.studies.base import Scale
from mesascope.tasks.affine import Polynomial
from mesascope.tasks.distributions import Uniform

TASK = Polynomial(degree=2, length=20, size=Uniform(0.5, 1.0), unidentified_weight=0.05)  # all ours

STUDY = replace(
    study.STUDY,
    name="polynomial",
    title="Polynomial recurrences in context",
    about=(
        "Sequences x' = p(x) with p of degree 2, bounded by 1. The paper names polynomial recurrences as future work; "
        "the claims are its claims for affine maps, carried over."
    ),
    task=TASK,
    model=study.STUDY.model,
    scales=study.SCALES | {"laptop": Scale(training=study.training(8_000, checkpoints=10), minutes=8.0)},
    measures=instruments(first=TASK.identified_from + 1),
    sweeps=sweeps(first=TASK.identified_from + 1),
    claims=claims(first=TASK.identified_from + 1, layers=3),
)
