"""In-context convergence of transformers: softmax attention learns to find the feature asked for, rare ones last.

Huang, Cheng and Liang 2023 (arXiv 2310.05249). The paper's model is one softmax head whose scores are a matrix and
whose values are the answers themselves, trained by gradient descent on the mean error; it is simulated here with w
integrated out. Beside it, the decoders of the house learn the same task from sequences. Numbers of features and
examples, rates and thresholds are ours; the thresholds were fixed after a pilot of the simulation with one seed.
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from mesascope import analyses
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.causal.head_importance import causes
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.studies.base import Arm, Citation, Claim, Results, Scale, Setup, Study, Theory, last, untrained
from mesascope.studies.in_context_convergence.toy_model import DRAWN, FeatureAttention, HalfTimes
from mesascope.studies.shared.head_claims import causal_claims
from mesascope.studies.shared.icl import beside, training
from mesascope.studies.shared.selectors import likeness
from mesascope.tasks.functions import Linear
from mesascope.tasks.regression import Features, Regression

PAPER = "Huang et al. 2023"
OURS = "ours"
DIM, SHOWN, DOMINANT = 8, 31, 0.5  # ours
TASK = Regression(
    dim=DIM,
    examples_shown=SHOWN,
    layout="joined",
    functions=Linear(scale=DIM**0.5),  # w has a standard normal component along every feature
    features=Features(dominant=DOMINANT),
)
FIRST, OTHERS = "first feature", "other features"
EARLY = 100  # steps of the simulation, as in the pilot
SQUARE, NEAR_SQUARE = 2.0, 0.3  # the exponent, and how far from it; ours
RIGHT = 0.9  # of the attention; ours
AT_THE_FLOOR = 0.05  # of the error, above what no attention can help; ours
FOUND = 0.5  # of the attention; ours

MODEL = beside(TASK.length, d_in=TASK.width, d_out=1)
WARMUP = 100  # ours

SCALES = {
    "smoke": Scale(training=training(40, 2, WARMUP), seeds=2, sequences=32, minutes=0.4),
    "laptop": Scale(training=training(1_500, 14, WARMUP), sequences=512, minutes=4.5),
    "paper": Scale(training=training(20_000, 16, WARMUP), seeds=8, sequences=4096, minutes=90.0),
}
SETUPS = {name: Setup(training=scale.training, sequences=scale.sequences) for name, scale in SCALES.items()}
BY_FEATURE = (analyses.error_by_label.using(of="feature"), analyses.matching.using(of="feature"))
SIMULATED = {
    "smoke": FeatureAttention(features=6, examples=48, steps=120, prompts=60, points=13),
    "laptop": FeatureAttention(),
    "paper": FeatureAttention(steps=12_000, prompts=2_000, points=241),
}

BALANCED = Arm(
    name="alike",
    title="all features alike",
    task=replace(TASK, features=Features()),
    model=MODEL,
    setups=SETUPS,
    measures=BY_FEATURE,
)


def _simulation(name: str, title: str, dominant: float | None, order: int) -> Theory:
    """The reduced model, with features drawn so."""
    setups = {scale: replace(one, dominant=dominant) for scale, one in SIMULATED.items()}
    return Theory(name=name, title=title, setups=setups, order=order)


def _at_end(results: Results, name: str, variable: str, stat: str | None = None) -> xr.DataArray:
    """What the simulation came to."""
    found = last(results[name][variable])
    return found if stat is None else found.sel(stat=stat, drop=True)


def _exponent(results: Results, way: str) -> xr.DataArray:
    """How far the exponent of the half-time is from that of a square."""
    return abs(results["half_times"]["exponent"].sel(stat=way, drop=True) - SQUARE)


def _behind(results: Results, name: str) -> xr.DataArray:
    """By how much later, in natural logarithms of steps, attention to the others is right by half."""
    found = results[name]["attention"]
    return _log_time(found.sel(stat=OTHERS, drop=True)) - _log_time(found.sel(stat=FIRST, drop=True))


def _log_time(attention: xr.DataArray) -> xr.DataArray:
    """The logarithm of the step at which attention is half way from where it began to where it ended."""
    return _first_beyond(attention - (last(attention) + untrained(attention)) / 2)


def _first_beyond(curve: xr.DataArray) -> xr.DataArray:
    """The logarithm of the step at which a curve, by seed, first comes to 0 from below; not a number where never."""
    curve = curve.transpose("seed", "step")
    found = [_crossing(curve["step"].values.astype(float), values) for values in curve.values]
    return xr.DataArray(found, dims=("seed",), coords={"seed": curve["seed"]})


def _crossing(steps: np.ndarray, values: np.ndarray) -> float:
    """The same for one seed."""
    above = np.flatnonzero(values >= 0)
    if not len(above) or above[0] == 0:
        return float("nan")
    k = above[0]
    part = -values[k - 1] / (values[k] - values[k - 1])
    return float(np.log(steps[k - 1] + part * (steps[k] - steps[k - 1])))


def _suppression(results: Results, name: str) -> xr.DataArray:
    """By how much the score of the others with the first fell, above what their own rose, early on."""
    found = results[name].sel(stat=OTHERS, drop=True).sel(step=EARLY, method="nearest", drop=True)
    return -found["cross_score"] - found["own_score"]


def _over_floor(results: Results) -> xr.DataArray:
    """The error of the others at the end in prompts that show them, over what it was."""
    found = results["imbalanced"]["error_present"].sel(stat=OTHERS, drop=True)
    return last(found) / untrained(found)


def _with_absent(results: Results) -> xr.DataArray:
    """The same in all prompts."""
    found = results["imbalanced"]["error"].sel(stat=OTHERS, drop=True)
    return last(found) / untrained(found)


def _decoder_behind(results: Results, result: str) -> xr.DataArray:
    """By how much later, in natural logarithms of steps, the decoder's error on other features is halved."""
    error = results[result]["error"].sel(predictor="model", drop=True)
    first, others = error.isel(stat=0, drop=True), error.isel(stat=slice(1, None)).mean("stat")
    return _log_halved(others) - _log_halved(first)


