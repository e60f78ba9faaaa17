"""Claims on parameter norm growth, saturation and the heads of saturated networks (Merrill et al. 2021)."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results
from mesascope.studies.norm_growth.conditions import OURS, PAPER
from mesascope.studies.norm_growth.growth_claims import GROWTH_CLAIMS
from mesascope.studies.norm_growth.saturation_claims import HEAD_CLAIMS, SATURATION_CLAIMS
from mesascope.studies.norm_growth.toy_model import CONSTANT_SIZE, PAPER_SCHEDULE, PROPORTIONAL

MAX_TOY_MODEL_ERROR = 0.05  # from c / 2; ours


def _toy_exponent(axis: str, value: str, label: str) -> Quantity:
    return Quantity(
        description=f"exponent of the growth of the norm, toy model, {label}",
        read=lambda results: results["toy_model"][f"exponent_by_{axis}"].sel({f"_{axis}": value}, drop=True),
    )


def _toy_exponents(results: Results) -> xr.DataArray:
    return results["toy_model"]["exponent_by_constant"]


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
        statement="The norm of a random walk, whose updates do not scale with it, hardly grows under a 1/√t learning "
        "rate.",
        source=f"{OURS}: an ablation of the premise of the derivation",
        value=_toy_exponent("size", PROPORTIONAL, "updates proportional to the norm"),
        control=_toy_exponent("size", CONSTANT_SIZE, "updates of constant size"),
        direction="above",
    ),
    Claim(
        name="toy model: the exponent depends on the schedule",
        statement="With updates proportional to the norm, a constant learning rate gives a larger exponent than 1/√t.",
        source=f"{OURS}: follows from the paper's derivation",
        value=_toy_exponent("schedule", "constant", "constant learning rate"),
        control=_toy_exponent("schedule", PAPER_SCHEDULE, "1/√t learning rate"),
        direction="above",
    ),
)

CLAIMS = (*GROWTH_CLAIMS, *SATURATION_CLAIMS, *HEAD_CLAIMS, *TOY_MODEL_CLAIMS)
