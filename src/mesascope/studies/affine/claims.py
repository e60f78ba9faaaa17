"""What all recurrence studies share, instruments and claims: how a next term is first estimated and then refined."""

from dataclasses import replace

import numpy as np
import xarray as xr

from mesascope import analyses
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.causal.head_importance import causes
from mesascope.analyses.heads.similarity import LEAST_SPREAD
from mesascope.analyses.instrument import Instrument
from mesascope.studies.base import Claim, Results, last, untrained
from mesascope.studies.shared.head_claims import causal_claims, copying_claim
from mesascope.studies.shared.selectors import likeness, likeness_elsewhere, refined_claim

PAPER = "Bhargav & Gu 2024, abstract"
OURS = "ours"
MOST_ERROR = 0.05  # of copying's
LEAST_EXPLAINED = 0.9  # R² of a copy


def instruments(*, first: int) -> tuple[analyses.Measure, ...]:
    """What is measured: behaviour, read-outs, contributions and heads, from position ``first`` on."""
    return (
        analyses.behaviour,
        analyses.lens.using(first=first),
        analyses.estimate.using(first=first),
        analyses.attribution.using(first=first),
        analyses.position,
        analyses.similarity,
        analyses.copying,
        analyses.patterns,
    )


def sweeps(*, first: int) -> tuple[Instrument, ...]:
    """What is changed: heads are taken away, the loss being that of positions from ``first`` on."""
    return (analyses.which_algorithm, ablation.using(first=first), causes.using(first=first))


def claims(*, first: int, layers: int, scales: tuple[str, ...] = ("laptop", "paper")) -> tuple[Claim, ...]:
    """The claims for a model with this many layers, judged from position ``first`` on.

    Args:
        first: the first position at which the rule has been determined for one step.
        layers: of the decoder; the claims are about the first and the last.
        scales: those at which the model is trained long enough to be judged.
    """
    every = (*_claims(first, layers - 1), *_algorithms(), copying_claim(0), *causal_claims())
    return tuple(replace(claim, scales=scales) for claim in every)


