"""Claims on parameter norm growth, saturation and the heads of saturated networks (Merrill et al. 2021)."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results
from mesascope.studies.norm_growth.conditions import PAPER
from mesascope.studies.norm_growth.growth_claims import GROWTH_CLAIMS
from mesascope.studies.norm_growth.saturation_claims import HEAD_CLAIMS, SATURATION_CLAIMS

MAX_TOY_MODEL_ERROR = 0.05  # from c / 2; ours


def _toy_exponents(results: Results) -> xr.DataArray:
    return results["toy_model"]["exponent_by_constant"]


TOY_MODEL_CLAIM = Claim(
    name="toy model: the exponent is c / 2",
    statement=r"If updates of squared size $c \, \eta^2 \lVert \theta \rVert^2$ are orthogonal to the parameters and "
    r"$\eta$ is $1/\sqrt{t}$, the norm grows as $t^{c/2}$, which is $\sqrt{t}$ for $c = 1$ only.",
    source=f"{PAPER}, generalised; the threshold is ours",
    value=Quantity(
        description="largest distance of the exponent from $c/2$, toy model",
        read=lambda results: abs(_toy_exponents(results) - _toy_exponents(results)["_constant"] / 2).max("_constant"),
    ),
    control=Quantity(
        description="largest distance of the exponent from $1/2$ for all $c$, toy model",
        read=lambda results: abs(_toy_exponents(results) - 0.5).max("_constant"),
    ),
    direction="below",
    threshold=MAX_TOY_MODEL_ERROR,
    kind="check",
)

CLAIMS = (*GROWTH_CLAIMS, *SATURATION_CLAIMS, *HEAD_CLAIMS, TOY_MODEL_CLAIM)
