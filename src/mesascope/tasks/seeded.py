"""Sequences from hidden generators: the generator and the current token determine the next token.

The task of Wu & Varshney, A Meta-Learning Perspective on Transformers for Causal Language Modeling (arXiv 2310.05884),
whose data set has sequences that each come from a seed. The paper does not report how its sequences are made, so the
generators are ours. The paper's seed of a sequence is the latent ``generator`` here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks._generator_rules import (
    Transitions,
    build_transitions,
    count_congruential,
    hash_integers,
)
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.token_predictions import MIN_PROBABILITY, log_probabilities

GENERATOR_KINDS = ("permutation", "congruential", "markov")
MAX_DRAWS = 1000  # rounds of rejection sampling
LogProbabilities = Float[Tensor, "batch pos token"]


@final
@dataclass(frozen=True, kw_only=True)
class SeededSequences(Task):
    """Sequences from a fixed set of hidden generators, which a model must infer from the prompt.

    The first tokens are drawn at random. From the last of them on, a generator maps each token to the next one: along
    one random cycle through all tokens (permutation), by x' = a x + c modulo the number of tokens (congruential), or to
    one of a few tokens at random (markov). All generators share the same tokens, so that neither the token nor the
    generator alone determines the next token. With a small probability the next token is drawn from all tokens: without
    such jumps, the continuation of a given last prefix token would be identical in training and validation. Positions
    are scored from the first at which a step of the generator has been seen. The train/validation split is by generator
    and prefix together; otherwise the first steps of a generator would leak which prefixes are held out.

    Attributes:
        num_symbols: number of tokens, the vocabulary size.
        num_generators: number of generators in the data set; the kinds alternate.
        generator_kinds: kinds of generator, from permutation, congruential and markov.
        branching: number of possible next tokens in a markov generator; their probabilities are Dirichlet(1).
        prefix_length: number of random tokens at the beginning (the prefix).
        jump_probability: probability that the next token is drawn uniformly from all tokens.
        length: number of input positions.
        held_out: fraction of the prefixes (generator and first tokens) that is held out for validation.
        dataset_seed: seed of the data set, which determines its generators and its split.
        split: train or validation.

    Raises:
        ValueError: a field is out of range, or there are fewer congruential generators than requested.

    >>> batch = SeededSequences(length=8).sample(2, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, sorted(batch.categorical_latents)
    (torch.Size([2, 8]), ['generator', 'generator and next token', 'next token'])
    """

    num_symbols: int = 23
    num_generators: int = 12
    generator_kinds: tuple[str, ...] = GENERATOR_KINDS
    branching: int = 3
    prefix_length: int = 3
    jump_probability: float = 0.1
    length: int = 24
    held_out: float = 0.25
    dataset_seed: int = 0
    split: Literal["train", "validation"] = "train"

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        kinds = self.generator_kinds
        _raise_unless(
            isinstance(kinds, tuple) and bool(kinds) and set(kinds) <= set(GENERATOR_KINDS),
            f"generator_kinds must be a tuple of {', '.join(GENERATOR_KINDS)}, but got {kinds}",
        )
        self._check_sizes()
        self._check_fractions()
        self._check_congruential()

    def _check_sizes(self) -> None:
        _raise_unless(self.num_symbols >= 3, f"num_symbols must be at least 3, but got {self.num_symbols}")
        _raise_unless(self.num_generators >= 1, f"num_generators must be at least 1, but got {self.num_generators}")
        _raise_unless(self.prefix_length >= 1, f"prefix_length must be at least 1, but got {self.prefix_length}")
        _raise_unless(
            self.length > self.prefix_length,
            f"length must be at least {self.prefix_length + 1}, so that a step can be seen, but got {self.length}",
        )
        _raise_unless(
            1 <= self.branching <= self.num_symbols,
            f"branching must lie in 1..{self.num_symbols}, the number of symbols, but got {self.branching}",
        )

    def _check_fractions(self) -> None:
        _raise_unless(
            0 <= self.jump_probability < 1, f"jump_probability must lie in [0, 1), but got {self.jump_probability}"
        )
        _raise_unless(0 < self.held_out < 1, f"held_out must lie between 0 and 1, but got {self.held_out}")
        _raise_unless(
            self.split in ("train", "validation"), f"split must be train or validation, but got {self.split!r}"
        )

    def _check_congruential(self) -> None:
        max_congruential = count_congruential(self.num_symbols)
        num_congruential = sum(self.kind_of_generator(g) == "congruential" for g in range(self.num_generators))
        _raise_unless(
            num_congruential <= max_congruential,
            f"{self.num_symbols} symbols allow at most {max_congruential} congruential generators, but got "
            f"{num_congruential}; use fewer",
        )

    def kind_of_generator(self, generator: int) -> str:
        """Return the kind of a generator.

        Args:
            generator: index of the generator.

        Returns:
            One of the kinds.
        """
        return self.generator_kinds[generator % len(self.generator_kinds)]

    @property
    def transition_probabilities(self) -> Transitions:
        """The transition probabilities of each generator, jumps included, in float64."""
        kinds = tuple(map(self.kind_of_generator, range(self.num_generators)))
        dictated = build_transitions(kinds, self.num_symbols, self.branching, self.dataset_seed)
        return (1 - self.jump_probability) * dictated + self.jump_probability / self.num_symbols

    def validation_task(self) -> "SeededSequences":
        """Return the same data set with the held-out prefixes."""
        return replace(self, split="validation")

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw generators and prefixes of this split, and their continuations.

        Returns:
            The batch, with the latents ``generator``, ``next token`` and ``generator and next token``.

        Raises:
            ValueError: the split has no prefixes.
        """
        generators, tokens = self._sample_prefixes(n, generator)
        cumulative, sequence = self.transition_probabilities.cumsum(-1), list(tokens.unbind(1))
        for _ in range(self.length + 1 - self.prefix_length):
            threshold = torch.rand(n, 1, dtype=torch.float64, generator=generator)
            row = cumulative[generators, sequence[-1]]
            sequence.append(torch.searchsorted(row, threshold * row[:, -1:], right=True)[:, 0])
        return self._build_batch(generators, torch.stack(sequence, dim=1))

    def _build_batch(self, generators: Int[Tensor, " batch"], tokens: Int[Tensor, "batch token"]) -> Batch:
        weight = torch.ones(len(tokens), self.length)
        weight[:, : self.prefix_length] = 0
        generator_per_position = generators[:, None].expand(len(tokens), self.length).contiguous()
        next_tokens = tokens[:, 1:].contiguous()
        latents = {
            "generator": generator_per_position,
            "next token": next_tokens,
            "generator and next token": generator_per_position * self.num_symbols + next_tokens,
        }
        return Batch(inputs=tokens[:, :-1].contiguous(), targets=next_tokens, weight=weight, latents=latents)

    def is_held_out(
        self, generators: Int[Tensor, " batch"], prefixes: Int[Tensor, "batch first"]
    ) -> Bool[Tensor, " batch"]:
        """Return a mask of the prefixes that are held out, from a hash of generator, first tokens and data set.

        Args:
            generators: generator of each prefix.
            prefixes: tokens of each prefix.

        Returns:
            True for prefixes of the validation split.
        """
        state = torch.full_like(generators, self.dataset_seed + 1)
        for token in (generators, *prefixes.unbind(1)):
            state = hash_integers(state * 1_000_003 + token)
        return (state % 1_000_000) < self.held_out * 1_000_000

    def _sample_prefixes(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, "batch first"]]:
        """Sample generators and first tokens by rejection until all belong to this split."""
        generators = torch.zeros(n, dtype=torch.long)
        prefixes = torch.zeros(n, self.prefix_length, dtype=torch.long)
        rejected = torch.ones(n, dtype=torch.bool)
        for _ in range(MAX_DRAWS):
            if not rejected.any():
                return generators, prefixes
            count = int(rejected.sum())
            generators[rejected] = torch.randint(self.num_generators, (count,), generator=generator)
            prefixes[rejected] = torch.randint(self.num_symbols, (count, self.prefix_length), generator=generator)
            rejected = self.is_held_out(generators, prefixes) != (self.split == "validation")
        raise ValueError(
            f"each split must have prefixes, but none was drawn for {self.split}: {self.num_generators} generators, "
            f"{self.num_symbols} symbols and prefix_length={self.prefix_length} are too few for "
            f"held_out={self.held_out}"
        )

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the cross-entropy of the next token, in nats, (batch, pos)."""
        losses = functional.cross_entropy(prediction.flatten(0, 1), batch.targets.flatten(), reduction="none")
        return losses.view(batch.targets.shape)

    def baselines(self, batch: Batch) -> Mapping[str, LogProbabilities]:
        """Compute exact log-probabilities of the next token.

        ``unigram`` uses the token frequencies, ``bigram`` the frequencies given the current token. ``Bayes`` knows all
        generators and infers from the prompt which one it is: no predictor that is given neither the generator nor the
        held-out prefixes is better on average. ``known generator`` is given the generator.
        """
        device, batch = batch.inputs.device, batch.to("cpu")
        given_generator = self.transition_probabilities[batch.latents["generator"], batch.inputs]
        posterior_mean = torch.einsum(
            "bpg,gbpn->bpn", self.generator_posterior(batch.inputs), self.transition_probabilities[:, batch.inputs]
        )
        for prediction in (given_generator, posterior_mean):  # within the prefix the next token is uniform
            prediction[:, : self.prefix_length - 1] = 1 / self.num_symbols
        predictions = self._count_baselines(batch.inputs) | {
            "Bayes": posterior_mean,
            "known generator": given_generator,
        }
        return {name: log_probabilities(value).float().to(device) for name, value in predictions.items()}

    def _count_baselines(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, LogProbabilities]:
        pairs = self._pair_frequencies()
        bigram = (pairs / pairs.sum(1, keepdim=True).clamp_min(MIN_PROBABILITY))[tokens]
        return {"unigram": pairs.sum(0).expand(*tokens.shape, -1), "bigram": bigram}

    def generator_posterior(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos generator"]:
        """Compute the posterior probability of each generator after each position.

        Args:
            tokens: tokens of the prompt.

        Returns:
            Probabilities; uniform where no generator can produce the prompt.
        """
        steps = self.transition_probabilities[:, tokens[:, :-1], tokens[:, 1:]].permute(1, 2, 0).log()
        steps = torch.cat([steps.new_zeros(len(tokens), 1, self.num_generators), steps], dim=1)
        steps[:, : self.prefix_length] = 0  # the prefix is independent of the generator
        likelihood = steps.cumsum(1)
        return likelihood.where(likelihood.isfinite().any(-1, keepdim=True), 0.0).softmax(-1)

    def _pair_frequencies(self) -> Float[Tensor, "token next"]:
        """Compute the exact frequency of token pairs at scored positions, held-out prefixes included."""
        current = torch.full((self.num_generators, self.num_symbols), 1 / self.num_symbols, dtype=torch.float64)
        total = torch.zeros(self.num_symbols, self.num_symbols, dtype=torch.float64)
        for _ in range(self.prefix_length, self.length):
            current = torch.einsum("gt,gtn->gn", current, self.transition_probabilities)
            total += torch.einsum("gt,gtn->tn", current, self.transition_probabilities)
        return total / total.sum()


def _raise_unless(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
