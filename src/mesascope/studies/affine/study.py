"""Affine recurrences x' = a x + b, learned in context by a three-layer transformer.

Bhargav & Gu 2024 (arXiv 2410.17438). Only the abstract is known to us: a three-layer GPT-style transformer (layers
counted from 0) forms a first estimate of the next term by copying in layer 0, and negative-similarity heads refine it
in layer 2. Ranges, sizes, training and all thresholds are ours.
"""

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine.citation import CITATION
from mesascope.studies.affine.claims import affine_claims, make_recurrence_analyses
from mesascope.studies.affine.factors import FACTORS
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.tasks.affine import Affine
from mesascope.tasks.distributions import Normal, Uniform
from mesascope.train import AdamW, CosineSchedule, TrainingConfig

TASK = Affine(
    dim=1,
    length=20,  # ours
    spectral_radius=Uniform(0.0, 1.0),  # ours: with |a| near 1, copying is wrong up to the last term
    offset=Normal(1.0),  # ours
    start=Normal(1.0),  # ours
    unidentified_weight=0.05,  # ours: about the error after the rule is determined over that before
)

SHAPE = {
    "d_in": 1,
    "d_out": 1,
    "num_hidden_layers": 3,  # abstract
    "hidden_size": 64,  # ours
    "num_attention_heads": 4,  # ours
    "intermediate_size": 0,  # ours: attention only, so that the output is the sum of the heads' contributions
    "norm": "none",  # ours: learned faster than with layer norm or RMS norm
    "positions": "learned",  # as GPT
    "max_position_embeddings": 20,
}


def make_affine_training(steps: int, checkpoints: int, lr: float = 2e-3) -> TrainingConfig:
    """Return the training config; it is ours, since the abstract does not report one.

    Args:
        steps: optimiser steps.
        checkpoints: number of saved checkpoints.
        lr: peak learning rate.
    """
    return TrainingConfig(
        steps=steps,
        batch_size=64,
        optimizer=AdamW(lr=lr, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=min(200, steps // 5),
        schedule=CosineSchedule(),
        clip=1.0,
        checkpoints=checkpoints,
    )


SCALES = {
    "smoke": ScaleConfig(training=make_affine_training(60, checkpoints=3), sequences=64),
    "laptop": ScaleConfig(training=make_affine_training(2_000, checkpoints=6, lr=4e-3), sequences=256),
    "paper": ScaleConfig(training=make_affine_training(10_000, checkpoints=12, lr=4e-3), sequences=1024),
}

FIRST_SCORED = TASK.identified_from + 1  # one position after the context determines a and b

STUDY = Study(
    name="affine",
    title="Affine recurrences in context",
    description=(
        "Sequences $x' = a x + b$; $a$ and $b$ are drawn anew for each sequence. A three-layer decoder is trained to "
        "predict the next term. The number of layers and the claims about copying and refinement come from the "
        "paper's abstract; ranges, sizes, training and thresholds are ours. The abstract leaves open whether the "
        "model has a norm and MLPs, how many heads it has and how fast sequences grow; every claim is judged in "
        "several such settings, each on its own."
    ),
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(**SHAPE),
            scales=SCALES,
            analyses=make_recurrence_analyses(FIRST_SCORED),
        ),
    ),
    claims=affine_claims(first=FIRST_SCORED, layers=3),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.5, "laptop": 6.0, "paper": 170.0},
    factors=FACTORS,
    grid={
        "laptop": {"block": ("bare", "prenorm")},
        "paper": {"block": ("bare", "prenorm"), "heads": ("4", "1"), "range": ("contracting", "growing")},
    },
)
