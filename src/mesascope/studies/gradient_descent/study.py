"""Transformers learn in context by gradient descent: linear attention, trained, against steps of it and of GD++.

von Oswald et al. 2023 (arXiv 2212.07677). The construction, by which one layer of linear attention takes one step of
gradient descent, is `mesascope.ground_truth.models.descent`; here layers are trained from random weights. Pairs are
single vectors (x, y), and nothing attends to the one that asks, as there; sizes and training are ours.
"""

from dataclasses import replace

import xarray as xr

from mesascope import analyses
from mesascope.analyses.algorithms.identify import TRAINED
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import Arm, Citation, Claim, Results, Scale, Setup, Study, last, untrained
from mesascope.studies.shared.selectors import likeness, likeness_elsewhere, steps_down
from mesascope.tasks.regression import Regression
from mesascope.train import AdamW, Cosine, Training

PAPER = "von Oswald et al. 2023"
TASK = Regression(dim=5, examples_shown=10, layout="joined")  # ours; the paper has N = dim = 10
BEST = TASK.examples_shown / (TASK.examples_shown + TASK.dim + 1)  # minimises E|w - step S w|^2, S the mean of x x^T
SAME_LENGTH = ("inputs twice as large", "correlated inputs", "noisy answers", "rules twice as large")
ALIKE = 0.99  # ours
NEAR = 0.05  # ours
ELSEWHERE = 0.9  # ours

SHAPE = {
    "d_in": TASK.width,
    "d_out": 1,
    "hidden_size": 16,  # ours: the pair and some room
    "num_attention_heads": 1,  # as the paper, for its first results
    "intermediate_size": 0,
    "attention": "linear",
    "visible": "shown",
    "norm": "none",
    "positions": "none",
    "max_position_embeddings": 4 * TASK.length,
}


