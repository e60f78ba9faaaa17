"""Accuracy of predicted paths: exact match by length of the path, and accuracy at branching nodes."""

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.uncertainty import with_standard_error
from mesascope.axes import to_data_array
from mesascope.statistics import ratio_of_sums
from mesascope.studies.backward_chaining.tree_positions import locate_captured_trees

MODEL = "model"


@analysis(
    title="Accuracy of paths",
    description="""
        Exact match is the fraction of sequences in which every node of the path has the largest logit of all tokens.
        The true path so far is the input; for a causal model this is the same event as a correct path under greedy
        generation, which goes astray at the first wrong node. For a baseline it is the mean probability that it walks
        along the path. Branching steps are those from a node with two children, where a random child is right in half
        of the cases; a step from a node with one child needs no search.
    """,
    sites=["output"],
)
def path_accuracy(acts: Capture) -> xr.Dataset:
    """Compute the accuracy of paths of the model and of the baselines.

    Args:
        acts: a capture of a batch of `TreePaths`, with ``output``; it may have baselines.

    Returns:
        by predictor ``exact_match``, ``exact_match_by_length`` and ``branching_accuracy``, with standard errors, and
        ``length_fraction``, the fraction of sequences by length of the path.
    """
    trees = locate_captured_trees(acts)
    assert acts.batch is not None
    scored = acts.batch.weight.cpu() > 0
    targets = acts.batch.targets.cpu()
    correct = {MODEL: (acts["output"].argmax(-1).cpu() == targets).double()}
    correct |= {name: _target_probability(one.cpu(), targets) for name, one in acts.baselines.items()}
    by_step = torch.stack(list(correct.values()))
    exact = torch.where(scored, by_step, 1.0).prod(-1)
    lengths = torch.arange(1, trees.task.num_nodes)
    has_length = (trees.path_length == lengths[:, None]).double()
    branching = torch.nn.functional.pad(trees.branching_steps, (trees.root_position, 0))
    coords = {"predictor": list(correct)}
    results = _label_ratio("exact_match", exact, torch.ones_like(exact[0]), coords)
    results |= _label_ratio(
        "exact_match_by_length", exact[:, None] * has_length, has_length, coords | {"_length": lengths.tolist()}
    )
    results |= _label_ratio(
        "branching_accuracy", torch.where(branching, by_step, 0.0).sum(-1), branching.double().sum(-1), coords
    )
    fraction = to_data_array(
        has_length.mean(-1),
        "_length",
        units="1",
        description="fraction of the sequences by length of the path",
        coords={"_length": lengths.tolist()},
    )
    return xr.Dataset({**results, "length_fraction": fraction})


DESCRIPTIONS = {
    "exact_match": "fraction of correct paths",
    "exact_match_by_length": "fraction of correct paths by number of edges from the root to the goal",
    "branching_accuracy": "fraction of correct steps from nodes with two children",
}


def _target_probability(
    logits: Float[Tensor, "batch pos token"], targets: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos"]:
    return logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0].exp()


def _label_ratio(name: str, numerator: Tensor, denominator: Tensor, coords: dict[str, list]) -> dict[str, xr.DataArray]:
    ratio, standard_error = ratio_of_sums(numerator, denominator)
    array = to_data_array(ratio, *coords, units="1", description=DESCRIPTIONS[name], coords=coords)
    return with_standard_error(name, array, standard_error)
