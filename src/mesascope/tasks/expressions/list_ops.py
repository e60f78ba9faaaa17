"""ListOps: nested lists of digits with operators, to be evaluated.

The task of Nangia & Bowman, ListOps: A Diagnostic Dataset for Latent Tree Learning (arXiv 1804.06028).
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.argument_types import validate_arguments
from mesascope.tasks.base import Batch
from mesascope.tasks.expressions.base import ExpressionTask, log_answer_probabilities
from mesascope.tasks.expressions.labelled_files import LabelledLine
from mesascope.tasks.expressions.list_trees import (
    ANSWER,
    CLOSE,
    NUM_DIGITS,
    PADDING,
    TEXTS,
    ListTree,
    apply_operator,
    draw_list,
    parse_list,
)

EXACT, SHALLOW, CHANCE = "exact evaluation", "nested lists ignored", "chance"
NO_LABEL = -1
MAX_DRAWS = 10_000  # of expressions outside the range of lengths, one after another


@final
@dataclass(frozen=True, kw_only=True)
class ListOps(ExpressionTask[ListTree]):
    """Nested lists of digits with four operators; the value of the expression is predicted.

    After ``[MAX 2 9 [MIN 4 7 ] 0 ] =``, the target is ``9``. An argument is a list with the probability
    ``list_probability``, and a uniform digit otherwise. Operators are MIN, MAX, MED (median, rounded down) and SM (sum
    modulo 10). Expressions outside the range of lengths are drawn again. Sequences are padded with ``.`` on the right;
    only ``=`` is scored.

    Attributes:
        min_length: smallest number of tokens of an expression.
        max_length: largest number of tokens of an expression.
        max_depth: largest number of nested lists.
        min_arguments: smallest number of arguments of a list.
        max_arguments: largest number of arguments of a list.
        list_probability: probability that an argument is a list.
        file: a file of expressions to sample from instead; lines of a label, a tab and an expression, or of an
            expression, a tab and a label after the heading ``Source  Target``. Round brackets are left out. Longer and
            shorter expressions than the range of lengths are left out.
        validation_file: the file of held-out expressions; needed with ``file``.

    Raises:
        ValueError: a field is out of range, or a file cannot be read.

    >>> task = ListOps(max_length=12)
    >>> batch = task.sample(1, torch.Generator().manual_seed(0))
    >>> " ".join(task.decode_token(token) for token in batch.inputs[0].tolist())
    '[SM 0 5 [MED 4 2 ] ] = . . . .'
    """

    min_length: int = 4
    max_length: int = 40
    max_depth: int = 20
    min_arguments: int = 2
    max_arguments: int = 5
    list_probability: float = 0.25

    def _validate_ranges(self) -> None:
        if not 1 <= self.min_arguments <= self.max_arguments:
            raise ValueError(
                "min_arguments must be from 1 to max_arguments, but they are "
                f"{self.min_arguments} and {self.max_arguments}"
            )
        if not self.min_arguments + 2 <= self.max_length:
            raise ValueError(
                f"max_length must be at least min_arguments + 2 = {self.min_arguments + 2}, but got {self.max_length}"
            )
        if not 3 <= self.min_length <= self.max_length:
            raise ValueError(f"min_length must be from 3 to max_length={self.max_length}, but got {self.min_length}")
        if self.max_depth < 1:
            raise ValueError(f"max_depth must be at least 1, but got {self.max_depth}")
        if not 0 <= self.list_probability <= 1:
            raise ValueError(f"list_probability must be from 0 to 1, but got {self.list_probability}")

    @property
    def vocab_size(self) -> int:
        """Digits, operators, the closing bracket, ``=`` and padding."""
        return len(TEXTS)

    @property
    def length(self) -> int:
        """The number of input positions: the longest expression and ``=``."""
        return self.max_length + 1

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` expressions.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch. Its latents are ``depth`` (batch), the number of nested lists; ``expression length`` (batch), in
            tokens; ``list value`` and ``list height`` (batch, pos): at a closing bracket, the value of its list and the
            number of nested lists in it; -1 elsewhere.

        Raises:
            ValueError: no expression has a length in the range.
        """
        trees = self._sample_expressions(n, generator)
        inputs = torch.full((n, self.length), PADDING)
        targets, weight = inputs.clone(), torch.zeros(n, self.length)
        value, height = torch.full_like(inputs, NO_LABEL), torch.full_like(inputs, NO_LABEL)
        for row, tree in enumerate(trees):
            tokens = torch.tensor(tree.to_tokens())
            end = len(tokens)
            inputs[row, :end], inputs[row, end] = tokens, ANSWER
            targets[row, :end], targets[row, end], weight[row, end] = inputs[row, 1 : end + 1], tree.value, 1
            closing, lists = (tokens == CLOSE).nonzero()[:, 0], list(tree.iterate_lists())
            value[row, closing] = torch.tensor([one.value for one in lists])
            height[row, closing] = torch.tensor([one.height for one in lists])
        latents = {
            "depth": torch.tensor([tree.height for tree in trees]),
            "expression length": (inputs == ANSWER).int().argmax(1),
            "list value": value,
            "list height": height,
        }
        return Batch(inputs=inputs, targets=targets, weight=weight, latents=latents)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute log-probabilities of the exact value, of an evaluation without nested lists, and of chance.

        Without nested lists, the operator of the whole expression is applied to the digits among its arguments; without
        digits the prediction is that of chance.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline; where no expression ends, those of chance.
        """
        exact: dict[tuple[int, int], int] = {}
        shallow: dict[tuple[int, int], int] = {}
        for row, end in (batch.inputs == ANSWER).nonzero().tolist():
            try:
                tree = parse_list([TEXTS[token] for token in batch.inputs[row, :end].tolist()])
            except ValueError:  # no expression: chance
                continue
            exact[row, end] = tree.value
            if digits := [one for one in tree.arguments if isinstance(one, int)]:
                shallow[row, end] = apply_operator(tree.operator, digits)
        answers: dict[str, dict[tuple[int, int], int]] = {EXACT: exact, SHALLOW: shallow, CHANCE: {}}
        return {
            name: log_answer_probabilities(batch.inputs, predicted, range(NUM_DIGITS), self.vocab_size)
            for name, predicted in answers.items()
        }

    def decode_token(self, token: int) -> str:
        """Return the text of a token: a digit, an operator with its bracket, ``]``, ``=`` or ``.`` for padding.

        Args:
            token: token index.
        """
        return TEXTS[token]

    def _draw(self, n: int, rng: random.Random) -> list[ListTree]:
        return [self._draw_in_range(rng) for _ in range(n)]

    def _draw_in_range(self, rng: random.Random) -> ListTree:
        for _ in range(MAX_DRAWS):
            tree = draw_list(
                rng,
                max_length=self.max_length,
                max_depth=self.max_depth,
                arguments=(self.min_arguments, self.max_arguments),
                list_probability=self.list_probability,
            )
            if tree is not None and self._is_in_range(tree):
                return tree
        raise ValueError(
            f"expressions must have {self.min_length} to {self.max_length} tokens, but none of {MAX_DRAWS} "
            "draws has; choose a wider range, other arguments or another list_probability"
        )

    def _is_in_range(self, expression: ListTree) -> bool:
        return self.min_length <= len(expression.to_tokens()) <= self.max_length

    def _describe_range(self) -> str:
        return f"expressions of {self.min_length} to {self.max_length} tokens"

    @staticmethod
    def _parse_line(line: LabelledLine) -> ListTree:
        """Parse a label and an expression, in any order, and check the label."""
        if len(line) != 2:
            raise ValueError(f"a line must have a label and an expression, but it has {len(line)} columns")
        label, text = line if len(line[0]) == 1 else line[::-1]
        tree = parse_list([one for one in text.split() if one not in ("(", ")")])
        if str(tree.value) != label.strip():
            raise ValueError(
                f"the label must be {tree.value}, the value of the expression, but it is {label.strip()!r}"
            )
        return tree
