"""Claims about causes: whether what heads write matters, and whether those with a role are the ones that do."""

import xarray as xr

from mesascope.studies.base import Claim, Results, last

OURS = "ours"


def causal_claims(prefix: str = "", where: str = "") -> tuple[Claim, ...]:
    """What can be said of any model whose heads were taken away one by one.

    Args:
        prefix: of the setting's results, such as ``text_``.
        where: the setting in words, put before names and sentences, such as ``on real text: ``.
    """
    result = f"{prefix}causes"
    return (
        Claim(
            name=f"{where}heads matter by what they write",
            sentence=_said(where, "Removing what a head writes costs more than as large a change that says nothing."),
            source=f"{OURS}: where any disturbance costs as much, the cost of a head says nothing of its content",
            statistic=lambda results: _effect(results, result).mean(("layer", "head")),
            about="rise of the loss when a head is mean-ablated, mean over heads",
            control=lambda results: last(results[result]["effect_turned"]).mean(("layer", "head")),
            control_about="the same when the change in the stream is turned at random",
            direction="above",
            unit="units of the loss",
        ),
        Claim(
            name=f"{where}heads with a role matter more",
            sentence=_said(where, "Heads that have a role matter more than heads that have none."),
            source=f"{OURS}: a role without an effect is a correlation",
            statistic=lambda results: _by_role(results, result, some=True),
            about="rise of the loss when a head with a role is mean-ablated, mean; no value where none has one",
            control=lambda results: _by_role(results, result, some=False),
            control_about="the same of heads without a role",
            direction="above",
            unit="units of the loss",
        ),
    )


def copying_claim(layer: int) -> Claim:
    """Whether the head that matters most in a layer is one that copies."""
    return Claim(
        name=f"the head of layer {layer} that matters most copies",
        sentence=f"Of layer {layer}'s heads, the one whose removal costs most has the role of copying.",
        source=f"{OURS}: a test of the abstract's 'copying in layer {layer}' as a cause, worded after one seed",
        statistic=lambda results: _copies(results, layer, costliest=True),
        about="1 where the head whose mean ablation costs most copies what it attends to, else 0",
        control=lambda results: _copies(results, layer, costliest=False),
        control_about="the share of the layer's heads that copy: what a head picked at random has",
        direction="above",
    )


def _effect(results: Results, result: str) -> xr.DataArray:
    """What mean ablation of each head costs the trained model."""
    return last(results[result]["effect"]).sel(stat="mean", drop=True)


def _by_role(results: Results, result: str, *, some: bool) -> xr.DataArray:
    """The mean effect of the heads with some role, or with none; no number where there are no such heads."""
    named = last(results[result]["role"]) != ""
    return _effect(results, result).where(named if some else ~named).mean(("layer", "head"))


def _copies(results: Results, layer: int, *, costliest: bool) -> xr.DataArray:
    """Whether the layer's costliest head copies, or which share of its heads does."""
    copies = (last(results["copying"]["role"]).sel(layer=layer, drop=True) > 0).astype(float)
    if not costliest:
        return copies.mean("head")
    cost = _effect(results, "causes").sel(layer=layer, drop=True)
    return copies.isel(head=cost.argmax("head")).drop_vars("head", errors="ignore")


def _said(where: str, sentence: str) -> str:
    """A sentence about one setting."""
    return f"{where[0].upper()}{where[1:]}{sentence[0].lower()}{sentence[1:]}" if where else sentence
