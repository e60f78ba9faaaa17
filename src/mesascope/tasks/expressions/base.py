"""Tasks of labelled expressions, which are drawn or read from a file."""

import random
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.argument_types import validate_fields
from mesascope.tasks.expressions.labelled_files import LabelledLine, LabelledLines, load_lines
from mesascope.tasks.token_predictions import TokenTask, log_probabilities

Expression = TypeVar("Expression")


@dataclass(frozen=True, kw_only=True)
class ExpressionTask(TokenTask, Generic[Expression]):
    """A task whose sequences are expressions, drawn at random or from a file; the answer after them is predicted.

    Attributes:
        file: a file of labelled expressions to sample from; drawn at random if empty.
        validation_file: the file of held-out expressions; needed with ``file``.

    Raises:
        ValueError: a field is out of range, or a file cannot be read.
    """

    file: str = ""
    validation_file: str = ""

    def __post_init__(self) -> None:
        """Validate the fields, and read the file."""
        validate_fields(self)
        self._validate_ranges()
        if bool(self.file) != bool(self.validation_file):
            raise ValueError(
                "file and validation_file must be given together, but got "
                f"file={self.file!r} and validation_file={self.validation_file!r}"
            )
        if self.file:
            _load_expressions(self, load_lines(self.file))

    @abstractmethod
    def _validate_ranges(self) -> None:
        """Raise a ValueError if a number is out of range."""

    @abstractmethod
    def _draw(self, n: int, rng: random.Random) -> list[Expression]:
        """Draw expressions at random."""

    @staticmethod
    @abstractmethod
    def _parse_line(line: LabelledLine) -> Expression:
        """Parse a line of a file."""

    @abstractmethod
    def _describe_range(self) -> str:
        """Return what expressions of a file must have, for an error message."""

    @abstractmethod
    def _is_in_range(self, expression: Expression) -> bool:
        """Return whether an expression of a file is sampled."""

    def validation_task(self) -> Self:
        """Return the task of the held-out file; without files every expression is fresh."""
        return replace(self, file=self.validation_file) if self.file else self

    @property
    def token_digest(self) -> str:
        """A hash of the file; empty without one."""
        return load_lines(self.file).digest if self.file else ""

    def _sample_expressions(self, n: int, generator: torch.Generator) -> list[Expression]:
        """Draw expressions, from the file if there is one."""
        if not self.file:
            return self._draw(n, random.Random(int(torch.randint(2**62, (1,), generator=generator))))
        expressions = _load_expressions(self, load_lines(self.file))
        return [expressions[row] for row in torch.randint(len(expressions), (n,), generator=generator).tolist()]


@lru_cache(maxsize=8)
def _load_expressions(task: ExpressionTask[Expression], lines: LabelledLines) -> list[Expression]:
    """Parse the lines of a file, and return the expressions that the task samples."""
    expressions = [expression for expression in lines.parse(task._parse_line) if task._is_in_range(expression)]
    if not expressions:
        raise ValueError(f"{task.file} must have {task._describe_range()}, but has none")
    return expressions


def log_answer_probabilities(
    inputs: Int[Tensor, "batch pos"],
    answers: Mapping[tuple[int, int], int],
    choices: Iterable[int],
    vocab_size: int,
) -> Float[Tensor, "batch pos token"]:
    """Return the log-probabilities of a baseline that knows some answers and guesses the others.

    Args:
        inputs: tokens.
        answers: the token that is predicted, by row and position.
        choices: tokens that have the same probability everywhere else.
        vocab_size: number of tokens.
    """
    probabilities = torch.zeros(*inputs.shape, vocab_size)
    possible = list(choices)
    probabilities[..., possible] = 1 / len(possible)
    for (row, position), token in answers.items():
        probabilities[row, position] = 0
        probabilities[row, position, token] = 1
    return log_probabilities(probabilities).to(inputs.device)
