"""Claims on parameter norm growth, saturation and the heads of saturated networks (Merrill et al. 2020)."""

import numpy as np
import xarray as xr

from mesascope.analyses.training.parameter_norms import WITHOUT_EMBEDDINGS
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.norm_growth.toy_model import CONSTANT_SIZE, PAPER_SCHEDULE, PROPORTIONAL

# Names of the conditions
MAIN = ""
INVERSE_SQRT, ADAFACTOR, LINEAR_DECAY, LARGE_DECAY = "inverse", "adapted", "linear", "decayed"
OUTPUT_NORM, MULTIPLICATIVE, OUTPUT_NORM_MULTIPLICATIVE = "output", "zeroed", "both"
SGD_SHUFFLED, ADAMW_SHUFFLED = "random", "shuffled"

PAPER, OURS = "Merrill et al. 2020", "ours"
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"
ADDED = "added after the first run, with one pilot seed seen"
FROM_DERIVATION = f"{OURS}: in the paper's derivation the exponent depends on the schedule"
PAPER_DECAY = f"{PAPER}: AdamW with a weight decay of 0.01"
PAPER_MASK = f"{OURS}: the paper's code multiplies scores by its mask, which leaves later positions visible"

EARLY_FRACTION = 0.2  # of the steps: the first of the paper's five epochs is the early phase
MAX_ATTENDED_POSITIONS = 5.0  # ours: a head that attends to more positions does not select
MIN_HEAD_FRACTION = 0.05  # ours
MIN_FIT_R2 = 0.98  # ours; the paper's is 1.00
MAX_EXPONENT_DISTANCE = 0.15  # from 1/2; ours
MIN_CHECKPOINT_COSINE = 0.95  # ours
MAX_ALIGNMENT = 0.15  # the peak in the paper
MIN_SATURATION = 0.9  # cosine; ours: the paper's small language models reach 1.00
MIN_LATER_ATTENTION = 0.9  # ours
MAX_TOY_MODEL_ERROR = 0.05  # from c / 2; ours

CAUSAL_MASK, MULTIPLICATIVE_MASK, OUTPUT_FORM = "causal mask", "multiplicative mask", "x + norm(f(x))"


def _condition_result(results: Results, analysis: str, condition: str) -> xr.Dataset:
    return results[f"{condition}_{analysis}" if condition else analysis]


def _log_norms(results: Results, condition: str) -> xr.DataArray:
    """Return the logarithm of the norm after the early phase."""
    norm = _condition_result(results, "parameter_norms", condition)["norm"].sel(stat=WITHOUT_EMBEDDINGS, drop=True)
    return xr.apply_ufunc(np.log, norm.sel(step=slice(EARLY_FRACTION * int(norm["step"][-1]), None)))


def _fit_r2(curve: str, condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"R² of the affine fit of the norm on {curve}, {label}",
        read=lambda results: _condition_result(results, "parameter_norms", condition)["straight"].sel(
            _curve=curve, drop=True
        ),
    )


def _norm_exponent(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"best-fit exponent of the growth of the norm, {label}",
        read=lambda results: _condition_result(results, "parameter_norms", condition)["exponent"],
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


def _saturation_cosine(reduction: str, condition: str, label: str, *, trained: bool = True) -> Quantity:
    def read_cosine(results: Results) -> xr.DataArray:
        cosine = _condition_result(results, "saturation", condition)["cosine"]
        by_layer = select_last_step(cosine) if trained else select_untrained(cosine)
        return by_layer.mean("layer") if reduction == "mean" else by_layer.min("layer")

    return Quantity(
        description="cosine of the residual stream with that of the network with parameters times 1000, "
        f"{reduction} over layers, {label}",
        read=read_cosine,
    )


def _wide_head_fraction(condition: str, label: str, *, trained: bool = True) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description=f"fraction of heads of the saturated network that attend to more than {MAX_ATTENDED_POSITIONS:g} "
        f"positions, {label}",
        read=lambda results: (
            select_step(_condition_result(results, "saturation", condition)["attended"]) > MAX_ATTENDED_POSITIONS
        ).mean(("layer", "head")),
    )


