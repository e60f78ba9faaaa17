"""Claims about the outer loss, and the requirements on it under which the other claims are judged."""

from functools import partial

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step

MAX_LOSS_RATIO = 1.1  # ours: model loss over that of the Bayes predictor
MAX_SGD_LOSS_RATIO = 1.5  # ours, fixed before this loss was seen: the same ratio for the short training by SGD
MAX_TEXT_LOSS_RATIO = 1.0  # ours, fixed before this loss was seen: a bigram needs no attention
MIN_TEXT_GAIN = 0.1  # ours, fixed before this loss was seen: in nat, a perplexity that is 10 % lower


def outer_loss_claims() -> tuple[Claim, ...]:
    """Return the claims that models have learned their tasks: hidden generators, and real text."""
    return (_seeded_loss_check(), _text_loss_claim())


def _seeded_loss_check() -> Claim:
    return Claim(
        name="the outer loss is low",
        statement="On validation sequences the loss is at most 10 % above that of the Bayes predictor, which infers "
        "the generator.",
        source="ours: the other claims are about a model that has learned its task",
        value=_loss_ratio("", "model", "Bayes"),
        control=_loss_ratio("", "bigram", "Bayes"),
        direction="below",
        threshold=MAX_LOSS_RATIO,
        kind="check",
    )


def _text_loss_claim() -> Claim:
    return Claim(
        name="on real text: the outer loss is low",
        statement="On held-out real text the loss is lower than that of a bigram model of the training text.",
        source="ours: the other claims are about a model that has learned its task; added after a run of 3 seeds",
        value=Quantity(
            description="validation loss of the model",
            read=lambda results: _select_loss(results, "text_", "model"),
            unit="nat",
        ),
        control=Quantity(
            description="that of the bigram baseline, which uses the current token only",
            read=lambda results: _select_loss(results, "text_", "bigram"),
            unit="nat",
        ),
        direction="below",
        margin=MIN_TEXT_GAIN,
    )


def _loss_ratio(prefix: str, predictor: str, baseline: str) -> Quantity:
    return Quantity(
        description=f"validation loss of the {predictor} over that of the {baseline} predictor",
        read=partial(_compute_loss_ratio, prefix=prefix, predictor=predictor, baseline=baseline),
    )


def _compute_loss_ratio(results: Results, prefix: str, predictor: str, baseline: str) -> xr.DataArray:
    return _select_loss(results, prefix, predictor) / _select_loss(results, prefix, baseline)


def _select_loss(results: Results, prefix: str, predictor: str) -> xr.DataArray:
    return select_last_step(results[f"{prefix}loss_vs_baselines"]["scored"]).sel(predictor=predictor, drop=True)


LEARNED = Requirement(
    statement="the loss on sequences of hidden generators is at most 1.1 times that of the Bayes predictor",
    value=_loss_ratio("", "model", "Bayes"),
    threshold=MAX_LOSS_RATIO,
    direction="below",
)
SGD_LEARNED = Requirement(
    statement="the loss of the decoder trained by SGD is at most 1.5 times that of the Bayes predictor",
    value=_loss_ratio("sgd_", "model", "Bayes"),
    threshold=MAX_SGD_LOSS_RATIO,
    direction="below",
)
TEXT_LEARNED = Requirement(
    statement="the loss on real text is lower than that of the bigram baseline",
    value=_loss_ratio("text_", "model", "bigram"),
    threshold=MAX_TEXT_LOSS_RATIO,
    direction="below",
)