def _log_halved(error: xr.DataArray) -> xr.DataArray:
    """The logarithm of the step at which an error is half of what it was."""
    return _first_beyond(untrained(error) / 2 - error)


def _most_matching(results: Results, variable: str) -> xr.DataArray:
    """The attention of the head that looks most at examples of the feature which is asked, mean over features."""
    return last(results["matching"][variable]).mean("stat").max(("layer", "head"))


STUDY = Study(
    name="in-context-convergence",
    title="In-context convergence of softmax attention",
    about=(
        "A prompt shows inputs, each one of a few orthonormal features, with their answers, and asks for one more. The "
        "paper's model, one softmax head with a matrix of scores, is simulated with all features alike, and with one "
        "in half of all inputs; two-layer decoders learn the same task beside it. The model, the loss and its descent "
        "from 0 are the paper's, all sizes, rates and thresholds are ours."
    ),
    citation=Citation(
        key="huang2023incontext",
        authors="Huang, Yu and Cheng, Yuan and Liang, Yingbin",
        title="In-Context Convergence of Transformers",
        year=2023,
        venue="ICML 2024; arXiv:2310.05249",
        url="https://arxiv.org/abs/2310.05249",
    ),
    task=TASK,
    model=MODEL,
    scales=SCALES,
    measures=(
        analyses.behaviour,
        *BY_FEATURE,
        analyses.lens.using(first=SHOWN),
        analyses.patterns,
        inner(objectives.quadratic),
        inner(objectives.hopfield),
    ),
    sweeps=(analyses.which_algorithm, ablation.using(first=SHOWN), causes.using(first=SHOWN)),
    arms=(BALANCED,),
    theories=(
        _simulation("balanced", "The reduced model, all features alike", None, 1),
        _simulation("imbalanced", "The reduced model, one feature in half of all inputs", DOMINANT, 2),
        Theory(
            name="half_times",
            title="The reduced model, by the number of features",
            setups={
                "smoke": HalfTimes(features=(4, 5, 6, 8), prompts=20),
                "laptop": HalfTimes(),
                "paper": HalfTimes(features=(6, 8, 12, 16, 24, 32, 48, 64), prompts=400),
            },
            order=3,
        ),
    ),
    claims=(
        Claim(
            name="attention finds the feature",
            sentence="Where all features are alike, attention comes to rest on examples of the feature asked for.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _at_end(results, "balanced", "attention", OTHERS),
            about="attention to examples of the feature which is asked, reduced model",
            control=lambda results: untrained(results["balanced"]["attention"].sel(stat=OTHERS)),
            control_about="the same before training",
            direction="above",
            bound=RIGHT,
        ),
        Claim(
            name="by its own score",
            sentence="Attention learns by the score of a feature with itself; those of different features hardly move.",
            source=PAPER,
            statistic=lambda results: _at_end(results, "balanced", "own_score", OTHERS),
            about="score of a feature with itself, reduced model",
            control=lambda results: 5 * abs(_at_end(results, "balanced", "other_score")),
            control_about="five times the size of the score of different features",
            direction="above",
        ),
        Claim(
            name="half-time grows as the square",
            sentence="The time until attention goes astray half as much grows as the square of the number of features.",
            source=f"{PAPER}: quadratic up to a logarithm; how near it must be is ours",
            statistic=lambda results: _exponent(results, DRAWN[0]),
            about="distance of the exponent of the half-time from 2, reduced model",
            control=lambda results: _exponent(results, DRAWN[1]),
            control_about="the same for a feature that is in half of all inputs, whatever the number of others",
            direction="below",
            bound=NEAR_SQUARE,
        ),
        Claim(
            name="rare features come later",
            sentence="Where one feature dominates, attention is right for it long before it is for the others.",
            source=PAPER,
            statistic=lambda results: _behind(results, "imbalanced"),
            about="natural logarithm of half-time of the others over that of the first, reduced model",
            control=lambda results: _behind(results, "balanced"),
            control_about="the same where all are drawn alike",
            direction="above",
            bound=float(np.log(5)),
        ),
        Claim(
            name="the dominant feature is suppressed first",
            sentence="Asked for a rare feature, attention first turns away from the dominant one, then towards it.",
            source=PAPER,
            statistic=lambda results: _suppression(results, "imbalanced"),
            about=f"fall of the score with the first feature above the rise of its own at step {EARLY}, reduced model",
            control=lambda results: _suppression(results, "balanced"),
            control_about="the same where all are drawn alike",
            direction="above",
            bound=0.0,
        ),
        Claim(
            name="and converges, where the feature is shown",
            sentence="In the end rare features are answered, too, in prompts that show them.",
            source=f"{PAPER}; that the rest of the error is that of prompts without the feature is {OURS}",
            statistic=_over_floor,
            about="error on rare features in prompts that show them, over what it was before training, reduced model",
            control=_with_absent,
            control_about="the same in all prompts, some of which do not show the feature",
            direction="below",
            bound=AT_THE_FLOOR,
        ),
        Claim(
            name="decoder: heads look at the feature",
            sentence="A decoder that learned the task has a head that looks at examples of the feature asked for.",
            source=f"{OURS}: whether the story of the reduced model survives outside of it",
            statistic=lambda results: _most_matching(results, "attention"),
            about="largest share of attention of a head to examples of the feature which is asked",
            control=lambda results: _most_matching(results, "attention_null"),
            control_about="the same with the features of another prompt",
            direction="above",
            bound=FOUND,
        ),
        Claim(
            name="decoder: rare features come later",
            sentence="A decoder, too, learns to answer the dominant feature before the others.",
            source=f"{OURS}: whether the story of the reduced model survives outside of it",
            statistic=lambda results: _decoder_behind(results, "error_by_label"),
            about="natural logarithm of the steps until the error on the others is halved over those on the first",
            control=lambda results: _decoder_behind(results, "alike_error_by_label"),
            control_about="the same where all are drawn alike",
            direction="above",
            bound=0.0,
        ),
        Claim(
            name="decoder: it answers as least squares does",
            sentence="What it predicts is what the answers of the feature that is asked say.",
            source=f"{OURS}; least squares on unit vectors is the mean answer of the feature",
            statistic=lambda results: last(likeness(results, "least squares")),
            about="share of the variance of its predictions that least squares explains",
            control=lambda results: last(likeness(results, "averaging")),
            control_about="the same for averaging, which mixes all answers in proportion to how alike inputs are",
            direction="above",
        ),
        *causal_claims(),
    ),
)
