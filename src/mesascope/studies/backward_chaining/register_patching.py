"""Patching of registers: what the choice at the root loses when registers hold the state of another tree."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.interventions import resample
from mesascope.studies.backward_chaining.registers import WITHIN_EDGES
from mesascope.studies.backward_chaining.tree_positions import (
    TreePositions,
    list_earlier_positions,
    list_registers,
    locate_trees,
    mean_where,
)
from mesascope.tasks.base import Batch, Task


@analysis(
    title="Patching of registers",
    description="""
        The residual stream at the registers after the last layer but two (layer 4 of 6) is replaced by that of another
        tree, at the same positions. Loss of the logit difference at the root: 1 - patched / intact, with the mean
        difference between the logits of the child on the path and of the other child, by length of the path, in
        sequences whose root has two children. Control, ours: as many sources and separators of earlier edges are
        replaced.
    """,
    input="model",
    steps="last",
)
def register_patching(
    model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0, sequences: int = 4096
) -> xr.Dataset:
    """Compute the logit difference at the root that is lost when registers are patched.

    Args:
        model: a model that capture supports, with three or more layers.
        task: not used; trees are read from the batch.
        batch: sequences of `TreePaths`.
        seed: of the choice of the other trees.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``lost`` by length of the path, with its control; ``intact``, ``patched`` and ``sequences`` by length.

    Raises:
        ValueError: the model has fewer than three layers.
    """
    num_layers = model.config.num_hidden_layers
    if num_layers < 3:
        raise ValueError(f"registers are patched after the last layer but two, but the model has {num_layers} layers")
    batch = batch[:sequences]
    trees = locate_trees(batch)
    inputs, layer = batch.inputs[:, : trees.root_position + 1], num_layers - 3
    acts = capture(model, inputs, ["resid_post"], layers=[layer])
    lengths = list(range(1, trees.task.num_nodes))
    rows = [trees.root_branches & (trees.path_length == length) for length in lengths]

    def difference(positions: list[int]) -> Float[Tensor, " length"]:
        where = {"layer": layer, "pos": positions}
        edits = [resample("resid_post", acts, where, seed=seed)] if positions else []
        values = _subtract_logits(model, inputs, edits, trees)
        return torch.stack([mean_where(values, each) for each in rows])

    intact, patched, earlier = (
        difference(positions) for positions in ([], list_registers(trees.task), list_earlier_positions(trees.task))
    )

    def label(values: Tensor, units: str, description: str) -> xr.DataArray:
        return to_data_array(values, "_length", units=units, description=description, coords={"_length": lengths})

    about = "fraction of the logit difference at the root that is lost when registers are patched"
    return xr.Dataset(
        {
            **with_null(
                "lost",
                label(1 - patched / intact, "1", about).assign_attrs(headline=1),
                Null(
                    name=WITHIN_EDGES,
                    value=label(1 - earlier / intact, "1", f"the same when {WITHIN_EDGES} are patched"),
                ),
            ),
            "intact": label(intact, "logit", "difference between the logits of the child on the path and of the other"),
            "patched": label(patched, "logit", "the same with patched registers"),
            "sequences": label(torch.stack([each.sum() for each in rows]), "sequences", "number of sequences"),
        }
    )


def _subtract_logits(
    model: PreTrainedModel, inputs: Tensor, edits: list[Edit], trees: TreePositions
) -> Float[Tensor, " batch"]:
    """Return the logit of the child of the root on the path, less that of another child; 0 without another child."""
    logits = capture(model, inputs, ["output"], edits=edits)["output"][:, trees.root_position].double().cpu()
    nodes = logits[:, trees.task.num_nodes : 2 * trees.task.num_nodes]  # the tokens of nodes on the path
    chosen = nodes.gather(1, trees.first_nodes[:, None])[:, 0]
    is_other = trees.children_of_root & (torch.arange(trees.task.num_nodes) != trees.first_nodes[:, None])
    other = nodes.gather(1, is_other.int().argmax(1)[:, None])[:, 0]
    return torch.where(is_other.any(1), chosen - other, 0.0)
