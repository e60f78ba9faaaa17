"""Toy model of next-token prediction: one layer of attention that learns collocations, then the deciding token.

Huang, Liang and Yang 2024, Non-asymptotic Convergence of Training Transformers for Next-token Prediction
(arXiv 2409.17335). Every token has a collocation, the token that follows it. The last token of a sentence ranks all
tokens, and the next token is the collocation of the highest-ranked token of the sentence. Logits are
W_ov X softmax(X^T W_kq x_last) with one-hot tokens. W_ov is trained on pairs only, then W_kq with W_ov fixed, both from
zero by normalised gradient descent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import do_nothing
from mesascope.studies.next_token_convergence.descent_record import (
    VALUES_FRACTION,
    DescentRecord,
    fit_log_decay,
    fit_norm_growth,
)
from mesascope.studies.next_token_convergence.max_margin import TokenMatrix
from mesascope.studies.next_token_convergence.task import CollocationLanguage, Sentences
from mesascope.studies.next_token_convergence.training_stages import TrainingStage, compute_next_logits
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator

STAGES = ["collocations", "deciding token"]
NORMALISED, PLAIN = DESCENTS = ["normalised gradient descent", "gradient descent"]
STAGE_DESCENTS = [f"{stage}, {descent}" for stage in STAGES for descent in DESCENTS]
TRAINING_SENTENCES, IMPLIED, NOT_IMPLIED = SENTENCE_KINDS = [
    "training",
    "unseen, order implied",
    "unseen, order not implied",
]


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
        language, training, unseen = self._draw_sentences(simulation_generator(seed))
        first = self._train_collocations(language, progress)
        values = first[0].values_matrix  # of normalised gradient descent, for both descents of the second stage
        second = self._train_stage(TrainingStage.from_sentences(language, training, values), progress)
        results = xr.Dataset(_describe_curves([*first, *second], self.steps, self.checkpoints))
        correct = [check_predictions(language, each, values, second[0].matrix) for each in (training, unseen)]
        implied = language.implies_order(training, unseen)
        by_kind = dict(zip(SENTENCE_KINDS, (correct[0], correct[1][implied], correct[1][~implied]), strict=True))
        return results.assign(_describe_attention(second[0], results["step"]) | _describe_accuracy(by_kind))

    def _draw_sentences(
        self, generator: torch.Generator
    ) -> tuple[CollocationLanguage, Sentences, Int[Tensor, "other pos"]]:
        language = CollocationLanguage.sample(self.vocabulary, generator)
        drawn = language.sample_sentences(self.sentences + self.unseen, self.length, generator)
        return language, drawn[: self.sentences], drawn[self.sentences :]

    def _train_collocations(self, language: CollocationLanguage, progress: Progress) -> list[DescentRecord]:
        records = self._train_stage(TrainingStage.from_collocations(language), progress)
        if not records[0].values_matrix.any():
            excess = records[0].excess_loss
            raise ValueError(
                f"steps must be enough for the loss of collocations to fall to {VALUES_FRACTION} of its initial value, "
                f"but after {self.steps} it is {excess[-1] / excess[0]:.2g} of it; take more"
            )
        return records

    def _train_stage(self, stage: TrainingStage, progress: Progress) -> list[DescentRecord]:
        return [self._run_descent(stage, normalised, progress) for normalised in (True, False)]

    def _run_descent(self, stage: TrainingStage, normalised: bool, progress: Progress) -> DescentRecord:
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


_CURVES = {
    "excess_loss": ("nat", "cross-entropy minus its infimum"),
    "norm": ("1", "Frobenius norm of the matrix"),
    "margin_cosine": ("1", "cosine with the minimum-norm matrix that has a margin of 1"),
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
        "loss_r2": (loss_r2, "R² of a linear fit of the log excess loss by step"),
        "fitted_decades": (fitted_decades, "powers of ten of the excess loss in the fit"),
        "norm_r2": (norm_r2, "R² of a linear fit of the norm by step"),
    }
    for name, (values, description) in fits.items():
        coords = {"stat": STAGE_DESCENTS}
        variables[name] = to_data_array(values, "stat", units="1", description=description, coords=coords)
    return variables


def _describe_attention(record: DescentRecord, steps: xr.DataArray) -> dict[str, xr.DataArray]:
    recorded_steps = steps.values.tolist()
    attention = to_data_array(
        np.array(record.attention)[recorded_steps],
        "step",
        units="1",
        description="attention to the deciding token, mean over training sentences, normalised gradient descent",
        coords={"step": recorded_steps},
    )
    return {"attention": attention}


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
