"""Transformers achieve higher-order optimisation in context: layers against Newton's iteration and gradient descent.

Fu et al. 2024 (arXiv 2310.17086): read layer by layer, a transformer trained on linear regression in context goes as
Newton's iteration for the inverse does, one step of which is worth exponentially many of gradient descent. There, 12
layers of width 256 are read by linear maps; the sizes here are ours, and a run of one seed was seen before the claims
were put into numbers.
"""

import numpy as np
import xarray as xr

from mesascope import analyses
from mesascope.studies.base import Citation, Claim, Results, Scale, Study, last
from mesascope.studies.shared.icl import ALIKE, decoder, least_squares_claim, training
from mesascope.studies.shared.selectors import refined_claim
from mesascope.tasks.regression import Regression

PAPER = "Fu et al. 2024"
TASK = Regression(dim=4, examples_shown=8)  # ours; the paper has dim 20 and 40 examples
NEWTON, DESCENT = "Newton's iteration", "normalised gradient descent"
READABLE = (
    0.5  # ours: of the variance of a reading, that the algorithm must explain for its iterations to mean anything
)
FEWEST = 3  # depths through which a line is laid


def _read(results: Results, name: str, predictor: str) -> np.ndarray:
    """What was found of an algorithm by seed and depth, in what the affine lens reads of the trained model."""
    found = last(results["which_algorithm"][name]).sel(lens="affine lens", predictor=predictor, drop=True)
    return found.transpose("seed", "layer").values.astype(float)


def _straight(results: Results, predictor: str) -> xr.DataArray:
    """How much of an algorithm's iterations a straight line over the depths explains."""
    return _explained(results, lambda depth, newton, other: depth, predictor)


def _over_newton(results: Results, transform) -> xr.DataArray:
    """How much of gradient descent's steps, transformed, a straight line over Newton's iterations explains."""
    return _explained(results, lambda depth, newton, other: newton, DESCENT, transform)


def _explained(results: Results, against, predictor: str, transform=lambda steps: steps) -> xr.DataArray:
    """R² of a straight line, by seed, over the depths that can be read; no number where there are too few."""
    newton, steps = _read(results, "layer_iterations", NEWTON), _read(results, "layer_iterations", predictor)
    near = np.minimum(*(_read(results, "layer_similarity", name) for name in (NEWTON, DESCENT)))
    values = []
    for seed in range(len(newton)):
        kept = near[seed] > READABLE
        x, y = against(np.arange(len(kept)), newton[seed], steps[seed]), transform(steps[seed])
        known = kept.sum() >= FEWEST and np.ptp(x[kept]) > 0 and np.ptp(y[kept]) > 0
        values.append(np.corrcoef(x[kept], y[kept])[0, 1] ** 2 if known else np.nan)
    seeds = results["which_algorithm"]["seed"]
    return xr.DataArray(values, dims=("seed",), coords={"seed": seeds})


STUDY = Study(
    name="newton",
    title="Layers as iterations of Newton's method",
    about=(
        "Linear regression in context, inputs and answers alternating: a six-layer decoder is trained, and what an "
        "affine map reads after every layer is held against Newton's iteration and gradient descent. The question is "
        "the paper's; sizes, training and thresholds are ours, and one seed was seen before the claims were fixed."
    ),
    citation=Citation(
        key="fu2024transformers",
        authors="Fu, Deqing and Chen, Tian-Qi and Jia, Robin and Sharan, Vatsal",
        title="Transformers Learn to Achieve Second-Order Convergence Rates for In-Context Linear Regression",
        year=2024,
        venue="NeurIPS 2024; arXiv:2310.17086",
        url="https://arxiv.org/abs/2310.17086",
    ),
    task=TASK,
    model=decoder(TASK, 6),
    scales={
        "smoke": Scale(seeds=2, training=training(20, checkpoints=2), sequences=64, minutes=0.5),
        "laptop": Scale(training=training(8_000), sequences=512, minutes=15.0),
        "paper": Scale(training=training(60_000), seeds=8, sequences=2048, minutes=400.0),
    },
    measures=(analyses.behaviour, analyses.lens),
    sweeps=(analyses.which_algorithm,),
    claims=(
        least_squares_claim("ends at the answer", "What the model predicts is what least squares predicts.", PAPER),
        Claim(
            name="a constant number of Newton's iterations for each layer",
            sentence="The iterations of Newton's method that are nearest to the layers rise along a straight line.",
            source=PAPER,
            statistic=lambda results: _straight(results, NEWTON),
            about="R² of a straight line through Newton's iterations over the depths that can be read",
            control=lambda results: _straight(results, DESCENT),
            control_about="the same for steps of gradient descent",
            direction="above",
            bound=ALIKE,
        ),
        Claim(
            name="exponentially many steps of gradient descent",
            sentence="Each iteration of Newton's method is worth exponentially many steps of gradient descent.",
            source=PAPER,
            statistic=lambda results: _over_newton(results, np.log),
            about="R² of a straight line through the logarithm of the steps over Newton's iterations",
            control=lambda results: _over_newton(results, lambda steps: steps),
            control_about="the same for the steps themselves",
            direction="above",
        ),
        refined_claim(
            name="layer by layer",
            sentence="The answer can be read more precisely after every layer.",
            source=f"{PAPER}, in our words",
        ),
    ),
)
