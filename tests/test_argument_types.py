"""Arguments of public functions are validated by their annotations."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mesascope import Edit
from mesascope.argument_types import validate_arguments, validate_call, validate_type
from mesascope.interventions import zero

ACCEPTED = [
    (3, int),
    (np.int64(3), int),
    (3, float),
    (None, int | None),
    ("a", Literal["a", "b"]),
    ("anything", Any),
    (None, Any | None),
    ([zero("z")], Edit | Sequence[Edit]),
    ([], Sequence[Edit]),
    ((1, 2), Sequence[int]),
    (torch.ones(2), Sequence[float]),
    (torch.ones(2, 3), Float[Tensor, "row feature"]),
    (torch.ones(2, 3), Shaped[Tensor, "row *rest"]),
    (torch.ones(2), Shaped[Tensor, "row *rest"]),
]
REFUSED = [
    (True, int, "must be an integer, but got True"),
    (float("nan"), float, "must be a number, but got nan"),
    ("c", Literal["a", "b"], "must be a or b, but got 'c'"),
    (torch.ones(2), Sequence[Edit], "must be a Sequence of Edit, but got a float32 Tensor"),
    ([zero("z"), 1], Edit | Sequence[Edit], "must be an Edit or a Sequence of Edit, but got"),
    (torch.ones(2), Float[Tensor, "row feature"], r"must be a float Tensor with the axes \(row feature\), but got a"),
    (
        torch.ones(2, 3).long(),
        Float[Tensor, "row feature"],
        r"must be a float Tensor with the axes \(row feature\), but got an int64 Tensor",
    ),
    (
        torch.tensor(1.0),
        Shaped[Tensor, "row *rest"],
        r"must be a Tensor with the axes \(row \*rest\), but got a float32 Tensor",
    ),
    (torch.ones(2, device="meta"), Tensor, "must have values, but got a tensor on the meta device"),
    (torch.ones(2, 3).to_sparse(), Tensor, "must be dense, but got a tensor with the layout torch.sparse_coo"),
]


@pytest.mark.parametrize(("value", "hint"), ACCEPTED, ids=[str(number) for number in range(len(ACCEPTED))])
def test_values_of_the_annotated_type_are_accepted(value, hint):
    validate_type("x", value, hint)


@pytest.mark.parametrize(("value", "hint", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_other_values_are_refused_in_one_line(value, hint, message):
    with pytest.raises(ValueError, match=f"^x {message}") as caught:
        validate_type("x", value, hint)
    assert len(str(caught.value).splitlines()) == 1


@validate_arguments
def count_rows(x: Float[Tensor, "row feature"], *, factor: int = 1, **_: Any) -> int:
    return factor * len(x)


def test_sizes_of_axes_of_a_caller_do_not_count():
    @jaxtyping.jaxtyped(typechecker=None)
    def call(x: Float[Tensor, "row feature"]) -> int:
        assert isinstance(x, Float[Tensor, "row feature"])  # binds both axes
        return count_rows(x[1:, 1:])

    assert call(torch.ones(4, 3)) == 3


def test_positional_and_named_arguments_are_validated():
    assert count_rows(torch.ones(2, 3), factor=2, other="text") == 4
    with pytest.raises(ValueError, match=r"^x must be"):
        count_rows([[1.0]])
    with pytest.raises(ValueError, match=r"^factor must be an integer"):
        count_rows(torch.ones(2, 3), factor=2.0)


def test_a_callable_without_annotations_takes_any_value():
    validate_call(partial(count_rows, factor=2), {"x": "text"}, {})
    with pytest.raises(ValueError, match=r"^the rows must be"):
        validate_call(count_rows, {"x": "text"}, {"x": "the rows"})
    with pytest.raises(ValueError, match=r"^factor must be"):
        validate_call(count_rows, {"factor": "text"}, {"x": "the rows"})


def test_annotations_that_cannot_be_resolved_leave_the_others_checked():
    @validate_arguments
    def make(count: int, folder: "NoSuchClass" = None) -> "NoSuchClass":  # pyright: ignore
        return count, folder

    assert make(1, "anything") == (1, "anything")
    with pytest.raises(ValueError, match="count must be an integer, but got 'a'"):
        make("a")


@pytest.mark.parametrize(("name", "least"), [("seed", "0"), ("count", r"-2\^63")])
def test_an_integer_must_fit_a_tensor(name, least):
    with pytest.raises(ValueError, match=rf"^{name} must be from {least} to 2\^63 - 1, but got 10+\.*$"):
        validate_type(name, 10**30, int)
    validate_type(name, 2**63 - 1, int)