def _later_attention(results: Results) -> xr.DataArray:
    """Return the attention to later positions of heads that attend to many positions; NaN if there are none."""
    dataset = _condition_result(results, "saturation", MULTIPLICATIVE)
    return select_last_step(dataset["later"].where(dataset["attended"] > MAX_ATTENDED_POSITIONS)).mean(
        ("layer", "head")
    )


def _held_out_loss(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"held-out loss, {label}",
        read=lambda results: select_last_step(_condition_result(results, "loss_vs_baselines", condition)["scored"]).sel(
            predictor="model", drop=True
        ),
        unit="nat",
    )


def _lookahead_effect(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"increase of the loss without attention to later positions, {label}",
        read=lambda results: select_last_step(_condition_result(results, "lookahead_ablation", condition)["rise"]),
        unit="nat",
    )


def _toy_exponent(axis: str, value: str, label: str) -> Quantity:
    return Quantity(
        description=f"exponent of the growth of the norm, toy model, {label}",
        read=lambda results: results["toy_model"][f"exponent_by_{axis}"].sel({f"_{axis}": value}, drop=True),
    )


def _toy_exponents(results: Results) -> xr.DataArray:
    return results["toy_model"]["exponent_by_constant"]


EXPONENT_CONSTANT_RATE = _norm_exponent(MAIN, "constant learning rate")
SQRT_DISTANCE_ADAMW = _distance_from_half(INVERSE_SQRT, "AdamW, 1/√t learning rate")
MIN_INCREASE_LARGE_DECAY = _min_log_increase(LARGE_DECAY, "weight decay 1, norm(x + f(x))")
INCREASE_MAIN = _log_increase(MAIN, "AdamW, weight decay 0.01")
LAST_COSINE = _checkpoint_cosine(-1, "last two")
WIDE_HEADS_CAUSAL = _wide_head_fraction(MAIN, CAUSAL_MASK)

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
        statement="With x + norm(f(x)), too, the norm grows from each checkpoint to the next after an early phase.",
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
            read=lambda results: results["parameter_norms"]["spread"],
        ),
        control=Quantity(
            description="a quarter of the mean logarithm of their growth",
            read=lambda results: abs(results["parameter_norms"]["rate"].mean(("layer", "map"))) / 4,
        ),
        direction="below",
    ),
)

SATURATION_CLAIMS = (
    Claim(
        name="training increases saturation",
        statement="A trained network is closer to its saturated form than an untrained one.",
        source=PAPER,
        value=_saturation_cosine("mean", MAIN, "trained"),
        control=_saturation_cosine("mean", MAIN, "untrained", trained=False),
        direction="above",
    ),
    Claim(
        name="training increases saturation, x + norm(f(x))",
        statement="With x + norm(f(x)), too, a trained network is closer to its saturated form than an untrained one.",
        source=PAPER,
        value=_saturation_cosine("mean", OUTPUT_NORM, f"trained, {OUTPUT_FORM}"),
        control=_saturation_cosine("mean", OUTPUT_NORM, f"untrained, {OUTPUT_FORM}", trained=False),
        direction="above",
    ),
    Claim(
        name="all layers of the trained network are saturated",
        statement="A trained small language model is saturated in every layer.",
        source=f"{PAPER}: 1.00; the threshold is ours",
        value=_saturation_cosine("min", MAIN, "trained"),
        control=_saturation_cosine("min", MAIN, "untrained", trained=False),
        direction="above",
        threshold=MIN_SATURATION,
    ),
)

