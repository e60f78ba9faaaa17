"""How transformers implement induction heads: a 4-gram is learned first, then nothing for long, then an induction head.

Wang, Yu, E and Wu 2024 (arXiv 2410.11474). The paper's model, two layers of attention reduced to six numbers, is
simulated on the mixed target; decoders learn the same target beside it. The form of the target and of the model are
the paper's as reviews and summaries tell them; w, the length, sizes, rates and thresholds are ours, and so is what a
head has to beat to have emerged: a plain average of the terms, which is nearly right by itself.
"""

from dataclasses import replace

import xarray as xr

from mesascope import analyses
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.causal.head_importance import causes
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.studies.base import Citation, Claim, Results, Scale, Study, Theory, last, untrained
from mesascope.studies.induction_heads.task import Grams
from mesascope.studies.induction_heads.toy_model import BY_ALPHA, BY_LENGTH, PARTS, STRAIGHT, InductionHead, Plateaus
from mesascope.studies.shared.head_claims import causal_claims
from mesascope.studies.shared.icl import beside, training

PAPER = "Wang et al. 2024"
OURS = "ours"
TASK = Grams(length=20, score=0.7, alpha=1.0)  # ours
FIRST = 3  # the first position with a 4-gram
NEAR = 0.01  # of w and of the scale, in the end; ours
LINEAR = 0.98  # R²; ours
LENGTH_POWER, ALPHA_POWER = (0.8, 1.1), (1.7, 2.1)  # ours: the law says 1 and 2
TOLD = 0.01  # of the error at first; ours
EMERGED = 0.5  # of a plain average's error; ours

MODEL = beside(TASK.length, d_in=1, d_out=2)  # two layers as the paper, the rest ours
WARMUP = 100  # ours

SCALES = {
    "smoke": Scale(training=training(40, 3, WARMUP), seeds=2, sequences=64, minutes=0.4),
    "laptop": Scale(training=training(4_000, 24, WARMUP), sequences=512, minutes=5.0),
    "paper": Scale(training=training(40_000, 24, WARMUP), seeds=8, sequences=2048, minutes=90.0),
}
HEADS = {
    "smoke": InductionHead(steps=100, sequences=200, points=21),
    "laptop": InductionHead(),
    "paper": InductionHead(sequences=20_000),
}
LAWS = {
    "smoke": Plateaus(
        base=HEADS["smoke"], sizes=(0.1, 0.05, 0.02), lengths=(6, 8, 10), alphas=(0.5, 1.0), scores=(0.7, 0.8), most=600
    ),
    "laptop": Plateaus(),
    "paper": Plateaus(base=HEADS["paper"], lengths=(20, 40, 80, 160), most=40_000),
}


def _steps(results: Results, name: str, part: str) -> xr.DataArray:
    """The step of the simulation after which a part is told: its error is a hundredth of what it was, or half of what a
    plain average's can be.
    """
    found = results[name]["error"].sel(stat=part, drop=True)
    bound = TOLD * untrained(found) if part == PARTS[0] else EMERGED * results[name]["average"]
    return _first(found <= bound)


def _first(there: xr.DataArray) -> xr.DataArray:
    """The first step at which something is so, by seed; not a number where it never is."""
    step = there["step"].astype(float)
    return step.where(there).min("step")


def _law(results: Results, name: str) -> xr.DataArray:
    """One of the laws of the plateau."""
    return results["plateaus"]["law"].sel(_law=name, drop=True)


def _outside(results: Results, name: str, band: tuple[float, float]) -> xr.DataArray:
    """How far an exponent lies from the middle of its band."""
    return abs(_law(results, name) - sum(band) / 2)


def _off(results: Results, name: str, at_first: bool = False) -> xr.DataArray:
    """How far score and scale of the induction head are from those of the target, as a share: the worse of the two."""
    numbers = results[name]["number"]
    numbers = untrained(numbers) if at_first else last(numbers)
    score = abs(numbers.sel(component="c", drop=True) / TASK.score - 1)
    scale = abs(numbers.sel(component="b", drop=True) * (1 + TASK.alpha) - 1)
    return xr.where(score > scale, score, scale)


def _error(results: Results, output: int, predictor: str = "model") -> xr.DataArray:
    """The decoder's error of one of the two, or an oracle's."""
    return results["error_by_output"]["error"].sel(d_out=output, predictor=predictor, drop=True)


def _decoder_steps(results: Results) -> tuple[xr.DataArray, xr.DataArray]:
    """The steps at which the decoder tells the 4-gram, and beats half of a plain average's error."""
    first = _error(results, 0)
    told = _first(first <= untrained(first) * EMERGED)
    emerged = _first(_error(results, 1) <= EMERGED * _error(results, 1, "4-gram and a plain average"))
    return told, emerged


def _over_average(results: Results, trained: bool) -> xr.DataArray:
    """The decoder's error of the 2-gram over that of the best plain average."""
    found = _error(results, 1) / _error(results, 1, "4-gram and a plain average")
    return last(found) if trained else untrained(found)


