"""Linear attention as gradient descent: trained layers, compared with steps of gradient descent and of GD++.

von Oswald et al. 2023 (arXiv 2212.07677). The construction by which one layer of linear attention takes one step of
gradient descent is `mesascope.ground_truth.models.descent`; here layers are trained from random weights. As in the
paper, each pair (x, y) is one vector and nothing attends to the query; sizes and training are ours.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.studies.gradient_descent.citation import CITATION
from mesascope.studies.gradient_descent.claims import gradient_descent_claims
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, CosineSchedule, TrainingConfig

TASK = Regression(dim=5, num_examples=10, layout="joined")  # ours; the paper has N = dim = 10
OPTIMAL_STEP = TASK.num_examples / (TASK.num_examples + TASK.dim + 1)  # minimises E|w - step S w|², S = mean of x xᵀ

SHAPE = {
    "d_in": TASK.input_dim,
    "d_out": 1,
    "hidden_size": 16,  # ours: more than the 6 dimensions of a pair
    "num_attention_heads": 1,  # as in the paper's first results
    "intermediate_size": 0,
    "attention": "linear",
    "mask": "context_only",
    "norm": "none",
    "positions": "none",
    "max_position_embeddings": 4 * TASK.length,
}


def _make_training(steps: int, checkpoints: int = 6) -> TrainingConfig:
    return TrainingConfig(  # ours, except for the kind of optimiser
        steps=steps,
        batch_size=256,
        optimizer=AdamW(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0),
        warmup=min(100, steps // 5),
        schedule=CosineSchedule(),
        clip=1.0,
        checkpoints=checkpoints,
    )


SCALES = {
    "smoke": ScaleConfig(training=_make_training(40, checkpoints=2), sequences=64),
    "laptop": ScaleConfig(training=_make_training(3_000), sequences=1024),
    "paper": ScaleConfig(training=_make_training(30_000), sequences=4096),
}
TWO_STEPS = replace(
    analyses.which_algorithm.using(iterations=2, tuned=True, layers=False, shifted=False),
    name="two_steps",
    title="Nearest algorithm with two steps",
)

TWO_LAYERS = Condition(
    name="two",
    title="two layers",
    task=TASK,
    model=DecoderConfig(num_hidden_layers=2, **SHAPE),
    scales=SCALES,
    analyses=(
        analyses.loss_vs_baselines,
        analyses.probe_and_logit_lens.using(first=TASK.num_examples),
        analyses.which_algorithm,
        TWO_STEPS,
    ),
)

STUDY = Study(
    name="gradient-descent",
    title="Linear attention as steps of gradient descent",
    description=(
        "In-context linear regression: the context consists of pairs, one vector each, followed by a query. One "
        "layer and two layers of linear attention are trained and compared with gradient descent from zero weights. "
        "The layout of the context and the kind of attention are the paper's; sizes, training and thresholds are "
        "ours. Requirements, margins and controls were revised after a run."
    ),
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(num_hidden_layers=1, **SHAPE),
            scales=SCALES,
            analyses=(
                analyses.loss_vs_baselines,
                replace(analyses.which_algorithm, steps="ends"),
            ),
        ),
        TWO_LAYERS,
    ),
    claims=gradient_descent_claims(OPTIMAL_STEP),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.5, "laptop": 7.0, "paper": 60.0},
)
