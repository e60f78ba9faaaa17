"""The course of one descent of the toy model, and lines through it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from mesascope.studies.next_token_convergence.max_margin import TokenMatrix
from mesascope.studies.next_token_convergence.training_stages import FIT_WINDOW, TrainingStage
from mesascope.studies.toy_model import fit_line

VALUES_FRACTION = 1e-2  # excess loss of the first stage, over its initial value, at which W_ov is fixed; ours


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
