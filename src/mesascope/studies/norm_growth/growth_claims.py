"""Claims on the growth of the parameter norm and the direction of the parameters (Merrill et al. 2021).

Margins and requirements were added after a run of 3 seeds, without a change of thresholds.
"""

import numpy as np
import xarray as xr

from mesascope.analyses.training.parameter_norms import WITHOUT_EMBEDDINGS
from mesascope.studies.base import Claim, Quantity, Results, select_last_step
from mesascope.studies.norm_growth.conditions import (
    ADAFACTOR,
    ADAMW_SHUFFLED,
    INVERSE_SQRT,
    LABELS,
    LARGE_DECAY,
    LINEAR_DECAY,
    MAIN,
    OURS,
    OUTPUT_NORM,
    OUTPUT_NORM_LARGE_DECAY,
    PAPER,
    require_learned,
)
from mesascope.studies.shared.selectors import select_condition_result

ADDED = "added after the first run, with one pilot seed seen"

EARLY_FRACTION = 0.2  # of the steps: the first of the paper's five epochs is the early phase
MIN_FIT_R2 = 0.98  # ours; the paper's is 1.00
MIN_R2_GAIN = 0.005  # ours: a quarter of the variance that the threshold leaves unexplained
MIN_EXPONENT_GAIN = 0.25  # ours: half of the difference between √t and t
MIN_CHECKPOINT_GROWTH = 0.001  # of the log norm; ours: a tenth of a percent between two checkpoints
MIN_GROWTH = 0.01  # of the log norm; ours: one percent
MIN_CHECKPOINT_COSINE = 0.95  # ours
MIN_COSINE_GAIN = 0.005  # ours: a tenth of what the threshold leaves to 1
MAX_ALIGNMENT = 0.15  # the peak in the paper


def _norm_result(results: Results, condition: str) -> xr.Dataset:
    return select_condition_result(results, "parameter_norms", condition)


def _log_norms(results: Results, condition: str) -> xr.DataArray:
    """Return the logarithm of the norm after the early phase."""
    norm = _norm_result(results, condition)["norm"].sel(stat=WITHOUT_EMBEDDINGS, drop=True)
    return xr.apply_ufunc(np.log, norm.sel(step=slice(EARLY_FRACTION * int(norm["step"][-1]), None)))


def _fit_r2(curve: str, condition: str) -> Quantity:
    return Quantity(
        description=f"R² of the affine fit of the norm on {curve}, {LABELS[condition]}",
        read=lambda results: _norm_result(results, condition)["r_squared"].sel(_curve=curve, drop=True),
    )


def _largest_exponent(*conditions: str) -> Quantity:
    def read_exponent(results: Results) -> xr.DataArray:
        exponents = [_norm_result(results, condition)["exponent"] for condition in conditions]
        return xr.concat(exponents, "condition").max("condition", skipna=False)

    labels = " or ".join(LABELS[condition] for condition in conditions)
    return Quantity(description=f"largest best-fit exponent of the growth of the norm, {labels}", read=read_exponent)


def _min_log_increase(condition: str) -> Quantity:
    return Quantity(
        description="smallest increase of the log norm between neighbouring checkpoints after "
        f"{EARLY_FRACTION:.0%} of the steps, {LABELS[condition]}",
        read=lambda results: _log_norms(results, condition).diff("step").min("step"),
    )


def _log_increase(condition: str) -> Quantity:
    def read_increase(results: Results) -> xr.DataArray:
        logs = _log_norms(results, condition)
        return select_last_step(logs) - logs.isel(step=0, drop=True)

    return Quantity(
        description=f"increase of the log norm after {EARLY_FRACTION:.0%} of the steps, {LABELS[condition]}",
        read=read_increase,
    )


def _checkpoint_cosine(index: int, label: str) -> Quantity:
    return Quantity(
        description=f"cosine of the parameters of the {label} checkpoints",
        read=lambda results: results["parameter_norms"]["cosine"].isel(step=index, drop=True),
    )


def _largest_alignment(results: Results) -> xr.DataArray:
    return abs(results["parameter_norms"]["alignment"]).max("step")


def _sqrt_growth_claim(condition: str, optimizer: str, source: str, *, by_paper: bool) -> Claim:
    return Claim(
        name=f"norm grows as √t under a 1/√t learning rate, {optimizer}",
        statement=f"With {optimizer} and a learning rate proportional to "
        r"$1/\sqrt{t}$, the parameter norm grows as $\sqrt{t}$.",
        source=source,
        value=_fit_r2("√t", condition),
        control=_fit_r2("t", condition),
        direction="above",
        threshold=MIN_FIT_R2,
        margin=MIN_R2_GAIN,
        by_paper=by_paper,
        requirements=require_learned(condition),
    )


