"""Logical inference: the relation between two formulas of propositional logic.

The task of Bowman, Manning & Potts, Tree-structured Composition in Neural Networks without Tree-structured
Architectures (arXiv 1506.04834). How pairs are drawn is ours.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.argument_types import validate_arguments
from mesascope.tasks.base import Batch
from mesascope.tasks.expressions.base import ExpressionTask, log_answer_probabilities
from mesascope.tasks.expressions.formulas import (
    OPERATORS,
    RELATIONS,
    VARIABLES,
    Formula,
    draw_formula,
    find_relation,
    parse_formula,
)
from mesascope.tasks.expressions.labelled_files import LabelledLine

SEPARATOR, ANSWER, PADDING = ":", "?", "."
TEXTS = (*RELATIONS, *VARIABLES, *OPERATORS, "(", ")", SEPARATOR, ANSWER, PADDING)
TOKENS = {text: token for token, text in enumerate(TEXTS)}
EXACT, NO_NEGATIONS, INDEPENDENT, CHANCE = "exact relation", "negations ignored", "always independent", "chance"
Pair = tuple[Formula, Formula]


@final
@dataclass(frozen=True, kw_only=True)
class LogicalInference(ExpressionTask[Pair]):
    """Two formulas of propositional logic; which of seven relations holds between them is predicted.

    After ``( a and ( not b ) ) : a ?``, the target is ``<``. The relations are ``=`` equivalence, ``<`` forward and
    ``>`` reverse entailment, ``^`` negation, ``|`` alternation (never both true), ``v`` cover (always one true) and
    ``#`` independence. The longer formula of a pair has ``min_operators`` to ``max_operators`` operators, every number
    with the same probability, the other one at most as many. Both formulas use up to ``max_variables`` of six
    variables. Formulas that are always true or always false are drawn again. Sequences are padded with ``.`` on the
    right; only ``?`` is scored.

    Attributes:
        min_operators: smallest number of operators of the longer formula.
        max_operators: largest number of operators of the longer formula.
        max_variables: largest number of variables of a pair.
        file: a file of pairs to sample from instead, with a relation, a tab, a formula, a tab and a formula per line.
            Pairs whose longer formula is outside the range are left out.
        validation_file: the file of held-out pairs; needed with ``file``.

    Raises:
        ValueError: a field is out of range, or a file cannot be read.

    >>> task = LogicalInference(max_operators=2)
    >>> batch = task.sample(1, torch.Generator().manual_seed(2))
    >>> " ".join(task.decode_token(token) for token in batch.inputs[0].tolist()).rstrip(" .")
    '( c or d ) : a ?'
    """

    min_operators: int = 0
    max_operators: int = 6
    max_variables: int = 4

    def _validate_ranges(self) -> None:
        if not 0 <= self.min_operators <= self.max_operators:
            raise ValueError(
                f"min_operators must be from 0 to max_operators={self.max_operators}, but got {self.min_operators}"
            )
        if not 1 <= self.max_variables <= len(VARIABLES):
            raise ValueError(f"max_variables must be from 1 to {len(VARIABLES)}, but got {self.max_variables}")

    @property
    def vocab_size(self) -> int:
        """Relations, variables, operators, brackets, ``:``, ``?`` and padding."""
        return len(TEXTS)

    @property
    def length(self) -> int:
        """The number of input positions: two formulas of the largest size, ``:`` and ``?``."""
        return 2 * (1 + 4 * self.max_operators) + 2

    @validate_arguments
    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` pairs of formulas.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch. Its latents are ``operators`` (batch), the number of operators of the longer formula, and
            ``depth`` (batch), the number of nested operators.
        """
        pairs = self._sample_expressions(n, generator)
        inputs = torch.full((n, self.length), TOKENS[PADDING])
        targets, weight = inputs.clone(), torch.zeros(n, self.length)
        for row, (left, right) in enumerate(pairs):
            texts = [*left.to_texts(), SEPARATOR, *right.to_texts(), ANSWER, find_relation(left, right)]
            tokens = torch.tensor([TOKENS[text] for text in texts])
            end = len(tokens) - 1
            inputs[row, :end], targets[row, :end], weight[row, end - 1] = tokens[:-1], tokens[1:], 1
        latents = {
            "operators": torch.tensor([max(one.num_operators for one in pair) for pair in pairs]),
            "depth": torch.tensor([max(one.height for one in pair) for pair in pairs]),
        }
        return Batch(inputs=inputs, targets=targets, weight=weight, latents=latents)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute log-probabilities of four predictors of the relation.

        - exact relation: from the truth tables;
        - negations ignored: the relation of the formulas without their negations, chance if one is constant;
        - always independent: the most frequent relation;
        - chance: all relations have the same probability.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline; where no pair ends, those of chance.
        """
        answers: dict[str, dict[tuple[int, int], int]] = {
            name: {} for name in (EXACT, NO_NEGATIONS, INDEPENDENT, CHANCE)
        }
        for row, end in (batch.inputs == TOKENS[ANSWER]).nonzero().tolist():
            answers[INDEPENDENT][row, end] = TOKENS["#"]
            try:
                left, right = _parse_pair([TEXTS[token] for token in batch.inputs[row, :end].tolist()])
                answers[EXACT][row, end] = TOKENS[find_relation(left, right)]
                positive = left.without_negations(), right.without_negations()
                answers[NO_NEGATIONS][row, end] = TOKENS[find_relation(*positive)]
            except ValueError:  # no pair, or a formula that is constant: chance
                continue
        relations = [TOKENS[name] for name in RELATIONS]
        return {
            name: log_answer_probabilities(batch.inputs, predicted, relations, self.vocab_size)
            for name, predicted in answers.items()
        }

    def decode_token(self, token: int) -> str:
        """Return the text of a token: a relation, a variable, an operator, a bracket, ``:``, ``?`` or padding, ``.``.

        Args:
            token: token index.
        """
        return TEXTS[token]

    def _draw(self, n: int, rng: random.Random) -> list[Pair]:
        return [self._draw_pair(rng) for _ in range(n)]

    def _draw_pair(self, rng: random.Random) -> Pair:
        variables = rng.sample(VARIABLES, rng.randint(1, self.max_variables))
        longer = rng.randint(self.min_operators, self.max_operators)
        sizes = [longer, rng.randint(0, longer)]
        rng.shuffle(sizes)
        first, second = (self._draw_contingent(rng, size, variables) for size in sizes)
        return first, second

    def _draw_contingent(self, rng: random.Random, size: int, variables: Sequence[str]) -> Formula:
        while (formula := draw_formula(rng, size, variables)).is_constant:
            pass
        return formula

    def _is_in_range(self, expression: Pair) -> bool:
        return self.min_operators <= max(one.num_operators for one in expression) <= self.max_operators

    def _describe_range(self) -> str:
        return f"pairs whose longer formula has {self.min_operators} to {self.max_operators} operators"

    @staticmethod
    def _parse_line(line: LabelledLine) -> Pair:
        """Parse a relation and two formulas, and check the relation."""
        if len(line) != 3:
            raise ValueError(f"a line must have a relation and two formulas, but it has {len(line)} columns")
        left, right = (parse_formula(text.split()) for text in line[1:])
        relation = find_relation(left, right)
        if line[0].strip() != relation:
            raise ValueError(
                f"the relation must be {relation} ({RELATIONS[relation]}), that of the formulas, but it is "
                f"{line[0].strip()!r}"
            )
        return left, right


def _parse_pair(texts: list[str]) -> Pair:
    if SEPARATOR not in texts:
        raise ValueError(f"a pair must have {SEPARATOR} between its formulas, but there is none")
    middle = texts.index(SEPARATOR)
    return parse_formula(texts[:middle]), parse_formula(texts[middle + 1 :])
