"""Linear probes of nodes: least squares onto indicators, scored by F1 on other sequences."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mesascope.ridge import RidgeDesign, decompose_features
from mesascope.statistics import derangement

Features = Float[Tensor, "row feature"]
MIN_ROWS = 16  # for fitting; below, a score is NaN
MEMBER = 0.5  # a node belongs to a set if its indicator is predicted above this


def score_node_probe(x: Features, nodes: Int[Tensor, " row"], num_nodes: int, seed: int) -> tuple[float, float]:
    """Fit a linear probe of a node on the first half of the rows, and score it on the second half.

    The probe is ridge regression onto the indicators of all nodes, and predicts the node with the largest value.

    Args:
        x: activations.
        nodes: the node of each row.
        num_nodes: number of nodes.
        seed: of the permutation of the control.

    Returns:
        macro F1, the mean over nodes of 2 TP / (2 TP + FP + FN); and the same of a probe that was fitted on nodes of
        other rows. NaN with fewer than 16 rows to fit on.
    """
    scores = []
    for predicted, target in _predict_second_half(x, one_hot(nodes, num_nodes), seed):
        chosen = one_hot(predicted.argmax(-1), num_nodes).bool()
        present = target.any(0)
        scores.append(float(_f1_scores(chosen, target)[present].mean()))
    return scores[0], scores[1]


def score_set_probe(x: Features, members: Bool[Tensor, "row node"], seed: int) -> tuple[float, float]:
    """Fit a linear probe of a set of nodes on the first half of the rows, and score it on the second half.

    Args:
        x: activations.
        members: whether a node belongs to the set of each row.
        seed: of the permutation of the control.

    Returns:
        F1 over all nodes and rows together; and the same of a probe that was fitted on sets of other rows.
    """
    scores = [
        float(_f1_scores((predicted > MEMBER).flatten()[:, None], target.flatten()[:, None])[0])
        for predicted, target in _predict_second_half(x, members.long(), seed)
    ]
    return scores[0], scores[1]


def _predict_second_half(
    x: Features, indicators: Int[Tensor, "row node"], seed: int
) -> list[tuple[Float[Tensor, "scored node"], Bool[Tensor, "scored node"]]]:
    """Return predictions and truth of the second half, for a probe and for one fitted on permuted rows."""
    half = len(x) // 2
    if half < MIN_ROWS:
        undefined = torch.full((1, indicators.shape[1]), torch.nan)
        return [(undefined, undefined > 0)] * 2
    design: RidgeDesign = decompose_features(x[:half], exact=False)
    order = derangement(half, torch.Generator().manual_seed(seed))
    target = indicators[half:].bool()
    fits = [design.fit(indicators[:half][rows].double()) for rows in (torch.arange(half), order)]
    return [(fit.predict(x[half:]), target) for fit in fits]


def _f1_scores(chosen: Bool[Tensor, "row node"], target: Bool[Tensor, "row node"]) -> Float[Tensor, " node"]:
    """Return F1 by node; 0 where nothing is chosen and nothing is there, NaN without any row that has the node."""
    hits = (chosen & target).sum(0).double()
    wrong = (chosen != target).sum(0).double()
    return 2 * hits / (2 * hits + wrong)
