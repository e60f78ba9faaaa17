"""Cases of parametrised tests: a few that cover every value in `make test`, all combinations in `make test-slow`."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def spread(values: Iterable[Any], count: int) -> list[Any]:
    """All values of one or more arguments; of these, only some, evenly spread over the list, are not slow.

    Args:
        values: The values; a tuple has one value for each argument.
        count: The number of values that are not slow.

    Returns:
        One ``pytest.param`` for each value.

    >>> [case.values for case in spread("abcdef", 2) if not case.marks]
    [('a',), ('d',)]
    """
    every = list(values)
    kept = {index * len(every) // count for index in range(count)}
    return [_make_case(value, index not in kept) for index, value in enumerate(every)]


def covering(*values: Iterable[Any]) -> list[Any]:
    """All combinations of values; of these, only as many as it takes to use every value once are not slow.

    Args:
        *values: The values of each argument.

    Returns:
        One ``pytest.param`` for each combination.

    >>> [case.values for case in covering("ab", "xyz") if not case.marks]
    [('a', 'x'), ('a', 'z'), ('b', 'y')]
    """
    lists = [list(each) for each in values]
    diagonal = {tuple(index % len(each) for each in lists) for index in range(max(map(len, lists)))}
    cases = product(*(enumerate(each) for each in lists))
    return [
        pytest.param(
            *(value for _, value in case),
            marks=() if tuple(index for index, _ in case) in diagonal else pytest.mark.slow,
        )
        for case in cases
    ]


def _make_case(value: Any, is_slow: bool) -> Any:
    marks = pytest.mark.slow if is_slow else ()
    if isinstance(value, ParameterSet):
        return pytest.param(*value.values, id=value.id, marks=[*value.marks, *([marks] if is_slow else [])])
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks)
