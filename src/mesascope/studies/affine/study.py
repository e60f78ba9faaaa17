"""Interpreting affine recurrence learning: x' = a x + b is learned in context by a three-layer transformer.

Bhargav & Gu 2024 (arXiv 2410.17438). Only the abstract's claims are known to us: a three-layer GPT-style
transformer, counted from 0, forms a first estimate of the next term by copying in layer 0, which negative-similarity
heads refine in layer 2. Ranges, sizes and training were not found, so they are ours, and so is every threshold.
"""

from mesascope.models.config import DecoderConfig
from mesascope.studies.affine.claims import claims, instruments, sweeps
from mesascope.studies.base import Citation, Scale, Study
from mesascope.tasks.affine import Affine
from mesascope.tasks.distributions import Normal, Uniform
from mesascope.train import AdamW, Cosine, Training

TASK = Affine(
    dim=1,
    length=20,  # ours
    radius=Uniform(0.0, 1.0),  # ours: |a| up to 1, where copying stays wrong to the end of the sequence
    offset=Normal(1.0),  # ours
    start=Normal(1.0),  # ours
    unidentified_weight=0.05,  # ours: about the ratio of the errors after and before the rule is determined
)

SHAPE = {
    "d_in": 1,
    "d_out": 1,
    "num_hidden_layers": 3,  # abstract
    "hidden_size": 64,  # ours
    "num_attention_heads": 4,  # ours
    "intermediate_size": 0,  # ours: attention alone, so that every head's contribution adds up to the output
    "norm": "none",  # ours: of no norm, layer norm and RMS norm the one that learned fastest
    "positions": "learned",  # as GPT
    "max_position_embeddings": 20,
}


def training(steps: int, checkpoints: int) -> Training:
    """All ours: the paper's training was not found."""
    return Training(
        steps=steps,
        batch_size=64,
        optimizer=AdamW(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01),
        warmup=min(200, steps // 5),
        schedule=Cosine(),
        clip=1.0,
        checkpoints=checkpoints,
    )


SCALES = {
    "smoke": Scale(training=training(60, checkpoints=3), seeds=2, sequences=64, minutes=0.5),
    "laptop": Scale(training=training(6_000, checkpoints=12), seeds=3, sequences=512, minutes=5.0),
    "paper": Scale(training=training(40_000, checkpoints=20), seeds=8, sequences=2048, minutes=90.0),
}

FIRST = TASK.identified_from + 1  # one position after the rule is determined: both pairs have been seen

STUDY = Study(
    name="affine",
    title="Affine recurrences in context",
    about=(
        "Sequences x' = a x + b with a and b fresh in each; a three-layer attention-only decoder predicts the next "
        "term. A re-run of the paper's setting: the number of layers and the two claims are the paper's, all ranges, "
        "sizes, training and thresholds are ours."
    ),
    citation=Citation(
        key="bhargav2024interpreting",
        authors="Bhargav, Samarth and Gu, Alexander",
        title="Interpreting Affine Recurrence Learning in GPT-style Transformers",
        year=2024,
        venue="arXiv:2410.17438",
        url="https://arxiv.org/abs/2410.17438",
    ),
    task=TASK,
    model=DecoderConfig(**SHAPE),
    scales=SCALES,
    measures=instruments(first=FIRST),
    sweeps=sweeps(first=FIRST),
    claims=claims(first=FIRST, layers=3),
)
