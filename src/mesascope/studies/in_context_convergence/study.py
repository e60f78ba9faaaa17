"""In-context convergence: softmax attention learns to attend to the query feature, rare features last.

Huang, Cheng and Liang 2023 (arXiv 2310.05249). The paper's model is one softmax head whose scores are a matrix and
whose values are the answers, trained by gradient descent on the mean error; it is simulated here with w integrated
out. Decoders are trained on the same task. Numbers of features and examples, learning rates and thresholds are ours.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.studies.base import Condition, ScaleConfig, Simulation, Study
from mesascope.studies.in_context_convergence.citation import CITATION
from mesascope.studies.in_context_convergence.claims import convergence_claims
from mesascope.studies.in_context_convergence.half_times import HalfTimes
from mesascope.studies.in_context_convergence.toy_model import FeatureAttention
from mesascope.studies.shared.icl import make_icl_training, make_two_layer_decoder
from mesascope.tasks.functions import LinearFunctions
from mesascope.tasks.regression import OneHotInputs, Regression

DIM, NUM_EXAMPLES, DOMINANT_FREQUENCY = 8, 31, 0.5  # ours
TASK = Regression(
    dim=DIM,
    num_examples=NUM_EXAMPLES,
    layout="joined",
    functions=LinearFunctions(scale=DIM**0.5),  # w has a standard normal component along every feature
    one_hot_inputs=OneHotInputs(dominant=DOMINANT_FREQUENCY),
)
MODEL = make_two_layer_decoder(TASK.length, d_in=TASK.input_dim, d_out=1)
WARMUP = 100  # ours

SCALES = {
    "smoke": ScaleConfig(training=make_icl_training(40, 2, WARMUP), sequences=32),
    "laptop": ScaleConfig(training=make_icl_training(1_500, 14, WARMUP), sequences=512),
    "paper": ScaleConfig(training=make_icl_training(20_000, 16, WARMUP), sequences=4096),
}
FEATURE_ANALYSES = (analyses.error_by_label.using(of="feature"), analyses.same_label_attention.using(of="feature"))
TOY_MODEL_SCALES = {
    "smoke": FeatureAttention(features=6, examples=48, steps=120, prompts=60, checkpoints=13),
    "laptop": FeatureAttention(),
    "paper": FeatureAttention(steps=12_000, prompts=2_000, checkpoints=241),
}
TOY_MODEL_DESCRIPTION = (
    "One softmax head with a score matrix Q attends from the query to the examples and averages their answers. Q is "
    "trained from zero by gradient descent on the error, averaged over w and over a fixed sample of prompts. The "
    "figures show error, attention and scores for the first feature as the query, and averaged over the others."
)

STUDY = Study(
    name="in-context-convergence",
    title="In-context convergence of softmax attention",
    description="A prompt contains inputs with their answers and a query; each input is one of a few orthonormal "
    "features. The paper's model, one softmax head with a score matrix, is simulated with uniform feature frequencies "
    "and with one feature in half of all inputs; two-layer decoders are trained on the same task. The model, the loss "
    "and gradient descent from zero follow the paper; all sizes, learning rates and thresholds are ours.",
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=MODEL,
            scales=SCALES,
            analyses=(
                analyses.loss_vs_baselines,
                *FEATURE_ANALYSES,
                analyses.probe_and_logit_lens.using(first=NUM_EXAMPLES),
                analyses.attention_patterns,
                inner(objectives.quadratic),
                inner(objectives.hopfield),
                analyses.which_algorithm,
                head_ablation.using(first=NUM_EXAMPLES),
            ),
        ),
        Condition(
            name="uniform",
            title="uniform feature frequencies",
            task=replace(TASK, one_hot_inputs=OneHotInputs()),
            model=MODEL,
            scales=SCALES,
            analyses=FEATURE_ANALYSES,
        ),
    ),
    simulations=(
        Simulation(
            name="balanced",
            title="Toy model, uniform feature frequencies",
            description=TOY_MODEL_DESCRIPTION,
            scales=TOY_MODEL_SCALES,
        ),
        Simulation(
            name="imbalanced",
            title="Toy model, one feature in half of all inputs",
            description=TOY_MODEL_DESCRIPTION,
            scales={scale: replace(model, dominant=DOMINANT_FREQUENCY) for scale, model in TOY_MODEL_SCALES.items()},
        ),
        Simulation(
            name="half_times",
            title="Toy model, half-time by number of features",
            description="The same score matrix is trained for different numbers of features. The half-time is the "
            "time, steps times learning rate, until the attention to wrong features is halved; the exponent is the "
            "slope of its logarithm over that of the number of features. It is measured with uniform frequencies, and "
            "for a feature in half of all inputs.",
            scales={
                "smoke": HalfTimes(features=(4, 5, 6, 8), prompts=20),
                "laptop": HalfTimes(),
                "paper": HalfTimes(features=(6, 8, 12, 16, 24, 32, 48, 64), prompts=400),
            },
        ),
    ),
    claims=convergence_claims(),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.4, "laptop": 7.5, "paper": 90.0},
)
