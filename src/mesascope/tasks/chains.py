"""Markov chains learned in context: which symbol follows which is fresh in every sequence and told by it alone.

The setting of Edelman et al., The Evolution of Statistical Induction Heads: In-Context Learning Markov Chains (arXiv
2402.11004): a model may go by how often symbols come at all, or by what came after the present one before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mesascope.tasks import counting
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.icl.base import InContext
from mesascope.tasks.icl.context import Examples, examples_before

Tokens = Int[Tensor, "batch pos"]


@final
@dataclass(frozen=True, kw_only=True)
class Chains(InContext):
    """Symbols, each drawn by what came before it, with probabilities that are fresh in every sequence.

    Attributes:
        symbols: how many there are.
        length: symbols that are read.
        concentration: of the Dirichlet distribution of each row of probabilities: far below 1 one symbol nearly always
            follows another; far above 1 all follow alike.
        scored_from: the first position that counts.
        tokens: those that stand for the symbols, for a model with a vocabulary of its own; 0, 1, 2, ... by default.

    >>> Chains(symbols=3, length=8).sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 8])
    """

    symbols: int = 4
    length: int = 48
    concentration: float = 0.3
    scored_from: int = 0
    tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.symbols < 2:
            raise ValueError(f"symbols must be at least 2, but got {self.symbols}")
        if self.length < 3:
            raise ValueError(f"length must be at least 3, so that a pair has been seen, but got {self.length}")
        if not 0 <= self.scored_from < self.length:
            raise ValueError(f"scored_from must lie in 0..{self.length - 1}, but got {self.scored_from}")
        if not self.concentration > 0:
            raise ValueError(f"concentration must be above 0, but got {self.concentration}")
        if self.tokens is not None and len(set(self.tokens)) != self.symbols:
            raise ValueError(f"tokens must be {self.symbols} different ones, one for a symbol, but got {self.tokens}")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` tables of probabilities and a sequence from each; the first symbol is any."""
        drawn = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        rows = torch.from_numpy(drawn.gamma(self.concentration, size=(n, self.symbols, self.symbols))).clamp_min(1e-30)
        reached = (rows / rows.sum(-1, keepdim=True)).cumsum(-1)
        sequence = [torch.randint(0, self.symbols, (n,), generator=generator)]
        each = torch.arange(n)
        for _ in range(self.length):
            row = reached[each, sequence[-1]]
            chance = torch.rand(n, 1, dtype=torch.float64, generator=generator) * row[:, -1:]
            sequence.append(torch.searchsorted(row, chance, right=True)[:, 0].clamp_max(self.symbols - 1))
        tokens = self._table()[torch.stack(sequence, dim=1)]
        weight = torch.ones(n, self.length)
        weight[:, : self.scored_from] = 0
        return Batch(inputs=tokens[:, :-1].contiguous(), targets=tokens[:, 1:].contiguous(), weight=weight)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Cross-entropy, in nats."""
        return -prediction.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]

    def examples(self, inputs: Tokens) -> Examples:
        """Every symbol, beside the one before it, with the symbol that came next, as indicators."""
        present = self._indicators(inputs)
        before = torch.cat([torch.zeros_like(present[:, :1]), present[:, :-1]], dim=1)
        answers = torch.cat([present[:, 1:], torch.zeros_like(present[:, :1])], dim=1)
        places = tuple(range(inputs.shape[1]))
        return examples_before(torch.cat([present, before], dim=-1), answers, at=places)

    def answers(self, prediction: Float[Tensor, "batch place d_out"]) -> Float[Tensor, "batch place out"]:
        """The probability of every symbol, given that it is one of them."""
        return prediction.double()[..., self._table().to(prediction.device)].softmax(-1)

    def wanted(self, batch: Batch) -> Float[Tensor, "batch pos out"]:
        """What came, as indicators."""
        return self._indicators(batch.targets)

    def shown(self, inputs: Tokens) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """Nothing: there is no gradient by tokens."""
        return {}

    def algorithms(self) -> Sequence[Algorithm]:
        """Counts of one, two and three symbols, the last match, and the present symbol again."""
        return counting.algorithms(self.symbols)

    def shifts(self) -> Mapping[str, "Chains"]:
        """More and less certain chains, and longer sequences."""
        return {
            "nearly certain": replace(self, concentration=self.concentration / 6),
            "nearly alike": replace(self, concentration=self.concentration * 6),
            "twice as long": replace(self, length=2 * self.length),
        }

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Logarithms of the probabilities by chance, and by counts, one of each symbol added."""
        shown, found = self.examples(batch.inputs), {}
        alike = torch.full_like(shown.following[:, 0, :1], 1 / self.symbols).expand(-1, batch.inputs.shape[1], -1)
        found["chance"] = alike
        for algorithm in self.algorithms():
            if algorithm.name in counting.SMOOTHED:
                found[algorithm.name] = algorithm.predict(shown, (1,), added=1.0)[0]
        return {name: self._written(chance) for name, chance in found.items()}

    def _table(self) -> Int[Tensor, " symbol"]:
        """The token of each symbol."""
        return torch.tensor(self.tokens if self.tokens is not None else range(self.symbols))

    def _indicators(self, tokens: Tokens) -> Float[Tensor, "batch pos symbol"]:
        """1 for the symbol that a token stands for, 0 for all others."""
        table = self._table().to(tokens.device)
        found = tokens[..., None] == table
        if not found.any(-1).all():
            raise ValueError(f"tokens must stand for symbols, {table.tolist()}, but others are among them")
        return one_hot(found.int().argmax(-1), self.symbols).double()

    def _written(self, chance: Float[Tensor, "batch pos symbol"]) -> Float[Tensor, "batch pos d_out"]:
        """Logarithms of probabilities, by token; nearly nothing for a token that stands for no symbol."""
        table = self._table().to(chance.device)
        whole = torch.full((*chance.shape[:2], int(table.max()) + 1), -80.0, device=chance.device)
        whole[..., table] = chance.clamp_min(1e-30).log().float()
        return whole
