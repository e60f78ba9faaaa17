"""Transition probabilities of the hidden generators, by kind, and the hash that splits their prefixes."""

import math
from collections.abc import Iterator
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

Transitions = Float[Tensor, "generator token next"]


@cache
def build_transitions(kinds: tuple[str, ...], num_symbols: int, branching: int, seed: int) -> Transitions:
    """Draw the transition probabilities of generators, without jumps.

    Args:
        kinds: the kind of each generator.
        num_symbols: number of tokens.
        branching: number of possible next tokens in a markov generator.
        seed: seed of the generators.

    Returns:
        Probabilities in float64.
    """
    random = torch.Generator().manual_seed(seed)
    congruential = _iterate_congruential(num_symbols, random)
    draws = {
        "permutation": lambda: _sample_cycle(num_symbols, random),
        "congruential": lambda: next(congruential),
        "markov": lambda: _sample_branching(num_symbols, branching, random),
    }
    return torch.stack([draws[kind]() for kind in kinds])


def count_congruential(num_symbols: int) -> int:
    """Count the distinct congruential generators.

    Args:
        num_symbols: number of tokens.

    Returns:
        Their number.
    """
    return num_symbols * sum(math.gcd(a, num_symbols) == 1 for a in range(1, num_symbols)) - 1


def hash_integers(x: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Apply a fixed bijection of 31-bit integers in which every bit depends on all others (Mueller's hash).

    Args:
        x: the integers.

    Returns:
        The hashed integers.
    """
    x = x & 0x7FFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    return x ^ (x >> 16)


def _sample_cycle(num_symbols: int, random: torch.Generator) -> Float[Tensor, "token next"]:
    order = torch.randperm(num_symbols, generator=random)
    rule = torch.zeros(num_symbols, num_symbols, dtype=torch.float64)
    rule[order, order.roll(-1)] = 1
    return rule


def _iterate_congruential(num_symbols: int, random: torch.Generator) -> Iterator[Float[Tensor, "token next"]]:
    """Yield distinct congruential rules x' = a x + c; each is a permutation and none the identity."""
    pairs = [(a, c) for a in range(1, num_symbols) if math.gcd(a, num_symbols) == 1 for c in range(num_symbols)]
    pairs.remove((1, 0))
    for index in torch.randperm(len(pairs), generator=random).tolist():
        a, c = pairs[index]
        tokens = torch.arange(num_symbols)
        rule = torch.zeros(num_symbols, num_symbols, dtype=torch.float64)
        rule[tokens, (a * tokens + c) % num_symbols] = 1
        yield rule


def _sample_branching(num_symbols: int, branching: int, random: torch.Generator) -> Float[Tensor, "token next"]:
    """Sample a few next tokens for each token, with probabilities uniform on the simplex."""
    rule = torch.zeros(num_symbols, num_symbols, dtype=torch.float64)
    for token in range(num_symbols):
        next_tokens = torch.randperm(num_symbols, generator=random)[:branching]
        weights = -torch.rand(branching, dtype=torch.float64, generator=random).log()
        rule[token, next_tokens] = weights / weights.sum()
    return rule