def training(steps: int, checkpoints: int = 6) -> Training:
    """All ours but the optimiser's kind."""
    return Training(
        steps=steps,
        batch_size=256,
        optimizer=AdamW(lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0),
        warmup=min(100, steps // 5),
        schedule=Cosine(),
        clip=1.0,
        checkpoints=checkpoints,
    )


SCALES = {
    "smoke": Scale(seeds=2, training=training(40, checkpoints=2), sequences=64, minutes=0.5),
    "laptop": Scale(training=training(3_000), sequences=1024, minutes=4.0),
    "paper": Scale(training=training(30_000), seeds=8, sequences=4096, minutes=60.0),
}
SETUPS = {name: Setup(training=scale.training, sequences=scale.sequences) for name, scale in SCALES.items()}
WHICH = replace(analyses.which_algorithm, steps="ends")
TWO_STEPS = replace(
    analyses.which_algorithm.using(iterations=2, layers=False, elsewhere=False),
    name="two_steps",
    title="Which algorithm, of two steps",
)

TWO = Arm(
    name="two",
    title="two layers",
    task=TASK,
    model=DecoderConfig(num_hidden_layers=2, **SHAPE),
    setups=SETUPS,
    measures=(analyses.behaviour, analyses.lens.using(first=TASK.examples_shown)),
    sweeps=(analyses.which_algorithm, TWO_STEPS),
)


def _steps(found: xr.Dataset) -> xr.DataArray:
    """How many steps of gradient descent are nearest to the trained model."""
    return last(found["iterations"]).sel(predictor="gradient descent", drop=True).astype(float)


def _from_best(found: xr.Dataset) -> xr.DataArray:
    """How far the step is from the best one, as a share of that."""
    return abs(last(found["fitted"]).sel(predictor="gradient descent", drop=True) / BEST - 1)


def _of_averaging(results: Results) -> xr.DataArray:
    """How far a step of 1 is from the best one."""
    step = last(results["which_algorithm"]["fitted"]).sel(predictor="gradient descent", drop=True)
    return xr.full_like(step, abs(1 / BEST - 1))


def _against_descent(found: xr.Dataset) -> xr.DataArray:
    """The model's error over that of the gradient descent which is nearest to it."""
    ours, theirs = (last(found[name]).sel(setting=TRAINED, drop=True) for name in ("model_error", "error"))
    return ours / theirs.sel(predictor="gradient descent", drop=True)


STUDY = Study(
    name="gradient-descent",
    title="Linear attention as steps of gradient descent",
    about=(
        "Linear regression in context: a prompt shows pairs, one vector each, and asks for one more answer. One layer "
        "of linear attention is trained, and two beside it, and held against gradient descent from a rule of zeros. "
        "The layout of the prompt and the kind of attention are the paper's, sizes, training and thresholds are ours."
    ),
    citation=Citation(
        key="vonoswald2023transformers",
        authors="von Oswald, Johannes and Niklasson, Eyvind and Randazzo, Ettore and Sacramento, João and Mordvintsev, "
        "Alexander and Zhmoginov, Andrey and Vladymyrov, Max",
        title="Transformers Learn In-Context by Gradient Descent",
        year=2023,
        venue="ICML 2023; arXiv:2212.07677",
        url="https://arxiv.org/abs/2212.07677",
    ),
    task=TASK,
    model=DecoderConfig(num_hidden_layers=1, **SHAPE),
    scales=SCALES,
    measures=(analyses.behaviour,),
    sweeps=(WHICH,),
    arms=(TWO,),
    claims=(
        Claim(
            name="one layer is one step",
            sentence="A trained layer of linear attention predicts what gradient descent predicts.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: last(likeness(results, "gradient descent")),
            about="share of the variance of its predictions that fitted gradient descent explains",
            control=lambda results: untrained(likeness(results, "gradient descent")),
            control_about="the same for the untrained layer",
            direction="above",
            bound=ALIKE,
        ),
        Claim(
            name="and no more than one",
            sentence="The gradient descent that is nearest to one layer takes a single step.",
            source=PAPER,
            statistic=lambda results: _steps(results["which_algorithm"]),
            about="steps of gradient descent, as fitted",
            control=lambda results: _steps(results["two_which_algorithm"]),
            control_about="the same for two layers",
            direction="below",
            bound=1.5,
        ),
        Claim(
            name="the best step",
            sentence="The step of that descent is the one that makes the expected error least.",
            source=f"{PAPER}; the formula, examples / (examples + dim + 1), and the threshold are ours",
            statistic=lambda results: _from_best(results["which_algorithm"]),
            about="distance of the fitted step from the best one, as a share of it",
            control=_of_averaging,
            control_about="the same for averaging, a step of 1",
            direction="below",
            bound=NEAR,
        ),
        Claim(
            name="the same weights",
            sentence="The layer weighs the answers shown as one step of gradient descent does.",
            source=f"{PAPER}, of sensitivities",
            statistic=lambda results: last(likeness(results, "gradient descent", stat="weights: answers shown")),
            about="mean cosine of the gradients by the answers, its own and those of gradient descent",
            control=lambda results: last(likeness(results, "least squares", stat="weights: answers shown")),
            control_about="the same for least squares",
            direction="above",
            bound=ALIKE,
        ),
        Claim(
            name="elsewhere too",
            sentence="The layer predicts as that step does where inputs and rules come from other distributions, too.",
            source=f"{PAPER}, of inputs from a larger range; the other distributions are ours",
            statistic=lambda results: likeness_elsewhere(results, "gradient descent", SAME_LENGTH),
            about="the least similarity of predictions over other distributions",
            control=lambda results: likeness_elsewhere(results, "least squares", SAME_LENGTH),
            control_about="the same for least squares",
            direction="above",
            bound=ELSEWHERE,
        ),
        Claim(
            name="two layers do better than two steps",
            sentence="Two layers err less than the two steps of gradient descent that are nearest to them.",
            source=PAPER,
            statistic=lambda results: _against_descent(results["two_two_steps"]),
            about="error of two layers over that of two steps",
            control=lambda results: _against_descent(results["which_algorithm"]),
            control_about="error of one layer over that of one step",
            direction="below",
            bound=1.0,
        ),
        Claim(
            name="by curvature correction",
            sentence="Two layers are nearer to two steps of GD++ than to two steps of gradient descent.",
            source=PAPER,
            statistic=lambda results: last(likeness(results, "GD++", result="two_two_steps")),
            about="share of the variance of their predictions that two fitted steps of GD++ explain",
            control=lambda results: last(likeness(results, "gradient descent", result="two_two_steps")),
            control_about="the same for gradient descent, which GD++ without correction is",
            direction="above",
        ),
        Claim(
            name="layer by layer",
            sentence="The answer can be read more precisely after the second layer than after the first.",
            source=f"{PAPER}, in our words",
            statistic=lambda results: steps_down(last(results["two_lens"]["affine_error"])).isel(layer=-1, drop=True),
            about="change of log10 error of the affine lens from the first layer to the second",
            control=lambda results: steps_down(untrained(results["two_lens"]["affine_error"])).isel(
                layer=-1, drop=True
            ),
            control_about="the same in the untrained model",
            direction="below",
            bound=0.0,
        ),
    ),
)
