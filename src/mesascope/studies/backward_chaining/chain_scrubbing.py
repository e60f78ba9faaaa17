"""Causal scrubbing of the chain: the attention output of one layer at the root comes from another tree.

This is the test of Brinkmann et al. 2024, and not that of `mesascope.probes.scrub`: one activation is resampled, and
all others are those of the intact model.
"""

import math
import warnings
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Capture, Edit, EditHadNoEffect, capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.studies.backward_chaining.tree_positions import TreePositions, list_registers, locate_trees, mean_where
from mesascope.tasks.base import Batch, Task

OTHER_ANCESTOR = "another ancestor"
NOTHING, REGISTERS, REGISTERS_AND_TARGETS, COLON = "nothing", "registers", "registers and edge targets", "colon"


@analysis(
    title="Causal scrubbing",
    description="""
        If the attention output of layer k at the root depends only on the ancestor of the goal at distance k - 1, it
        can be replaced by that of another tree with this ancestor. In shorter paths the ancestor is the first node of
        the path. The other tree has a path of at least k edges. Recovered loss: (scrubbed - uniform) / (intact -
        uniform), with the mean loss of the first node of the path; uniform is the loss of equal logits. Sequences are
        those in which the root has two children and the child off the path is no leaf. Variants keep what the layer
        attends to at some positions: the registers (sources and separators of the last three edges, and the goal),
        registers and targets of edges, or the colon, which is ours. Control, ours: another tree whose ancestor at this
        distance is another node.
    """,
    input="model",
    steps="last",
)
def chain_scrubbing(
    model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0, sequences: int = 2048
) -> xr.Dataset:
    """Compute the loss recovered when the attention output of a layer at the root comes from another tree.

    Args:
        model: a model that capture supports.
        task: not used; trees are read from the batch.
        batch: sequences of `TreePaths`.
        seed: of the choice of the other trees.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``recovered`` (layer, length of the path, preserved positions), with its control; the ends ``intact`` (by
        length) and ``uniform``, ``scrubbed`` (as recovered), and ``sequences``, the number of sequences by length.
    """
    batch = batch[:sequences]
    trees = locate_trees(batch)
    bases, root = select_bases(trees), trees.root_position
    inputs, targets = batch.inputs[:, : root + 1], batch.targets[bases, root].cpu()
    acts = capture(model, inputs, ["pattern", "value", "output"], queries=[root])
    generator = torch.Generator().manual_seed(seed)
    scrubber = Scrubber(model=model, inputs=inputs, acts=acts, trees=trees, bases=bases, targets=targets)
    # (layer, same or other, preserved, base)
    losses = torch.stack([scrubber.scrub_layer(layer, generator) for layer in range(len(acts.layers))])
    intact = _cross_entropy(acts["output"][bases.to(acts["output"].device), root], targets)
    uniform = math.log(acts["output"].shape[-1])
    lengths = list(range(1, trees.task.num_nodes))
    by_length = [trees.path_length[bases] == length for length in lengths]
    scrubbed = torch.stack(
        [_mean_defined(losses, mask) for mask in by_length], 2
    )  # (layer, same or other, length, preserved)
    intact_by_length = torch.stack([mean_where(intact, mask) for mask in by_length])
    recovered = (scrubbed - uniform) / (intact_by_length[:, None] - uniform)
    axes = {"layer": list(acts.layers), "_length": lengths, "_preserved": list(list_preserved(trees))}

    def label(values: Tensor, units: str, description: str, coords: dict[str, list]) -> xr.DataArray:
        return to_data_array(values, *coords, units=units, description=description, coords=coords)

    about = "loss recovered when the attention output of a layer at the root comes from a tree with the same ancestor"
    other = label(recovered[:, 1], "1", "the same from a tree with another ancestor", axes)
    only_length = {"_length": lengths}
    return xr.Dataset(
        {
            **with_null(
                "recovered",
                label(recovered[:, 0], "1", about, axes).assign_attrs(headline=1),
                Null(name=OTHER_ANCESTOR, value=other),
            ),
            "scrubbed": label(scrubbed[:, 0], "nat", "loss at the root of the scrubbed model", axes),
            "intact": label(intact_by_length, "nat", "loss at the root of the intact model", only_length),
            "uniform": to_data_array(uniform, units="nat", description="loss of equal logits"),
            "sequences": label(
                torch.stack([mask.sum() for mask in by_length]), "sequences", "number of sequences", only_length
            ),
        }
    )


def list_preserved(trees: TreePositions) -> dict[str, list[int]]:
    """Return the positions whose contributions to attention at the root are preserved, by variant.

    Args:
        trees: gives the positions.
    """
    registers = list_registers(trees.task)
    return {
        NOTHING: [],
        REGISTERS: registers,
        REGISTERS_AND_TARGETS: [*registers, *trees.task.target_positions],
        COLON: [trees.colon_position],
    }


