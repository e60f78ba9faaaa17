"""Next-token prediction by one layer of attention: collocations are learned first, then the deciding token.

Huang, Liang and Yang 2024 (arXiv 2409.17335). The paper's model, one layer with two matrices that are trained one after
the other by normalised gradient descent, is simulated; decoders are trained on the same sentences. Setting, model and
stages follow summaries of the paper; the vocabulary, the frequencies of pairs, step sizes and thresholds are ours.
"""

from mesascope import analyses
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.studies.base import Condition, ScaleConfig, Simulation, Study
from mesascope.studies.next_token_convergence.citation import CITATION
from mesascope.studies.next_token_convergence.claims import CLAIMS
from mesascope.studies.next_token_convergence.task import Collocations
from mesascope.studies.next_token_convergence.toy_model import NextTokenModel
from mesascope.studies.shared.icl import make_icl_training, make_two_layer_decoder

TASK = Collocations()
LAST_POSITION = TASK.length - 1
MODEL = make_two_layer_decoder(TASK.length, vocab_size=TASK.vocabulary)
WARMUP = 100  # ours

SCALES = {
    "smoke": ScaleConfig(training=make_icl_training(40, 3, WARMUP), sequences=128),
    "laptop": ScaleConfig(training=make_icl_training(2_000, 12, WARMUP), sequences=1024),
    "paper": ScaleConfig(training=make_icl_training(20_000, 12, WARMUP), sequences=4096),
}

STUDY = Study(
    name="next-token-convergence",
    title="Convergence of next-token prediction",
    description="Sentences of a few tokens; the token that the last token ranks highest determines the next token. One "
    "layer of attention is trained in two stages by normalised gradient descent and, as the control, by gradient "
    "descent; two-layer decoders are trained on the same sentences and tested on others. Setting, model and stages "
    "follow the paper; sizes and thresholds are ours.",
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=MODEL,
            scales=SCALES,
            analyses=(
                analyses.loss_vs_baselines,
                analyses.error_by_label.using(of="order_implied"),
                analyses.attention_patterns,
                inner(objectives.hopfield),
                inner(objectives.readout),
                head_ablation.using(first=LAST_POSITION),
            ),
        ),
    ),
    simulations=(
        Simulation(
            name="toy_model",
            title="Toy model",
            description="One layer of attention on one-hot tokens. The first stage trains the value matrix "
            r"$W_\mathrm{ov}$ on pairs of a token and its collocation; the second trains the score matrix "
            r"$W_\mathrm{kq}$ on sentences with $W_\mathrm{ov}$ fixed. The figures show, for both stages and both "
            "kinds of descent, the loss above its infimum, the norm of the matrix and its cosine with the max-margin "
            "matrix; the attention to the deciding token; and the accuracy on training sentences and on unseen "
            "sentences, by whether the training sentences imply which token decides.",
            scales={
                "smoke": NextTokenModel(vocabulary=6, length=3, sentences=12, unseen=60, steps=150, checkpoints=16),
                "laptop": NextTokenModel(),
                "paper": NextTokenModel(vocabulary=20, length=8, sentences=200, steps=10_000),
            },
        ),
    ),
    claims=CLAIMS,
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.3, "laptop": 2.5, "paper": 30.0},
)
