"""In-context learning of Markov chains whose transition probabilities are drawn anew for every sequence.

The task of Edelman et al., The Evolution of Statistical Induction Heads: In-Context Learning Markov Chains (arXiv
2402.11004): a model may predict from unigram counts, or from counts of the symbols that followed the current one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mesascope.argument_types import validate_arguments, validate_fields
from mesascope.tasks import counting
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.icl.base import InContextTask
from mesascope.tasks.icl.context import ContextExamples, build_context
from mesascope.tasks.token_predictions import TokenTask

ChainTokens = Int[Tensor, "batch pos"]


@final
@dataclass(frozen=True, kw_only=True)
class MarkovChains(TokenTask, InContextTask):
    """Markov chains over a few symbols; every sequence has its own transition matrix.

    Attributes:
        num_symbols: number of symbols.
        length: number of input positions.
        concentration: parameter of the symmetric Dirichlet distribution of each row of the transition matrix; far below
            1 transitions are nearly deterministic, far above 1 nearly uniform.
        scored_from: first position that is scored.
        tokens: token of each symbol, for a model with its own vocabulary; 0, 1, 2, ... by default.
        prefix: tokens before the symbols of every sequence, such as the BOS token of a language model; never scored.

    >>> MarkovChains(num_symbols=3, length=8).sample(2, torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([2, 8])
    """

    num_symbols: int = 4
    length: int = 48
    concentration: float = 0.3
    scored_from: int = 0
    tokens: tuple[int, ...] | None = None
    prefix: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        if self.num_symbols < 2:
            raise ValueError(f"num_symbols must be at least 2, but got {self.num_symbols}")
        if self.length < 3:
            raise ValueError(f"length must be at least 3, so that a context pair exists, but got {self.length}")
        if not 0 <= self.scored_from < self.length:
            raise ValueError(f"scored_from must lie in 0..{self.length - 1}, but got {self.scored_from}")
        if not self.concentration > 0:
            raise ValueError(f"concentration must be above 0, but got {self.concentration}")
        if self.tokens is not None and len(set(self.tokens)) != self.num_symbols:
            raise ValueError(
                f"tokens must be {self.num_symbols} distinct tokens, one per symbol, but got {self.tokens}"
            )

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw transition matrices and a sequence from each; the first symbol is uniform.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch of sequences.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        rows = torch.from_numpy(rng.gamma(self.concentration, size=(n, self.num_symbols, self.num_symbols))).clamp_min(
            1e-30
        )
        cumulative = (rows / rows.sum(-1, keepdim=True)).cumsum(-1)
        sequence = [torch.randint(0, self.num_symbols, (n,), generator=generator)]
        sequence_index = torch.arange(n)
        for _ in range(self.length):
            row = cumulative[sequence_index, sequence[-1]]
            threshold = torch.rand(n, 1, dtype=torch.float64, generator=generator) * row[:, -1:]
            sequence.append(torch.searchsorted(row, threshold, right=True)[:, 0].clamp_max(self.num_symbols - 1))
        tokens = self._symbol_tokens()[torch.stack(sequence, dim=1)]
        weight = torch.ones(n, self.length)
        weight[:, : self.scored_from] = 0
        inputs, targets, weight = (
            torch.cat([torch.tensor(before, dtype=values.dtype).expand(n, -1), values], dim=1)
            for before, values in (
                (self.prefix, tokens[:, :-1]),
                ([self._symbol_tokens()[0]] * len(self.prefix), tokens[:, 1:]),
                ([0] * len(self.prefix), weight),
            )
        )
        return Batch(inputs=inputs.contiguous(), targets=targets.contiguous(), weight=weight)

    def extract_examples(self, inputs: ChainTokens) -> ContextExamples:
        """Extract the transitions of every sequence as one-hot context pairs.

        Args:
            inputs: tokens.

        Returns:
            Pairs whose input is the current and the previous symbol, and whose target is the next symbol.
        """
        current = self._encode_symbols(inputs[:, len(self.prefix) :])
        previous = torch.cat([torch.zeros_like(current[:, :1]), current[:, :-1]], dim=1)
        targets = torch.cat([current[:, 1:], torch.zeros_like(current[:, :1])], dim=1)
        positions = tuple(range(len(self.prefix), inputs.shape[1]))
        return build_context(torch.cat([current, previous], dim=-1), targets, positions=positions)

    def convert_predictions(self, prediction: Float[Tensor, "batch query d_out"]) -> Float[Tensor, "batch query out"]:
        """Convert logits to probabilities of the symbols, renormalised over the tokens that stand for symbols.

        Args:
            prediction: logits at the query positions.

        Returns:
            Probabilities, in float64.
        """
        return prediction.double()[..., self._symbol_tokens().to(prediction.device)].softmax(-1)

    def convert_targets(self, batch: Batch) -> Float[Tensor, "batch pos out"]:
        """Convert target tokens to one-hot symbols.

        Args:
            batch: sequences with targets.

        Returns:
            One-hot targets, in float64.
        """
        return self._encode_symbols(batch.targets)

    def gradient_masks(self, inputs: ChainTokens) -> Mapping[str, Bool[Tensor, "pos d_in"]]:
        """Return no groups, because predictions are not differentiable with respect to tokens.

        Args:
            inputs: tokens.

        Returns:
            An empty mapping.
        """
        return {}

    def candidate_algorithms(self) -> Sequence[Algorithm]:
        """Return unigram, bigram and trigram counts, the most recent match, and repetition of the current symbol."""
        return counting.counting_algorithms(self.num_symbols)

    def distribution_shifts(self) -> Mapping[str, "MarkovChains"]:
        """Return tasks with more and less deterministic chains, and with longer sequences."""
        return {
            "low-entropy transitions": replace(self, concentration=self.concentration / 6),
            "high-entropy transitions": replace(self, concentration=self.concentration * 6),
            "sequences twice as long": replace(self, length=2 * self.length),
        }

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute log-probabilities of the uniform distribution and of add-one smoothed n-gram counts.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline.
        """
        context, predictions = self.extract_examples(batch.inputs), {}
        uniform = torch.full_like(context.context_y[:, 0, :1], 1 / self.num_symbols).expand(
            -1, batch.inputs.shape[1] - len(self.prefix), -1
        )
        predictions["chance"] = uniform
        for algorithm in self.candidate_algorithms():
            if algorithm.name in counting.SMOOTHED_COUNTS:
                predictions[algorithm.name] = algorithm.predict(context, (1,), pseudocount=1.0)[0]
        return {  # at positions of the prefix as at the first symbol
            name: self._token_log_probabilities(torch.cat([chance[:, :1]] * len(self.prefix) + [chance], dim=1))
            for name, chance in predictions.items()
        }

    def _symbol_tokens(self) -> Int[Tensor, " symbol"]:
        return torch.tensor(self.tokens if self.tokens is not None else range(self.num_symbols))

    def _encode_symbols(self, tokens: ChainTokens) -> Float[Tensor, "batch pos symbol"]:
        table = self._symbol_tokens().to(tokens.device)
        matches = tokens[..., None] == table
        if not matches.any(-1).all():
            raise ValueError(f"tokens must be those of the symbols, {table.tolist()}, but the sequences have others")
        return one_hot(matches.int().argmax(-1), self.num_symbols).double()

    def _token_log_probabilities(
        self, probabilities: Float[Tensor, "batch pos symbol"]
    ) -> Float[Tensor, "batch pos d_out"]:
        """Convert probabilities of symbols to log-probabilities of tokens."""
        table = self._symbol_tokens().to(probabilities.device)
        # Tokens without a symbol have probability e^-80.
        log_probabilities = torch.full(
            (*probabilities.shape[:2], int(table.max()) + 1), -80.0, device=probabilities.device
        )
        log_probabilities[..., table] = probabilities.clamp_min(1e-30).log().float()
        return log_probabilities