def _claims(first: int, top: int) -> tuple[Claim, ...]:
    """The claims, ``top`` being the last layer."""
    return (
        Claim(
            name="learns in context",
            sentence="Where earlier terms determine the rule, the model's error is a twentieth of copying's or less.",
            source=f"{PAPER}; the threshold is ours",
            statistic=lambda results: _against_copying(results, slice(first, None)),
            about=f"summed squared error over copying's, positions {first} and later",
            control=lambda results: _against_copying(results, slice(1, first - 1)),
            control_about="the same where the rule is not yet determined",
            direction="below",
            bound=MOST_ERROR,
        ),
        Claim(
            name="layer 0 copies",
            sentence="Layer 0's attention writes a copy of the last term: a first estimate of the next one.",
            source=f"{PAPER}; measured by plain R², which is high for any term of a converging sequence",
            statistic=lambda results: last(_readable(results, "explained", "last term")),
            about="R² of the last term, read from what layer 0's attention writes",
            control=lambda results: untrained(_readable(results, "explained", "last term")),
            control_about="the same in the untrained model",
            direction="above",
            bound=LEAST_EXPLAINED,
        ),
        Claim(
            name="layer 0 copies, step by step",
            sentence="Training makes layer 0's attention tell the last term better, in proportion to the step to it.",
            source=f"{PAPER}, measured so that convergence of the sequence does not help",
            statistic=lambda results: last(_readable(results, "step_explained", "last term")),
            about="share of the squared step to the last term that the reading explains",
            control=lambda results: untrained(_readable(results, "step_explained", "last term")),
            control_about="the same in the untrained model",
            direction="above",
        ),
        Claim(
            name="layer 0 does not know the answer",
            sentence="What layer 0's attention writes is the last term rather than the next one.",
            source=f"{OURS}: what makes it a first estimate and no answer",
            statistic=lambda results: last(_readable(results, "step_explained", "last term")),
            about="share of the squared step to the last term that the reading explains",
            control=lambda results: last(_readable(results, "step_explained", "next term")),
            control_about="the same for the next term",
            direction="above",
        ),
        refined_claim(
            name="refined layer by layer",
            sentence="The next term can be read more precisely after every layer.",
            source=f"{PAPER}, in our words",
        ),
        Claim(
            name="negative similarity, score",
            sentence=f"Layer {top} has heads whose attention score falls as query and key get more alike.",
            source=f"{PAPER}, first reading",
            statistic=lambda results: _lowest(results, "interaction", slice(top, top)),
            about=f"lowest correlation of score and similarity of a head in layer {top}, position fixed",
            control=lambda results: _lowest(results, "null_low", slice(top, top)),
            control_about="lower edge of the band with shuffled partners",
            direction="below",
        ),
        Claim(
            name="negative similarity, score as it is",
            sentence=(
                f"Layer {top} has heads whose attention score falls as query and key get more alike, "
                "be it by preference for certain queries or keys."
            ),
            source=f"{PAPER}, first reading, without taking out what query or key do alone",
            statistic=lambda results: _lowest(results, "fixed_position", slice(top, top)),
            about=f"lowest plain correlation of score and similarity of a head in layer {top}, position fixed",
            control=lambda results: _lowest(results, "fixed_low", slice(top, top)),
            control_about="lower edge of its band with shuffled partners",
            direction="below",
        ),
        Claim(
            name="negative similarity, gain",
            sentence=f"Layer {top} has heads that attend to what is like the query and subtract it.",
            source=f"{PAPER}, second reading",
            statistic=lambda results: _gain_of_similar(results, "gain", top),
            about="lowest gain among heads whose score rises with similarity; 0 without such a head",
            control=lambda results: _gain_of_similar(results, "gain_null", top),
            control_about="the same with shuffled keys",
            direction="below",
        ),
        Claim(
            name=f"negative similarity belongs to layer {top}",
            sentence=f"Negative similarity is stronger in layer {top} than in the layers before it.",
            source=f"{PAPER}, in our words",
            statistic=lambda results: _lowest(results, "interaction", slice(top, top)),
            about=f"lowest correlation of score and similarity of a head in layer {top}, position fixed",
            control=lambda results: _lowest(results, "interaction", slice(0, top - 1)),
            control_about="the lowest in earlier layers",
            direction="below",
        ),
        Claim(
            name="negative heads matter",
            sentence=f"Removing layer {top}'s negative-similarity heads costs more than removing as many others there.",
            source=f"{OURS}: a test of the abstract's word 'refined'",
            statistic=lambda results: _cost_of_negative(results, top)[0],
            about="rise of the loss when they are mean-ablated; no value where there are none, or no others",
            control=lambda results: _cost_of_negative(results, top)[1],
            control_about="mean over all groups of as many other heads of the layer",
            direction="above",
            unit="units of the loss",
        ),
        Claim(
            name="the head that matters most is negative",
            sentence=f"Of layer {top}'s heads, the one whose removal costs most is a negative-similarity head.",
            source=f"{OURS}: a test of the abstract's word 'refined'",
            statistic=lambda results: _of_costliest(results, "interaction", top),
            about="correlation of score and similarity of that head, position fixed",
            control=lambda results: _of_costliest(results, "null_low", top),
            control_about="lower edge of its band with shuffled partners",
            direction="below",
        ),
    )


def _against_copying(results: Results, places: slice) -> xr.DataArray:
    """The model's summed error over copying's, at these positions."""
    error = last(results["behaviour"]["error"]).isel(pos=places).sum("pos")
    return error.sel(predictor="model", drop=True) / error.sel(predictor="copy", drop=True)


def _readable(results: Results, scale: str, term: str) -> xr.DataArray:
    """How well layer 0's attention tells a term."""
    return results["estimate"][scale].sel(layer=0, stat=term, drop=True)


def _lowest(results: Results, what: str, layers: slice) -> xr.DataArray:
    """The lowest score among the heads of these layers whose scores differ at all; 0 if none do."""
    score, spread = (last(results["similarity"][name]).sel(layer=layers) for name in (what, "spread"))
    return score.where(spread >= LEAST_SPREAD, 0.0).min(("layer", "head"))


