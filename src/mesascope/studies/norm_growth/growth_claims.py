"""Claims on the growth of the parameter norm and the direction of the parameters (Merrill et al. 2021)."""

import numpy as np
import xarray as xr

from mesascope.analyses.training.parameter_norms import WITHOUT_EMBEDDINGS
from mesascope.studies.base import Claim, Quantity, Results, select_last_step
from mesascope.studies.norm_growth.conditions import (
    ADAFACTOR,
    ADAMW_SHUFFLED,
    INVERSE_SQRT,
    LARGE_DECAY,
    LINEAR_DECAY,
    MAIN,
    OUR_THRESHOLD,
    OURS,
    OUTPUT_FORM,
    OUTPUT_NORM,
    PAPER,
    SGD_SHUFFLED,
    condition_result,
)

ADDED = "added after the first run, with one pilot seed seen"
FROM_DERIVATION = f"{OURS}: in the paper's derivation the exponent depends on the schedule"
PAPER_DECAY = f"{PAPER}: AdamW with a weight decay of 0.01"

EARLY_FRACTION = 0.2  # of the steps: the first of the paper's five epochs is the early phase
MIN_FIT_R2 = 0.98  # ours; the paper's is 1.00
MAX_EXPONENT_DISTANCE = 0.15  # from 1/2; ours
MIN_CHECKPOINT_COSINE = 0.95  # ours
MAX_ALIGNMENT = 0.15  # the peak in the paper


def _log_norms(results: Results, condition: str) -> xr.DataArray:
    """Return the logarithm of the norm after the early phase."""
    norm = condition_result(results, "parameter_norms", condition)["norm"].sel(stat=WITHOUT_EMBEDDINGS, drop=True)
    return xr.apply_ufunc(np.log, norm.sel(step=slice(EARLY_FRACTION * int(norm["step"][-1]), None)))


def _fit_r2(curve: str, condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"R² of the affine fit of the norm on {curve}, {label}",
        read=lambda results: condition_result(results, "parameter_norms", condition)["r_squared"].sel(
            _curve=curve, drop=True
        ),
    )


def _norm_exponent(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"best-fit exponent of the growth of the norm, {label}",
        read=lambda results: condition_result(results, "parameter_norms", condition)["exponent"],
    )


def _distance_from_half(condition: str, label: str) -> Quantity:
    exponent = _norm_exponent(condition, label)
    return Quantity(
        description=f"distance of the best-fit exponent from 1/2, {label}",
        read=lambda results: abs(exponent.read(results) - 0.5),
    )


def _min_log_increase(condition: str, label: str) -> Quantity:
    return Quantity(
        description="smallest increase of the log norm between neighbouring checkpoints after "
        f"{EARLY_FRACTION:.0%} of the steps, {label}",
        read=lambda results: _log_norms(results, condition).diff("step").min("step"),
    )


def _log_increase(condition: str, label: str) -> Quantity:
    def read_increase(results: Results) -> xr.DataArray:
        logs = _log_norms(results, condition)
        return select_last_step(logs) - logs.isel(step=0, drop=True)

    return Quantity(
        description=f"increase of the log norm after {EARLY_FRACTION:.0%} of the steps, {label}", read=read_increase
    )


def _checkpoint_cosine(index: int, label: str) -> Quantity:
    return Quantity(
        description=f"cosine of the parameters of the {label} checkpoints",
        read=lambda results: results["parameter_norms"]["cosine"].isel(step=index, drop=True),
    )


EXPONENT_CONSTANT_RATE = _norm_exponent(MAIN, "constant learning rate")
SQRT_DISTANCE_ADAMW = _distance_from_half(INVERSE_SQRT, "AdamW, 1/√t learning rate")
MIN_INCREASE_LARGE_DECAY = _min_log_increase(LARGE_DECAY, "weight decay 1, norm(x + f(x))")
INCREASE_MAIN = _log_increase(MAIN, "AdamW, weight decay 0.01")
LAST_COSINE = _checkpoint_cosine(-1, "last two")

