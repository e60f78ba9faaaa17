"""Quantization to one byte: exact for few distinct numbers, with bounded error otherwise."""

from base64 import b64decode

import numpy as np
import pytest

from mesascope.report.plotting.quantize import quantize_array


def unpacked(packed) -> np.ndarray:
    codes = np.frombuffer(b64decode(packed.encoded), np.uint8).reshape(packed.codes.shape)
    return np.where(codes > 0, packed.levels[codes.astype(int) - 1], np.nan)


def test_few_distinct_numbers_are_kept_exactly():
    values = np.array([[0.0, -3.5, np.nan], [1e9, 0.0, np.inf]])
    packed = quantize_array(values)
    assert packed.exact
    np.testing.assert_array_equal(unpacked(packed), np.where(np.isfinite(values), values, np.nan))


def test_evenly_spread_numbers_are_near():
    values = np.random.default_rng(0).uniform(-2, 3, (4, 500))
    packed = quantize_array(values)
    assert not packed.exact
    assert np.abs(unpacked(packed) - values).max() <= 5 / 254 / 2 + 1e-9
    assert packed.colour_range == (values.min(), values.max())


def test_logarithms_are_near_and_zero_stays_zero():
    values = 10 ** np.random.default_rng(0).uniform(-6, 6, 2000)
    values[:3] = 0
    found = unpacked(quantize_array(values, log=True))
    assert (found[:3] == 0).all()
    np.testing.assert_allclose(found[3:], values[3:], rtol=0.06)


def test_a_few_giants_cost_the_rest_little():
    values = np.random.default_rng(0).standard_normal(4000)
    values[:5] = [1e4, -2e4, 3e4, 1e4, 2e4]
    packed = quantize_array(values)
    found = unpacked(packed)
    np.testing.assert_allclose(found[:5], values[:5], rtol=0.1)
    assert np.abs(found[5:] - values[5:]).max() < 0.35
    assert -3 < packed.colour_range[0] < packed.colour_range[1] < 3


@pytest.mark.parametrize("values", [np.full((2, 3), np.nan), np.zeros((0,)), np.full(4, 7.0)])
def test_nothing_and_sameness_are_no_obstacle(values):
    np.testing.assert_array_equal(unpacked(quantize_array(values)), values)