def select_bases(trees: TreePositions) -> Int[Tensor, " base"]:
    """Return the sequences whose root has two children, of which the one off the path has children.

    Args:
        trees: the trees.
    """
    on_path = torch.nn.functional.one_hot(trees.first_nodes, trees.task.num_nodes).bool()
    searched = (trees.children_of_root & ~on_path & ~trees.leaves).any(1)
    return (trees.root_branches & searched).nonzero()[:, 0]


def draw_sources(
    trees: TreePositions, bases: Int[Tensor, " base"], distance: int, same: bool, generator: torch.Generator
) -> tuple[Int[Tensor, " base"], Bool[Tensor, " base"]]:
    """Draw another tree for every base, with the same ancestor of the goal at a distance or with another one.

    The path of the other tree has more edges than the distance. A base with a shorter path stands at its first node.

    Args:
        trees: all trees.
        bases: sequences to draw for.
        distance: from the goal.
        same: whether the ancestor must be the same or another one.
        generator: source of randomness.

    Returns:
        the sequence of the other tree, and whether there is one.
    """
    node = trees.ancestors[bases].gather(1, (trees.path_length[bases, None] - 1).clamp_max(distance))
    agrees = trees.ancestors[:, distance] == node
    allowed = (agrees if same else ~agrees) & (trees.path_length > distance)
    allowed[torch.arange(len(bases)), bases] = False
    drawn = torch.rand(allowed.shape, generator=generator).masked_fill(~allowed, -1.0).argmax(1)
    return drawn, allowed.any(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scrubber:
    """Replaces attention outputs at the root.

    Attributes:
        model: the model.
        inputs: all sequences, up to the root.
        acts: their capture, with ``pattern`` at the root alone, and ``value``.
        trees: their trees.
        bases: the sequences whose loss is computed.
        targets: their first nodes, as tokens.
    """

    model: PreTrainedModel
    inputs: Int[Tensor, "batch pos"]
    acts: Capture
    trees: TreePositions
    bases: Int[Tensor, " base"]
    targets: Int[Tensor, " base"]

    def scrub_layer(self, layer: int, generator: torch.Generator) -> Float[Tensor, "same preserved base"]:
        """Return the loss at the root with a tree of the same ancestor and with one of another, by preserved positions.

        Args:
            layer: whose attention output is replaced.
            generator: source of randomness.

        Returns:
            The losses; NaN for a base without another tree.
        """
        terms = _split_by_key(self.acts, layer)
        drawn = (draw_sources(self.trees, self.bases, layer, same, generator) for same in (True, False))
        return torch.stack([self._scrub(layer, terms, sources, exists) for sources, exists in drawn])

    def _scrub(
        self,
        layer: int,
        terms: Float[Tensor, "batch key head d_head"],
        sources: Int[Tensor, " base"],
        exists: Bool[Tensor, " base"],
    ) -> Float[Tensor, "preserved base"]:
        root, losses = self.trees.root_position, []
        for preserved in list_preserved(self.trees).values():
            mixed = terms[sources]
            mixed[:, preserved] = terms[self.bases][:, preserved]
            z = mixed.sum(1, keepdim=True)  # (base, 1, head, d_head)
            edit = Edit(site="z", where={"layer": layer, "pos": root}, fn=lambda old, z=z: z.to(old))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EditHadNoEffect)  # of a layer that does nothing at the root
                rows = self.inputs[self.bases.to(self.inputs.device)]
                output = capture(self.model, rows, ["output"], edits=edit)["output"]
            losses.append(_cross_entropy(output[:, root], self.targets).where(exists, torch.nan))
        return torch.stack(losses)


def _split_by_key(acts: Capture, layer: int) -> Float[Tensor, "batch key head d_head"]:
    """Return what every position contributes to the values that each head mixes at the recorded query."""
    pattern, value = acts["pattern"][layer][:, :, 0], acts["value"][layer]
    value = value.repeat_interleave(pattern.shape[1] // value.shape[1], 1)
    return torch.einsum("bhk,bhkd->bkhd", pattern, value).cpu()


def _cross_entropy(logits: Float[Tensor, "base token"], targets: Int[Tensor, " base"]) -> Float[Tensor, " base"]:
    return torch.nn.functional.cross_entropy(logits.double().cpu(), targets, reduction="none")


def _mean_defined(losses: Float[Tensor, "*rest base"], mask: Bool[Tensor, " base"]) -> Float[Tensor, "*rest"]:
    return losses[..., mask].nanmean(-1) if mask.any() else torch.full(losses.shape[:-1], torch.nan).double()
