"""Rank correlation of attention scores with the cosine of what attention reads at query and key, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.statistics import derangement, evenly_spaced_indices, normalized_ranks

MAX_PAIRS = 64  # pairs of positions, evenly spaced: neighbouring pairs have nearly the same correlation
MIN_INTERACTION = 1e-6  # of the standard deviation of the score: a smaller interaction is rounding

Positions = Int[Tensor, "pair"]
Inputs = Float[Tensor, "batch pos width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class InputSimilarity:
    """Correlations of scores with the cosine of the attention inputs.

    Attributes:
        fixed_position: of the score with the cosine; the draws with shuffled partners follow, the two kinds of shuffle
            in turn.
        interaction: of the parts of both that depend on query and key together; the draws follow.
        interaction_std: standard deviation of the score's part that depends on query and key together, in nats.
    """

    fixed_position: Float[Tensor, "draw layer head"]
    interaction: Float[Tensor, "draw layer head"]
    interaction_std: Float[Tensor, "layer head"]


def correlate_with_inputs(
    acts: Capture, pairs: tuple[Positions, Positions], shuffles: int, seed: int
) -> InputSimilarity:
    """Compute Spearman's correlations over sequences for every pair of positions, averaged over pairs.

    A score is bilinear in query and key, and a cosine is bilinear in the two unit vectors. Subtracting the mean over
    sequences of each factor at its position therefore leaves exactly the part of either that depends on both, the
    interaction: for a score that is a function of the key plus a function of the query, it is 0.

    Args:
        acts: a capture with ``attn_scores``, ``query``, ``key`` and ``resid_pre``.
        pairs: positions of the queries and of the keys, of which 64 at most are used.
        shuffles: number of shuffles of each kind.
        seed: seed of the shuffles.

    Returns:
        the correlations of every layer and head.
    """
    chosen = evenly_spaced_indices(len(pairs[0]), MAX_PAIRS)
    pairs = pairs[0][chosen], pairs[1][chosen]
    by_layer = [_correlate_layer(acts, layer, pairs, shuffles, seed) for layer in range(len(acts["resid_pre"]))]
    plain, centered, std = (torch.stack(parts, dim=-2) for parts in zip(*by_layer, strict=True))
    return InputSimilarity(fixed_position=plain, interaction=centered, interaction_std=std)


def _correlate_layer(
    acts: Capture, layer: int, pairs: tuple[Positions, Positions], shuffles: int, seed: int
) -> tuple[Float[Tensor, "draw head"], Float[Tensor, "draw head"], Float[Tensor, " head"]]:
    # first the values themselves, then the draws of the null
    read = acts.readout.apply_attention_norm(layer, acts["resid_pre"][layer]).double()
    unit = torch.nn.functional.normalize(read, dim=-1)
    raw = acts["attn_scores"][layer][..., pairs[0], pairs[1]].double().movedim(-1, 0).transpose(1, 2)
    interaction, std = _score_interactions(acts["query"][layer], acts["key"][layer], raw, pairs)
    scores, interaction_scores = normalized_ranks(raw), normalized_ranks(interaction)
    plain, centered = (
        torch.stack(
            [
                einsum(ranks, normalized_ranks(_multiply_pairs(at_query, at_key, pairs)), "p h b, p b -> h") / len(raw)
                for at_query, at_key in _shuffle_partners(vectors, shuffles, seed)
            ]
        )
        for ranks, vectors in ((scores, unit), (interaction_scores, unit - unit.mean(0)))
    )
    return plain, centered, std


def _score_interactions(
    query: Float[Tensor, "batch head pos d_head"],
    key: Float[Tensor, "batch kv_head pos d_head"],
    raw: Float[Tensor, "pair head batch"],
    pairs: tuple[Positions, Positions],
) -> tuple[Float[Tensor, "pair head batch"], Float[Tensor, " head"]]:
    # the product of centred queries and keys, and its standard deviation in the unit of the scores
    query, key = query.double(), key.double()
    parts, stds = [], []
    for head in range(query.shape[1]):
        at_query, at_key = query[:, head], key[:, head * key.shape[1] // query.shape[1]]
        product = _multiply_pairs(at_query, at_key, pairs)
        part = _multiply_pairs(at_query - at_query.mean(0), at_key - at_key.mean(0), pairs)
        fraction = part.std(-1).mean() / product.std(-1).mean().clamp_min(torch.finfo(torch.float64).tiny)
        parts.append(part if fraction > MIN_INTERACTION else torch.zeros_like(part))
        stds.append(fraction * raw[:, head].std(-1).mean())  # scores are products times a scale that is not recorded
    return torch.stack(parts, 1), torch.stack(stds)


def _multiply_pairs(
    at_query: Inputs, at_key: Inputs, pairs: tuple[Positions, Positions]
) -> Float[Tensor, "pair batch"]:
    # pair by pair: gathered vectors of all pairs would take the memory of d_model patterns
    return torch.stack(
        [(at_query[:, q] * at_key[:, k]).sum(-1) for q, k in zip(*map(Tensor.tolist, pairs), strict=True)]
    )


def _shuffle_partners(vectors: Inputs, shuffles: int, seed: int) -> Iterator[tuple[Inputs, Inputs]]:
    # the vectors themselves, then alternately the query's and the key's of another sequence
    yield vectors, vectors
    generator = torch.Generator().manual_seed(seed)
    for _ in range(shuffles):
        other = vectors[derangement(len(vectors), generator).to(vectors.device)]
        yield other, vectors
        yield vectors, other
