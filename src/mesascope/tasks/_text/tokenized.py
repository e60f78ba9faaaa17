"""A corpus as tokens, split by document into a training and a validation part."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Literal

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from mesascope.tasks import corpora
from mesascope.tasks._text.ngrams import NgramCounts, count_ngrams
from mesascope.tasks.corpora import Corpus

Split = Literal["train", "validation"]
DOCUMENT_END = "\n\n"  # appended to every document


@dataclass(frozen=True, eq=False)
class TokenStream:
    """A sequence of tokens from consecutive documents.

    Attributes:
        tokens: int32.
        document: index, in the whole corpus, of the document of each token; int32.
    """

    tokens: Int[Tensor, " token"]
    document: Int[Tensor, " token"]


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """A corpus with its tokenizer."""

    corpus: Corpus
    tokenizer: Tokenizer
    held_out: float
    vocab_size: int

    @cached_property
    def split_streams(self) -> dict[Split, TokenStream]:
        """The tokens of each split; every document is encoded separately."""
        held_out = select_held_out(self.corpus.documents, self.held_out)
        numbers = range(len(self.corpus.documents))
        return {
            "train": self._encode_documents([number for number in numbers if number not in held_out]),
            "validation": self._encode_documents(sorted(held_out)),
        }

    @cached_property
    def digest(self) -> str:
        """A hash of the documents and the tokenizer."""
        return corpora.corpus_digest(self.corpus, self.tokenizer.to_str())

    @cached_property
    def ngram_counts(self) -> "NgramCounts":
        """The n-gram counts of the training split."""
        return count_ngrams(self.split_streams["train"].tokens.long(), self.vocab_size)

    def check_length(self, length: int) -> None:
        """Check that each split is long enough for two different windows.

        Args:
            length: number of input positions of a window.

        Raises:
            ValueError: a split is too short.
        """
        for name, stream in self.split_streams.items():
            if len(stream.tokens) < length + 2:
                raise ValueError(
                    f"the {name} split must have at least {length + 2} tokens for length={length}, but "
                    f"{self.corpus.source_description} has {len(stream.tokens)}; give more text, or a smaller length"
                )

    def _encode_documents(self, indices: list[int]) -> TokenStream:
        texts = [self.corpus.documents[number] + DOCUMENT_END for number in indices]
        ids = [found.ids for found in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        document = torch.tensor(indices, dtype=torch.int32)
        return TokenStream(
            tokens=torch.cat([torch.tensor(each, dtype=torch.int32) for each in ids]),
            document=document.repeat_interleave(torch.tensor([len(each) for each in ids])),
        )


def select_held_out(documents: Sequence[str], fraction: float) -> set[int]:
    """Select the indices of the held-out documents, by document hash.

    Args:
        documents: the documents.
        fraction: fraction that is held out, at least one document.

    Returns:
        The indices.

    Raises:
        ValueError: there is only one document.
    """
    if len(documents) < 2:
        raise ValueError(
            "a text must have at least two documents, one of them held out, but has 1; give more text, or a file "
            "instead of a folder, because files are split into pieces"
        )
    # By hash rather than by a random permutation, so that no library version changes the split.
    order = sorted(range(len(documents)), key=lambda number: sha256(documents[number].encode()).digest())
    return set(order[: min(max(round(fraction * len(order)), 1), len(order) - 1)])