STUDY = Study(
    name="induction-heads",
    title="How an induction head comes about",
    about=(
        "Sequences of independent normal numbers; a 4-gram and an in-context 2-gram are to be told together. The model "
        "of six numbers is simulated, and varied in its first size, length and weights; two-layer decoders learn the "
        "same beside it. Emergence is measured against the best plain average of the terms, which is nearly right. "
        "Target and reduced model are the paper's, all numbers and thresholds are ours."
    ),
    citation=Citation(
        key="wang2024induction",
        authors="Wang, Mingze and Yu, Ruoxi and E, Weinan and Wu, Lei",
        title="How Transformers Implement Induction Heads: Approximation and Optimization Analysis",
        year=2024,
        venue="arXiv:2410.11474",
        url="https://arxiv.org/abs/2410.11474",
    ),
    task=TASK,
    model=MODEL,
    scales=SCALES,
    measures=(
        analyses.behaviour,
        analyses.error_by_output,
        analyses.lens.using(first=FIRST),
        analyses.position,
        analyses.similarity,
        analyses.patterns,
        inner(objectives.quadratic),
        inner(objectives.hopfield),
    ),
    sweeps=(ablation.using(first=FIRST), causes.using(first=FIRST)),
    theories=(
        Theory(name="reduced", title="The reduced model", setups=HEADS, order=1),
        Theory(
            name="squared",
            title="The reduced model, its position score squared, too",
            setups={scale: replace(one, squared=True) for scale, one in HEADS.items()},
            order=2,
        ),
        Theory(name="plateaus", title="How long the plateau is", setups=LAWS, order=3),
    ),
    claims=(
        Claim(
            name="the 4-gram first",
            sentence="The 4-gram is told long before the induction head emerges.",
            source=f"{PAPER}; emergence against a plain average is ours",
            statistic=lambda results: _steps(results, "reduced", PARTS[0]),
            about="steps until the 4-gram is told, reduced model",
            control=lambda results: _steps(results, "reduced", PARTS[1]),
            control_about="steps until the induction head beats half the error of a plain average",
            direction="below",
            unit="step",
        ),
        Claim(
            name="plateau: logarithm of the size",
            sentence="The plateau is as long as the logarithm of one over the first size.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _law(results, STRAIGHT),
            about="R² of a straight line through steps and logarithm, reduced model",
            control=lambda results: xr.zeros_like(_law(results, STRAIGHT)),
            control_about="R² of a plateau that does not depend on the size",
            direction="above",
            bound=LINEAR,
        ),
        Claim(
            name="plateau: length",
            sentence="The plateau grows in proportion to the length of the sequences.",
            source=f"{PAPER}; how near it must be is ours",
            statistic=lambda results: _outside(results, BY_LENGTH, LENGTH_POWER),
            about=f"distance of the exponent from {sum(LENGTH_POWER) / 2:g}, reduced model",
            control=lambda results: xr.full_like(_law(results, BY_LENGTH), sum(LENGTH_POWER) / 2),
            control_about="the same for a plateau that does not depend on the length",
            direction="below",
            bound=(LENGTH_POWER[1] - LENGTH_POWER[0]) / 2,
        ),
        Claim(
            name="plateau: weight",
            sentence="The plateau grows as the square of one plus the weight of the 4-gram.",
            source=f"{PAPER}; how near it must be is ours",
            statistic=lambda results: _outside(results, BY_ALPHA, ALPHA_POWER),
            about=f"distance of the exponent from {sum(ALPHA_POWER) / 2:g}, reduced model",
            control=lambda results: abs(1 - sum(ALPHA_POWER) / 2) + xr.zeros_like(_law(results, BY_ALPHA)),
            control_about="the same for a plateau that grows in proportion",
            direction="below",
            bound=(ALPHA_POWER[1] - ALPHA_POWER[0]) / 2,
        ),
        Claim(
            name="both are found exactly",
            sentence="In the end the induction head has the scale and the score of the target.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _off(results, "reduced"),
            about="distance of score and scale from the target's, as a share, the worse of the two, reduced model",
            control=lambda results: _off(results, "reduced", at_first=True),
            control_about="the same at first",
            direction="below",
            bound=NEAR,
        ),
        Claim(
            name="for the score enters squared",
            sentence="Where the 4-gram's position score enters squared, too, the head start of the 4-gram shrinks.",
            source=f"a reviewer of {PAPER}: the order would come from the model's form",
            statistic=lambda results: _steps(results, "squared", PARTS[1]) / _steps(results, "squared", PARTS[0]),
            about="steps until the induction head emerges over those until the 4-gram is told, position score squared",
            control=lambda results: _steps(results, "reduced", PARTS[1]) / _steps(results, "reduced", PARTS[0]),
            control_about="the same with the position score as it is",
            direction="below",
        ),
        Claim(
            name="decoder: it beats a plain average",
            sentence="A decoder learns more of the in-context 2-gram than a plain average of the terms.",
            source=f"{OURS}: whether the story of the reduced model survives outside of it",
            statistic=lambda results: _over_average(results, trained=True),
            about="error of the 2-gram over that of the best plain average",
            control=lambda results: _over_average(results, trained=False),
            control_about="the same in the untrained model",
            direction="below",
            bound=EMERGED,
        ),
        Claim(
            name="decoder: the 4-gram first",
            sentence="A decoder, too, tells the 4-gram before the induction head emerges.",
            source=f"{OURS}: whether the story of the reduced model survives outside of it",
            statistic=lambda results: _decoder_steps(results)[0],
            about="steps until the error of the 4-gram is halved, at checkpoints",
            control=lambda results: _decoder_steps(results)[1],
            control_about="the same until the 2-gram's is half of a plain average's",
            direction="below",
            unit="step",
        ),
        *causal_claims(),
    ),
)
