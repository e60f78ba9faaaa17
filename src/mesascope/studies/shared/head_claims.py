"""Claims about the causal importance of heads: ablation effects, alone and compared with the heads' roles."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step

OURS = "ours"


def head_role_claims(prefix: str = "", name_prefix: str = "") -> tuple[Claim, ...]:
    """Return the claims about mean ablation of single heads, which apply to any model.

    Args:
        prefix: of the condition's results, such as ``text_``.
        name_prefix: the condition in words, prepended to names and statements, such as ``on real text: ``.
    """
    result = f"{prefix}head_ablation"
    return (_specific_effect_claim(result, name_prefix), _role_effect_claim(result, name_prefix))


def _specific_effect_claim(result: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}head outputs have specific effects",
        statement=prefix_statement(
            name_prefix, "Mean-ablating a head raises the loss more than a norm-matched random perturbation."
        ),
        source=f"{OURS}: if any perturbation of this norm costs as much, the effect does not depend on the content",
        value=Quantity(
            description="increase of the loss under mean ablation of a head, mean over heads",
            read=lambda results: _select_effect(results, result).mean(("layer", "head")),
            unit="units of the loss",
        ),
        control=Quantity(
            description="the same increase when the change of the residual stream is randomly rotated",
            read=lambda results: select_last_step(results[result]["effect_null"]).mean(("layer", "head")),
            unit="units of the loss",
        ),
        direction="above",
    )


def _role_effect_claim(result: str, name_prefix: str) -> Claim:
    return Claim(
        name=f"{name_prefix}heads with a role have larger effects",
        statement=prefix_statement(name_prefix, "Mean-ablating heads with a role raises the loss more than others."),
        source=f"{OURS}: a role without an ablation effect is only a correlation",
        value=Quantity(
            description="increase of the loss under mean ablation, mean over heads with a role; NaN without any",
            read=lambda results: _average_by_role(results, result, with_role=True),
            unit="units of the loss",
        ),
        control=Quantity(
            description="the same increase, mean over heads without a role",
            read=lambda results: _average_by_role(results, result, with_role=False),
            unit="units of the loss",
        ),
        direction="above",
    )


def copying_head_claim(layer: int) -> Claim:
    """Return the claim that the head with the largest ablation effect in a layer copies.

    Args:
        layer: index of the layer.
    """
    return Claim(
        name=f"the most important head of layer {layer} copies",
        statement=f"The head with the largest ablation effect in layer {layer} has the role copying.",
        source=f"{OURS}: a causal test of the abstract's 'copying in layer {layer}', written after a run of one seed",
        value=Quantity(
            description="1 if the head with the largest mean-ablation effect copies the value it attends to, else 0",
            read=lambda results: _copies_at_largest_effect(results, layer),
        ),
        control=Quantity(
            description="fraction of the layer's heads that copy, the expectation for a randomly chosen head",
            read=lambda results: _select_copying(results, layer).mean("head"),
        ),
        direction="above",
    )


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


def _select_effect(results: Results, result: str) -> xr.DataArray:
    return select_last_step(results[result]["effect"]).sel(stat="mean", drop=True)


def _average_by_role(results: Results, result: str, *, with_role: bool) -> xr.DataArray:
    has_role = select_last_step(results[result]["role"]) != ""
    return _select_effect(results, result).where(has_role if with_role else ~has_role).mean(("layer", "head"))


def _select_copying(results: Results, layer: int) -> xr.DataArray:
    return (select_last_step(results["value_copying"]["role"]).sel(layer=layer, drop=True) > 0).astype(float)


def _copies_at_largest_effect(results: Results, layer: int) -> xr.DataArray:
    effect = _select_effect(results, "head_ablation").sel(layer=layer, drop=True)
    return _select_copying(results, layer).isel(head=effect.argmax("head")).drop_vars("head", errors="ignore")
