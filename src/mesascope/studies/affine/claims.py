"""Analyses and claims of the recurrence studies: layer 0 copies the last term, later layers refine the estimate."""

from dataclasses import replace

import xarray as xr

from mesascope import analyses
from mesascope.analyses import Analysis
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.studies.affine.similarity_claims import (
    OURS,
    PAPER,
    negative_head_ablation_claims,
    negative_similarity_claims,
)
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.shared.head_claims import copying_head_claim, head_role_claims
from mesascope.studies.shared.selectors import refinement_claim, select_shifted_similarity, select_similarity

MAX_ERROR_RATIO = 0.05  # ours: of the copy baseline's error
MIN_COPY_R2 = 0.9  # ours: of the last term, predicted from layer 0's attention output

COPY_STEP_R2 = Quantity(
    description="R² of the last term relative to the step to it, linear probe on layer 0's attention output",
    read=lambda results: select_last_step(_select_probe(results, "step_explained", "last term")),
)


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
        analyses.similarity,
        analyses.value_copying,
        analyses.attention_patterns,
        analyses.which_algorithm,
        head_ablation.using(first=first),
    )


def affine_claims(*, first: int, layers: int, scales: tuple[str, ...] = ("laptop", "paper")) -> tuple[Claim, ...]:
    """Return the claims of a recurrence study.

    Args:
        first: first position at which the rule has been determined for one step.
        layers: number of layers of the decoder; the claims are about the first and the last one.
        scales: scales at which the model learns the task.
    """
    top = layers - 1
    claims = (
        _context_claim(first),
        *_COPYING_CLAIMS,
        _REFINEMENT_CLAIM,
        *negative_similarity_claims(top),
        *negative_head_ablation_claims(top),
        *_ALGORITHM_CLAIMS,
        copying_head_claim(0),
        *head_role_claims(),
    )
    return tuple(replace(claim, scales=scales) for claim in claims)


def _context_claim(first: int) -> Claim:
    return Claim(
        name="learns in context",
        statement="Once the context determines the rule, the model's error is at most 5 % of the copy baseline's.",
        source=f"{PAPER}; the threshold is ours",
        value=Quantity(
            description=f"squared error over that of the copy baseline, summed over positions {first} and later",
            read=lambda results: _compute_copy_ratio(results, slice(first, None)),
        ),
        control=Quantity(
            description="the same ratio at the positions where the rule is not yet determined",
            read=lambda results: _compute_copy_ratio(results, slice(1, first - 1)),
        ),
        direction="below",
        threshold=MAX_ERROR_RATIO,
    )


def _compute_copy_ratio(results: Results, positions: slice) -> xr.DataArray:
    error = select_last_step(results["loss_vs_baselines"]["error"]).isel(pos=positions).sum("pos")
    return error.sel(predictor="model", drop=True) / error.sel(predictor="copy", drop=True)


def _select_probe(results: Results, variable: str, term: str) -> xr.DataArray:
    return results["attn_out_probe"][variable].sel(layer=0, stat=term, drop=True)


def _select_layer_similarity(results: Results, depth: str, predictor: str) -> xr.DataArray:
    similarity = select_last_step(results["which_algorithm"]["layer_similarity"])
    return similarity.sel(layer=depth, lens="affine lens", predictor=predictor, drop=True)


_COPYING_CLAIMS = (
    Claim(
        name="layer 0 copies the last term: R²",
        statement="The attention output of layer 0 contains the last term, a first estimate of the next one.",
        source=f"{PAPER}; measured by plain R², which is high for every term of a converging sequence",
        value=Quantity(
            description="R² of the last term, linear probe on layer 0's attention output",
            read=lambda results: select_last_step(_select_probe(results, "explained", "last term")),
        ),
        control=Quantity(
            description="the same R² in the untrained model",
            read=lambda results: select_untrained(_select_probe(results, "explained", "last term")),
        ),
        direction="above",
        threshold=MIN_COPY_R2,
    ),
    Claim(
        name="layer 0 copies the last term: R² relative to the step",
        statement="Training raises the R² of the probe for the last term on layer 0's output, relative to the step.",
        source=f"{PAPER}, measured such that convergence of the sequence does not raise the score",
        value=COPY_STEP_R2,
        control=Quantity(
            description="the same R² in the untrained model",
            read=lambda results: select_untrained(_select_probe(results, "step_explained", "last term")),
        ),
        direction="above",
    ),
    Claim(
        name="layer 0 does not predict the next term",
        statement="The attention output of layer 0 predicts the last term better than the next one.",
        source=f"{OURS}: a first estimate differs from the target",
        value=COPY_STEP_R2,
        control=Quantity(
            description="the same R² for the next term",
            read=lambda results: select_last_step(_select_probe(results, "step_explained", "next term")),
        ),
        direction="above",
    ),
)

_ALGORITHM_CLAIMS = (
    Claim(
        name="after layer 0: copying",
        statement="After layer 0, the affine lens agrees more with copying than with least squares.",
        source=f"{PAPER}, restated in terms of algorithms after a run had been seen",
        value=Quantity(
            description="fraction of the variance of the affine lens after layer 0 that copying explains",
            read=lambda results: _select_layer_similarity(results, "after 0", "copying"),
        ),
        control=Quantity(
            description="the same fraction for least squares on earlier pairs",
            read=lambda results: _select_layer_similarity(results, "after 0", "least squares"),
        ),
        direction="above",
    ),
    Claim(
        name="predictions: least squares",
        statement="The model's predictions agree more with least squares than with copying.",
        source=f"{PAPER}, restated in terms of algorithms after a run had been seen",
        value=Quantity(
            description="fraction of the variance of the predictions that least squares on earlier pairs explains",
            read=lambda results: select_last_step(select_similarity(results, "least squares")),
        ),
        control=Quantity(
            description="the same fraction for copying",
            read=lambda results: select_last_step(select_similarity(results, "copying")),
        ),
        direction="above",
    ),
    Claim(
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
    ),
)

_REFINEMENT_CLAIM = refinement_claim(
    name="the estimate is refined layer by layer",
    statement="The error of a linear probe for the next term falls at every layer.",
    source=f"{PAPER}, in our words",
)