HEAD_CLAIMS = (
    Claim(
        name="two types of heads",
        statement="Some heads of the saturated network attend to one position, others to about half of all.",
        source=f"{PAPER}, here with a causal mask; the threshold is ours",
        value=WIDE_HEADS_CAUSAL,
        control=_wide_head_fraction(MAIN, f"{CAUSAL_MASK}, untrained", trained=False),
        direction="above",
        threshold=MIN_HEAD_FRACTION,
    ),
    Claim(
        name="heads that attend to many positions require the multiplicative mask",
        statement="Heads that attend to many positions emerge with a multiplicative mask and not with a causal one.",
        source=PAPER_MASK,
        value=_wide_head_fraction(MULTIPLICATIVE, MULTIPLICATIVE_MASK),
        control=WIDE_HEADS_CAUSAL,
        direction="above",
        threshold=MIN_HEAD_FRACTION,
    ),
    Claim(
        name="heads that attend to many positions require the multiplicative mask, x + norm(f(x))",
        statement="With x + norm(f(x)), too, such heads emerge with a multiplicative mask and not with a causal one.",
        source=PAPER_MASK,
        value=_wide_head_fraction(OUTPUT_NORM_MULTIPLICATIVE, f"{MULTIPLICATIVE_MASK}, {OUTPUT_FORM}"),
        control=_wide_head_fraction(OUTPUT_NORM, f"{CAUSAL_MASK}, {OUTPUT_FORM}"),
        direction="above",
        threshold=MIN_HEAD_FRACTION,
    ),
    Claim(
        name="heads that attend to many positions attend to later positions",
        statement="With a multiplicative mask, heads that attend to many positions attend to later positions.",
        source=f"{OURS}: where all visible scores are negative, the zeros at later positions receive all attention",
        value=Quantity(
            description="their fraction of attention on later positions; undefined if there are no such heads",
            read=_later_attention,
        ),
        control=Quantity(
            description="their fraction of attention on all other positions",
            read=lambda results: 1 - _later_attention(results),
        ),
        direction="above",
        threshold=MIN_LATER_ATTENTION,
    ),
    Claim(
        name="multiplicative mask lowers the loss",
        statement="The loss with a multiplicative mask is below that of a causal model.",
        source=f"{OURS}: such a loss is not that of a language model",
        value=_held_out_loss(MULTIPLICATIVE, MULTIPLICATIVE_MASK),
        control=_held_out_loss(MAIN, CAUSAL_MASK),
        direction="below",
    ),
    Claim(
        name="multiplicative mask: the model uses later positions",
        statement="With a multiplicative mask, ablating attention to later positions increases the loss.",
        source=OURS,
        value=_lookahead_effect(MULTIPLICATIVE, MULTIPLICATIVE_MASK),
        control=_lookahead_effect(MAIN, f"{CAUSAL_MASK}, which has no such attention"),
        direction="above",
        threshold=0.0,
    ),
)

TOY_MODEL_CLAIMS = (
    Claim(
        name="toy model: the exponent is c / 2",
        statement="If updates of squared size c η² |θ|² are orthogonal to the parameters and η is 1/√t, the norm grows "
        "as t^(c/2), which is √t for c = 1 only.",
        source=f"{PAPER}, generalised; the threshold is ours",
        value=Quantity(
            description="largest distance of the exponent from c / 2, toy model",
            read=lambda results: abs(_toy_exponents(results) - _toy_exponents(results)["_constant"] / 2).max(
                "_constant"
            ),
        ),
        control=Quantity(
            description="largest distance of the exponent from 1/2 for all c, toy model",
            read=lambda results: abs(_toy_exponents(results) - 0.5).max("_constant"),
        ),
        direction="below",
        threshold=MAX_TOY_MODEL_ERROR,
    ),
    Claim(
        name="toy model: growth requires updates proportional to the norm",
        statement="A random walk, whose step size is constant, hardly grows in norm under a 1/√t learning rate.",
        source=f"{OURS}: an ablation of the premise of the derivation",
        value=_toy_exponent("size", PROPORTIONAL, "updates proportional to the norm"),
        control=_toy_exponent("size", CONSTANT_SIZE, "updates of constant size"),
        direction="above",
    ),
    Claim(
        name="toy model: the exponent depends on the schedule",
        statement="With a constant learning rate, such updates give a larger exponent of norm growth than with 1/√t.",
        source=f"{OURS}: follows from the paper's derivation",
        value=_toy_exponent("schedule", "constant", "constant learning rate"),
        control=_toy_exponent("schedule", PAPER_SCHEDULE, "1/√t learning rate"),
        direction="above",
    ),
)

CLAIMS = (*GROWTH_CLAIMS, *SATURATION_CLAIMS, *HEAD_CLAIMS, *TOY_MODEL_CLAIMS)
