"""Sequences that hidden generators dictate: the next token is decided by generator and token together.

The setting of Wu & Varshney, A Meta-Learning Perspective on Transformers for Causal Language Modeling (arXiv
2310.05884), whose data set has sequences that each come from a seed. How theirs are made was not found, so the
generators are ours. What the paper calls the seed of a sequence is the latent ``generator`` here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mesascope.tasks.base import Batch, Task

KINDS = ("permutation", "congruential", "markov")
MOST_DRAWS = 1000  # rounds in which every sequence must find a beginning of its split
LEAST = 1e-12  # what an oracle gives to a token that cannot come, so that its logarithm is finite
Rules = Float[Tensor, "generator token next"]
LogProbabilities = Float[Tensor, "batch pos token"]


@final
@dataclass(frozen=True, kw_only=True)
class Seeded(Task):
    """Sequences that hidden generators dictate, told from the prompt and never named.

    The first tokens are drawn at random; from the last of them on, a generator sends each token to the next one: along
    one random cycle through all tokens (permutation), by x' = a x + c modulo their number (congruential), or to one of
    a few tokens at random (markov). All of them use the same tokens, so that neither the token nor the generator alone
    decides what comes next. Now and then the next token is any at all: without such jumps, what follows the last of the
    first tokens would be the same in training and in validation, word for word. Positions are scored from the first at
    which a step of the generator has been seen. Which sequences are kept for validation is decided by generator and
    first tokens together.

    Attributes:
        symbols: tokens; the vocabulary.
        generators: drawn once for a data set, the kinds in turn.
        kinds: of permutation, congruential and markov.
        branching: how many tokens may follow one in a markov generator; their probabilities are Dirichlet(1).
        first: tokens drawn at random.
        jump: how likely the next token is drawn at random, from all.
        length: tokens that are read.
        held_out: share of the beginnings (generator and first tokens) that are kept for validation.
        world: the number of the data set, which its generators and its split are drawn from.
        split: train or validation.

    Raises:
        ValueError: a data set that cannot be drawn.

    >>> batch = Seeded(length=8).sample(2, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, sorted(batch.labels)
    (torch.Size([2, 8]), ['generator', 'generator and next token', 'next token'])
    """

    symbols: int = 23
    generators: int = 12
    kinds: tuple[str, ...] = KINDS
    branching: int = 3
    first: int = 3
    jump: float = 0.1
    length: int = 24
    held_out: float = 0.25
    world: int = 0
    split: Literal["train", "validation"] = "train"

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        known = isinstance(self.kinds, tuple) and bool(self.kinds) and set(self.kinds) <= set(KINDS)
        _must(known, f"kinds must be of {', '.join(KINDS)}, but got {self.kinds}")
        _must(self.symbols >= 3, f"symbols must be at least 3, but got {self.symbols}")
        _must(self.generators >= 1, f"generators must be at least 1, but got {self.generators}")
        _must(self.first >= 1, f"first must be at least 1, but got {self.first}")
        _must(
            self.length > self.first,
            f"length must be at least {self.first + 1}, so that a step can be seen, but got {self.length}",
        )
        _must(
            1 <= self.branching <= self.symbols,
            f"branching must lie in 1..{self.symbols}, the number of symbols, but got {self.branching}",
        )
        _must(0 <= self.jump < 1, f"jump must lie in [0, 1), but got {self.jump}")
        _must(0 < self.held_out < 1, f"held_out must lie between 0 and 1, but got {self.held_out}")
        _must(self.split in ("train", "validation"), f"split must be train or validation, but got {self.split!r}")
        lines = self.symbols * sum(math.gcd(a, self.symbols) == 1 for a in range(1, self.symbols)) - 1
        wanted = sum(self.kind(g) == "congruential" for g in range(self.generators))
        _must(wanted <= lines, f"there are {lines} congruential generators of {self.symbols} symbols, not {wanted}")

    def kind(self, generator: int) -> str:
        """What kind a generator is of."""
        return self.kinds[generator % len(self.kinds)]

    @property
    def rules(self) -> Rules:
        """The probability of each next token, by generator and token, jumps included; float64."""
        dictated = _rules(replace(self, split="train", first=1, length=2, held_out=0.5, jump=0.0))
        return (1 - self.jump) * dictated + self.jump / self.symbols

    def validation(self) -> "Seeded":
        """The same data set, with the beginnings that were held out."""
        return replace(self, split="validation")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences: a generator and first tokens of this split, and what follows."""
        which, tokens = self._beginnings(n, generator)
        reached, sequence = self.rules.cumsum(-1), list(tokens.unbind(1))
        for _ in range(self.length + 1 - self.first):
            chance = torch.rand(n, 1, dtype=torch.float64, generator=generator)
            row = reached[which, sequence[-1]]
            sequence.append(torch.searchsorted(row, chance * row[:, -1:], right=True)[:, 0])
        tokens = torch.stack(sequence, dim=1)
        weight = torch.ones(n, self.length)
        weight[:, : self.first] = 0
        each = which[:, None].expand(n, self.length).contiguous()
        following = tokens[:, 1:].contiguous()
        latents = {
            "generator": each,
            "next token": following,
            "generator and next token": each * self.symbols + following,
        }
        return Batch(inputs=tokens[:, :-1].contiguous(), targets=following, weight=weight, latents=latents)

    def held(self, which: Int[Tensor, " batch"], first: Int[Tensor, "batch first"]) -> Bool[Tensor, " batch"]:
        """Whether beginnings are kept for validation: by a hash of generator, first tokens and data set."""
        state = torch.full_like(which, self.world + 1)
        for token in (which, *first.unbind(1)):
            state = _scramble(state * 1_000_003 + token)
        return (state % 1_000_000) < self.held_out * 1_000_000

    def _beginnings(
        self, n: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, "batch first"]]:
        """Generators and first tokens of this split: drawn again until all are."""
        which = torch.zeros(n, dtype=torch.long)
        first = torch.zeros(n, self.first, dtype=torch.long)
        wrong = torch.ones(n, dtype=torch.bool)
        for _ in range(MOST_DRAWS):
            if not wrong.any():
                return which, first
            count = int(wrong.sum())
            which[wrong] = torch.randint(self.generators, (count,), generator=generator)
            first[wrong] = torch.randint(self.symbols, (count, self.first), generator=generator)
            wrong = self.held(which, first) != (self.split == "validation")
        raise ValueError(
            f"each split must have beginnings, but none was found for {self.split}: {self.generators} generators, "
            f"{self.symbols} symbols and first={self.first} leave too few for held_out={self.held_out}"
        )

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Cross-entropy of the next token, in nats."""
        losses = functional.cross_entropy(prediction.flatten(0, 1), batch.targets.flatten(), reduction="none")
        return losses.view(batch.targets.shape)

    def oracles(self, batch: Batch) -> Mapping[str, LogProbabilities]:
        """Exact log-probabilities of the next token.

        ``unigram`` knows how often each token comes, ``bigram`` what comes after each token. ``Bayes`` knows all
        generators and infers from the prompt which of them it is: no predictor that is not told the generator, and
        does not know which beginnings are held out, does better on average. ``generator known`` is told.
        """
        device, batch = batch.inputs.device, batch.to("cpu")
        known = self.rules[batch.latents["generator"], batch.inputs]
        mixed = torch.einsum("bpg,gbpn->bpn", self.posterior(batch.inputs), self.rules[:, batch.inputs])
        pairs = self._pairs()
        alone = pairs.sum(0).expand(*batch.inputs.shape, -1)
        after = (pairs / pairs.sum(1, keepdim=True).clamp_min(LEAST))[batch.inputs]
        for drawn in (known, mixed):  # the next token is still one of the first, which no generator makes
            drawn[:, : self.first - 1] = 1 / self.symbols
        found = {"unigram": alone, "bigram": after, "Bayes": mixed, "generator known": known}
        return {name: value.clamp_min(LEAST).log().float().to(device) for name, value in found.items()}

    def posterior(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos generator"]:
        """How likely each generator is after each position; all alike where none can have made the prompt."""
        steps = self.rules[:, tokens[:, :-1], tokens[:, 1:]].permute(1, 2, 0).log()
        steps = torch.cat([steps.new_zeros(len(tokens), 1, self.generators), steps], dim=1)
        steps[:, : self.first] = 0  # the first tokens are no generator's
        likelihood = steps.cumsum(1)
        return likelihood.where(likelihood.isfinite().any(-1, keepdim=True), 0.0).softmax(-1)

    def _pairs(self) -> Float[Tensor, "token next"]:
        """How often each token is followed by each at the scored positions, exactly; held-out beginnings count too."""
        at = torch.full((self.generators, self.symbols), 1 / self.symbols, dtype=torch.float64)
        total = torch.zeros(self.symbols, self.symbols, dtype=torch.float64)
        for _ in range(self.first, self.length):
            at = torch.einsum("gt,gtn->gn", at, self.rules)
            total += torch.einsum("gt,gtn->tn", at, self.rules)
        return total / total.sum()


@cache
def _rules(task: Seeded) -> Rules:
    """The generators of a data set."""
    random = torch.Generator().manual_seed(task.world)
    rules, lines = [], _lines(task, random)
    for g in range(task.generators):
        draw = {"permutation": _cycle, "congruential": lambda *_: next(lines), "markov": _branches}[task.kind(g)]
        rules.append(draw(task, random))
    return torch.stack(rules)


def _scramble(x: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """A fixed bijection of 31-bit numbers in which every bit depends on all (Mueller's integer hash)."""
    x = x & 0x7FFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0x7FFFFFFF
    return x ^ (x >> 16)


def _cycle(task: Seeded, random: torch.Generator) -> Float[Tensor, "token next"]:
    """One random cycle through all tokens."""
    order = torch.randperm(task.symbols, generator=random)
    rule = torch.zeros(task.symbols, task.symbols, dtype=torch.float64)
    rule[order, order.roll(-1)] = 1
    return rule


def _lines(task: Seeded, random: torch.Generator):
    """Congruential rules x' = a x + c, no two alike, each a permutation and none the identity."""
    pairs = [(a, c) for a in range(1, task.symbols) if math.gcd(a, task.symbols) == 1 for c in range(task.symbols)]
    pairs.remove((1, 0))
    for place in torch.randperm(len(pairs), generator=random).tolist():
        a, c = pairs[place]
        tokens = torch.arange(task.symbols)
        rule = torch.zeros(task.symbols, task.symbols, dtype=torch.float64)
        rule[tokens, (a * tokens + c) % task.symbols] = 1
        yield rule


def _branches(task: Seeded, random: torch.Generator) -> Float[Tensor, "token next"]:
    """A few tokens after each, with probabilities uniform on the simplex."""
    rule = torch.zeros(task.symbols, task.symbols, dtype=torch.float64)
    for token in range(task.symbols):
        following = torch.randperm(task.symbols, generator=random)[: task.branching]
        share = -torch.rand(task.branching, dtype=torch.float64, generator=random).log()
        rule[token, following] = share / share.sum()
    return rule


def _must(holds: bool, otherwise: str) -> None:
    """Raise ``otherwise`` unless the condition holds."""
    if not holds:
        raise ValueError(otherwise)
