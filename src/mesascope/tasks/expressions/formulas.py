"""Formulas of propositional logic: drawing, truth tables, tokens and parsing."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

VARIABLES = ("a", "b", "c", "d", "e", "f")
OPERATORS = ("and", "or", "not")
RELATIONS = {
    "=": "equivalence",
    "<": "forward entailment",
    ">": "reverse entailment",
    "^": "negation",
    "|": "alternation",
    "v": "cover",
    "#": "independence",
}
NUM_ROWS = 2 ** len(VARIABLES)  # of a truth table
TRUE = 2**NUM_ROWS - 1  # truth tables are integers with one bit per row
VARIABLE_TABLES = {
    name: sum(1 << row for row in range(NUM_ROWS) if row >> index & 1) for index, name in enumerate(VARIABLES)
}


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A variable, or an operator with its formulas.

    Attributes:
        name: a variable, ``and``, ``or`` or ``not``.
        parts: the formulas that the operator connects; none for a variable.
    """

    name: str
    parts: tuple["Formula", ...] = ()

    @cached_property
    def table(self) -> int:
        """The truth table: one bit per assignment of the variables.

        >>> parse_formula("( a or ( not a ) )".split()).table == TRUE
        True
        """
        tables = [part.table for part in self.parts]
        if self.name == "not":
            return TRUE ^ tables[0]
        if self.name == "and":
            return tables[0] & tables[1]
        return tables[0] | tables[1] if self.name == "or" else VARIABLE_TABLES[self.name]

    @property
    def is_constant(self) -> bool:
        """True if the formula is always true or always false."""
        return self.table in (0, TRUE)

    @cached_property
    def num_operators(self) -> int:
        """The number of operators."""
        return bool(self.parts) + sum(part.num_operators for part in self.parts)

    @property
    def height(self) -> int:
        """The number of operators on the longest path to a variable."""
        return bool(self.parts) + max((part.height for part in self.parts), default=0)

    def to_texts(self) -> list[str]:
        """Return the texts of the tokens.

        >>> " ".join(parse_formula("( a ( and ( not b ) ) )".split()).to_texts())
        '( a and ( not b ) )'
        """
        if not self.parts:
            return [self.name]
        first, *others = (part.to_texts() for part in self.parts)
        inner = [*first, self.name, *others[0]] if others else [self.name, *first]
        return ["(", *inner, ")"]

    def without_negations(self) -> "Formula":
        """Return the formula in which every negation is replaced by what it negates."""
        parts = tuple(part.without_negations() for part in self.parts)
        return parts[0] if self.name == "not" else Formula(name=self.name, parts=parts)


def find_relation(left: Formula, right: Formula) -> str:
    """Return the relation between two formulas, a key of `RELATIONS`.

    The relations are those of Bowman, Potts & Manning (arXiv 1406.1827); exactly one holds between formulas that are
    neither always true nor always false.

    Args:
        left: the first formula.
        right: the second formula.

    Raises:
        ValueError: a formula is always true or always false.

    >>> a, both = parse_formula(["a"]), parse_formula("( a and b )".split())
    >>> find_relation(both, a), find_relation(a, parse_formula("( not a )".split()))
    ('<', '^')
    """
    for name, formula in (("left", left), ("right", right)):
        if formula.is_constant:
            always = "true" if formula.table else "false"
            raise ValueError(f"a formula must be true and false somewhere, but the {name} one is always {always}")
    if left.table == right.table:
        return "="
    overlap, union = left.table & right.table, left.table | right.table
    if overlap == left.table:
        return "<"
    if overlap == right.table:
        return ">"
    return {(True, True): "^", (True, False): "|", (False, True): "v"}.get((overlap == 0, union == TRUE), "#")


def draw_formula(rng: random.Random, num_operators: int, variables: Sequence[str]) -> Formula:
    """Draw a formula from the top down.

    Every operator has the same probability. The operators that remain below ``and`` and ``or`` are divided between
    both sides, every division with the same probability.

    Args:
        rng: source of randomness.
        num_operators: number of operators.
        variables: variables to choose from.

    Returns:
        The formula.
    """
    if num_operators == 0:
        return Formula(name=rng.choice(variables))
    name, below = rng.choice(OPERATORS), num_operators - 1
    if name == "not":
        return Formula(name=name, parts=(draw_formula(rng, below, variables),))
    left = rng.randint(0, below)
    parts = (draw_formula(rng, left, variables), draw_formula(rng, below - left, variables))
    return Formula(name=name, parts=parts)


def parse_formula(texts: Sequence[str]) -> Formula:
    """Parse a formula with all brackets, such as ``( a and ( not b ) )`` or ``( a ( and ( not b ) ) )``.

    Args:
        texts: the texts of its tokens.

    Returns:
        The formula.

    Raises:
        ValueError: the tokens are not one formula.

    >>> parse_formula("( a and b".split())
    Traceback (most recent call last):
    ...
    ValueError: a formula must have ) after token 4, but got nothing
    """
    parser = _Parser(texts)
    formula = parser.parse()
    if parser.rest:
        raise ValueError(f"a formula must end after token {parser.position}, but got {parser.rest[0]!r}")
    return formula


class _Parser:
    """Reads the tokens of a formula from left to right."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self.position = 0

    @property
    def rest(self) -> Sequence[str]:
        return self._texts[self.position :]

    @property
    def _next(self) -> str | None:
        return self._texts[self.position] if self.position < len(self._texts) else None

    def parse(self) -> Formula:
        text = self._take("a variable or (", (*VARIABLES, "("))
        if text != "(":
            return Formula(name=text)
        if self._next == "not":
            self.position += 1
            formula = Formula(name="not", parts=(self.parse(),))
        else:
            left = self.parse()
            is_nested = self._next == "("
            self.position += is_nested
            name = self._take("and or or", ("and", "or"))
            formula = Formula(name=name, parts=(left, self.parse()))
            if is_nested:
                self._take(")", (")",))
        self._take(")", (")",))
        return formula

    def _take(self, expected: str, allowed: Sequence[str]) -> str:
        """Return the next token, which must be one of the allowed ones."""
        if self._next not in allowed:
            got = repr(self._next) if self.rest else "nothing"
            raise ValueError(f"a formula must have {expected} after token {self.position}, but got {got}")
        self.position += 1
        return self._texts[self.position - 1]
