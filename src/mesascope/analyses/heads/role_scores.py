"""Scores of attention patterns on repeated tokens, and draws of their nulls."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_DRAWS = 20
FIRST_QUERY = 2  # before it, previous, first and self are the same position, and the scores of all heads agree

ROLES = {
    "previous token": "attention to the position before the query",
    "first token": "attention to the first position",
    "self": "attention to the query's own position",
    "induction": "attention to the position after the earlier occurrence of the query's token, second half",
    "duplicate token": "attention to the earlier occurrence of the query's token, second half",
    "uniform": "overlap with uniform attention: one minus the total variation distance",
}


def score_roles(
    pattern: Float[Tensor, "batch head query key"], visible: Bool[Tensor, "#batch #head query key"] | None = None
) -> Float[Tensor, "batch head stat"]:
    """Compute the scores of :data:`ROLES`, averaged over the queries for which they are defined.

    Args:
        pattern: attention weights of one layer on sequences of :func:`sample_repeated_tokens`; if the length is odd,
            the first token is not part of the repetition.
        visible: ``True`` where a query can attend to a key; at all positions up to the query by default.

    Returns:
        the scores, in the order of :data:`ROLES`.
    """
    second_half, length = _second_half(pattern.shape[-1])
    query = torch.arange(FIRST_QUERY, pattern.shape[-1])
    positions = [
        (query, query - 1),
        (query, torch.zeros_like(query)),
        (query, query),
        (second_half, second_half - length + 1),
        (second_half, second_half - length),
    ]
    attention = [pattern[:, :, at, key].double().mean(-1) for at, key in positions]
    return torch.stack([*attention, _uniform_overlap(pattern, visible)], dim=-1).float()


def sample_role_nulls(
    pattern: Float[Tensor, "batch head query key"], visible: Bool[Tensor, "#batch 1 query key"] | None = None
) -> Float[Tensor, "batch head stat draw"]:
    """Compute the attention to a random visible key, which is the null of a position's attention with shuffled keys.

    Args:
        pattern: attention weights of one layer on sequences of :func:`sample_repeated_tokens`.
        visible: ``True`` where a query can attend to a key; at all positions up to the query by default.

    Returns:
        20 draws; along ``stat`` the mean over all queries and the mean over queries of the second half.
    """
    batch, heads, length = pattern.shape[:3]
    (start, *_), _ = _second_half(length)
    generator = torch.Generator().manual_seed(0)
    visible = _causal_mask(length) if visible is None else visible
    order = visible[:, 0].to(torch.uint8).argsort(dim=-1, descending=True, stable=True).cpu()  # visible keys first
    num_visible = visible[:, 0].sum(-1).cpu()
    draws = []
    for _ in range(NUM_DRAWS):
        rank = (torch.rand(batch, length, generator=generator) * num_visible).long()
        key = order.expand(batch, -1, -1).gather(-1, rank[..., None]).to(pattern.device)
        key = key[:, None].expand(-1, heads, -1, -1)
        attention = pattern.gather(-1, key)[..., 0].double()
        draws.append(torch.stack([attention[:, :, FIRST_QUERY:].mean(-1), attention[:, :, start:].mean(-1)], dim=-1))
    return torch.stack(draws, dim=-1).float()


def sample_random_overlap(num_visible: Int[Tensor, " query"]) -> Float[Tensor, " draw"]:
    """Compute the overlap with uniform attention of rows drawn uniformly from all rows that sum to 1.

    The expected overlap is 1 - (1 - 1/n)^n for n keys.

    Args:
        num_visible: number of keys that each query can attend to.

    Returns:
        20 draws, each averaged over queries.
    """
    generator = torch.Generator().manual_seed(0)
    overlaps, length = [], len(num_visible)
    visible = torch.arange(length) < num_visible[:, None]  # which keys they are does not matter
    for _ in range(NUM_DRAWS):
        rows = -torch.rand(length, length, generator=generator, dtype=torch.float64).log() * visible
        overlaps.append(_uniform_overlap((rows / rows.sum(-1, keepdim=True))[None, None], visible[None, None])[0, 0])
    return torch.stack(overlaps)


def _second_half(length: int) -> tuple[Int[Tensor, " query"], int]:
    return torch.arange(length - length // 2, length), length // 2


def _causal_mask(length: int) -> Bool[Tensor, "1 1 query key"]:
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()


def _uniform_overlap(
    pattern: Float[Tensor, "batch head query key"], visible: Bool[Tensor, "#batch 1 query key"] | None = None
) -> Float[Tensor, "batch head"]:
    visible = _causal_mask(pattern.shape[-1]).to(pattern.device) if visible is None else visible
    uniform = 1 / visible[:, 0].sum(-1, keepdim=True)
    rows = [  # head by head, so that memory does not hold a second pattern; weights of hidden keys are 0
        torch.minimum(pattern[:, head, FIRST_QUERY:], uniform[:, FIRST_QUERY:].to(pattern))
        for head in range(pattern.shape[1])
    ]
    return torch.stack([row.double().sum(-1).mean(-1) for row in rows], dim=1)
