"""Registers: positions before the path that chain from a node that their position fixes."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel, capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.models.layers import DecoderBlock
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.probe_scores import score_set_probe
from mesascope.studies.backward_chaining.tree_positions import (
    TreePositions,
    list_earlier_positions,
    list_registers,
    locate_trees,
    mean_where,
)
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.trees.sampling import NO_PARENT

WITHIN_EDGES, OTHER_LABEL, SHUFFLED = "positions within edges", "another label", "labels shuffled"
MAX_PROBED_ROWS = 6_000
MAX_CLIMBED = 4  # edges, in the authors' notebook, where they are all that five layers can climb


@analysis(
    title="Start labels of registers",
    description="""
        Which node each position attends to in the first layer, read from weights: softmax over all tokens of the
        product of the query of a positional embedding and the key of a token embedding, each normalised on its own and
        with the bias, and not divided by the square root of the head size, as in the authors' notebook. The start label
        of a position is the node whose source token has the largest weight. Registers are sources and separators of
        the last three edges, and the goal; control: as many sources and separators of earlier edges. Also the measured
        attention of the first layer from registers to all sources with their start label, in sequences in which one
        stands before the register, and to those with the next label as a control.
    """,
    input="model",
    steps="ends",
)
def start_labels(model: PreTrainedModel, task: Task, batch: Batch, sequences: int = 2048) -> xr.Dataset:
    """Compute the node that each position before the root attends to in the first layer.

    Args:
        model: a `Decoder` with learned positions, with one head in the first layer.
        task: not used; positions are read from the batch.
        batch: sequences of `TreePaths`.
        sequences: maximum number of sequences for the measured attention.

    Returns:
        ``weight`` (pos, node) and ``start_label`` (pos) from weights; ``peak``, the mean over registers of the largest
        weight of a node, and ``attention``, the measured one, each with its control.

    Raises:
        UnsupportedModel: the model is not such a decoder.
    """
    batch = batch[:sequences]
    trees = locate_trees(batch)
    weight = compute_label_weights(model, trees)
    registers, earlier = list_registers(trees.task), list_earlier_positions(trees.task)
    labels = weight.argmax(1)
    inputs = batch.inputs[:, : trees.root_position]
    pattern = capture(model, inputs, ["pattern"], layers=[0], queries=registers)["pattern"][0].mean(1).double().cpu()
    own, other = (
        _measure_attention(pattern, trees, (labels[registers] + shift) % trees.task.num_nodes) for shift in (0, 1)
    )
    peaks = weight.max(1).values

    def label(values: Tensor | float, description: str) -> xr.DataArray:
        return to_data_array(values, units="1", description=description)

    about = "largest weight of a node in the first layer, from weights, mean over registers"
    return xr.Dataset(
        {
            **with_null(
                "peak",
                label(peaks[registers].mean(), about).assign_attrs(headline=1),
                Null(name=WITHIN_EDGES, value=label(peaks[earlier].mean(), f"{about}; at {WITHIN_EDGES}")),
            ),
            **with_null(
                "attention",
                label(own, "attention of the first layer from registers to sources with their start label"),
                Null(name=OTHER_LABEL, value=label(other, "the same to sources with the next label")),
            ),
            "weight": to_data_array(
                weight,
                "pos",
                "_node",
                units="1",
                description="weight of the source token of a node in the first layer, from weights",
            ),
            "start_label": to_data_array(
                labels, "pos", units="1", description="node with the largest weight in the first layer"
            ),
        }
    )


@analysis(
    title="Paths held by registers",
    description="""
        F1 of a linear probe at the registers of the nodes that a chain from the start label of the register climbs to:
        its ancestors, as many as the layers before the last one can climb, and four at most. An ancestor counts if the
        edges to it stand before the register. Registers whose label is no source of an earlier edge, or from whose
        label nothing can be climbed, are left out. The authors take the nodes from the attention of each register
        instead. Control: the same probes fitted on labels of other sequences.
    """,
    input="model",
    steps="ends",
)
def register_paths(
    model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0, sequences: int = 2048
) -> xr.Dataset:
    """Compute the F1 of a probe of the chain of each register, by depth.

    Args:
        model: a `Decoder` with learned positions, with one head in the first layer.
        task: not used; positions are read from the batch.
        batch: sequences of `TreePaths`.
        seed: of the permutation of labels in the control.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``subpath`` by depth, with its control.

    Raises:
        UnsupportedModel: the model is not such a decoder.
    """
    batch = batch[:sequences]
    trees = locate_trees(batch)
    labels = compute_label_weights(model, trees).argmax(1)
    acts = capture(model, batch.inputs[:, : trees.root_position], ["resid_pre", "resid_post"])
    climbed = min(max(len(acts.layers) - 2, 1), MAX_CLIMBED)
    depths = [acts["resid_pre"][0], *acts["resid_post"]]
    registers = list_registers(trees.task)
    members = torch.stack([find_climbed_nodes(trees, int(labels[one]), one, climbed) for one in registers], 1)
    starts = torch.stack([find_sources(trees, int(labels[one]), one).any(1) for one in registers], 1)
    rows, columns = (starts & members.any(-1)).nonzero(as_tuple=True)  # in the order of the sequences
    rows, columns = rows[:MAX_PROBED_ROWS], columns[:MAX_PROBED_ROWS]
    positions = torch.tensor(registers)[columns]
    scores = [score_set_probe(x[rows, positions].cpu(), members[rows, columns], seed) for x in depths]
    axes = {"_depth": list(range(len(depths)))}
    value, shuffled = (
        to_data_array(values, "_depth", units="1", description=text, coords=axes)
        for values, text in zip(
            torch.tensor(scores, dtype=torch.float64).T,
            ("F1 of the nodes that a register climbs to from its start label", f"the same; {SHUFFLED}"),
            strict=True,
        )
    )
    return xr.Dataset(with_null("subpath", value.assign_attrs(headline=1), Null(name=SHUFFLED, value=shuffled)))


def compute_label_weights(model: PreTrainedModel, trees: TreePositions) -> Float[Tensor, "pos node"]:
    """Return the weight of the source token of every node at every position before the root, from weights.

    Args:
        model: a `Decoder` with learned positions, with one head in the first layer.
        trees: give the positions and the nodes.

    Returns:
        the softmax over all tokens, of which source tokens are returned.

    Raises:
        UnsupportedModel: the model is not such a decoder.
    """
    if not isinstance(model, Decoder) or model.position_embed is None or model.config.num_attention_heads != 1:
        raise UnsupportedModel(
            f"start labels need a Decoder with learned positions and one head, but got {type(model).__name__}"
        )
    layer = model.layers[0]
    assert isinstance(layer, DecoderBlock)  # for the type checker
    with torch.no_grad():
        positions = layer.attention_norm(model.position_embed.weight[: trees.root_position])
        tokens = layer.attention_norm(model.embed.weight)
        scores = layer.attention.q_proj(positions) @ layer.attention.k_proj(tokens).T
    return scores.double().cpu().softmax(-1)[:, : trees.task.num_nodes]


def find_sources(trees: TreePositions, label: int, position: int) -> Bool[Tensor, "batch edge"]:
    """Return the edges that start from a node, and whose source stands at a position or before it.

    Args:
        trees: the trees.
        label: the node.
        position: the position.
    """
    stands = torch.tensor(list(trees.task.source_positions)) <= position
    return (trees.edge_sources == label) & stands


def find_climbed_nodes(trees: TreePositions, label: int, position: int, climbed: int) -> Bool[Tensor, "batch node"]:
    """Return the ancestors of a node up to a number of edges, over edges that stand before a position.

    Args:
        trees: the trees.
        label: the node.
        position: targets of edges must stand before it.
        climbed: maximum number of edges.

    Returns:
        mask of the ancestors, without the node itself.
    """
    num_edges = trees.edge_targets.shape[1]
    edge_of = torch.full_like(trees.trees.parents, num_edges).scatter(
        1, trees.edge_targets, torch.arange(num_edges).expand_as(trees.edge_targets)
    )
    target_positions = torch.tensor([*trees.task.target_positions, trees.task.length])  # of no edge: never visible
    visible = target_positions[edge_of] < position
    parents = torch.where(visible, trees.trees.parents, NO_PARENT)
    current = torch.full((len(parents),), label)
    members = torch.zeros_like(visible)
    for _ in range(climbed):
        above = parents.gather(1, current.clamp_min(0)[:, None])[:, 0]
        current = torch.where(current == NO_PARENT, NO_PARENT, above)
        members |= torch.arange(parents.shape[1]) == current[:, None]
    return members


def _measure_attention(
    pattern: Float[Tensor, "batch query key"], trees: TreePositions, labels: Int[Tensor, " query"]
) -> Float[Tensor, ""]:
    """Return the mean attention from registers to all sources of a label each, where there is one."""
    sources = list(trees.task.source_positions)
    means = []
    for number, position in enumerate(list_registers(trees.task)):
        stands = find_sources(trees, int(labels[number]), position)
        attention = (pattern[:, number, sources] * stands).sum(-1)
        means.append(mean_where(attention, stands.any(1)))
    return torch.stack(means).nanmean()
