"""Claims of the meta-learning view: signs of an inner optimisation across layers, and their controls."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step
from mesascope.studies.meta_learning.cluster_claims import cluster_claims
from mesascope.studies.meta_learning.history_claims import dual_form_claims, history_attention_claims
from mesascope.studies.meta_learning.optimisation_claims import inner_objective_claims, outer_gradient_claims
from mesascope.studies.meta_learning.representation_claims import (
    OURS,
    lens_claim,
    norm_claims,
    spectrum_claims,
)
from mesascope.studies.shared.head_claims import head_role_claims

LABELS = ("generator", "next token", "generator and next token")
TESTED_OBJECTIVES = ("quadratic", "hopfield", "fast_weight")  # attention lowers the linear one by construction
TEXT_CONDITION = ("text_", "on real text: ")  # prefix of the results, prefix of names and statements
CONDITIONS = (("", ""), TEXT_CONDITION)
BASELINES = {  # name of the claim: predictor, and the predictor in words
    "Bayes": ("Bayes", "the Bayes predictor, which infers the generator"),
    "generator known": ("known generator", "a predictor that is given the generator"),
}
MAX_LOSS_RATIO = 1.1  # ours: model loss over that of predictors that know the generators


def meta_learning_claims() -> tuple[Claim, ...]:
    """Return all claims, in the order of the paper's figures."""
    return (
        *_outer_loss_claims(),
        *(claim for label in LABELS for claim in cluster_claims(label)),
        *(claim for objective in TESTED_OBJECTIVES for claim in inner_objective_claims(objective)),
        *(claim for condition in CONDITIONS for claim in outer_gradient_claims(*condition)),
        *dual_form_claims(),
        *(claim for label in LABELS for claim in history_attention_claims(label)),
        *(claim for condition in CONDITIONS for claim in norm_claims(*condition)),
        *spectrum_claims(),
        *(lens_claim(*condition, lens) for condition in CONDITIONS for lens in ("logit", "affine")),
        *head_role_claims(),
        *head_role_claims(*TEXT_CONDITION),
    )


def _outer_loss_claims() -> tuple[Claim, ...]:
    return tuple(
        Claim(
            name=f"the outer loss is low: {name}",
            statement=f"On validation sequences the loss is at most 10 % above that of {words}.",
            source=f"{OURS}: the other claims are about a model that has learned its task",
            value=Quantity(
                description=f"validation loss over that of {words}",
                read=lambda results, baseline=baseline: _compute_loss_ratio(results, "model", baseline),
            ),
            control=Quantity(
                description="the same ratio for the bigram baseline, which does not use the generator",
                read=lambda results, baseline=baseline: _compute_loss_ratio(results, "bigram", baseline),
            ),
            direction="below",
            threshold=MAX_LOSS_RATIO,
        )
        for name, (baseline, words) in BASELINES.items()
    )


def _compute_loss_ratio(results: Results, predictor: str, baseline: str) -> xr.DataArray:
    error = select_last_step(results["loss_vs_baselines"]["scored"])
    return error.sel(predictor=predictor, drop=True) / error.sel(predictor=baseline, drop=True)
