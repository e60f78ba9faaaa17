"""Sentences in which one token decides what follows: the setting of Huang et al., Non-asymptotic Convergence of
Training Transformers for Next-token Prediction (arXiv 2409.17335).
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
SURE = 20.0  # logit of what an oracle predicts


@dataclass(frozen=True, kw_only=True, eq=False)
class Language:
    """Tokens, what follows each, how often each pair is seen, and in which order tokens count for every last token.

    Attributes:
        follows: the collocation of each token, each the collocation of one.
        share: of each pair among all.
        order: by last token, each token's place; the lowest decides.
    """

    follows: Int[Tensor, " token"]
    share: Float[Tensor, " token"]
    order: Int[Tensor, "token token"]

    @classmethod
    def drawn(cls, vocabulary: int, generator: torch.Generator) -> "Language":
        """Some language; pairs are as unequally frequent as words are (Zipf)."""
        share = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
        order = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(vocabulary)])
        return cls(follows=torch.randperm(vocabulary, generator=generator), share=share / share.sum(), order=order)

    def sentences(self, count: int, length: int, generator: torch.Generator) -> Sentences:
        """Different tokens in a random order, all sentences different."""
        found: dict[tuple[int, ...], None] = {}
        while len(found) < count:
            found[tuple(torch.randperm(len(self.follows), generator=generator)[:length].tolist())] = None
        return torch.tensor(list(found))

    def deciding(self, sentences: Sentences) -> Int[Tensor, " sentence"]:
        """The place of the token that decides.

        >>> order = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2]])
        >>> spoken = Language(follows=torch.arange(3), share=torch.full((3,), 1 / 3), order=order)
        >>> spoken.deciding(torch.tensor([[2, 0, 1], [0, 2, 1]])).tolist()
        [0, 1]
        """
        return self.order[sentences[:, -1:], sentences].argmin(1)

    def next_token(self, sentences: Sentences) -> Int[Tensor, " sentence"]:
        """What follows each sentence."""
        return self.follows[sentences.gather(1, self.deciding(sentences)[:, None])[:, 0]]

    def told_by(self, shown: Sentences, asked: Int[Tensor, "other pos"]) -> Bool[Tensor, " other"]:
        """Which sentences have a deciding token that is known to come before their others: from sentences that were
        shown, and from what follows of them.
        """
        tokens = torch.arange(len(self.follows))
        before = torch.zeros(
            len(tokens), len(tokens), len(tokens), dtype=torch.bool
        )  # by last token: one before another
        before[:, tokens, tokens] = True
        before[shown[:, -1:], shown.gather(1, self.deciding(shown)[:, None]), shown] = True
        for middle in tokens:
            before |= before[:, :, middle, None] & before[:, None, middle, :]
        return before[asked[:, -1:], asked.gather(1, self.deciding(asked)[:, None]), asked].all(1)


@final
@dataclass(frozen=True, kw_only=True)
class Collocations(Task):
    """Sentences whose last token says which of them decides the next token, trained on a few and asked on others.

    Every token has a token that follows it, and every last token has an order of its own in which tokens count; what
    follows a sentence is what follows the token that counts most.

    Attributes:
        vocabulary: tokens.
        length: of a sentence; its tokens differ.
        sentences: to train on, drawn again and again.
        language: the seed of the language and of the sentences.
        kept: whether sentences are those of training or others.
    """

    vocabulary: int = 12
    length: int = 5
    sentences: int = 60
    language: int = 0
    kept: Literal["shown", "unseen"] = "shown"

    def __post_init__(self) -> None:
        """Refuse what has no order to learn, or no sentence left."""
        if not 2 <= self.length <= self.vocabulary:
            raise ValueError(
                f"length must lie between 2 and the vocabulary, {self.vocabulary}, since the tokens of a sentence "
                f"differ, but got {self.length}"
            )
        most = 1
        for token in range(self.length):
            most *= self.vocabulary - token
        if not 1 <= self.sentences <= most // 2:
            raise ValueError(f"sentences must lie between 1 and {most // 2}, half of all, but got {self.sentences}")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sentences; ``order_shown`` is 1 where training tells which token decides."""
        language, shown = _made(self.vocabulary, self.length, self.sentences, self.language)
        if self.kept == "shown":
            inputs = shown[torch.randint(0, len(shown), (n,), generator=generator)]
        else:
            inputs = self._unseen(shown, n, generator)
        targets = torch.zeros_like(inputs)
        targets[:, -1] = language.next_token(inputs)
        weight = torch.zeros(inputs.shape)
        weight[:, -1] = 1
        told = language.told_by(shown, inputs).long()[:, None].expand(-1, self.length)
        return Batch(inputs=inputs, targets=targets, weight=weight, latents={"order_shown": told})

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Cross-entropy, in nats; 0 where nothing is asked."""
        return torch.nn.functional.cross_entropy(prediction.mT, batch.targets, reduction="none") * (batch.weight > 0)

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """What the language says, and what it would say if another token decided: the last one, or any."""
        language, _ = _made(self.vocabulary, self.length, self.sentences, self.language)
        language = Language(
            follows=language.follows.to(batch.inputs.device),
            share=language.share.to(batch.inputs.device),
            order=language.order.to(batch.inputs.device),
        )
        each = _one_hot(language.follows[batch.inputs], self.vocabulary)
        after = [language.next_token(batch.inputs[:, : place + 1]) for place in range(self.length)]
        right = _one_hot(torch.stack(after, 1), self.vocabulary)
        seen = each.cumsum(1) / torch.arange(1, self.length + 1, device=each.device)[:, None]
        return {"the language": SURE * right, "the last token": SURE * each, "any token": (seen + 1e-6).log()}

    def validation(self) -> "Collocations":
        """Sentences that training does not show."""
        return replace(self, kept="unseen")

    def _unseen(self, shown: Sentences, n: int, generator: torch.Generator) -> Int[Tensor, "other pos"]:
        """Sentences that are none of those shown."""
        known, found = set(map(tuple, shown.tolist())), []
        while len(found) < n:
            drawn = torch.rand(n, self.vocabulary, generator=generator).argsort(1)[:, : self.length].tolist()
            found += [each for each in drawn if tuple(each) not in known]
        return torch.tensor(found[:n])


def _one_hot(tokens: Int[Tensor, "batch pos"], vocabulary: int) -> Float[Tensor, "batch pos token"]:
    """A unit vector for each token."""
    return torch.nn.functional.one_hot(tokens, vocabulary).float()


@cache
def _made(vocabulary: int, length: int, sentences: int, seed: int) -> tuple[Language, Sentences]:
    """The language and the sentences that training shows."""
    generator = torch.Generator().manual_seed(seed)
    language = Language.drawn(vocabulary, generator)
    return language, language.sentences(sentences, length, generator)
