"""Effect of the edges of the path: ablation of what the model has stored at their targets."""

from collections.abc import Callable

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.studies.backward_chaining.tree_positions import locate_trees, mean_where
from mesascope.tasks.base import Batch, Task

OTHER_EDGE = "another edge"
STORED_AFTER = 0  # the first layer, after which an edge is known at the position of its target


@analysis(
    title="Ablation of edges",
    description="""
        Increase of the loss of the first node of the path when the residual stream after the first layer, at the
        position of the target of one edge, is replaced by its mean over sequences at the same position. This removes
        the edge for the root itself and for all positions that might pass it on. By the distance of the ablated edge:
        that into the ancestor of the goal at this distance. Sequences are those in which the root branches, the path is
        at least two edges longer than the distance, so that the edge does not start from the root, and there is an edge
        that is neither on the path nor at the root. Control: such an edge of the same sequence is ablated, drawn at
        random.
    """,
    input="model",
    steps="ends",
)
def edge_ablation(model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0, sequences: int = 2048) -> xr.Dataset:
    """Compute the effect of the ablation of edges on the loss of the first node of the path.

    Args:
        model: a model that capture supports, with two or more layers.
        task: task whose loss is computed.
        batch: sequences of `TreePaths`.
        seed: of the choice of other edges.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``effect`` by distance from the goal, with its control, ``sequences``, the number of sequences by distance, and
        ``loss``, that of the intact model at the same position.
    """
    batch = batch[:sequences]
    trees = locate_trees(batch)
    stored = capture(model, batch, ["resid_post"], layers=[STORED_AFTER])["resid_post"][0]
    replacement = stored.mean(0)
    other = trees.mask_other_edges()
    other_edge = _choose_edge(other, torch.Generator().manual_seed(seed))
    intact = _root_loss(model, task, batch, trees.root_position)

    def increase(position: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        edit = Edit(site="resid_post", where={"layer": STORED_AFTER}, fn=_replace_rows(position, replacement))
        return _root_loss(model, task, batch, trees.root_position, edit) - intact

    distances = list(range(min(model.config.num_hidden_layers, trees.task.num_nodes - 2)))
    controls = increase(trees.task.target_positions.start + 3 * other_edge)
    rows = [trees.select_deep(distance) & other.any(1) for distance in distances]
    effects = [
        mean_where(increase(trees.find_edge_into(trees.ancestors[:, distance])), each)
        for distance, each in zip(distances, rows, strict=True)
    ]
    coords = {"_distance": distances}

    def label(values: list[Tensor], units: str, description: str) -> xr.DataArray:
        return to_data_array(torch.stack(values), "_distance", units=units, description=description, coords=coords)

    about = "increase of the loss at the root when the edge into the ancestor of the goal at a distance is ablated"
    null = label([mean_where(controls, each) for each in rows], "nat", "the same for an edge that is not on the path")
    return xr.Dataset(
        {
            **with_null(
                "effect",
                label(effects, "nat", about).assign_attrs(headline=1),
                Null(name=OTHER_EDGE, value=null),
            ),
            "sequences": label([each.sum() for each in rows], "sequences", "number of sequences"),
            "loss": to_data_array(
                mean_where(intact, trees.root_branches), units="nat", description="loss at the root of the intact model"
            ),
        }
    )


def _choose_edge(mask: Bool[Tensor, "batch edge"], generator: torch.Generator) -> Int[Tensor, " batch"]:
    return torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1.0).argmax(1)


def _replace_rows(
    position: Int[Tensor, " batch"], replacement: Float[Tensor, "pos d_model"]
) -> Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]:
    """Return a function that replaces one position of every sequence by what is given for this position."""

    def replace_stream(stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        at = position.to(stream.device)
        stream[torch.arange(len(at), device=stream.device), at] = replacement.to(stream)[at]
        return stream

    return replace_stream


def _root_loss(
    model: PreTrainedModel, task: Task, batch: Batch, position: int, edit: Edit | None = None
) -> Float[Tensor, " batch"]:
    output = capture(model, batch, ["output"], edits=() if edit is None else edit)["output"]
    return task.loss(output, batch)[:, position].double().cpu()
