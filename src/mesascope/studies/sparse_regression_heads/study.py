"""Multi-head attention in sparse linear regression: the first layer preprocesses with all heads, later layers need one.

Chen, Zhao and Zou 2024 (arXiv 2408.04532). The paper's mechanism is an algorithm, which a toy model runs: every
coordinate of the inputs is multiplied by its mean product with the targets, and gradient descent follows. Three layers
of linear attention without any other modules, as in the theory, are trained with eight heads and with one head of the
same total width, on sparse and on dense functions. Sizes, training and thresholds are ours; sizes and training were
chosen by pilots with other seeds. The target of the query has no noise: the minimiser of the loss is the same, but
gradients and measured risks have less variance.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.analyses.algorithms.noise_levels import excess_risk_vs_noise
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.causal.pruning import pruning
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Condition, ScaleConfig, Simulation, Study
from mesascope.studies.sparse_regression_heads import claims, conditions
from mesascope.studies.sparse_regression_heads.citation import CITATION
from mesascope.studies.sparse_regression_heads.toy_model import SparseDescent
from mesascope.tasks.functions import LinearFunctions
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, CosineSchedule, TrainingConfig

TASK = Regression(
    dim=8,  # ours, as all sizes of the task
    num_examples=conditions.NUM_EXAMPLES,
    layout="joined",
    functions=LinearFunctions(num_nonzero=1),
    scale=0.15,  # the output of linear attention is cubic in its inputs; small ones prevent divergence at the start
    noise=0.15,  # as much as the function: shrinkage of small coefficients, not the number of steps, decides the risk
    noisy_query=False,
)
DENSE_TASK = replace(TASK, functions=LinearFunctions())
MODEL_SHAPE = {
    "d_in": TASK.input_dim,
    "d_out": 1,
    "num_hidden_layers": 3,  # as in one of the paper's figures
    "hidden_size": 64,  # ours: each of eight heads has room for all coordinates
    "intermediate_size": 0,  # as in the theory
    "attention": "linear",
    "mask": "context_only",
    "norm": "none",
    "positions": "none",
    "max_position_embeddings": 4 * TASK.length,
    "residual_init_scale": 0.1,
}
EIGHT_HEADS = DecoderConfig(num_attention_heads=8, **MODEL_SHAPE)  # ours: at least one head per coordinate
ONE_HEAD = DecoderConfig(num_attention_heads=1, **MODEL_SHAPE)


def _make_training(steps: int, checkpoints: int) -> TrainingConfig:
    """Make the training config; all of it is ours."""
    return TrainingConfig(
        steps=steps,
        batch_size=64,
        optimizer=AdamW(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0),
        warmup=min(500, steps // 5),
        schedule=CosineSchedule(),
        clip=0.05,  # about the median norm of the gradient: rare sequences with large targets have much larger ones
        checkpoints=checkpoints,
    )


SCALES = {
    "smoke": ScaleConfig(training=_make_training(20, 2), sequences=64),
    "laptop": ScaleConfig(training=_make_training(2_000, 4), sequences=2048),
    "paper": ScaleConfig(training=_make_training(30_000, 6), sequences=8192),
}
BASE_ANALYSES = (analyses.loss_vs_baselines, analyses.preprocessing)
CONTEXT_LENGTH = analyses.excess_risk_vs_context_length.using(counts=(12, 16, 24, 32, 48, 64), sequences=1024)
PRUNING = pruning.using(first=TASK.num_examples)
NOISE_LEVELS = excess_risk_vs_noise.using(factors=conditions.NOISE_LEVELS, sequences=1024)
ALGORITHMS = replace(analyses.which_algorithm.using(layers=False, shifted=False), steps="last")
HEAD_ABLATION = head_ablation.using(first=TASK.num_examples, groups=False)


def _make_condition(name: str, title: str, task: Regression, model: DecoderConfig) -> Condition:
    pruning_analyses = (PRUNING,) if model.num_attention_heads > 1 else ()
    noise_analyses = (NOISE_LEVELS,) if task == TASK else ()
    return Condition(
        name=name,
        title=title,
        task=task,
        model=model,
        scales=SCALES,
        analyses=(*BASE_ANALYSES, CONTEXT_LENGTH, *noise_analyses, *pruning_analyses),
    )


STUDY = Study(
    name="sparse-regression-heads",
    title="Multi-head attention in sparse linear regression",
    description="A prompt contains inputs with noisy targets from a linear function with few nonzero coefficients, "
    "then a query input. The paper finds that the first layer of a trained transformer preprocesses "
    "the inputs with all its heads, and that later layers run an optimiser with one head each. A toy "
    "model runs the algorithm in five settings, in one of which preprocessing is harmful. Three layers "
    "of linear attention are trained with eight heads and with one. The paper's sizes are not known to "
    "us: this is a re-run of its setting with our own sizes, and the claims are worded from its "
    "abstract. Requirements, margins and controls were revised after a run. In pilot runs of up to 12,000 steps no "
    "model beat ridge regression clearly: single batches with large inputs undo what was learned.",
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=EIGHT_HEADS,
            scales=SCALES,
            analyses=(
                *BASE_ANALYSES,
                inner(objectives.fast_weight),
                CONTEXT_LENGTH,
                NOISE_LEVELS,
                PRUNING,
                ALGORITHMS,
                HEAD_ABLATION,
            ),
        ),
        _make_condition(conditions.SINGLE_HEAD, "one head", TASK, ONE_HEAD),
        _make_condition(conditions.DENSE, "dense functions", DENSE_TASK, EIGHT_HEADS),
        _make_condition(conditions.DENSE_SINGLE_HEAD, "dense functions, one head", DENSE_TASK, ONE_HEAD),
    ),
    simulations=(
        Simulation(
            name="preprocess_then_optimise",
            title="Toy model: preprocess, then optimise",
            description="Gradient descent on sparse linear regression problems, with raw inputs and with inputs "
            "whose coordinates are multiplied by their mean product with the targets. The excess risk "
            "is measured by number of steps, and compared with ridge regression and the lasso with "
            "their best penalties. Settings are labelled by the number of nonzero coefficients and of "
            "features, the number of examples n and the noise σ.",
            scales={
                "smoke": SparseDescent(steps=20, problems=8),
                "laptop": SparseDescent(problems=300),
                "paper": SparseDescent(problems=3_000, steps=1_000),
            },
        ),
    ),
    claims=claims.CLAIMS,
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.5, "laptop": 15.0, "paper": 480.0},
)
