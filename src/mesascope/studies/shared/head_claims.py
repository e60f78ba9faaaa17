"""Claims about the causal importance of heads: ablation effects, compared with those of random perturbations."""

import numpy as np
import xarray as xr

from mesascope.analyses.causal.head_ablation import MIN_EFFECT_FRACTION
from mesascope.studies.base import Claim, Quantity, Results, select_last_step

OURS = "ours"
MIN_LOG_FACTOR = float(np.log10(1 + MIN_EFFECT_FRACTION))  # ours: below it, head ablation reports no effect of a head


def head_effect_claims(prefix: str = "", name_prefix: str = "") -> tuple[Claim, ...]:
    """Return the claim about mean ablation of single heads, which applies to any model.

    Args:
        prefix: of the condition's results, such as ``text_``.
        name_prefix: the condition in words, prepended to names and statements, such as ``on real text: ``.
    """
    return (_specific_effect_claim(f"{prefix}head_ablation", name_prefix),)


def _specific_effect_claim(result: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}head outputs have specific effects",
        statement=prefix_statement(
            name_prefix, "Mean-ablating a head raises the loss more than a norm-matched random perturbation."
        ),
        source=f"{OURS}: if any perturbation of this norm costs as much, the effect does not depend on the content",
        value=_mean_log_effect(
            result,
            "log_effect",
            "log10 of the factor by which mean ablation of a head multiplies the loss of a sequence, mean over "
            "sequences and heads",
        ),
        control=_mean_log_effect(
            result, "log_effect_null", "the same when the change of the residual stream is randomly rotated"
        ),
        direction="above",
        margin=MIN_LOG_FACTOR,
    )


def _mean_log_effect(result: str, variable: str, description: str) -> Quantity:
    return Quantity(
        description=description,
        read=lambda results: select_log_effect(results, variable, result=result).mean(("layer", "head")),
    )


def select_log_effect(results: Results, variable: str, *, result: str = "head_ablation") -> xr.DataArray:
    """Return the mean over sequences of log10 of the factor by which an ablation multiplies the loss of a sequence.

    The logarithm of each sequence keeps a few sequences with a large loss from deciding the mean.

    Args:
        results: of a run.
        variable: ``log_effect`` or ``log_group_effect``, of which mean ablation is taken, or ``log_effect_null``.
        result: name of the result of head ablation, such as ``text_head_ablation``.

    Returns:
        the effect in the trained model, with the axes of the variable except for step and stat.
    """
    effect = select_last_step(results[result][variable])
    return effect.sel(stat="mean", drop=True) if "stat" in effect.dims else effect


def prefix_statement(name_prefix: str, statement: str) -> str:
    """Return a statement about one condition.

    Args:
        name_prefix: the condition in words, such as ``on real text: ``; empty for the main condition.
        statement: about any condition.

    >>> prefix_statement("on real text: ", "The loss falls.")
    'On real text: the loss falls.'
    """
    if not name_prefix:
        return statement
    return f"{name_prefix[0].upper()}{name_prefix[1:]}{statement[0].lower()}{statement[1:]}"
