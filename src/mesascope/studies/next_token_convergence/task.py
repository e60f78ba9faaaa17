"""Sentences in which one token determines the next token.

The setting of Huang et al. 2024, Non-asymptotic Convergence of Training Transformers for Next-token Prediction
(arXiv 2409.17335).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.tasks.base import Batch, Task

Sentences = Int[Tensor, "sentence pos"]
BASELINE_LOGIT = 20.0  # logit of the token that a baseline predicts


@dataclass(frozen=True, kw_only=True, eq=False)
class CollocationLanguage:
    """A random language: collocations of tokens, their frequencies, and a ranking of tokens for every last token.

    Attributes:
        collocations: the token that follows each token; a permutation.
        frequencies: of each pair of a token and its collocation; they sum to 1.
        ranks: rank of each token (second axis) by last token (first axis); the lowest rank in a sentence decides.
    """

    collocations: Int[Tensor, " token"]
    frequencies: Float[Tensor, " token"]
    ranks: Int[Tensor, "token token"]

    @classmethod
    def sample(cls, vocabulary: int, generator: torch.Generator) -> "CollocationLanguage":
        """Draw a language whose pairs have Zipf frequencies.

        Args:
            vocabulary: number of tokens.
            generator: source of randomness.

        Returns:
            the language.
        """
        frequencies = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
        ranks = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(vocabulary)])
        return cls(
            collocations=torch.randperm(vocabulary, generator=generator),
            frequencies=frequencies / frequencies.sum(),
            ranks=ranks,
        )

    def sample_sentences(self, count: int, length: int, generator: torch.Generator) -> Sentences:
        """Draw distinct sentences of distinct tokens.

        Args:
            count: number of sentences.
            length: of a sentence.
            generator: source of randomness.

        Returns:
            the sentences, (sentence, pos).
        """
        sentences: dict[tuple[int, ...], None] = {}
        while len(sentences) < count:
            sentences[tuple(torch.randperm(len(self.collocations), generator=generator)[:length].tolist())] = None
        return torch.tensor(list(sentences))

    def find_deciding_positions(self, sentences: Sentences) -> Int[Tensor, " sentence"]:
        """Return the position of the deciding token, which has the lowest rank.

        Args:
            sentences: tokens.

        >>> ranks = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2]])
        >>> frequencies = torch.full((3,), 1 / 3)
        >>> language = CollocationLanguage(collocations=torch.arange(3), frequencies=frequencies, ranks=ranks)
        >>> language.find_deciding_positions(torch.tensor([[2, 0, 1], [0, 2, 1]])).tolist()
        [0, 1]
        """
        return self.ranks[sentences[:, -1:], sentences].argmin(1)

    def predict_next_tokens(self, sentences: Sentences) -> Int[Tensor, " sentence"]:
        """Return the token that follows each sentence: the collocation of its deciding token.

        Args:
            sentences: tokens.
        """
        return self.collocations[sentences.gather(1, self.find_deciding_positions(sentences)[:, None])[:, 0]]

    def implies_order(self, training: Sentences, sentences: Int[Tensor, "other pos"]) -> Bool[Tensor, " other"]:
        """Return whether the training sentences imply which token of each sentence decides.

        Every training sentence ranks its deciding token before its other tokens; the relation is transitive.

        Args:
            training: sentences whose next tokens are known.
            sentences: sentences to be decided.
        """
        tokens = torch.arange(len(self.collocations))
        # by last token: whether one token is known to rank before another
        before = torch.zeros(len(tokens), len(tokens), len(tokens), dtype=torch.bool)
        before[:, tokens, tokens] = True
        deciding = training.gather(1, self.find_deciding_positions(training)[:, None])
        before[training[:, -1:], deciding, training] = True
        for middle in tokens:
            before |= before[:, :, middle, None] & before[:, None, middle, :]
        deciding = sentences.gather(1, self.find_deciding_positions(sentences)[:, None])
        return before[sentences[:, -1:], deciding, sentences].all(1)


@final
@dataclass(frozen=True, kw_only=True)
class Collocations(Task):
    """Sentences in which the last token selects the token that determines the next one.

    Every token has a collocation, the token that follows it, and every last token has a ranking of all tokens. The
    next token of a sentence is the collocation of its highest-ranked token. Training uses a fixed set of sentences,
    validation uses others.

    Attributes:
        vocabulary: number of tokens.
        length: of a sentence; its tokens differ.
        sentences: number of training sentences, which are drawn repeatedly.
        language: seed of the language and of the training sentences.
        split: whether sentences are drawn from the training set or outside it.
    """

    vocabulary: int = 12
    length: int = 5
    sentences: int = 60
    language: int = 0
    split: Literal["training", "validation"] = "training"

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if not 2 <= self.length <= self.vocabulary:
            raise ValueError(
                f"length must lie between 2 and the vocabulary, {self.vocabulary}, since the tokens of a sentence "
                f"differ, but got {self.length}"
            )
        total = 1
        for token in range(self.length):
            total *= self.vocabulary - token
        if not 1 <= self.sentences <= total // 2:
            raise ValueError(f"sentences must lie between 1 and {total // 2}, half of all, but got {self.sentences}")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sentences.

        Args:
            n: number of sentences.
            generator: source of randomness.

        Returns:
            The batch, scored at the last position; its latent ``order_implied`` is 1 where the training sentences imply
            which token decides.
        """
        language, training = _build_language(self.vocabulary, self.length, self.sentences, self.language)
        if self.split == "training":
            inputs = training[torch.randint(0, len(training), (n,), generator=generator)]
        else:
            inputs = self._sample_unseen(training, n, generator)
        targets = torch.zeros_like(inputs)
        targets[:, -1] = language.predict_next_tokens(inputs)
        weight = torch.zeros(inputs.shape)
        weight[:, -1] = 1
        implied = language.implies_order(training, inputs).long()[:, None].expand(-1, self.length)
        return Batch(inputs=inputs, targets=targets, weight=weight, latents={"order_implied": implied})

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the cross-entropy of the next token.

        Args:
            prediction: logits.
            batch: the sentences that were predicted.

        Returns:
            Cross-entropy in nats; 0 at positions that are not scored.
        """
        return torch.nn.functional.cross_entropy(prediction.mT, batch.targets, reduction="none") * (batch.weight > 0)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the logits of baselines that differ in which token decides.

        Args:
            batch: the sentences to predict.

        Returns:
            The exact rule, the collocation of the last token, and a uniform mixture of the collocations of all tokens.
        """
        language, _ = _build_language(self.vocabulary, self.length, self.sentences, self.language)
        language = CollocationLanguage(
            collocations=language.collocations.to(batch.inputs.device),
            frequencies=language.frequencies.to(batch.inputs.device),
            ranks=language.ranks.to(batch.inputs.device),
        )
        collocations = _encode_one_hot(language.collocations[batch.inputs], self.vocabulary)
        next_tokens = [language.predict_next_tokens(batch.inputs[:, : pos + 1]) for pos in range(self.length)]
        exact = _encode_one_hot(torch.stack(next_tokens, 1), self.vocabulary)
        mixture = collocations.cumsum(1) / torch.arange(1, self.length + 1, device=collocations.device)[:, None]
        return {
            "exact rule": BASELINE_LOGIT * exact,
            "last token": BASELINE_LOGIT * collocations,
            "mixture of all tokens": (mixture + 1e-6).log(),
        }

    def validation_task(self) -> "Collocations":
        """Return the task of sentences that are not in the training set."""
        return replace(self, split="validation")

    def _sample_unseen(self, training: Sentences, n: int, generator: torch.Generator) -> Int[Tensor, "other pos"]:
        excluded, sentences = set(map(tuple, training.tolist())), []
        while len(sentences) < n:
            drawn = torch.rand(n, self.vocabulary, generator=generator).argsort(1)[:, : self.length].tolist()
            sentences += [sentence for sentence in drawn if tuple(sentence) not in excluded]
        return torch.tensor(sentences[:n])


def _encode_one_hot(tokens: Int[Tensor, "batch pos"], vocabulary: int) -> Float[Tensor, "batch pos token"]:
    return torch.nn.functional.one_hot(tokens, vocabulary).float()


@cache
def _build_language(vocabulary: int, length: int, sentences: int, seed: int) -> tuple[CollocationLanguage, Sentences]:
    """Return the language and the training sentences."""
    generator = torch.Generator().manual_seed(seed)
    language = CollocationLanguage.sample(vocabulary, generator)
    return language, language.sample_sentences(sentences, length, generator)