def _monotone_growth_claim(condition: str, decayed: str, form: str) -> Claim:
    return Claim(
        name=f"norm grows throughout training{form}",
        statement="After an early phase the norm grows from each checkpoint to the next, unless weight decay is "
        f"large{form}.",
        source=f"{PAPER}: AdamW with a weight decay of 0.01; that 1 is a large weight decay is {OURS}",
        value=_min_log_increase(condition),
        control=_min_log_increase(decayed),
        direction="above",
        threshold=0.0,
        margin=MIN_CHECKPOINT_GROWTH,
        by_paper=True,
        requirements=require_learned(condition),
    )


def _decrease_claim(condition: str, decayed: str, form: str) -> Claim:
    return Claim(
        name=f"norm decreases with a large weight decay{form}",
        statement=f"With a weight decay of 1 instead of 0.01 the norm decreases after an early phase{form}.",
        source=f"{PAPER}: the norm grows below a weight decay that depends on the learning rate, and decreases above "
        f"it; that 1 is above it is {OURS}",
        value=_log_increase(decayed),
        control=_log_increase(condition),
        direction="below",
        threshold=0.0,
        margin=MIN_GROWTH,
        by_paper=True,
        requirements=require_learned(condition, decayed),
    )


GROWTH_CLAIMS = (
    _sqrt_growth_claim(
        ADAFACTOR,
        "AdaFactor",
        f"{PAPER}, for T5, which was trained with AdaFactor; the threshold is ours, and {ADDED}",
        by_paper=True,
    ),
    _sqrt_growth_claim(
        INVERSE_SQRT,
        "AdamW",
        f"{OURS}: in the paper's derivation updates are proportional to the norm, which those of AdamW are not",
        by_paper=False,
    ),
    Claim(
        name="constant learning rate gives a larger exponent",
        statement="The exponent of norm growth is larger with a constant learning rate than with decaying ones.",
        source=f"{OURS}: in the paper's derivation the exponent depends on the schedule",
        value=_largest_exponent(MAIN),
        control=_largest_exponent(INVERSE_SQRT, LINEAR_DECAY),
        direction="above",
        margin=MIN_EXPONENT_GAIN,
        requirements=require_learned(MAIN, INVERSE_SQRT, LINEAR_DECAY),
    ),
    _monotone_growth_claim(MAIN, LARGE_DECAY, ""),
    _monotone_growth_claim(OUTPUT_NORM, OUTPUT_NORM_LARGE_DECAY, f", {LABELS[OUTPUT_NORM]}"),
    _decrease_claim(MAIN, LARGE_DECAY, ""),
    _decrease_claim(OUTPUT_NORM, OUTPUT_NORM_LARGE_DECAY, f", {LABELS[OUTPUT_NORM]}"),
    Claim(
        name="norm growth exceeds AdamW on shuffled targets",
        statement="The norm grows more than under the same optimiser on shuffled targets, which cannot be predicted.",
        source=f"{OURS}: a control for the effect of training without learning; {ADDED}",
        value=_log_increase(MAIN),
        control=_log_increase(ADAMW_SHUFFLED),
        direction="above",
        margin=MIN_GROWTH,
        requirements=require_learned(MAIN),
    ),
    Claim(
        name="parameter direction converges after warm-up",
        statement="The cosine of the parameters of neighbouring checkpoints increases after learning-rate warm-up.",
        source=f"{PAPER}; the threshold is ours, and so are the words 'after learning-rate warm-up', added after the "
        "first run: the cosine of the first two checkpoints, during warm-up, was the highest",
        value=_checkpoint_cosine(-1, "last two"),
        control=_checkpoint_cosine(2, "second and third"),
        direction="above",
        threshold=MIN_CHECKPOINT_COSINE,
        margin=MIN_COSINE_GAIN,
        by_paper=True,
        requirements=require_learned(MAIN),
    ),
    Claim(
        name="updates are nearly orthogonal to the parameters",
        statement="The alignment of updates with the parameters is small throughout training.",
        source=f"{PAPER}: the alignment peaks at about 0.15 and tends to 0",
        value=Quantity(
            description="largest absolute cosine of an update between checkpoints with the parameters",
            read=_largest_alignment,
        ),
        control=Quantity(
            description=f"{MAX_ALIGNMENT:g}, the peak in the paper",
            read=lambda results: xr.full_like(_largest_alignment(results), MAX_ALIGNMENT),
        ),
        direction="below",
        by_paper=True,
        requirements=require_learned(MAIN),
    ),
    Claim(
        name="all matrices grow by the same factor",
        statement="Matrices grow by the same factor, so that the network approaches its saturated form.",
        source=f"{PAPER}: the premise of a proposition; the tolerance is ours",
        value=Quantity(
            description="standard deviation over the matrices of all layers of the logarithm of their growth",
            read=lambda results: results["parameter_norms"]["log_growth_std"],
        ),
        control=Quantity(
            description="a quarter of the mean logarithm of their growth",
            read=lambda results: abs(results["parameter_norms"]["log_growth"].mean(("layer", "map"))) / 4,
        ),
        direction="below",
        by_paper=True,
        requirements=require_learned(MAIN),
    ),
)
