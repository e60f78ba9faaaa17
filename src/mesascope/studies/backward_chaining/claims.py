"""Claims of Brinkmann et al. 2024 on path finding by backward chaining: the first layer and look-ahead, and all others.

The paper's numbers are for 16 nodes, 6 layers and backward edge order. All thresholds and margins are ours. They were
fixed before the analysis of a trained model that they decide on: margins are about half of the differences that the
paper reports, or less. Claims on causal scrubbing, on registers, on the colon and on later nodes of the path were added
after the other ones had been judged in five seeds, which are among the seeds of the study, and after a pilot seed had
shown that the colon holds the first node of the path. No earlier claim, threshold or margin was changed then. After
another pilot seed, the goal was added to the positions that are measured, and the claim that registers are needed for
long paths got the condition that they are not for short ones, as the paper says.
Layers and depths are counted as in the paper: depth 0 is the embedding, depth k is after layer k.
"""

import xarray as xr

from mesascope.studies.backward_chaining.accuracy_claims import ACCURACY_CLAIMS, LEARNED, OURS, PAPER, count_layers
from mesascope.studies.backward_chaining.chain_claims import (
    CHAIN_CLAIMS,
    MIN_ATTENTION,
    MIN_ATTENTION_GAIN,
    MIN_F1,
    MIN_F1_GAIN,
)
from mesascope.studies.backward_chaining.register_claims import REGISTER_CLAIMS, SCRUBBING_CLAIMS
from mesascope.studies.backward_chaining.tree_probes import CHILDREN
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained


def _edge_f1(end: str, label: str, *, trained: bool = True) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description=f"F1 of a linear probe of the other end of an edge after layer 1, at the position of its {label}",
        read=lambda results: select_step(results["tree_probes"][f"edge_at_{end}"]).sel(_depth=1, drop=True),
    )


def _edge_claims() -> tuple[Claim, ...]:
    return (
        Claim(
            name="edges are stored at their targets",
            statement="After layer 1, the position of the target of an edge holds the edge; the position of its source "
            "does not.",
            source=f"{PAPER}: F1 of the edge rises from 0.11 to 1.00 at the target, and from 0.13 to 0.19 at the "
            "source; ours is the F1 of the other end of the edge; the threshold is ours",
            value=_edge_f1("target", "target"),
            control=_edge_f1("source", "source"),
            direction="above",
            threshold=MIN_F1,
            margin=MIN_F1_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
        Claim(
            name="training stores edges at their targets",
            statement="After layer 1, a trained model holds edges at the positions of their targets more than an "
            "untrained one.",
            source=f"{OURS}: untrained attention copies some of every token to later positions",
            value=_edge_f1("target", "target"),
            control=_edge_f1("target", "target, untrained", trained=False),
            direction="above",
            margin=MIN_F1_GAIN,
            requirements=(LEARNED,),
        ),
        Claim(
            name="layer 1 attends from targets to sources",
            statement="The head of layer 1 attends from the target of an edge to its source.",
            source=f"{PAPER}, which reports the pattern; the threshold is ours",
            value=_edge_attention("trained", trained=True),
            control=_edge_attention("untrained", trained=False),
            direction="above",
            threshold=MIN_ATTENTION,
            margin=MIN_ATTENTION_GAIN,
            by_paper=True,
            requirements=(LEARNED,),
        ),
    )


def _edge_attention(label: str, *, trained: bool) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description=f"attention of the head of layer 1 from targets of edges to their sources, {label}",
        read=lambda results: (
            select_step(results["chaining_attention"]["within_edge"]).isel(layer=0, drop=True).max("head")
        ),
    )


def _goal_claim() -> Claim:
    def read_goal(results: Results, *, trained: bool) -> xr.DataArray:
        ancestor = results["tree_probes"]["ancestor"].sel(_distance=0, _depth=1, drop=True)
        return select_last_step(ancestor) if trained else select_untrained(ancestor)

    about = "F1 of a linear probe of the goal after layer 1, at the position of the root"
    return Claim(
        name="layer 1 copies the goal to the path",
        statement="After layer 1, the position of the path holds the goal.",
        source=f"{PAPER}: F1 of the goal rises from 0.03 to 1.00; the untrained model as the control is ours",
        value=Quantity(description=about, read=lambda results: read_goal(results, trained=True)),
        control=Quantity(description=f"{about}, untrained", read=lambda results: read_goal(results, trained=False)),
        direction="above",
        threshold=MIN_F1,
        margin=MIN_F1_GAIN,
        by_paper=True,
        requirements=(LEARNED,),
    )


def _children_f1(layers_before_last: int, label: str) -> Quantity:
    def read_f1(results: Results) -> xr.DataArray:
        lookahead = select_last_step(results["tree_probes"]["lookahead"])
        depth = count_layers(results) - layers_before_last
        return lookahead.sel(stat=CHILDREN, _depth=depth, drop=True)

    return Quantity(
        description=f"F1 of a linear probe of the children of the root at its position, after {label}", read=read_f1
    )


def _lookahead_claim() -> Claim:
    return Claim(
        name="one-step look-ahead in the last layers",
        statement="The last two layers find the children of the current node.",
        source=f"{PAPER}: F1 0, 47.9 and 98.2 % after layers 4, 5 and 6 of 6, at positions of the path; the "
        "root alone and the threshold are ours",
        value=_children_f1(0, "the last layer"),
        control=_children_f1(2, "the last layer but two"),
        direction="above",
        threshold=MIN_F1,
        margin=MIN_F1_GAIN,
        by_paper=True,
        requirements=(LEARNED,),
    )


CLAIMS = (
    *ACCURACY_CLAIMS,
    *_edge_claims(),
    _goal_claim(),
    *CHAIN_CLAIMS,
    _lookahead_claim(),
    *SCRUBBING_CLAIMS,
    *REGISTER_CLAIMS,
)
