"""Masks of attention of some heads of the encoder to the prefix, and draws of heads to compare them with."""

from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Bool
from torch import Tensor

from mesascope.activations import Edit
from mesascope.interventions import knock_out_attention
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.studies.syntactic_transformations.exact_match import Prefix, match_outputs
from mesascope.studies.syntactic_transformations.rule_lookup import Head
from mesascope.tasks.base import Batch


def mask_prefix(heads: Sequence[Head], num_slots: int) -> list[Edit]:
    """Return the edits that hide the prefix from heads of the encoder; they attend to the words as before.

    Args:
        heads: layer and head of each.
        num_slots: number of positions of the prefix.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        by_layer.setdefault(layer, []).append(head)
    return [
        knock_out_attention("encoder.attn_scores", range(num_slots), {"layer": layer, "head": numbers})
        for layer, numbers in by_layer.items()
    ]


def list_encoder_heads(model: EncoderDecoder) -> list[Head]:
    """Return layer and head of all heads of the encoder.

    Args:
        model: the model.
    """
    config = model.config
    return [(layer, head) for layer in range(config.num_encoder_layers) for head in range(config.num_attention_heads)]


def draw_head_sets(pool: Sequence[Head], size: int, draws: int, seed: int) -> list[tuple[Head, ...]]:
    """Return different sets of heads, all there are or as many as are drawn.

    Args:
        pool: the heads to choose from.
        size: number of heads of a set.
        draws: maximum number of sets.
        seed: of the draw.

    Returns:
        no set if the pool is smaller than a set.
    """
    sets = list(combinations(sorted(pool), size))
    order = torch.randperm(len(sets), generator=torch.Generator().manual_seed(seed))
    return [sets[index] for index in order[:draws].tolist()]


def match_masked(
    model: EncoderDecoder,
    batch: Batch,
    head_sets: Sequence[Sequence[Head]],
    num_slots: int,
    prefix: Prefix | None = None,
) -> Bool[Tensor, "set batch"]:
    """Return whether outputs are right when the prefix is hidden from each set of heads.

    Args:
        model: the model.
        batch: sequences of its task.
        head_sets: sets of heads of the encoder, at least one.
        num_slots: number of positions of the prefix.
        prefix: vectors that take the place of the rules.
    """
    return torch.stack(
        [match_outputs(model, batch, prefix=prefix, edits=mask_prefix(heads, num_slots)) for heads in head_sets]
    )
