"""A decoder with hand-set weights that climbs one edge per layer from the goal to the root, and a decoy.

The residual stream has a block for the node of a source token (X), one for the node of a target token (Y), one for a
node that attention has stored (B), and one for the position (P). Layer 1 stores the source of an edge at its target,
and the goal at positions of the path. In every further layer, positions of the path find the edge whose target is B,
unless it starts from the current node, and add its source minus its target to B.

Variants: with ``growth``, layers add the source alone, with so many times the weight of the layer before, and depend on
one ancestor each. With ``further``, further positions chain as well, such as the colon; the goal finds two edges. With
``registers``, layer 1 stores at each register the node of its number, if a source with it stands before; further layers
chain from there, and nowhere else.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mesascope.activations import Capture, capture
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.tree_positions import list_registers
from mesascope.tasks.trees.paths import TreePaths

NUM_LAYERS, SHARPNESS = 4, 40.0
TASK = TreePaths(num_nodes=8, reach=NUM_LAYERS - 1)


@cache
def make_chaining_model(
    *,
    chains: bool = True,
    stores_edges: bool = True,
    growth: float | None = None,
    further: tuple[int, ...] = (),
    registers: bool = False,
) -> Decoder:
    """Make the decoder; without chaining, later layers do nothing, and without storing, layer 1 leaves edges alone."""
    n, length = TASK.num_nodes, TASK.length
    width = 3 * n + length
    x, y, b, p = (slice(start, stop) for start, stop in ((0, n), (n, 2 * n), (2 * n, 3 * n), (3 * n, width)))
    config = DecoderConfig(
        vocab_size=TASK.vocab_size,
        num_hidden_layers=NUM_LAYERS,
        hidden_size=width,
        num_attention_heads=1,
        max_position_embeddings=length,
    )
    model = Decoder(config)
    chaining = list_registers(TASK) if registers else [*further, *TASK.path_positions]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.weight[: 2 * n, : 2 * n] = torch.eye(2 * n)
        model.position_embed.weight[:, p] = torch.eye(length)
        model.readout.weight[n : 2 * n, b] = 10 * torch.eye(n)
        first, *later = (layer.attention for layer in model.layers)
        keys = find_first_layer_keys(stores_edges, [] if registers else chaining)
        first.q_proj.weight[:length, p] = scale_scores(keys, width)
        first.k_proj.weight[:length, p] = torch.eye(length)
        first.v_proj.weight[:n, x] = torch.eye(n)
        first.o_proj.weight[b, :n] = torch.eye(n)
        if registers:
            for label, position in enumerate(chaining):
                first.q_proj.weight[:length, p.start + position] *= 0.5  # itself, without the label
                first.q_proj.weight[length + label, p.start + position] = scale_scores(torch.tensor(1.0), width)
            first.k_proj.weight[length : length + n, x] = torch.eye(n)
        for number, attention in enumerate(later if chains else ()):
            set_chaining_weights(attention, x, y, b, p, chaining, stops=not registers)
            if growth is not None:
                attention.q_proj.weight[:n, b] /= growth**number
                attention.v_proj.weight[:n, y] = 0
                attention.o_proj.weight *= growth ** (number + 1)
    return model


def find_first_layer_keys(stores_edges: bool, chaining: Sequence[int]) -> Tensor:
    """Return the position that every position attends to in layer 1, one-hot along the first axis."""
    keys = list(range(TASK.length))
    for position in TASK.target_positions if stores_edges else ():
        keys[position] = position - 1
    for position in chaining:
        keys[position] = TASK.goal_position
    return torch.nn.functional.one_hot(torch.tensor(keys), TASK.length).float().T


def set_chaining_weights(
    attention, x: slice, y: slice, b: slice, p: slice, chaining: Sequence[int], *, stops: bool
) -> None:
    """Set a layer that climbs one edge; all other positions attend to the first, and write nothing."""
    n, width, identity = TASK.num_nodes, p.stop, torch.eye(TASK.num_nodes)
    attention.q_proj.weight[:n, b] = scale_scores(identity, width)
    attention.k_proj.weight[:n, y] = identity
    for block in (x, y) if stops else ():
        attention.q_proj.weight[n : 2 * n, block] = scale_scores(-identity, width)
    attention.k_proj.weight[n : 2 * n, b] = identity
    attention.k_proj.weight[n : 2 * n, x] = -identity
    sink = torch.full((TASK.length,), 10.0)
    sink[list(chaining)] = 0.5 if stops else 0.3
    attention.q_proj.weight[2 * n, p] = scale_scores(sink, width)
    attention.k_proj.weight[2 * n, p.start] = 1.0
    attention.k_proj.weight[2 * n, p.start + TASK.path_positions.start : p.stop] = -10.0  # the path is not searched
    attention.v_proj.weight[:n, b] = identity
    attention.v_proj.weight[:n, x] = -identity
    attention.v_proj.weight[:n, y] = -identity
    attention.o_proj.weight[b, :n] = identity


def scale_scores(weight: Tensor, d_head: int) -> Tensor:
    return SHARPNESS * d_head**0.5 * weight


def capture_trees(model: Decoder, sites: list[str], sequences: int = 500, seed: int = 0) -> Capture:
    batch = TASK.sample(sequences, torch.Generator().manual_seed(seed))
    return capture(model, batch, sites, baselines=TASK.baselines(batch))
