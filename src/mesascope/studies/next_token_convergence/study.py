"""Next-token prediction by one layer of attention: collocations first, then which token of a sentence decides.

Huang, Liang and Yang 2024 (arXiv 2409.17335). The paper's model, one layer with two matrices trained one after the
other by normalised gradient descent, is simulated; decoders learn the same sentences beside it. Setting, model and
stages are the paper's as summaries tell them; the vocabulary, the frequencies of pairs, rates and thresholds are ours.
"""

import xarray as xr

from mesascope import analyses
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.causal.head_importance import causes
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.studies.base import Citation, Claim, Results, Scale, Study, Theory, last, untrained
from mesascope.studies.next_token_convergence.task import Collocations
from mesascope.studies.next_token_convergence.toy_model import DESCENTS, STAGES, NextToken
from mesascope.studies.shared.head_claims import causal_claims
from mesascope.studies.shared.icl import beside, training

PAPER = "Huang et al. 2024"
OURS = "ours"
TASK = Collocations()
LAST = TASK.length - 1
STRAIGHT, DECADES, ALONG, ATTENDED = 0.99, 3.0, 0.95, 0.99  # ours
EVEN, PLAIN = DESCENTS
KNOWN, UNKNOWN = "unseen, order shown", "unseen, order not shown"

MODEL = beside(TASK.length, vocab_size=TASK.vocabulary)
WARMUP = 100  # ours

SCALES = {
    "smoke": Scale(training=training(40, 3, WARMUP), seeds=2, sequences=128, minutes=0.3),
    "laptop": Scale(training=training(2_000, 12, WARMUP), sequences=1024, minutes=1.5),
    "paper": Scale(training=training(20_000, 12, WARMUP), seeds=8, sequences=4096, minutes=30.0),
}


def _found(results: Results, name: str, stage: str, descent: str) -> xr.DataArray:
    """What was seen of one stage by one descent."""
    return results["reduced"][name].sel(stat=f"{stage}, {descent}", drop=True)


def _line(stage: str) -> tuple[Claim, ...]:
    """The claims on one stage's rate and direction."""
    return (
        Claim(
            name=f"{stage}: the loss falls linearly",
            sentence=f"{stage.capitalize()}: the logarithm of the loss falls along a straight line.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _found(results, "straight", stage, EVEN),
            about="R² of a straight line through the logarithm of the excess loss, by steps",
            control=lambda results: _found(results, "straight", stage, PLAIN),
            control_about="the same by plain gradient descent",
            direction="above",
            bound=STRAIGHT,
        ),
        Claim(
            name=f"{stage}: over decades",
            sentence=f"{stage.capitalize()}: that line is laid over three powers of ten and more.",
            source=f"{OURS}: over less, many curves are straight",
            statistic=lambda results: _found(results, "decades", stage, EVEN),
            about="powers of ten of the excess loss that the line is laid over",
            control=lambda results: _found(results, "decades", stage, PLAIN),
            control_about="the same by plain gradient descent in as many steps",
            direction="above",
            bound=DECADES,
        ),
        Claim(
            name=f"{stage}: the norm grows linearly",
            sentence=f"{stage.capitalize()}: the norm of the matrix grows in proportion to the steps.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _found(results, "norm_straight", stage, EVEN),
            about="R² of a straight line through the norm, by steps",
            control=lambda results: _found(results, "norm_straight", stage, PLAIN),
            control_about="the same by plain gradient descent",
            direction="above",
            bound=STRAIGHT,
        ),
        Claim(
            name=f"{stage}: the direction",
            sentence=f"{stage.capitalize()}: the matrix turns towards the one of largest margin.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: last(_found(results, "direction", stage, EVEN)),
            about="cosine with the smallest matrix that decides everything right by 1, in the end",
            control=lambda results: _found(results, "direction", stage, EVEN).isel(step=1, drop=True),
            control_about="the same at the second step that was looked at",
            direction="above",
            bound=ALONG,
        ),
    )


def _accuracy(results: Results, which: str) -> xr.DataArray:
    """How many of some sentences the reduced model goes on with rightly."""
    return results["reduced"]["accuracy"].sel(setting=which, drop=True)


def _decoder_error(results: Results, told: int) -> xr.DataArray:
    """The trained decoder's cross-entropy on unseen sentences whose deciding order was shown, or was not."""
    return last(results["error_by_label"]["error"]).sel(predictor="model", stat=f"order_shown {told}", drop=True)


STUDY = Study(
    name="next-token-convergence",
    title="Convergence of next-token prediction",
    about=(
        "Sentences of a few tokens, of which the one that the last token ranks highest decides what follows. A layer "
        "of attention is trained in two stages, by steps of one length and, as the control, by plain gradient descent; "
        "two-layer decoders learn the same sentences beside it and are asked about others. Setting, model and stages "
        "are the paper's, sizes and thresholds are ours."
    ),
    citation=Citation(
        key="huang2024nexttoken",
        authors="Huang, Ruiquan and Liang, Yingbin and Yang, Jing",
        title="Non-asymptotic Convergence of Training Transformers for Next-token Prediction",
        year=2024,
        venue="NeurIPS 2024; arXiv:2409.17335",
        url="https://arxiv.org/abs/2409.17335",
    ),
    task=TASK,
    model=MODEL,
    scales=SCALES,
    measures=(
        analyses.behaviour,
        analyses.error_by_label.using(of="order_shown"),
        analyses.patterns,
        inner(objectives.hopfield),
        inner(objectives.readout),
    ),
    sweeps=(ablation.using(first=LAST), causes.using(first=LAST)),
    theories=(
        Theory(
            name="reduced",
            title="The reduced model",
            setups={
                "smoke": NextToken(vocabulary=6, length=3, sentences=12, unseen=60, steps=150, points=16),
                "laptop": NextToken(),
                "paper": NextToken(vocabulary=20, length=8, sentences=200, steps=10_000),
            },
            order=1,
        ),
    ),
    claims=(
        *(claim for stage in STAGES for claim in _line(stage)),
        Claim(
            name="attention rests on what decides",
            sentence="On the sentences of training, attention comes to rest on the token that decides.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: last(results["reduced"]["attention"]),
            about="attention to the token that decides, mean over sentences, reduced model",
            control=lambda results: untrained(results["reduced"]["attention"]),
            control_about="the same before training",
            direction="above",
            bound=ATTENDED,
        ),
        Claim(
            name="unseen sentences, where the order was shown",
            sentence="The model goes on rightly with unseen sentences where training shows the order of their tokens.",
            source=f"{PAPER} on comparable tokens; that all unseen sentences together hide it is {OURS}",
            statistic=lambda results: _accuracy(results, KNOWN),
            about="share of unseen sentences that go on rightly, of those whose order was shown, reduced model",
            control=lambda results: _accuracy(results, UNKNOWN),
            control_about="the same of those whose order was not shown",
            direction="above",
            bound=ALONG,
        ),
        Claim(
            name="decoder: unseen sentences, where the order was shown",
            sentence="A decoder, too, errs less on unseen sentences whose order was shown.",
            source=f"{OURS}: whether the story of the reduced model survives outside of it",
            statistic=lambda results: _decoder_error(results, 1),
            about="cross-entropy on unseen sentences whose order was shown",
            control=lambda results: _decoder_error(results, 0),
            control_about="the same where it was not shown",
            direction="below",
            unit="nat",
        ),
        *causal_claims(),
    ),
)