GROWTH_CLAIMS = (
    Claim(
        name="norm grows as √t under a 1/√t learning rate",
        statement="With a learning rate proportional to 1/√t, the parameter norm grows as √t.",
        source=f"{PAPER}, for T5, whose learning rate was 1/√t; the threshold is ours",
        value=_fit_r2("√t", INVERSE_SQRT, "AdamW, 1/√t learning rate"),
        control=_fit_r2("t", INVERSE_SQRT, "AdamW, 1/√t learning rate"),
        direction="above",
        threshold=MIN_FIT_R2,
    ),
    Claim(
        name="exponent depends on the learning-rate schedule",
        statement="The exponent of norm growth is closer to 1/2 with a 1/√t learning rate than with a constant one.",
        source=FROM_DERIVATION,
        value=SQRT_DISTANCE_ADAMW,
        control=_distance_from_half(MAIN, "constant learning rate"),
        direction="below",
        threshold=MAX_EXPONENT_DISTANCE,
    ),
    Claim(
        name="norm grows as √t under a 1/√t learning rate, AdaFactor",
        statement="With AdaFactor, whose updates scale with the parameters, the norm grows as √t "
        "under a 1/√t learning rate.",
        source=f"{PAPER}, for T5, which was trained with AdaFactor; the threshold is ours, and {ADDED}",
        value=_fit_r2("√t", ADAFACTOR, "AdaFactor, 1/√t learning rate"),
        control=_fit_r2("t", ADAFACTOR, "AdaFactor, 1/√t learning rate"),
        direction="above",
        threshold=MIN_FIT_R2,
    ),
    Claim(
        name="exponent depends on the optimiser",
        statement="Under a 1/√t learning rate the exponent is closer to 1/2 for AdaFactor than for AdamW.",
        source=f"{OURS}: the paper's derivation requires updates proportional to the norm; {ADDED}",
        value=_distance_from_half(ADAFACTOR, "AdaFactor, 1/√t learning rate"),
        control=SQRT_DISTANCE_ADAMW,
        direction="below",
        threshold=MAX_EXPONENT_DISTANCE,
    ),
    Claim(
        name="constant learning rate gives a larger exponent",
        statement="The exponent of norm growth is larger with a constant learning rate than with a 1/√t learning rate.",
        source=FROM_DERIVATION,
        value=EXPONENT_CONSTANT_RATE,
        control=_norm_exponent(INVERSE_SQRT, "1/√t learning rate"),
        direction="above",
    ),
    Claim(
        name="linear decay gives a smaller exponent",
        statement="The exponent of norm growth is smaller with linear decay to zero than with a constant rate.",
        source=FROM_DERIVATION,
        value=_norm_exponent(LINEAR_DECAY, "linear decay to zero"),
        control=EXPONENT_CONSTANT_RATE,
        direction="below",
    ),
    Claim(
        name="norm grows throughout training",
        statement="After an early phase the norm grows from each checkpoint to the next.",
        source=PAPER_DECAY,
        value=_min_log_increase(MAIN, "weight decay 0.01, norm(x + f(x))"),
        control=MIN_INCREASE_LARGE_DECAY,
        direction="above",
        threshold=0.0,
    ),
    Claim(
        name="norm grows throughout training, x + norm(f(x))",
        statement="With x + norm(f(x)), the norm also grows from each checkpoint to the next after an early phase.",
        source=PAPER_DECAY,
        value=_min_log_increase(OUTPUT_NORM, f"weight decay 0.01, {OUTPUT_FORM}"),
        control=MIN_INCREASE_LARGE_DECAY,
        direction="above",
        threshold=0.0,
    ),
    Claim(
        name="large weight decay decreases the norm",
        statement="With a large weight decay the norm decreases.",
        source=f"{PAPER}: a threshold exists; that 1 is above it is {OURS}",
        value=_log_increase(LARGE_DECAY, "weight decay 1"),
        control=INCREASE_MAIN,
        direction="below",
        threshold=0.0,
    ),
    Claim(
        name="norm growth exceeds SGD on shuffled targets",
        statement="The norm grows more than under gradient descent on shuffled targets, which cannot be predicted.",
        source=f"{OURS}: a control for the effect of training without learning",
        value=INCREASE_MAIN,
        control=_log_increase(SGD_SHUFFLED, "SGD, shuffled targets"),
        direction="above",
    ),
    Claim(
        name="norm growth exceeds AdamW on shuffled targets",
        statement="The norm grows more than under the same optimiser on shuffled targets, which cannot be predicted.",
        source=f"{OURS}: SGD moves the parameters less for any targets; {ADDED}",
        value=INCREASE_MAIN,
        control=_log_increase(ADAMW_SHUFFLED, "AdamW, shuffled targets"),
        direction="above",
    ),
    Claim(
        name="parameter direction converges",
        statement="The cosine of the parameters of neighbouring checkpoints increases during training.",
        source=OUR_THRESHOLD,
        value=LAST_COSINE,
        control=_checkpoint_cosine(1, "first two (learning-rate warm-up)"),
        direction="above",
        threshold=MIN_CHECKPOINT_COSINE,
    ),
    Claim(
        name="parameter direction converges after warm-up",
        statement="The cosine of the parameters of neighbouring checkpoints increases after learning-rate warm-up.",
        source=f"{OURS}: worded after the first run, in which warm-up lasted beyond the second checkpoint",
        value=LAST_COSINE,
        control=_checkpoint_cosine(2, "second and third"),
        direction="above",
        threshold=MIN_CHECKPOINT_COSINE,
    ),
    Claim(
        name="updates are nearly orthogonal to the parameters",
        statement="The alignment of updates with the parameters is small and decreases.",
        source=f"{PAPER}: the alignment peaks at about 0.15 and tends to 0",
        value=Quantity(
            description="cosine of the last update with the parameters",
            read=lambda results: select_last_step(results["parameter_norms"]["alignment"]),
        ),
        control=Quantity(
            description="largest cosine of an update with the parameters",
            read=lambda results: results["parameter_norms"]["alignment"].max("step"),
        ),
        direction="below",
        threshold=MAX_ALIGNMENT,
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
    ),
)
