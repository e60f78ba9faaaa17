"""Tests run with shapes checked: an array of another shape than the signature says is an error, here alone."""

import jaxtyping
import pytest
import torch

from mesascope.models.layers import apply_rotary, sinusoidal_positions
from mesascope.tasks.base import Batch


def test_an_array_of_another_shape_than_the_signature_s_is_refused():
    positions = torch.arange(3)[None]
    assert apply_rotary(torch.zeros(1, 2, 3, 4), positions).shape == (1, 2, 3, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        apply_rotary(torch.zeros(2, 3, 4), positions)
    with pytest.raises(jaxtyping.TypeCheckError):
        sinusoidal_positions(positions.float(), 4)


def test_so_it_is_in_a_dataclass():
    with pytest.raises(jaxtyping.TypeCheckError):
        Batch(inputs=torch.zeros(3), targets=torch.zeros(1, 3, 1), weight=torch.ones(1, 3))
