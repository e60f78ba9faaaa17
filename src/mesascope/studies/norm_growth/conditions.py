"""Names of the conditions of the norm-growth study, and the sources and requirements that its claims share."""

from collections.abc import Mapping

import xarray as xr

from mesascope.studies.base import Quantity, Requirement, Results, select_last_step
from mesascope.studies.norm_growth.citation import CITATION
from mesascope.studies.shared.selectors import select_condition_result

MAIN = ""
INVERSE_SQRT, ADAFACTOR, LINEAR_DECAY = "inverse", "adapted", "linear"
LARGE_DECAY, OUTPUT_NORM_LARGE_DECAY = "decayed", "output_decayed"
OUTPUT_NORM, MULTIPLICATIVE, OUTPUT_NORM_MULTIPLICATIVE = "output", "zeroed", "both"
ADAMW_SHUFFLED = "shuffled"
LABELS: Mapping[str, str] = {
    MAIN: "AdamW with a constant learning rate, norm(x + f(x))",
    INVERSE_SQRT: "AdamW, 1/√t learning rate",
    ADAFACTOR: "AdaFactor, 1/√t learning rate",
    LINEAR_DECAY: "linear decay to zero",
    LARGE_DECAY: "weight decay 1, norm(x + f(x))",
    OUTPUT_NORM_LARGE_DECAY: "weight decay 1, x + norm(f(x))",
    OUTPUT_NORM: "x + norm(f(x))",
    MULTIPLICATIVE: "multiplicative mask",
    ADAMW_SHUFFLED: "AdamW, shuffled targets",
}

PAPER, OURS = CITATION.short, "ours"
MAX_LOSS_RATIO = 1.1  # to a bigram model; ours: text of which a model knows less does not show what learning does


def require_learned(*conditions: str) -> tuple[Requirement, ...]:
    """Return the requirements that the models of some conditions predict held-out text like a bigram model or better.

    Args:
        conditions: their names.
    """
    return tuple(_require_bigram_loss(condition) for condition in conditions)


def _require_bigram_loss(condition: str) -> Requirement:
    def read_ratio(results: Results) -> xr.DataArray:
        loss = select_last_step(select_condition_result(results, "loss_vs_baselines", condition)["scored"])
        return loss.sel(predictor="model", drop=True) / loss.sel(predictor="bigram", drop=True)

    return Requirement(
        statement=f"the held-out loss is at most {MAX_LOSS_RATIO:g} times that of a bigram model, {LABELS[condition]}",
        value=Quantity(description="held-out loss divided by that of a bigram model", read=read_ratio),
        threshold=MAX_LOSS_RATIO,
        direction="below",
    )
