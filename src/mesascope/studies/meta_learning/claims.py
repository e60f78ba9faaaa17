"""Claims of the meta-learning view: signs of an inner optimisation across layers, and their controls."""

from collections.abc import Iterable
from dataclasses import replace

from mesascope.studies.base import Claim, Requirement
from mesascope.studies.meta_learning.cluster_claims import cluster_claims
from mesascope.studies.meta_learning.history_claims import dual_form_check, history_attention_claims
from mesascope.studies.meta_learning.loss_claims import LEARNED, SGD_LEARNED, TEXT_LEARNED, outer_loss_claims
from mesascope.studies.meta_learning.optimisation_claims import (
    fast_weight_claim,
    inner_loss_claim,
    outer_gradient_claim,
)
from mesascope.studies.meta_learning.representation_claims import (
    input_alignment_claim,
    lens_claim,
    norm_claims,
    output_norm_check,
)
from mesascope.studies.shared.head_claims import head_effect_claims

TEXT = ("text_", "on real text: ")  # prefix of the results, prefix of names and statements


def meta_learning_claims() -> tuple[Claim, ...]:
    """Return all claims by condition: hidden generators, training by SGD, real text."""
    return (
        *outer_loss_claims(),
        *_require(
            LEARNED,
            (
                *cluster_claims(),
                inner_loss_claim(),
                fast_weight_claim(),
                *_claims_of_condition("", ""),
                input_alignment_claim(),
            ),
        ),
        output_norm_check(),
        *_require(SGD_LEARNED, history_attention_claims()),
        dual_form_check(),
        *_require(TEXT_LEARNED, _claims_of_condition(*TEXT)),
    )


def _claims_of_condition(prefix: str, name_prefix: str) -> tuple[Claim, ...]:
    return (
        outer_gradient_claim(prefix, name_prefix),
        *norm_claims(prefix, name_prefix),
        lens_claim(prefix, name_prefix),
        *head_effect_claims(prefix, name_prefix),
    )


def _require(requirement: Requirement, claims: Iterable[Claim]) -> tuple[Claim, ...]:
    return tuple(replace(claim, requirements=(requirement,)) for claim in claims)
