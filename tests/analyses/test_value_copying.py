"""Copying of attended values: the gain of a planted head, a null that vanishes, and decoys."""

import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import run_analyses, value_copying
from mesascope.analyses.heads.value_copying import _regress_contributions
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch


def converging() -> Batch:
    return Affine().sample(256, torch.Generator().manual_seed(0))


def trending() -> Batch:
    """Independent terms around a mean that rises with the position."""
    x = torch.randn(256, 21, 1, generator=torch.Generator().manual_seed(1)) + torch.arange(21.0)[:, None]
    return Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=torch.ones(256, 20))


def test_the_null_vanishes_where_shuffled_keys_keep_the_gain():
    """In a converging sequence all keys are similar, so a shuffle within the sequence leaves most of the gain."""
    model, batch = build_planted_model("copying"), converging()
    acts = capture(model, batch, ["pattern", "z", "resid_post", "output"])
    found = value_copying(acts)
    order = torch.rand(batch.inputs.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(1)
    shuffled = batch.inputs.gather(1, order[..., None])
    within, _ = _regress_contributions(acts, shuffled[None], 2)
    gain, null = float(found["gain"][0, 0]), float(found["gain_null"][0, 0])
    assert gain == pytest.approx(1.0, abs=1e-3)
    assert float(within[0, 0, 0]) > 0.5
    assert abs(null) < 0.05
    assert float(found["gain_null_low"][0, 0]) < 0 < float(found["gain_null_high"][0, 0]) < 0.5


def test_a_head_that_copies_the_position_has_the_score_of_its_null():
    found = run_analyses(build_planted_model("copies position"), trending(), [value_copying])["value_copying"]
    explained, null = float(found["explained"][0, 0]), float(found["explained_null"][0, 0])
    assert explained > 0.5
    assert explained == pytest.approx(null, abs=0.01)
    assert float(found["role"][0, 0]) == 0
    copying = run_analyses(build_planted_model("copying"), trending(), [value_copying])["value_copying"]
    assert float(copying["role"][0, 0]) == 1


def test_the_band_is_that_of_several_exchanges():
    acts = capture(build_planted_model("copying"), converging(), ["pattern", "z", "resid_post", "output"])
    few, many = (value_copying(acts, draws=draws) for draws in (10, 20))
    assert not few["gain_null"].equals(many["gain_null"])
    assert few["gain"].equals(many["gain"])
    assert few["gain_null_high"].attrs["control_of"] == "gain"
    with pytest.raises(ValueError, match="two sequences and two draws or more, but got 256 and 1"):
        value_copying(acts, draws=1)
    one = capture(build_planted_model("copying"), converging()[:1], ["pattern", "z", "resid_post", "output"])
    with pytest.raises(ValueError, match="but got 1 and 10"):
        value_copying(one)
