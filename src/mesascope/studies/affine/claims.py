"""Analyses and claims of the recurrence studies: layer 0 copies the last term, later layers refine the estimate."""

from dataclasses import replace

import xarray as xr

from mesascope import analyses
from mesascope.analyses import Analysis
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.causal.value_paths import value_paths
from mesascope.studies.affine.similarity_claims import OURS, PAPER, negative_similarity_claims
from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step, select_untrained
from mesascope.studies.shared.head_claims import head_effect_claims
from mesascope.studies.shared.selectors import compute_log_error_changes, select_shifted_similarity

INTERVENED_SEQUENCES = 128  # of those analysed, in analyses that run the model many times with edits
MAX_ERROR_RATIO = 0.05  # ours: of the copy baseline's error
MIN_LOG_ERROR_FALL = 0.1  # ours, fixed before the run: a fifth of the error
MIN_SIMILARITY_DIFFERENCE = 0.05  # ours, fixed before the run: a twentieth of the variance of the predictions


def make_recurrence_analyses(first: int) -> tuple[Analysis, ...]:
    """Return the analyses of a recurrence study.

    Args:
        first: first scored position; the terms before it do not determine the rule.
    """
    return (
        analyses.loss_vs_baselines,
        analyses.probe_and_logit_lens.using(first=first),
        analyses.attn_out_probe.using(first=first),
        analyses.direct_attribution.using(first=first),
        analyses.positional_attention,
        replace(analyses.similarity, steps="ends"),
        analyses.value_copying,
        analyses.refinement_heads.using(first=first, sequences=INTERVENED_SEQUENCES),
        analyses.attention_patterns,
        analyses.which_algorithm,
        replace(head_ablation.using(first=first, sequences=INTERVENED_SEQUENCES), steps="last"),
        value_paths.using(first=first, sequences=INTERVENED_SEQUENCES),
    )


def affine_claims(*, first: int, layers: int) -> tuple[Claim, ...]:
    """Return the claims of the paper's study: scalar affine recurrences.

    Args:
        first: first position at which the rule has been determined for one step.
        layers: number of layers of the decoder; the claims are about the first and the last one.
    """
    top, learned = layers - 1, _learned_requirement(first)
    mechanism_claims = (
        _COPYING_CLAIM,
        _refinement_claim(top),
        *negative_similarity_claims(top),
        _SHIFTED_CLAIM,
        *head_effect_claims(),
    )
    return (_learned_check(first), *(replace(claim, requirements=(learned,)) for claim in mechanism_claims))


def transferred_claims(*, first: int, layers: int) -> tuple[Claim, ...]:
    """Return the same claims for a recurrence that the paper only names as future work.

    Args:
        first: first position at which the rule has been determined for one step.
        layers: number of layers of the decoder.
    """
    return tuple(
        replace(claim, by_paper=False, source=f"{OURS}: a transfer to another task of the claim of {claim.source}")
        if claim.by_paper
        else claim
        for claim in affine_claims(first=first, layers=layers)
    )


def _learned_requirement(first: int) -> Requirement:
    return Requirement(
        statement="once the context determines the rule, the model's error is less than 5 % of the copy baseline's",
        value=_error_ratio(first),
        threshold=MAX_ERROR_RATIO,
        direction="below",
    )


def _learned_check(first: int) -> Claim:
    return Claim(
        name="learns in context",
        statement="Once the context determines the rule, the model's error is less than 5 % of the copy baseline's.",
        source=f"{OURS}: the other claims are about a model that has learned its task",
        value=_error_ratio(first),
        control=Quantity(
            description="the same ratio at the positions where the rule is not yet determined",
            read=lambda results: _compute_copy_ratio(results, slice(1, first - 1)),
        ),
        direction="below",
        threshold=MAX_ERROR_RATIO,
        kind="check",
    )


def _error_ratio(first: int) -> Quantity:
    return Quantity(
        description=f"squared error over that of the copy baseline, summed over positions {first} and later",
        read=lambda results: _compute_copy_ratio(results, slice(first, None)),
    )


def _compute_copy_ratio(results: Results, positions: slice) -> xr.DataArray:
    error = select_last_step(results["loss_vs_baselines"]["error"]).isel(pos=positions).sum("pos")
    return error.sel(predictor="model", drop=True) / error.sel(predictor="copy", drop=True)


def _compare_copies(results: Results, *, trained: bool) -> xr.DataArray:
    error = results["attn_out_probe"]["log_error"].sel(layer=0, drop=True)
    error = select_last_step(error) if trained else select_untrained(error)
    return error.sel(stat="last term", drop=True) - error.sel(stat="previous term", drop=True)


_COPYING_CLAIM = Claim(
    name="layer 0 copies the last term",
    statement="Layer 0 learns to copy the last term: a linear probe on its attention output predicts this term better "
    "than the term before it, and more so than in the untrained model.",
    source=f"{PAPER}; measured such that neither convergence nor single sequences decide it, written after a run had "
    "been seen",
    value=Quantity(
        description="log10 of the squared error for the last term over that for the term before it, linear probes on "
        "layer 0's attention output, mean over sequences",
        read=lambda results: _compare_copies(results, trained=True),
    ),
    control=Quantity(
        description="the same in the untrained model",
        read=lambda results: _compare_copies(results, trained=False),
    ),
    direction="below",
    threshold=0.0,
    margin=MIN_LOG_ERROR_FALL,
    by_paper=True,
)


def _refinement_claim(top: int) -> Claim:
    return Claim(
        name=f"layer {top} refines the estimate",
        statement=f"Layer {top} refines the estimate: the error of a linear probe for the next term falls.",
        source=f"{PAPER}; refinement is measured by a linear probe",
        value=Quantity(
            description=f"change of the log10 error of the linear probe in layer {top}",
            read=lambda results: _compute_refinement(select_last_step(_select_probe_error(results)), top),
        ),
        control=Quantity(
            description="the same change in the untrained model",
            read=lambda results: _compute_refinement(select_untrained(_select_probe_error(results)), top),
        ),
        direction="below",
        threshold=0.0,
        margin=MIN_LOG_ERROR_FALL,
        by_paper=True,
    )


def _select_probe_error(results: Results) -> xr.DataArray:
    return results["probe_and_logit_lens"]["affine_error"]


def _compute_refinement(error: xr.DataArray, layer: int) -> xr.DataArray:
    return compute_log_error_changes(error).isel(layer=layer, drop=True)


_SHIFTED_CLAIM = Claim(
    name="out of distribution: least squares",
    statement="Out of distribution, the predictions also agree more with least squares than with copying.",
    source=f"{OURS}: an algorithm applies to every distribution; written after a run had been seen",
    value=Quantity(
        description="fraction of the variance that least squares explains, lowest over shifted distributions",
        read=lambda results: select_shifted_similarity(results, "least squares"),
    ),
    control=Quantity(
        description="the same fraction for copying",
        read=lambda results: select_shifted_similarity(results, "copying"),
    ),
    direction="above",
    margin=MIN_SIMILARITY_DIFFERENCE,
)
