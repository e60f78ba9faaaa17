"""Multi-concept prompts: softmax attention learns which demonstrations have the sign of the query.

Bu et al. 2024 (arXiv 2411.02199). The abstract names the data (a low-noise sparse-coding prompt model of words with
several concepts), the model (softmax attention and a ReLU MLP), the loss (cross-entropy) and the claims (exponential
fall of the 0-1 loss, and answers out of distribution). The setting is re-run; the sampler, all sizes and rates are
ours. Which weights are trained, L2 regularisation and the initial score matrix follow summaries that we could not
compare with the paper's text.
"""

from collections.abc import Mapping
from dataclasses import replace

from mesascope import analyses
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Condition, ScaleConfig, Simulation, Study
from mesascope.studies.multi_concept.citation import CITATION
from mesascope.studies.multi_concept.claims import (
    COEFFICIENTS,
    ORTHOGONAL,
    RANDOM_LABELS,
    TOY,
    UNIFORM_TOY,
    concept_claims,
)
from mesascope.studies.multi_concept.coefficients import CoefficientDynamics
from mesascope.studies.multi_concept.decoder_claims import DRAWN
from mesascope.studies.multi_concept.shifted_accuracy import shifted_accuracy
from mesascope.studies.multi_concept.task import ConceptPrompts, LabelRule
from mesascope.studies.multi_concept.toy_model import ConceptAttention
from mesascope.studies.shared.icl import make_icl_training

TASK = ConceptPrompts()  # ours
MODEL = DecoderConfig(
    d_in=2 * TASK.dim,
    d_out=2,
    num_hidden_layers=1,  # as in the paper's model; other sizes are ours
    num_attention_heads=4,
    hidden_size=64,
    intermediate_size=128,
    activation="relu",  # abstract
    positions="none",  # prompts of twice the length are answered
    max_position_embeddings=2 * TASK.demonstrations + 1,
)
WARMUP = 100  # ours

SCALES = {
    "smoke": ScaleConfig(training=make_icl_training(40, 3, WARMUP), sequences=32),
    "laptop": ScaleConfig(training=make_icl_training(500, 8, WARMUP), sequences=512),
    "paper": ScaleConfig(training=make_icl_training(10_000, 12, WARMUP), sequences=2048),
}
TOY_MODEL_SCALES = {
    "smoke": ConceptAttention(steps=40, evaluation_prompts=128, checkpoints=11),
    "laptop": ConceptAttention(),
    "paper": ConceptAttention(
        prompts=ConceptPrompts(concepts=12, demonstrations=48, noise_dims=24),
        neurons=64,
        steps=4_000,
        evaluation_prompts=10_000,
        checkpoints=501,
    ),
}
TOY_MODEL_DESCRIPTION = (
    "The query attends to the demonstrations with a trained bilinear score of their words; the values are the label "
    "vectors, and an MLP with fixed output weights maps their mean to a logit. It is trained by stochastic gradient "
    "descent with L2 regularisation. The figures show the 0-1 error and the smoothed error on held-out prompts, "
    "attention to the demonstrations with the sign of the query, and projections of the score matrix and of the MLP "
    "onto the shared part of each concept, the part whose sign differs, and noise; and, at the end, the accuracy on "
    "shifted prompts and that of a lookup of the most similar demonstration."
)
CONTROL_STEPS, CONTROL_CHECKPOINTS = 400, 101  # of other toy models at laptop scale, as far apart; ours
SIGN_ANALYSES = (analyses.same_label_attention.using(of="sign"), shifted_accuracy)


def _shorten(models: Mapping[str, ConceptAttention]) -> dict[str, ConceptAttention]:
    shorter = replace(models["laptop"], steps=CONTROL_STEPS, checkpoints=CONTROL_CHECKPOINTS)
    return {**models, "laptop": shorter}


def _replace_prompts(correlation: float, label_rule: LabelRule = "own") -> dict[str, ConceptAttention]:
    def replace_in(model: ConceptAttention) -> ConceptAttention:
        return replace(model, prompts=replace(model.prompts, correlation=correlation, label_rule=label_rule))

    return _shorten({name: replace_in(model) for name, model in TOY_MODEL_SCALES.items()})


STUDY = Study(
    name="multi-concept",
    title="In-context learning of words with several concepts",
    description="The words of a prompt share one of a few concepts; each word has one of its two vectors, and its "
    "label has the same sign. The answer is the sign of the query. Words also have other concepts, with signs of "
    "their own. The toy model, one layer of softmax attention with labels as values and a ReLU MLP, is simulated with "
    "correlated and with orthogonal words, with uniform attention, with random labels, and by a few coefficients. "
    "One-layer decoders are trained on the same prompts, and on prompts whose label rule is drawn anew. Setting "
    "re-run, sizes ours: the paper's sampler, dimensions and rates are not known to us. Nor do we know how the paper "
    "divides the directions of its figures into concept-specific and complementary ones, how it switches features, or "
    "how its learning rate changes; here it is constant. Orthogonal words have an inner product of 0.",
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=MODEL,
            scales=SCALES,
            analyses=(
                analyses.loss_vs_baselines,
                *SIGN_ANALYSES,
                analyses.projections,
                head_ablation.using(first=TASK.demonstrations),
            ),
        ),
        Condition(
            name=DRAWN,
            title="label rule drawn for each prompt",
            task=replace(TASK, label_rule="drawn"),
            model=MODEL,
            scales=SCALES,
            analyses=SIGN_ANALYSES,
        ),
    ),
    simulations=(
        Simulation(name=TOY, title="Toy model", description=TOY_MODEL_DESCRIPTION, scales=TOY_MODEL_SCALES),
        Simulation(
            name=ORTHOGONAL,
            title="Toy model, orthogonal words",
            description="The same toy model, except that the two words, and the two labels, of a concept are "
            "orthogonal: the negative control for the geometry within concepts.",
            scales=_replace_prompts(correlation=0.0),
        ),
        Simulation(
            name=UNIFORM_TOY,
            title="Toy model, uniform attention",
            description="The same toy model, except that all demonstrations get equal attention and only the MLP is "
            "trained.",
            scales=_shorten({name: replace(model, uniform=True) for name, model in TOY_MODEL_SCALES.items()}),
        ),
        Simulation(
            name=RANDOM_LABELS,
            title="Toy model, random labels",
            description="The same toy model, except that the signs of the labels are independent of those of the "
            "words: there is nothing to learn.",
            scales=_replace_prompts(TASK.correlation, "random"),
        ),
        Simulation(
            name=COEFFICIENTS,
            title="Coefficient dynamics",
            description="The expected gradient step for words with a single concept and without noise. It is exact for "
            "the projections of the weights onto the parts of each concept. Initial weights, learning rate and "
            "regularisation are those of the toy model with the same seed.",
            scales={name: CoefficientDynamics(model=model) for name, model in _shorten(TOY_MODEL_SCALES).items()},
        ),
    ),
    claims=concept_claims(),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.4, "laptop": 3.0, "paper": 120.0},
)
