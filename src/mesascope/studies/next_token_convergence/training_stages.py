"""The two training stages of the toy model: the loss of each matrix, and the matrix of largest margin."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from mesascope.studies.next_token_convergence.max_margin import MatrixEntry, TokenMatrix, solve_max_margin
from mesascope.studies.next_token_convergence.task import CollocationLanguage

EntryOrder = tuple[MatrixEntry, MatrixEntry]
FIT_WINDOW = (1e-1, 1e-6)  # excess loss over its initial value, where the line is fitted; ours
MIN_EXCESS_FRACTION = 1e-10  # the second stage stops here: below, rounding errors determine the direction


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingStage:
    """The objective of one of the two matrices.

    Attributes:
        loss: cross-entropy as a function of the matrix.
        min_loss: infimum of the loss.
        margin_matrix: the matrix of least norm that separates all correct entries from the others by a margin of 1.
        stop_fraction: excess loss over its initial value at which descent stops.
        attention: mean attention to the deciding tokens as a function of the matrix; NaN without attention.
    """

    loss: Callable[[TokenMatrix], Float[Tensor, ""]]
    min_loss: float
    margin_matrix: TokenMatrix
    stop_fraction: float
    attention: Callable[[TokenMatrix], float] = lambda matrix: float("nan")

    @classmethod
    def from_collocations(cls, language: CollocationLanguage) -> "TrainingStage":
        """Return the stage of W_ov, in which the collocation of every token should have the largest logit.

        Args:
            language: gives collocations and their frequencies.
        """

        def compute_loss(matrix: TokenMatrix) -> Float[Tensor, ""]:
            losses = cross_entropy(matrix.mT, language.collocations, reduction="none")
            return losses @ language.frequencies

        size = len(language.frequencies)
        ordered = [
            ((correct, token), (other, token))
            for token, correct in enumerate(language.collocations.tolist())
            for other in range(size)
            if other != correct
        ]
        margin_matrix = solve_max_margin(ordered, size)
        return cls(loss=compute_loss, min_loss=0.0, margin_matrix=margin_matrix, stop_fraction=FIT_WINDOW[1])

    @classmethod
    def from_sentences(
        cls, language: CollocationLanguage, sentences: Int[Tensor, "sentence pos"], values: TokenMatrix
    ) -> "TrainingStage":
        """Return the stage of W_kq, in which the deciding token should get the most attention.

        Args:
            language: gives the deciding tokens and the next tokens.
            sentences: training sentences.
            values: W_ov, which is fixed.
        """
        rows, deciding = torch.arange(len(sentences)), language.find_deciding_positions(sentences)
        next_tokens = language.predict_next_tokens(sentences)
        return cls(
            loss=lambda matrix: cross_entropy(compute_next_logits(sentences, values, matrix), next_tokens),
            min_loss=cross_entropy(values[:, sentences[rows, deciding]].mT, next_tokens).item(),
            margin_matrix=solve_max_margin(_order_scores(sentences, deciding), len(values)),
            stop_fraction=MIN_EXCESS_FRACTION,
            attention=lambda matrix: attend_to_sentences(sentences, matrix)[rows, deciding].mean().item(),
        )


def _order_scores(sentences: Int[Tensor, "sentence pos"], deciding: Int[Tensor, " sentence"]) -> list[EntryOrder]:
    """Return pairs of scores; that of a deciding token must exceed those of the other tokens of its sentence."""
    ordered = {
        ((sentence[pos], sentence[-1]), (other, sentence[-1]))
        for sentence, pos in zip(sentences.tolist(), deciding.tolist(), strict=True)
        for other in sentence
        if other != sentence[pos]
    }
    return sorted(ordered)


def attend_to_sentences(sentences: Int[Tensor, "sentence pos"], scores: TokenMatrix) -> Float[Tensor, "sentence pos"]:
    """Return the attention from the last token of each sentence to all of its tokens.

    Args:
        sentences: tokens.
        scores: W_kq.
    """
    return scores[sentences, sentences[:, -1:]].softmax(1)


def compute_next_logits(
    sentences: Int[Tensor, "sentence pos"], values: TokenMatrix, scores: TokenMatrix
) -> Float[Tensor, "sentence token"]:
    """Return the logits of the next token.

    Args:
        sentences: tokens.
        values: W_ov.
        scores: W_kq.
    """
    return torch.einsum("sp,vsp->sv", attend_to_sentences(sentences, scores), values[:, sentences])
