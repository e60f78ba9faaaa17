"""Emergence of induction heads: a 4-gram is learned first, then, after a long plateau, an induction head.

Wang et al. 2024 (arXiv 2410.11474). The paper's model, two layers of attention with six parameters, is simulated on
the mixed target; decoders are trained on the same target. The form of the target and of the model follow reviews and
summaries of the paper; w, the length, sizes, learning rates and thresholds are ours. So is the criterion of emergence:
an unweighted average of the terms, which is already nearly right, must be beaten.
"""

from dataclasses import replace

from mesascope import analyses
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.studies.base import Condition, ScaleConfig, Simulation, Study
from mesascope.studies.induction_heads.citation import CITATION
from mesascope.studies.induction_heads.claims import induction_claims
from mesascope.studies.induction_heads.plateaus import Plateaus
from mesascope.studies.induction_heads.task import FIRST_GRAM_POSITION, Grams
from mesascope.studies.induction_heads.toy_model import InductionHead
from mesascope.studies.shared.icl import make_icl_training, make_two_layer_decoder

TASK = Grams(length=20, score=0.7, alpha=1.0)  # ours
MODEL = make_two_layer_decoder(TASK.length, d_in=1, d_out=2)  # two layers as in the paper, the rest ours
WARMUP = 100  # ours

SCALES = {
    "smoke": ScaleConfig(training=make_icl_training(40, 3, WARMUP), sequences=64),
    "laptop": ScaleConfig(training=make_icl_training(4_000, 24, WARMUP), sequences=512),
    "paper": ScaleConfig(training=make_icl_training(40_000, 24, WARMUP), sequences=2048),
}
TOY_MODEL_SCALES = {
    "smoke": InductionHead(steps=100, sequences=200, checkpoints=21),
    "laptop": InductionHead(),
    "paper": InductionHead(sequences=20_000),
}
PLATEAU_SCALES = {
    "smoke": Plateaus(
        base=TOY_MODEL_SCALES["smoke"],
        initial_sizes=(0.1, 0.05, 0.02),
        lengths=(6, 8, 10),
        alphas=(0.5, 1.0),
        scores=(0.7, 0.8),
        max_steps=600,
    ),
    "laptop": Plateaus(),
    "paper": Plateaus(base=TOY_MODEL_SCALES["paper"], lengths=(20, 40, 80, 160), max_steps=40_000),
}
TOY_MODEL_DESCRIPTION = (
    "Two layers of attention with six parameters. The first layer learns to output the preceding term. In the second "
    "layer, one head attends by distance and learns the 4-gram; the induction head compares the last term with the "
    "first layer's output and learns the in-context 2-gram. All parameters start from one small value and are trained "
    "by gradient descent. The figures show the error of both parts, the lowest error of an unweighted average, and the "
    "parameters."
)

STUDY = Study(
    name="induction-heads",
    title="Emergence of an induction head",
    description="Sequences of independent normal numbers; the targets are a 4-gram and an in-context 2-gram. The model "
    "with six parameters is simulated for different initial sizes, lengths and weights; two-layer decoders are trained "
    "on the same target. The induction head has emerged when its error is half that of the best multiple of an "
    "unweighted average of the terms, which is already nearly right. Target and toy model follow the paper; all "
    "numbers and thresholds are ours.",
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=MODEL,
            scales=SCALES,
            analyses=(
                analyses.loss_vs_baselines,
                analyses.error_by_output,
                analyses.probe_and_logit_lens.using(first=FIRST_GRAM_POSITION),
                analyses.positional_attention,
                analyses.similarity,
                analyses.attention_patterns,
                inner(objectives.quadratic),
                inner(objectives.hopfield),
                head_ablation.using(first=FIRST_GRAM_POSITION),
            ),
        ),
    ),
    simulations=(
        Simulation(name="toy_model", title="Toy model", description=TOY_MODEL_DESCRIPTION, scales=TOY_MODEL_SCALES),
        Simulation(
            name="squared",
            title="Toy model, decay rate squared as well",
            description="The same toy model, except that the decay rate of the 4-gram's head enters squared, as the "
            "score of the induction head does.",
            scales={scale: replace(model, squared=True) for scale, model in TOY_MODEL_SCALES.items()},
        ),
        Simulation(
            name="plateaus",
            title="Length of the plateau",
            description="The toy model is trained with other initial sizes, lengths, weights alpha and scores w, one "
            "at a time. The figures show the steps until the 4-gram is learned (1% of its initial error), the steps "
            "until the induction head emerges (half the lowest error of an unweighted average), and fits to the "
            "latter.",
            scales=PLATEAU_SCALES,
        ),
    ),
    claims=induction_claims(TASK),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.4, "laptop": 8.3, "paper": 90.0},
)
