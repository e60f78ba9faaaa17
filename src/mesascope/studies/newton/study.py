"""Layers as iterations: a decoder for linear regression, compared with Newton's iteration and gradient descent.

Fu et al. 2024 (arXiv 2310.17086): layer by layer, a transformer trained on in-context linear regression agrees with
Newton's iteration for the inverse, one step of which is worth exponentially many steps of gradient descent. The paper
applies linear probes to 12 layers of width 256; the sizes here are ours. The claims were written after a run of one
seed had been seen. Two claims on the numbers of iterations that fit best at each depth were dropped after a run: ridge
regression with a falling penalty meets them, too.
"""

from mesascope import analyses
from mesascope.studies.base import Condition, ScaleConfig, Study
from mesascope.studies.newton.citation import CITATION
from mesascope.studies.newton.claims import newton_claims
from mesascope.studies.shared.icl import make_icl_training, make_regression_decoder
from mesascope.tasks.regression import Regression

TASK = Regression(dim=4, num_examples=8)  # ours; the paper has dim 20 and 40 examples

STUDY = Study(
    name="newton",
    title="Layers as iterations of Newton's method",
    description=(
        "In-context linear regression; inputs and outputs alternate in the context. A six-layer decoder is trained, "
        "and affine maps fitted to the residual stream after every layer are compared with Newton's iteration and "
        "gradient descent. The question is the paper's; sizes, training and thresholds are ours, and one seed was "
        "seen before the claims were fixed. Requirements, margins and controls were revised after a run."
    ),
    citation=CITATION,
    conditions=(
        Condition(
            task=TASK,
            model=make_regression_decoder(TASK, 6),
            scales={
                "smoke": ScaleConfig(training=make_icl_training(20, checkpoints=2), sequences=64),
                "laptop": ScaleConfig(training=make_icl_training(8_000), sequences=512),
                "paper": ScaleConfig(training=make_icl_training(60_000), sequences=2048),
            },
            analyses=(
                analyses.loss_vs_baselines,
                analyses.probe_and_logit_lens,
                analyses.which_algorithm,
            ),
        ),
    ),
    claims=newton_claims(),
    seeds={"smoke": 2, "laptop": 5, "paper": 8},
    minutes={"smoke": 0.5, "laptop": 20.0, "paper": 400.0},
)
