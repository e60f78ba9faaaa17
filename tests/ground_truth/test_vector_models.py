"""Analyses detect the mechanism planted in head 0, and none in decoys and noise heads."""

import pytest
import torch

from cases import covering
from mesascope.analyses import positional_attention, run_analyses, similarity, value_copying
from mesascope.ground_truth.models.vectors import VECTOR_MECHANISMS, build_planted_model
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

SIMILARITY_ROLES = {"dissimilar, added": -1, "similar, subtracted": 1, "similar, added": 1}
COPYING_ROLES = dict.fromkeys(VECTOR_MECHANISMS, 1) | {
    "similar, subtracted": -1,
    "constant": 0,
    "copies position": 0,
    "residual only": 0,
}
POSITIONS = {
    "previous": "previous",
    "two back": "two back",
    "copying": "self",
    "constant": "self",
    "copies position": "self",
}


def sample_affine() -> Batch:
    return Affine().sample(256, torch.Generator().manual_seed(0))


def sample_independent() -> Batch:
    x = torch.randn(256, 21, 1, generator=torch.Generator().manual_seed(5))
    return Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=torch.ones(256, 20))


@pytest.mark.parametrize(("name", "sequences"), covering(VECTOR_MECHANISMS, [sample_affine, sample_independent]))
def test_planted_mechanism_is_detected_and_nothing_else(name, sequences):
    found = run_analyses(build_planted_model(name), sequences(), [similarity, value_copying, positional_attention])
    assert found["similarity"]["role"][0].values.tolist() == [SIMILARITY_ROLES.get(name, 0), 0, 0, 0]
    assert found["value_copying"]["role"][0].values.tolist() == [COPYING_ROLES[name], 0, 0, 0]
    looks = found["positional_attention"]["score"][0]
    scores = ["first", "self", "previous", "two back"]
    strong = {(head, score) for head in range(4) for score in scores if looks.sel(head=head, stat=score) > 0.9}
    assert strong == ({(0, POSITIONS[name])} if name in POSITIONS else set())


def test_early_positions_correlate_with_similarity_but_do_not_interact():
    """In a converging sequence early keys are dissimilar."""
    found = run_analyses(build_planted_model("early positions"), sample_affine(), [similarity])["similarity"]
    assert found["over_keys"][0, 0] < -0.8
    assert found["interaction"][0, 0] == 0


def test_preference_for_large_keys_has_no_interaction():
    """The raw correlation depends on the main effect of the key; the interaction does not."""
    found = run_analyses(build_planted_model("large keys"), sample_affine(), [similarity])["similarity"]
    assert abs(float(found["fixed_position"][0, 0])) > 0.01
    assert abs(float(found["interaction"][0, 0])) < 1e-6


def test_copying_recovers_the_planted_gain():
    found = run_analyses(build_planted_model("similar, subtracted"), sample_independent(), [value_copying])[
        "value_copying"
    ]
    assert float(found["gain"][0, 0]) == pytest.approx(-0.5, abs=1e-3)
    assert float(found["explained"][0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_unknown_mechanism_raises():
    with pytest.raises(ValueError, match="must be one of previous, copying"):
        build_planted_model("telepathy")
