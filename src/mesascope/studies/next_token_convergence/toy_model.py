"""Toy model of next-token prediction: one layer of attention that learns collocations, then the deciding token.

Huang, Liang and Yang 2024, Non-asymptotic Convergence of Training Transformers for Next-token Prediction
(arXiv 2409.17335). Every token has a collocation, the token that follows it. The last token of a sentence ranks all
tokens, and the next token is the collocation of the highest-ranked token of the sentence. Logits are
W_ov X softmax(X^T W_kq x_last) with one-hot tokens. W_ov is trained on pairs only, then W_kq with W_ov fixed, both from
zero by normalised gradient descent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import do_nothing
from mesascope.studies.next_token_convergence.task import CollocationLanguage
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, fit_line, simulation_generator

TokenMatrix = Float[Tensor, "token token"]
MatrixEntry = tuple[int, int]
STAGES = ["collocations", "deciding token"]
NORMALISED, PLAIN = DESCENTS = ["normalised gradient descent", "gradient descent"]
STAGE_DESCENTS = [f"{stage}, {descent}" for stage in STAGES for descent in DESCENTS]
TRAINING_SENTENCES, IMPLIED, NOT_IMPLIED = SENTENCE_KINDS = [
    "training",
    "unseen, order implied",
    "unseen, order not implied",
]
FIT_WINDOW = (1e-1, 1e-6)  # excess loss over its initial value, where the line is fitted; ours
VALUES_FRACTION = 1e-2  # excess loss of the first stage, over its initial value, at which W_ov is fixed; ours
MIN_EXCESS_FRACTION = 1e-10  # the second stage stops here: below, rounding errors determine the direction


@final
@dataclass(frozen=True, kw_only=True)
class NextTokenModel(ToyModel):
    """Both stages of training, each by normalised gradient descent and, as the control, by gradient descent.

    The first stage ends when its loss is 1e-6 of the initial loss. The second uses W_ov from the step at which the loss
    was 1% of the initial loss: the collocations are learned by then, and the loss still depends on attention.

    Attributes:
        vocabulary: number of tokens.
        length: of a sentence.
        sentences: number of training sentences.
        unseen: number of other sentences, on which generalisation is tested.
        step_size: norm of a normalised update; the learning rate of gradient descent is ten times as large.
        steps: number of updates of each stage.
        checkpoints: number of steps that are recorded.
    """

    vocabulary: int = 12
    length: int = 5
    sentences: int = 60
    unseen: int = 2_000
    step_size: float = 0.1
    steps: int = 2_000
    checkpoints: int = 101

    def __post_init__(self) -> None:
        """Validate the length."""
        if not 2 <= self.length <= self.vocabulary:
            raise ValueError(
                f"length must lie between 2 and the vocabulary, {self.vocabulary}, since the tokens of a sentence "
                f"differ, but got {self.length}"
            )

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Train both stages and test unseen sentences.

        Args:
            seed: of the language and of the sentences.
            progress: receives (steps done, total steps, NaN).

        Returns:
            Curves of both stages by step, fits to them, and accuracy by kind of sentence.

        Raises:
            ValueError: the first stage has too few steps to learn the collocations.
        """
        generator = simulation_generator(seed)
        language = CollocationLanguage.sample(self.vocabulary, generator)
        drawn = language.sample_sentences(self.sentences + self.unseen, self.length, generator)
        training, unseen = drawn[: self.sentences], drawn[self.sentences :]
        first = self._train_stage(TrainingStage.from_collocations(language), progress)
        values = first[0].values_matrix  # of normalised gradient descent, for both descents of the second stage
        if not values.any():
            excess = first[0].excess_loss
            raise ValueError(
                f"steps must be enough for the loss of collocations to fall to {VALUES_FRACTION} of its initial value, "
                f"but after {self.steps} it is {excess[-1] / excess[0]:.2g} of it; take more"
            )
        second = self._train_stage(TrainingStage.from_sentences(language, training, values), progress)
        results = xr.Dataset(_describe_curves([*first, *second], self.steps, self.checkpoints))
        recorded_steps = results["step"].values.tolist()
        results["attention"] = to_data_array(
            np.array(second[0].attention)[recorded_steps],
            "step",
            units="1",
            description="attention to the deciding token, mean over training sentences, normalised gradient descent",
            coords={"step": recorded_steps},
        )
        correct = [check_predictions(language, each, values, second[0].matrix) for each in (training, unseen)]
        implied = language.implies_order(training, unseen)
        by_kind = dict(zip(SENTENCE_KINDS, (correct[0], correct[1][implied], correct[1][~implied]), strict=True))
        return results.assign(_describe_accuracy(by_kind))

    def _train_stage(self, stage: "TrainingStage", progress: Progress) -> list["DescentRecord"]:
        return [self._run_descent(stage, normalised, progress) for normalised in (True, False)]

    def _run_descent(self, stage: "TrainingStage", normalised: bool, progress: Progress) -> "DescentRecord":
        matrix = torch.zeros(self.vocabulary, self.vocabulary, dtype=torch.float64, requires_grad=True)
        record = DescentRecord.empty(self.vocabulary)
        for _ in count_steps(self.steps, progress):
            loss = stage.loss(matrix)
            record.record_step(matrix.detach(), loss.item(), stage)
            if record.excess_loss[-1] <= stage.stop_fraction * record.excess_loss[0]:
                break
            (gradient,) = torch.autograd.grad(loss, matrix)
            step = self.step_size * gradient / gradient.norm() if normalised else 10 * self.step_size * gradient
            matrix = (matrix.detach() - step).requires_grad_()
        record.repeat_last(self.steps + 1)
        return record


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
            losses = torch.nn.functional.cross_entropy(matrix.mT, language.collocations, reduction="none")
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

        def compute_loss(matrix: TokenMatrix) -> Float[Tensor, ""]:
            return torch.nn.functional.cross_entropy(compute_next_logits(sentences, values, matrix), next_tokens)

        def compute_attention(matrix: TokenMatrix) -> float:
            return attend_to_sentences(sentences, matrix)[rows, deciding].mean().item()

        ordered = {
            ((sentence[pos], sentence[-1]), (other, sentence[-1]))
            for sentence, pos in zip(sentences.tolist(), deciding.tolist(), strict=True)
            for other in sentence
            if other != sentence[pos]
        }
        return cls(
            loss=compute_loss,
            min_loss=torch.nn.functional.cross_entropy(values[:, sentences[rows, deciding]].mT, next_tokens).item(),
            margin_matrix=solve_max_margin(sorted(ordered), len(values)),
            stop_fraction=MIN_EXCESS_FRACTION,
            attention=compute_attention,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DescentRecord:
    """The course of one descent.

    Attributes:
        matrix: the newest matrix.
        values_matrix: the matrix at which the excess loss first was 1% of its initial value; zero before.
        excess_loss, norm, margin_cosine, attention: one number for each step.
    """

    matrix: TokenMatrix
    values_matrix: TokenMatrix
    excess_loss: list[float]
    norm: list[float]
    margin_cosine: list[float]
    attention: list[float]

    @classmethod
    def empty(cls, size: int) -> "DescentRecord":
        """Return a record without steps.

        Args:
            size: number of tokens.
        """
        matrix, values = torch.zeros(2, size, size, dtype=torch.float64)
        return cls(matrix=matrix, values_matrix=values, excess_loss=[], norm=[], margin_cosine=[], attention=[])

    def record_step(self, matrix: TokenMatrix, loss: float, stage: TrainingStage) -> None:
        """Record one step.

        Args:
            matrix: the matrix before the update.
            loss: of the matrix.
            stage: gives the lowest loss, the margin and the attention.
        """
        self.matrix.copy_(matrix)
        self.excess_loss.append(loss - stage.min_loss)
        if not self.values_matrix.any() and self.excess_loss[-1] <= VALUES_FRACTION * self.excess_loss[0]:
            self.values_matrix.copy_(matrix)
        self.norm.append(matrix.norm().item())
        cosine = torch.nn.functional.cosine_similarity(matrix.ravel(), stage.margin_matrix.ravel(), dim=0)
        self.margin_cosine.append(cosine.item())
        self.attention.append(stage.attention(matrix))

    def repeat_last(self, steps: int) -> None:
        """Extend the curves to a number of steps by their last values.

        Args:
            steps: number of steps after the extension.
        """
        for curve in (self.excess_loss, self.norm, self.margin_cosine, self.attention):
            curve += curve[-1:] * (steps - len(curve))


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


def check_predictions(
    language: CollocationLanguage, sentences: Int[Tensor, "sentence pos"], values: TokenMatrix, scores: TokenMatrix
) -> Float[Tensor, " sentence"]:
    """Return 1 for each sentence whose correct next token has the largest logit, else 0.

    Args:
        language: gives the correct next tokens.
        sentences: tokens.
        values: W_ov.
        scores: W_kq.
    """
    predicted = compute_next_logits(sentences, values, scores).argmax(1)
    return (predicted == language.predict_next_tokens(sentences)).double()


def solve_max_margin(ordered: Sequence[tuple[MatrixEntry, MatrixEntry]], size: int) -> TokenMatrix:
    """Return the matrix of least norm in which given entries exceed others by 1.

    It is a least-distance problem, solved by non-negative least squares (Lawson and Hanson 1974, chapter 23).

    Args:
        ordered: pairs of entries; the first must exceed the second.
        size: rows and columns of the matrix.

    Raises:
        ValueError: no matrix satisfies the constraints.

    >>> solve_max_margin([((0, 0), (1, 0))], 2).round(decimals=9).tolist()
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    differences = np.zeros((len(ordered), size, size))
    for row, (high, low) in enumerate(ordered):
        differences[row][high] += 1
        differences[row][low] -= 1
    system = np.vstack([differences.reshape(len(ordered), -1).T, np.ones(len(ordered))])
    target = np.append(np.zeros(size * size), 1.0)
    weights, distance = nnls(system, target)
    if distance < 1e-9:
        raise ValueError("orders must not contradict each other, but no matrix satisfies all of these; remove some")
    residual = system @ weights - target
    return torch.from_numpy(-residual[:-1] / residual[-1]).view(size, size)


_CURVES = {
    "excess_loss": ("nat", "cross-entropy minus its infimum"),
    "norm": ("1", "Frobenius norm of the matrix"),
    "margin_cosine": ("1", "cosine with the matrix of least norm that has a margin of 1"),
}


def _describe_curves(records: Sequence[DescentRecord], steps: int, checkpoints: int) -> dict[str, xr.DataArray]:
    recorded_steps = list(evenly_spaced_steps(steps, checkpoints))
    variables = {}
    for name, (units, description) in _CURVES.items():
        curves = np.array([getattr(record, name) for record in records])[:, recorded_steps].T
        coords = {"step": recorded_steps, "stat": STAGE_DESCENTS}
        variables[name] = to_data_array(curves, "step", "stat", units=units, description=description, coords=coords)
    variables["excess_loss"].attrs["scale"] = "log"
    for name in ("excess_loss", "norm"):  # the claims are about straight lines
        variables[name].attrs["steps"] = "even"
    loss_r2, fitted_decades = np.array([fit_log_decay(np.array(record.excess_loss)) for record in records]).T
    norm_r2 = np.array([fit_norm_growth(record) for record in records])
    fits = {
        "loss_r2": (loss_r2, "R² of a line through the logarithm of the excess loss, by step"),
        "fitted_decades": (fitted_decades, "powers of ten of the excess loss to which the line is fitted"),
        "norm_r2": (norm_r2, "R² of a line through the norm, by step"),
    }
    for name, (values, description) in fits.items():
        coords = {"stat": STAGE_DESCENTS}
        variables[name] = to_data_array(values, "stat", units="1", description=description, coords=coords)
    return variables


def _describe_accuracy(correct: dict[str, Tensor]) -> dict[str, xr.DataArray]:
    accuracy = [values.mean().item() if len(values) else float("nan") for values in correct.values()]
    counts = [len(values) for values in correct.values()]
    coords = {"distribution": list(correct)}
    return {
        "accuracy": to_data_array(
            torch.tensor(accuracy, dtype=torch.float64),
            "distribution",
            units="1",
            description="fraction of sentences whose next token has the largest logit, after both stages",
            coords=coords,
        ),
        "count": to_data_array(
            torch.tensor(counts),
            "distribution",
            units="sentences",
            description="number of sentences of each kind",
            coords=coords,
        ),
    }


def fit_log_decay(excess_loss: Float[np.ndarray, " step"]) -> tuple[float, float]:
    """Fit a line to the logarithm of the excess loss inside the fit window.

    Args:
        excess_loss: one number for each step.

    Returns:
        R² of the line, and the powers of ten that it covers; NaN and 0 for less than three steps.
    """
    fraction = np.maximum(excess_loss, 1e-300) / excess_loss[0]
    inside = np.flatnonzero((fraction <= FIT_WINDOW[0]) & (fraction >= FIT_WINDOW[1]))
    if len(inside) < 3:
        return float("nan"), 0.0
    logs = np.log10(fraction[inside])
    return fit_line(inside.astype(float), logs)[1], float(np.ptp(logs))


def fit_norm_growth(record: DescentRecord) -> float:
    """Return R² of a line through the norm, up to the step at which the descent stops.

    Args:
        record: of the descent.
    """
    norm = np.array(record.norm)
    moving = np.append(True, np.diff(norm) != 0)
    return fit_line(np.flatnonzero(moving).astype(float), norm[moving])[1]
