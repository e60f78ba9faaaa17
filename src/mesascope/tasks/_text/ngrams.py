"""Token and token-pair counts, and the probabilities of the next token that follow from them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_PSEUDOCOUNT = 0.1  # ours: negligible for a token with a hundred occurrences
_DISCOUNT = 0.75  # Church & Gale 1991, measured on 44 million words for all but the rarest pairs


@dataclass(frozen=True, eq=False)
class NgramCounts:
    """Token and token-pair counts.

    Attributes:
        unigram: probability of each token.
        first: first token of each distinct pair, sorted.
        second: second token of each distinct pair.
        count: count of each distinct pair.
    """

    unigram: Float[Tensor, " token"]
    first: Int[Tensor, " pair"]
    second: Int[Tensor, " pair"]
    count: Float[Tensor, " pair"]

    def bigram_log_probabilities(self, inputs: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_out"]:
        """Compute log-probabilities of the next token; only rows of tokens in ``inputs`` are computed.

        Args:
            inputs: token indices.

        Returns:
            Log-probabilities.
        """
        tokens, row = inputs.unique(return_inverse=True)
        selected = torch.isin(self.first, tokens)
        cells = torch.searchsorted(tokens, self.first[selected]), self.second[selected]
        table = torch.zeros(len(tokens), len(self.unigram)).index_put(cells, self.count[selected])
        total = table.sum(1, keepdim=True)
        discounted = _DISCOUNT * (table > 0).sum(1, keepdim=True)
        conditional = ((table - _DISCOUNT).clamp_min(0) + discounted * self.unigram) / total.clamp_min(1)
        return torch.where(total > 0, conditional, self.unigram).log()[row]


def count_ngrams(tokens: Int[Tensor, " token"], vocab_size: int) -> NgramCounts:
    """Count tokens and pairs of consecutive tokens.

    Args:
        tokens: token indices.
        vocab_size: number of tokens.

    Returns:
        The counts.
    """
    single = torch.bincount(tokens, minlength=vocab_size).double() + _PSEUDOCOUNT
    pairs, count = (tokens[:-1] * vocab_size + tokens[1:]).unique(return_counts=True)
    return NgramCounts(
        unigram=(single / single.sum()).float(),
        first=pairs // vocab_size,
        second=pairs % vocab_size,
        count=count.float(),
    )