def _gain_of_similar(results: Results, gain: str, layer: int) -> xr.DataArray:
    """The lowest gain among the layer's heads that look for what is like the query; 0 if there are none."""
    role = last(results["similarity"]["role"]).sel(layer=layer, drop=True)
    gains = last(results["copying"][gain]).sel(layer=layer, drop=True)
    return gains.where(role > 0, 0.0).min("head")


def _cost_of_negative(results: Results, layer: int) -> tuple[xr.DataArray, xr.DataArray]:
    """What the layer's negative heads are worth, and what groups of as many other heads are worth."""
    roles = last(results["similarity"]["role"]).sel(layer=layer)
    costs = last(results["ablation"]["group_cost"]).sel(layer=layer, stat="mean")
    negative, others = [], []
    for seed in roles["seed"].values:
        role = roles.sel(seed=seed).values
        chosen = [int(head) for head in np.flatnonzero(role < 0)]
        rest = set(range(len(role))) - set(chosen)
        cost = costs.sel(seed=seed)
        groups = [name for name in map(str, cost["component"].values) if _same_size(name, len(chosen), rest)]
        defined = bool(chosen) and bool(groups)
        negative.append(float(cost.sel(component="+".join(map(str, chosen)))) if defined else np.nan)
        others.append(float(cost.sel(component=groups).mean()) if defined else np.nan)
    coords = {"seed": roles["seed"]}
    return xr.DataArray(negative, coords, ("seed",)), xr.DataArray(others, coords, ("seed",))


def _same_size(name: str, size: int, allowed: set[int]) -> bool:
    """Whether a group such as 0+2 has this many heads, all of them allowed."""
    heads = {int(head) for head in name.split("+")}
    return len(heads) == size and heads <= allowed


def _of_costliest(results: Results, what: str, layer: int) -> xr.DataArray:
    """A similarity score of the layer's head whose mean ablation costs most."""
    cost = last(results["ablation"]["cost"]).sel(layer=layer, stat="mean", drop=True)
    scores = last(results["similarity"][what]).sel(layer=layer, drop=True)
    return scores.isel(head=cost.argmax("head")).drop_vars("head", errors="ignore")


def _algorithms() -> tuple[Claim, ...]:
    """What the abstract's story says of algorithms: from copying to the rule."""
    return (
        Claim(
            name="after layer 0, copying",
            sentence="What can be read after layer 0 is nearer to copying than to the rule of all pairs.",
            source=f"{PAPER}, as a statement on algorithms; worded after a run had been seen",
            statistic=lambda results: _read(results, "after 0", "copying"),
            about="share of the variance of the reading after layer 0 that copying explains",
            control=lambda results: _read(results, "after 0", "least squares"),
            control_about="the same for least squares on all pairs so far",
            direction="above",
        ),
        Claim(
            name="at the end, the rule",
            sentence="What the model predicts is nearer to the rule of all pairs than to copying.",
            source=f"{PAPER}, as a statement on algorithms; worded after a run had been seen",
            statistic=lambda results: last(likeness(results, "least squares")),
            about="share of the variance of the predictions that least squares on all pairs so far explains",
            control=lambda results: last(likeness(results, "copying")),
            control_about="the same for copying",
            direction="above",
        ),
        Claim(
            name="the rule elsewhere",
            sentence="The model goes by that rule where sequences come from other distributions, too.",
            source=f"{OURS}: a model that goes by a rule does so everywhere; worded after a run had been seen",
            statistic=lambda results: likeness_elsewhere(results, "least squares"),
            about="the same for least squares on the worst of the other distributions",
            control=lambda results: likeness_elsewhere(results, "copying"),
            control_about="the same for copying",
            direction="above",
        ),
    )


def _read(results: Results, depth: str, predictor: str) -> xr.DataArray:
    """How near an algorithm comes to what can be read at a depth of the trained model."""
    found = last(results["which_algorithm"]["layer_similarity"])
    return found.sel(layer=depth, lens="affine lens", predictor=predictor, drop=True)
