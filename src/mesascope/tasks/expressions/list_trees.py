"""Expressions of ListOps as trees: drawing, evaluation, tokens and parsing."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

OPERATORS = ("MIN", "MAX", "MED", "SM")
NUM_DIGITS = 10
CLOSE, ANSWER, PADDING = (NUM_DIGITS + len(OPERATORS) + n for n in range(3))  # tokens after digits and operators
TEXTS = (*map(str, range(NUM_DIGITS)), *(f"[{name}" for name in OPERATORS), "]", "=", ".")
TOKENS = {text: token for token, text in enumerate(TEXTS)}


@dataclass(frozen=True, kw_only=True)
class ListTree:
    """An operator and its arguments.

    Attributes:
        operator: index in `OPERATORS`.
        arguments: digits, and further lists.
    """

    operator: int
    arguments: tuple["ListTree | int", ...]

    @cached_property
    def value(self) -> int:
        """The digit that the list evaluates to: MIN, MAX, MED or SM (sum mod 10); see `apply_operator`.

        >>> parse_list("[SM [MED 2 9 4 3 ] 8 ]".split()).value
        1
        """
        return apply_operator(self.operator, [get_value(one) for one in self.arguments])

    @cached_property
    def height(self) -> int:
        """The number of lists on the longest path to a digit; 1 for a list of digits."""
        return 1 + max((one.height for one in self.lists), default=0)

    @property
    def lists(self) -> list["ListTree"]:
        """The arguments that are lists."""
        return [one for one in self.arguments if isinstance(one, ListTree)]

    def iterate_lists(self) -> Iterator["ListTree"]:
        """Yield every list in the order of its closing bracket.

        Yields:
            The lists, the whole expression last.
        """
        for one in self.lists:
            yield from one.iterate_lists()
        yield self

    def to_tokens(self) -> list[int]:
        """Return the tokens of the list."""
        tokens = [NUM_DIGITS + self.operator]
        for one in self.arguments:
            tokens += one.to_tokens() if isinstance(one, ListTree) else [one]
        return [*tokens, CLOSE]


def get_value(argument: ListTree | int) -> int:
    """Return the value of a list, or the digit itself.

    Args:
        argument: a list or a digit.
    """
    return argument.value if isinstance(argument, ListTree) else argument


def apply_operator(operator: int, digits: Sequence[int]) -> int:
    """Return the value of an operator.

    The median of an even number of digits is the mean of the two middle ones, rounded down, as in the code of ListOps.

    Args:
        operator: index in `OPERATORS`.
        digits: at least one digit.
    """
    if OPERATORS[operator] == "MED":
        middle = sorted(digits)[(len(digits) - 1) // 2 : len(digits) // 2 + 1]
        return sum(middle) // len(middle)
    return {"MIN": min, "MAX": max, "SM": lambda each: sum(each) % NUM_DIGITS}[OPERATORS[operator]](digits)


class TooLongError(Exception):
    """A tree that is drawn has more tokens than allowed."""


def draw_list(
    rng: random.Random, *, max_length: int, max_depth: int, arguments: tuple[int, int], list_probability: float
) -> ListTree | None:
    """Draw an expression from the top down.

    Args:
        rng: source of randomness.
        max_length: largest number of tokens.
        max_depth: lists at this depth have digits only.
        arguments: smallest and largest number of arguments; every number between them has the same probability.
        list_probability: probability that an argument is a list; all operators have the same probability.

    Returns:
        The expression, or ``None`` if it has too many tokens.
    """
    remaining = max_length

    def draw(depth: int) -> ListTree:
        nonlocal remaining
        remaining -= 2
        drawn: list[ListTree | int] = []
        for _ in range(rng.randint(*arguments)):
            if depth < max_depth and rng.random() < list_probability:
                drawn.append(draw(depth + 1))
            else:
                remaining -= 1
                drawn.append(rng.randrange(NUM_DIGITS))
            if remaining < 0:
                raise TooLongError
        return ListTree(operator=rng.randrange(len(OPERATORS)), arguments=tuple(drawn))

    try:
        return draw(1)
    except TooLongError:
        return None


def parse_list(texts: Sequence[str]) -> ListTree:
    """Parse an expression.

    Args:
        texts: the texts of its tokens.

    Returns:
        The tree.

    Raises:
        ValueError: the tokens are not one list.

    >>> parse_list("[MAX 1 ] ]".split())
    Traceback (most recent call last):
    ...
    ValueError: an expression must be one list in brackets, but there is more after "]" (token 3)
    """
    if not texts or texts[0] not in TOKENS or not _is_operator(TOKENS[texts[0]]):
        first = f"{texts[0]!r}" if texts else "nothing"
        raise ValueError(f"an expression must begin with one of {', '.join(map(_bracket, OPERATORS))}, but got {first}")
    open_lists: list[tuple[int, list[ListTree | int]]] = []
    for number, text in enumerate(texts, start=1):
        token = TOKENS.get(text, PADDING)
        if _is_operator(token):
            open_lists.append((token - NUM_DIGITS, []))
        elif token < NUM_DIGITS:
            open_lists[-1][1].append(token)
        elif token == CLOSE:
            operator, arguments = open_lists.pop()
            if not arguments:
                raise ValueError(f"a list must have arguments, but one has none (token {number})")
            tree = ListTree(operator=operator, arguments=tuple(arguments))
            if not open_lists and number < len(texts):
                raise ValueError(
                    f'an expression must be one list in brackets, but there is more after "]" (token {number})'
                )
            if not open_lists:
                return tree
            open_lists[-1][1].append(tree)
        else:
            raise ValueError(
                f"a token must be a digit, ] or one of {', '.join(map(_bracket, OPERATORS))}, but got {text!r} "
                f"(token {number})"
            )
    raise ValueError(f"every list must be closed by ], but {len(open_lists)} are open at the end")


def _is_operator(token: int) -> bool:
    return NUM_DIGITS <= token < CLOSE


def _bracket(name: str) -> str:
    return f"[{name}"
